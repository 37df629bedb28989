"""Recall: a model that knows a text by heart goes on with it, one that does not does not; batches change nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.safety.passages import Passage
from llmctl.core.safety.recall import longest_run, recall, recalled
from llmctl.spec.model import ModelConfig

V = 23
SHAPE = {"vocab": V, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ff": 48, "context": 64, "init_std": 0.3}


@pytest.fixture(scope="module")
def cyclic():
    """A model set by hand to write t + 1 after t: layers that add nothing, and a head that is the embedding, moved."""
    model = initialise(Transformer(ModelConfig(**SHAPE, tie=False)), 0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.down.weight")):
                parameter.zero_()
        model.head.weight.copy_(model.embed.tokens.weight.roll(1, 0))
    return model


def counting(number, first, size, wrong=()):
    """A passage that counts on, but for some places."""
    ids = [(first + place) % V for place in range(size)]
    for place in wrong:
        ids[place] = (ids[place] + 7) % V
    return Passage(number, "", ids)


def test_what_a_model_knows_by_heart_is_exact_and_what_it_does_not_is_matched_so_far(cyclic):
    known, erring = counting(0, 3, 30), counting(1, 5, 30, wrong=[24])
    found = [scored for _, scored in recall(cyclic, [known, erring], (5, 20), 10)]
    assert [one.scores for one in found[0]] == [{"memorized": 1.0, "matched_tokens": 10.0, "longest_run": 10.0}] * 2
    assert [one.prefix for one in found[0]] == [5, 20]
    assert [one.scores for one in found[1]] == [{"memorized": 0.0, "matched_tokens": 4.0, "longest_run": 5.0}] * 2


def test_an_end_of_text_ends_what_is_written(cyclic):
    ((_, (one,)),) = recall(cyclic, [counting(0, 0, 20)], (10,), 10, eos=frozenset({15}))
    assert one.written == (10, 11, 12, 13, 14, 15) and not one.exact and one.matched == 6


def test_batches_change_nothing_and_the_order_is_kept():
    model = initialise(Transformer(ModelConfig(**SHAPE, tie=False)), 4).eval()
    chance = torch.Generator().manual_seed(0)
    given_ = [Passage(n, "", torch.randint(V, (24,), generator=chance).tolist()) for n in range(40)]
    alone = list(recall(model, given_, (3, 12), 8, start=1, rows=1))
    assert [passage.number for passage, _ in alone] == list(range(40))
    assert list(recall(model, given_, (3, 12), 8, start=1, rows=7)) == alone
    assert len({one.written for _, found in alone for one in found}) > 20


def test_passages_are_read_as_they_are_needed(cyclic):
    taken = []
    source = (taken.append(n) or counting(n, n, 20) for n in range(1000))
    next(recall(cyclic, source, (10,), 10, rows=4))
    assert len(taken) <= 16


def test_the_prefix_is_what_stands_right_before_the_suffix(cyclic):
    erring = counting(0, 0, 30, wrong=range(15))  # the far half of the passage is of no matter
    ((_, (near, _)),) = recall(cyclic, [erring], (5, 20), 10)
    assert near.exact


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_the_longest_run_is_that_of_trying_them_all(one, other):
    runs = {tuple(other[a:b]) for a in range(len(other)) for b in range(a + 1, len(other) + 1)}
    sizes = [b - a for a in range(len(one)) for b in range(a + 1, len(one) + 1) if tuple(one[a:b]) in runs]
    assert longest_run(one, other) == max(sizes, default=0)


def test_a_continuation_that_ended_early_is_not_exact():
    assert recalled(1, [1, 2], [1, 2, 3]).scores == {"memorized": 0.0, "matched_tokens": 2.0, "longest_run": 2.0}
    assert recalled(1, [], [1, 2]).scores == {"memorized": 0.0, "matched_tokens": 0.0, "longest_run": 0.0}
