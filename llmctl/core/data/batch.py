"""Batch: tokens packed into rows, and the order in which training meets them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from llmctl.spec.train import rows_per_epoch

IGNORE = -100  # a target that is not scored


class Batch(NamedTuple):
    """Rows of packed tokens; the tensors are (B, T) int64.

    Attributes:
        tokens: what the model reads.
        targets: what it is asked for at each place; IGNORE where nothing is.
        positions: place of each token in its document, from 0.
        segments: number of each token's document in its row, from 1; 0 is padding.
        scored: how many targets count.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    segments: Tensor
    scored: int

    def to(self, device: torch.device) -> "Batch":
        """The same on a device; through pinned memory, without waiting, when that is a GPU."""
        *tensors, scored = self
        if device.type == "cuda":
            return Batch(*(part.pin_memory().to(device, non_blocking=True) for part in tensors), scored)
        return Batch(*(part.to(device) for part in tensors), scored)


class Source(Protocol):
    """A run of tokens that can be read anywhere, such as a split of `core.data.shards.Tokens`."""

    tokens: int
    document_ends: np.ndarray

    def read(self, start: int, count: int) -> np.ndarray: ...


def pack(source: Source, starts: list[int], block: int) -> Batch:
    """Rows of `block` tokens that begin at `starts`, each asked for the token after it.

    The end-of-text token that closes one document opens the next: it is the first token of the next document's
    segment, and the target of the last token of its own. So every token is scored, each given its own document
    only, and a model learns to begin a text from the token that generation begins with.

    Args:
        source: the tokens.
        starts: B places in it; a row that reaches the end of the source is padded.
        block: T.
    """
    count = len(starts)
    tokens = np.zeros((count, block), dtype=np.int64)
    targets = np.full((count, block), IGNORE, dtype=np.int64)
    positions = np.zeros((count, block), dtype=np.int64)
    segments = np.zeros((count, block), dtype=np.int64)
    ends = source.document_ends
    for row, start in enumerate(starts):
        ids = source.read(start, min(block + 1, source.tokens - start))
        length = min(block, len(ids) - 1)
        if length < 1:
            continue
        tokens[row, :length] = ids[:length]
        targets[row, :length] = ids[1 : length + 1]
        first, last = np.searchsorted(ends, (start + 1, start + length + 1), side="left")
        opens = np.asarray(ends[first:last], dtype=np.int64) - 1 - start  # places of end-of-text tokens in the row
        places = np.arange(length)
        segment = np.searchsorted(opens, places, side="right")
        segments[row, :length] = segment + (1 if not len(opens) or opens[0] > 0 else 0)
        begins = np.concatenate(([0], opens))
        positions[row, :length] = places - begins[segment]
    made = (torch.from_numpy(part) for part in (tokens, targets, positions, segments))
    return Batch(*made, scored=int((targets != IGNORE).sum()))


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
    """

    source: Source
    block: int
    rows: int
    seed: int

    def starts(self, step: int) -> list[int]:
        """Where the rows of step 1, 2, ... begin."""
        first = (step - 1) * self.rows
        return [self._start(index) for index in range(first, first + self.rows)]

    def batches(self, step: int, micro: int) -> Iterator[Batch]:
        """The rows of a step, `micro` at a time."""
        starts = self.starts(step)
        for first in range(0, len(starts), micro):
            yield pack(self.source, starts[first : first + micro], self.block)

    def _start(self, index: int) -> int:
        rows = rows_per_epoch(self.source.tokens, self.block)
        epoch, place = divmod(index, rows)
        slack = min(self.block, max(0, self.source.tokens - 1 - rows * self.block))
        offset, order = _epoch(self.seed, epoch, rows, slack)
        return int(offset + order[place] * self.block)


def in_order(source: Source, block: int, rows: int, limit: int) -> Iterator[Batch]:
    """The first `limit` tokens of a source in order, `rows` rows of `block` tokens at a time: for evaluation."""
    starts = list(range(0, min(source.tokens - 1, limit), block))
    for first in range(0, len(starts), rows):
        yield pack(source, starts[first : first + rows], block)


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, rows: int, slack: int) -> tuple[int, np.ndarray]:
    """An epoch's offset, 0..slack tokens, and the order of its rows."""
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    return int(generator.integers(slack + 1)), generator.permutation(rows)
