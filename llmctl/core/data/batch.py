"""Batch: tokens packed into rows, and the order in which training meets them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from llmctl.core.model.memory import EncoderInput
from llmctl.spec.train import rows_per_epoch

IGNORE = -100  # a target that is not scored
HELD_OUT = -1  # the epoch of rows that are evaluated on: the same noise every time


class Answers(NamedTuple):
    """A teacher's likeliest tokens at N places.

    Attributes:
        ids: (N, K) int64, the likeliest first.
        logp: (N, K + 1) float32, log probabilities of these tokens, and last that of all others together: -inf where
            there are none.
    """

    ids: Tensor
    logp: Tensor


class Batch(NamedTuple):
    """Rows of packed tokens; the tensors are (B, T) int64.

    Attributes:
        tokens: what the model reads.
        targets: what it is asked for at each place; IGNORE where nothing is.
        positions: place of each token in its document, from 0.
        segments: number of each token's document in its row, from 1; 0 is padding.
        scored: how many targets count.
        read: how many tokens pass through the model: the encoder's too, padding not.
        types: kind of each token, for models that tell kinds apart.
        prefix: (B, T) bool, tokens that see each other both ways.
        encoder: what the encoder of an encoder-decoder reads; the rest is then the decoder's.
        pairs: (B,) int64, for rows of two texts: 0 where the second follows the first, 1 where it does not.
        labels: what a classifier of texts is asked for: (B,) int64, or where labels do not exclude each other (B, L)
            float32.
        answers: what a teacher says at the places that are scored, row by row.
        written: the targets are what the model itself has written.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    segments: Tensor
    scored: int
    read: int
    types: Tensor | None = None
    prefix: Tensor | None = None
    encoder: EncoderInput | None = None
    pairs: Tensor | None = None
    labels: Tensor | None = None
    answers: Answers | None = None
    written: bool = False

    def to(self, device: torch.device) -> "Batch":
        """The same on a device; through pinned memory, without waiting, when that is a GPU."""
        pinned = device.type == "cuda"

        def moved(part: object) -> object:
            if isinstance(part, EncoderInput):
                return part.to(device, pinned)
            if isinstance(part, Answers):
                return Answers(*map(moved, part))
            if not isinstance(part, Tensor):
                return part
            return (part.pin_memory() if pinned else part).to(device, non_blocking=pinned)

        return Batch(*(moved(part) for part in self))


class Place(NamedTuple):
    """Where a row begins in the stream of tokens, and which row of which pass it is: what its noise is keyed by.

    Attributes:
        start: in tokens.
        epoch: pass over the training tokens, from 0; HELD_OUT for rows of an evaluation.
        index: of the row within its epoch, in the order in which they are taken.
    """

    start: int
    epoch: int
    index: int


class Source(Protocol):
    """A run of tokens that can be read anywhere, such as a split of `core.data.shards.Tokens`."""

    tokens: int
    document_ends: np.ndarray

    def read(self, start: int, count: int) -> np.ndarray: ...


Build = Callable[[Source, list[Place], int], Batch]  # rows of a source that begin at places, so many tokens long


def pack(source: Source, places: list[Place], block: int) -> Batch:
    """Rows of `block` tokens that begin at `places`, each asked for the token after it.

    The end-of-text token that closes one document opens the next: it is the first token of the next document's
    segment, and the target of the last token of its own. So every token is scored, each given its own document
    only, and a model learns to begin a text from the token that generation begins with.

    Args:
        source: the tokens.
        places: B of them; a row that reaches the end of the source is padded.
        block: T.
    """
    count = len(places)
    tokens = np.zeros((count, block), dtype=np.int64)
    targets = np.full((count, block), IGNORE, dtype=np.int64)
    positions = np.zeros((count, block), dtype=np.int64)
    segments = np.zeros((count, block), dtype=np.int64)
    ends = source.document_ends
    for row, (start, _, _) in enumerate(places):
        ids = source.read(start, min(block + 1, source.tokens - start))
        length = min(block, len(ids) - 1)
        if length < 1:
            continue
        tokens[row, :length] = ids[:length]
        targets[row, :length] = ids[1 : length + 1]
        borders = np.array([start + 1, start + length + 1], ends.dtype)  # of another type, all of ends would be copied
        first, last = np.searchsorted(ends, borders, side="left")
        opens = np.asarray(ends[first:last], dtype=np.int64) - 1 - start  # places of end-of-text tokens in the row
        slots = np.arange(length)
        segment = np.searchsorted(opens, slots, side="right")
        segments[row, :length] = segment + (1 if not len(opens) or opens[0] > 0 else 0)
        begins = np.concatenate(([0], opens))
        positions[row, :length] = slots - begins[segment]
    made = (torch.from_numpy(part) for part in (tokens, targets, positions, segments))
    scored = int((targets != IGNORE).sum())
    return Batch(*made, scored=scored, read=scored)


@dataclass(frozen=True)
class TrainingOrder:
    """Which rows make up each optimizer step: a pure function of the seed and the step, so resuming is exact.

    Each epoch cuts the source into rows of `block` tokens at an offset of its own, and takes them in an order of
    its own; the few tokens before the offset and after the last whole row are left out of that epoch.

    Attributes:
        source: the tokens.
        block: tokens of a row.
        rows: rows of one step.
        seed: of the offsets and orders.
        build: makes the rows.
    """

    source: Source
    block: int
    rows: int
    seed: int
    build: Build = pack

    def places(self, step: int) -> list[Place]:
        """Where the rows of step 1, 2, ... begin."""
        first = (step - 1) * self.rows
        return [self.place(number) for number in range(first, first + self.rows)]

    def batches(self, step: int, micro: int) -> Iterator[Batch]:
        """The rows of a step, `micro` at a time."""
        places = self.places(step)
        for first in range(0, len(places), micro):
            yield self.build(self.source, places[first : first + micro], self.block)

    def place(self, number: int) -> Place:
        rows = rows_per_epoch(self.source.tokens, self.block)
        epoch, index = divmod(number, rows)
        slack = min(self.block, max(0, self.source.tokens - 1 - rows * self.block))
        offset, order = _epoch(self.seed, epoch, rows, slack)
        return Place(int(offset + order[index] * self.block), epoch, index)


def in_order(source: Source, block: int, rows: int, limit: int, build: Build = pack) -> Iterator[Batch]:
    """The first `limit` tokens of a source in order, `rows` rows of `block` tokens at a time: for evaluation."""
    starts = range(0, min(source.tokens - 1, limit), block)
    places = [Place(start, HELD_OUT, index) for index, start in enumerate(starts)]
    for first in range(0, len(places), rows):
        yield build(source, places[first : first + rows], block)


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, rows: int, slack: int) -> tuple[int, np.ndarray]:
    """An epoch's offset, 0..slack tokens, and the order of its rows."""
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    return int(generator.integers(slack + 1)), generator.permutation(rows)
