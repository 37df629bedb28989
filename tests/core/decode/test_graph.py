"""graph: a recorded step computes what a plain one does, and is recorded anew when the cache moves."""

import pytest
import torch

from llmctl.core.decode.graph import Recorded, fits
from llmctl.core.decode.rows import Rows
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from tests.core.variants import VARIANTS

TEXTS = [[3, 5, 8], [13, 21, 34, 55, 1, 2], [7]]


@pytest.mark.parametrize("name", [name for name, config in VARIANTS.items() if fits(config)])
@torch.inference_mode()
def test_recorded_steps_are_plain_steps(name):
    model, recorded = initialise(Transformer(VARIANTS[name]), 0).eval(), []
    plain, other = Rows(model), Rows(model)
    scores = plain.add(TEXTS)
    other.add(TEXTS)
    for one in (*other._cache.keys, *other._cache.values):
        one[:, :, 12:] = float("nan")  # as memory may be that nobody has written
    steps = Recorded(model, lambda work: recorded.append(work) or work, after=2)
    missed = 0
    for _ in range(8):
        tokens = scores.argmax(-1).tolist()
        scores, made = plain.step(tokens), steps.step(other._cache, tokens)
        if made is None:
            missed, made = missed + 1, other.step(tokens)
        torch.testing.assert_close(made, scores, rtol=1e-4, atol=1e-4)  # sums over masked slots, in another order
    assert missed == 2 and len(recorded) == 1 and other._cache.lengths == plain._cache.lengths


@torch.inference_mode()
def test_rows_that_leave_and_caches_that_grow_are_recorded_anew():
    model, recorded = initialise(Transformer(VARIANTS["llama"]), 0).eval(), []
    rows, steps = Rows(model), Recorded(model, lambda work: recorded.append(work) or work, after=1)
    rows.add(TEXTS)
    for number, change in enumerate((lambda: None, lambda: rows.keep([2, 0]), lambda: rows._cache.grow(900)), 1):
        change()
        count = len(rows)
        assert steps.step(rows._cache, [4] * count) is None
        rows.step([4] * count)
        assert steps.step(rows._cache, [4] * count).shape == (count, 61) and len(recorded) == number


def test_models_whose_slots_are_no_places_are_left_alone():
    assert not any(fits(VARIANTS[name]) for name in ("mistral", "gemma2", "t5", "bert"))
