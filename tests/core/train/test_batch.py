"""Rows of packed documents, and the order in which training meets them."""

import numpy as np
import pytest
import torch

from llmctl.core.data.batch import IGNORE, Place, TrainingOrder, in_order, pack
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig
from llmctl.spec.train import rows_per_epoch

EOS = 9


def at(start: int) -> list[Place]:
    return [Place(start, 0, 0)]


class Memory:
    """Documents in memory, each closed by EOS."""

    def __init__(self, documents: list[list[int]]):
        self.ids = np.array([i for document in documents for i in [*document, EOS]])
        self.document_ends = np.cumsum([len(document) + 1 for document in documents]).astype(np.uint64)
        self.tokens = len(self.ids)

    def read(self, start: int, count: int) -> np.ndarray:
        assert start + count <= self.tokens
        return self.ids[start : start + count].astype(np.int64)


def test_the_end_of_one_document_opens_the_next_and_every_token_is_a_target():
    batch = pack(Memory([[1, 2, 3], [4, 5], [6]]), at(0), 8)  # ids 1 2 3 E 4 5 E 6 E
    assert batch.tokens.tolist() == [[1, 2, 3, EOS, 4, 5, EOS, 6]]
    assert batch.targets.tolist() == [[2, 3, EOS, 4, 5, EOS, 6, EOS]]
    assert batch.segments.tolist() == [[1, 1, 1, 2, 2, 2, 3, 3]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]]
    assert batch.scored == 8


def test_a_row_that_begins_with_an_end_of_text_has_no_empty_document_before_it():
    batch = pack(Memory([[1, 2, 3], [4, 5], [6]]), at(3), 4)  # E 4 5 E
    assert batch.segments.tolist() == [[1, 1, 1, 2]]
    assert batch.positions.tolist() == [[0, 1, 2, 0]]


def test_the_last_row_is_padded_and_its_padding_is_never_a_target():
    source = Memory([[1, 2, 3], [4, 5], [6]])
    whole, padded = pack(source, at(6), 2), pack(source, at(6), 7)
    assert padded.targets[0, 2:].eq(IGNORE).all() and padded.segments[0, 2:].eq(0).all()
    assert padded.scored == whole.scored == 2


def test_a_document_sees_nothing_of_its_neighbours_in_a_packed_row():
    config = ModelConfig(vocab=10, width=32, layers=2, heads=4, ff=64, context=32, position="learned")
    model = initialise(Transformer(config, "cpu", torch.float32), 0)
    source = Memory([[1, 2, 3, 4], [5, 6, 7], [8, 1, 1, 2]])
    packed = pack(source, at(0), 12)
    with torch.no_grad():
        together = model(packed.tokens, packed.positions, packed.segments)[0]
        alone = model(torch.tensor([[EOS, 5, 6, 7]]))[0]
    torch.testing.assert_close(together[4:8], alone, atol=1e-6, rtol=0)


def test_an_epoch_takes_each_row_once_and_the_next_one_in_another_order():
    source = Memory([list(range(1, 8))] * 40)
    order = TrainingOrder(source, block=16, rows=3, seed=1)
    rows = rows_per_epoch(source.tokens, 16)
    starts = [place.start for step in range(1, 1 + 2 * rows) for place in order.places(step)]
    first, second = starts[:rows], starts[rows : 2 * rows]
    for epoch in (first, second):
        assert len(set(epoch)) == rows
        assert {(b - a) for a, b in zip(sorted(epoch), sorted(epoch)[1:], strict=False)} == {16}
        assert max(epoch) + 17 <= source.tokens
    assert first != second
    again = TrainingOrder(source, 16, 3, 1)
    assert starts == [place.start for step in range(1, 1 + 2 * rows) for place in again.places(step)]
    assert order.places(1) != TrainingOrder(source, 16, 3, 2).places(1)


def test_a_row_is_numbered_within_its_epoch_whatever_the_step_it_falls_into():
    source = Memory([list(range(1, 8))] * 40)
    rows = rows_per_epoch(source.tokens, 16)
    numbers = [place[1:] for step in range(1, 9) for place in TrainingOrder(source, 16, 5, 1).places(step)]
    assert numbers == [divmod(number, rows) for number in range(40)]


@pytest.mark.parametrize("tokens", [2, 3, 16, 17, 18, 33])
def test_a_source_shorter_than_a_row_or_two_still_trains(tokens):
    source = Memory([[1] * (tokens - 1)])
    batches = list(TrainingOrder(source, block=16, rows=2, seed=0).batches(1, 2))
    assert sum(batch.scored for batch in batches) >= 2


def test_evaluation_scores_every_token_but_the_first_once():
    source = Memory([list(range(1, 8))] * 9)
    assert sum(batch.scored for batch in in_order(source, 16, 2, 10**9)) == source.tokens - 1
    assert sum(batch.scored for batch in in_order(source, 16, 2, 32)) == 32
