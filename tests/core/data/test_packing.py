"""Batches of examples: one loss whether packed, padded or in micro-batches; nothing leaks; no pad is trained on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.core.data.batch import IGNORE
from llmctl.core.data.examples import Example, Examples
from llmctl.core.data.mixture import Mixture, quotas
from llmctl.core.data.packing import ExampleOrder, batch_of, in_order, laid_out
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.objectives import tokens_loss
from llmctl.errors import UserError
from tests.core.variants import VARIANTS

FEW = settings(max_examples=15, deadline=None)
SIZES = st.lists(st.integers(2, 14), min_size=1, max_size=9)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small only wait for a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(sizes: list[int], seed: int = 0, sources: bool = False) -> list[Example]:
    """Examples of these many tokens, of which some at the end are asked for."""
    draw = np.random.default_rng([seed, *sizes])
    made = []
    for size in sizes:
        ids = draw.integers(0, 61, size)
        scored = np.arange(size) >= (0 if sources else draw.integers(1, size))
        made.append(Example(ids, scored, draw.integers(0, 61, draw.integers(1, 12)) if sources else None))
    return made


def model(variant: str) -> Transformer:
    return initialise(Transformer(VARIANTS[variant]), 0).eval()


MODELS = {name: model(name) for name in ("llama", "gpt2", "bloom", "mistral", "t5", "prefix")}


def gradient(made: Transformer, batches: list) -> tuple[float, torch.Tensor]:
    """The summed loss of batches, and its gradient, over the count of all that is scored."""
    made.zero_grad()
    total, count = 0.0, sum(batch.scored for batch in batches)
    for batch in batches:
        loss = tokens_loss(made, batch)
        (loss.total / count).backward()
        total += loss.total.item()
    return total / count, torch.cat([p.grad.flatten() for p in made.parameters() if p.grad is not None])


@pytest.mark.parametrize("variant", ["llama", "gpt2", "bloom", "t5", "prefix"])
@settings(max_examples=3, deadline=None)
@given(sizes=SIZES, micro=st.integers(1, 60))
def test_loss_and_gradient_of_a_step_do_not_depend_on_its_layout(variant, sizes, micro):
    made = MODELS[variant]
    both = made.config.kind == "encoder-decoder"
    task, examples = ("seq2seq", drawn(sizes, sources=True)) if both else ("lm", drawn(sizes))
    how = {"start": 0 if both else None, "prefix": made.config.prefix_lm}
    alone = [batch_of(task, [[one]], **how) for one in examples]
    wanted, slopes = gradient(made, alone)
    for pack in (True, False):
        batches = list(laid_out(task, examples, micro, pack, **how))
        loss, found = gradient(made, batches)
        assert loss == pytest.approx(wanted, abs=1e-6, rel=1e-6)  # float32, sums in another order
        torch.testing.assert_close(found, slopes, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("variant", ["llama", "gpt2", "bloom", "mistral", "prefix"])
@torch.inference_mode()
def test_logits_of_an_example_in_a_packed_row_are_those_of_it_alone(variant):
    made, examples = MODELS[variant], drawn([9, 4, 6, 3])
    row = batch_of("lm", [examples], prefix=made.config.prefix_lm)
    packed = made.head(made(row.tokens, row.positions, row.segments, prefix=row.prefix))[0]
    at = 0
    for one in examples:
        one_row = batch_of("lm", [[one]], prefix=made.config.prefix_lm)
        alone = made.head(made(one_row.tokens, one_row.positions, one_row.segments, prefix=one_row.prefix))[0]
        length = len(one.ids) - 1
        torch.testing.assert_close(packed[at : at + length], alone, atol=1e-5, rtol=1e-5)
        at += length
    assert at == row.tokens.shape[1]


@FEW
@given(sizes=SIZES, micro=st.integers(1, 60), pack=st.booleans(), sources=st.booleans())
def test_every_target_is_the_next_token_of_its_example_once_and_never_a_pad(sizes, micro, pack, sources):
    task, examples = ("seq2seq" if sources else "lm"), drawn(sizes, sources=sources)
    seen = []
    for batch in laid_out(task, examples, micro, pack, start=0):
        rows, width = batch.tokens.shape
        cells = rows * width + (batch.encoder.tokens.numel() if batch.encoder else 0)
        assert rows == 1 or cells <= micro
        assert (batch.targets[batch.segments == 0] == IGNORE).all()
        assert batch.scored == int((batch.targets != IGNORE).sum())
        assert batch.read == int((batch.segments > 0).sum()) + (
            int((batch.encoder.segments > 0).sum()) if sources else 0
        )
        for row in range(rows):
            for number in range(1, int(batch.segments[row].max()) + 1):
                mine = batch.segments[row] == number
                assert batch.positions[row][mine].tolist() == list(range(int(mine.sum())))
                seen.append((batch.tokens[row][mine].tolist(), batch.targets[row][mine].tolist()))
    wanted = []
    for one in examples:
        asked = np.where(one.scored, one.ids, IGNORE).tolist()
        wanted.append(([0, *one.ids[:-1]], asked) if sources else (one.ids[:-1].tolist(), asked[1:]))
    assert sorted(map(repr, seen)) == sorted(repr(([int(i) for i in a], [int(i) for i in b])) for a, b in wanted)


def test_packed_rows_are_full_and_no_wider_than_the_longest_example():
    (batch,) = laid_out("lm", drawn([11, 3, 5, 6, 6, 3, 5]), 1000)  # 10, 2, 4, 5, 5, 2, 4 places
    assert batch.tokens.shape == (4, 10)
    (batch,) = laid_out("lm", drawn([11, 3, 5, 6, 6, 3, 5]), 1000, pack=False)
    assert batch.tokens.shape == (7, 10)


def test_labels_of_texts_and_of_words_and_kinds_of_tokens_become_batches():
    ids, none = np.array([5, 6, 7]), np.zeros(3, bool)
    texts = [Example(ids, none, label=2, types=np.array([0, 0, 1])), Example(ids[:2], none[:2], label=0)]
    (batch,) = laid_out("classify", texts, 100)
    assert batch.labels.tolist() == [2, 0] and batch.labels.dtype == torch.int64
    assert batch.scored == 2 and batch.types.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert batch.segments.tolist() == [[1, 1, 1], [1, 1, 0]] and batch.targets.eq(IGNORE).all()
    (batch,) = laid_out("classify", [Example(ids, none, label=0.5)], 100)
    assert batch.labels.tolist() == [0.5] and batch.labels.dtype == torch.float32
    (batch,) = laid_out("classify", [Example(ids, none, label=np.array([1.0, 0.0], np.float32))], 100)
    assert batch.labels.shape == (1, 2)
    words = [Example(ids, none, label=np.array([IGNORE, 1, 0])), Example(ids[:1], none[:1], label=np.array([3]))]
    (batch,) = laid_out("tag", words, 100)
    assert batch.targets.tolist() == [[IGNORE, 1, 0], [3, IGNORE, IGNORE]] and batch.scored == 3


def part(size: int) -> Examples:
    return Examples.of("lm", drawn([3] * size))


@FEW
@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_a_pass_over_a_mixture_by_size_has_each_example_once(sizes, seed):
    if not sum(sizes):
        with pytest.raises(UserError, match="no examples"):
            Mixture([part(size) for size in sizes], sizes, seed)
        return
    mixture = Mixture([part(size) for size in sizes], sizes, seed)
    every = sorted((number, at) for number, size in enumerate(sizes) for at in range(size))
    passes = [[mixture.index(epoch * mixture.epoch + slot) for slot in range(mixture.epoch)] for epoch in range(3)]
    assert all(sorted(one) == every for one in passes)
    assert mixture.epoch < 6 or len({tuple(one) for one in passes}) == 3  # in an order of its own


@FEW
@given(sizes=st.lists(st.integers(1, 30), min_size=2, max_size=4), seed=st.integers(0, 9), data=st.data())
def test_weights_are_kept_in_every_pass_and_each_part_is_gone_through_evenly(sizes, seed, data):
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
    mixture = Mixture([part(size) for size in sizes], weights, seed)
    found = [mixture.index(number) for number in range(5 * mixture.epoch)]
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        taken = [at for which, at in found if which == number]
        wanted = weight / sum(weights) * mixture.epoch
        assert len(taken) == 5 * quotas(tuple(sizes), tuple(weights))[number]
        assert abs(len(taken) / 5 - wanted) < 1 + (len(sizes) if wanted < 1 else 1)
        counts = np.bincount(taken, minlength=size)
        assert counts.max() - counts.min() <= 1


def test_a_step_is_a_pure_function_so_that_resuming_is_exact():
    def order() -> ExampleOrder:
        return ExampleOrder(Mixture([part(13), part(5)], [2, 1], 3), batch_size=4)

    through = [[batch.tokens.tolist() for batch in order().batches(step, 20)] for step in range(1, 12)]
    one = order()
    assert [[batch.tokens.tolist() for batch in one.batches(step, 20)] for step in range(11, 0, -1)] == through[::-1]


def test_an_evaluation_reads_every_example_or_as_many_as_fit():
    examples = Examples.of("lm", drawn([5] * 30))
    assert sum(batch.scored for batch in in_order(examples, 64)) == examples.counts["trained_tokens"]
    assert sum(batch.read for batch in in_order(examples, 64, limit=52)) == 40
    assert sum(batch.read for batch in in_order(examples, 64, limit=1)) == 4


def test_an_evaluation_of_a_part_is_drawn_from_everywhere():
    """Sets come sorted by label, or one file after another: the first examples were all of one label, accuracy 1."""
    one = [Example(np.arange(5), np.zeros(5, bool), None, at // 500) for at in range(1000)]
    examples = Examples.of("classify", one)
    labels = [torch.cat([batch.labels for batch in in_order(examples, 64, limit=500)]) for _ in "ab"]
    assert len(labels[0]) == 100 and 30 < labels[0].sum() < 70
    assert labels[0].tolist() == labels[1].tolist()


def test_parts_count_in_the_figures_of_a_mixture_as_often_as_they_are_drawn():
    mixture = Mixture([part(30), part(10)], [1, 1], 0)
    assert mixture.times == [20 / 30, 2.0] and Mixture([part(30), part(10)], [30, 10], 0).times == [1.0, 1.0]


def test_examples_come_out_as_they_went_in():
    sources = drawn([4, 7, 2], sources=True)
    again = list(Examples.of("seq2seq", sources))
    for one, other in zip(again, sources, strict=True):
        assert one.ids.tolist() == other.ids.tolist() and one.source.tolist() == other.source.tolist()
        assert one.scored.tolist() == other.scored.tolist() and one.label is one.types is None
    with pytest.raises(IndexError):
        Examples.of("lm", [])[0]


def test_padded_rows_of_unlike_lengths_are_in_batches_of_their_own_once_these_are_large():
    """Sixteen texts, one of them long, were padded to it: twice the tokens, and twice the time."""
    texts = [Example(np.arange(length, dtype=np.int32), np.ones(length, bool)) for length in [300] * 4 + [60] * 12]
    batches = list(laid_out("lm", texts, 8192, pack=False))
    assert [tuple(batch.tokens.shape) for batch in batches] == [(4, 299), (12, 59)]
    few = list(laid_out("lm", texts[3:], 8192, pack=False))  # too few to be worth a batch
    assert len(few[0].tokens) > 1
