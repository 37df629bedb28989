"""Packing: examples become batches, several short ones in a row or padded, and in what order training meets them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmctl.core.data.batch import IGNORE, Batch
from llmctl.core.data.examples import Example, Examples
from llmctl.core.data.mixture import Mixture
from llmctl.core.model.memory import EncoderInput
from llmctl.spec.sets import Task

ENOUGH = 1024  # tokens of a batch, padding included, from which on rows that are much shorter have one of their own
TOGETHER = 512  # examples of an evaluation that are laid out at a time
SAMPLE = 0x68656C64  # seed of which examples an evaluation of a part reads


@dataclass(frozen=True, eq=False)
class ExampleOrder:
    """Which examples make up each optimizer step: a pure function of the mixture and the step.

    Attributes:
        mixture: of the examples.
        batch_size: examples of a step.
        pack: put several in a row, where they are texts that a decoder writes.
        start: id that a decoder beside an encoder begins with; only `seq2seq` needs it.
    """

    mixture: Mixture
    batch_size: int
    pack: bool = True
    start: int | None = None

    def examples(self, step: int) -> list[Example]:
        """Those of step 1, 2, ..."""
        first = (step - 1) * self.batch_size
        return [self.mixture[number] for number in range(first, first + self.batch_size)]

    def batches(self, step: int, micro_tokens: int) -> Iterator[Batch]:
        """The examples of a step in batches of at most `micro_tokens` tokens, padding included, or of one row."""
        first = self.mixture.parts[0]
        return laid_out(first.task, self.examples(step), micro_tokens, self.pack, self.start, first.prefix)


def in_order(
    examples: Examples, micro_tokens: int, pack: bool = True, start: int | None = None, limit: int | None = None
) -> Iterator[Batch]:
    """All examples, or as many as have `limit` tokens together, in batches of like lengths: for evaluation.

    Those are drawn from everywhere, the same ones every time: files come one after another, and are often sorted.
    """
    found = list(examples)
    if limit is not None and sum(map(_size, found)) > limit:
        drawn = np.random.Generator(np.random.PCG64(SAMPLE)).permutation(len(found))
        read = np.cumsum([_size(found[one]) for one in drawn])
        found = [found[one] for one in drawn[: max(1, int(np.searchsorted(read, limit, side="right")))]]
    found.sort(key=_size, reverse=True)
    for first in range(0, len(found), TOGETHER):
        some = found[first : first + TOGETHER]
        yield from laid_out(examples.task, some, micro_tokens, pack, start, examples.prefix)


def laid_out(
    task: Task,
    examples: Sequence[Example],
    micro_tokens: int,
    pack: bool = True,
    start: int | None = None,
    prefix: bool = False,
) -> Iterator[Batch]:
    """Examples as batches of rows, the longest first; each row of a batch is as wide as its widest.

    Packed, a row takes as many as fit in the width of the longest that is left, so that rows are full and attention
    is no wider than it must be. The longest is placed first, each in the first row with room (first fit decreasing).
    Padded, a batch that is large enough to keep a machine busy takes no row that would be padding for a quarter.

    Args:
        micro_tokens: of a batch, padding included, the encoder's beside the decoder's; one row may have more.
        pack: several examples in a row, of task "lm".
        start: as of `ExampleOrder`.
        prefix: as of `Examples`.
    """
    left = sorted(examples, key=_size, reverse=True)
    while left:
        width, read, said = max(1, _width(task, left[0])), 0, 0
        rows: list[list[Example]] = []
        room: list[int] = []
        rest: list[Example] = []
        for one in left:
            need = _width(task, one)
            at = next((row for row, free in enumerate(room) if free >= need), None) if pack and task == "lm" else None
            if at is not None:
                rows[at].append(one)
                room[at] -= need
                continue
            wide = max(read, 0 if one.source is None else len(one.source)), max(said, need)
            sparse = not (pack and task == "lm") and len(rows) * sum(wide) >= ENOUGH and 4 * _size(one) < 3 * sum(wide)
            if rows and (sparse or (len(rows) + 1) * sum(wide) > micro_tokens):
                rest.append(one)
                continue
            read, said = wide
            rows.append([one])
            room.append(width - need)
        yield batch_of(task, rows, start, prefix)
        left = rest


def batch_of(task: Task, rows: Sequence[Sequence[Example]], start: int | None = None, prefix: bool = False) -> Batch:
    """The batch of rows of examples; only rows of task "lm" have more than one."""
    if task == "lm":
        return _texts(rows, prefix)
    examples = [row[0] for row in rows]
    if task == "seq2seq":
        return _answers(examples, start)
    return _labelled(task, examples)


def _texts(rows: Sequence[Sequence[Example]], prefix: bool) -> Batch:
    """Each token but the last of its example is asked for the next one, where that is scored."""
    tokens = _padded([np.concatenate([one.ids[:-1] for one in row]) for row in rows])
    targets = _padded(
        [np.concatenate([np.where(one.scored[1:], one.ids[1:], IGNORE) for one in row]) for row in rows], IGNORE
    )
    lengths = [[len(one.ids) - 1 for one in row] for row in rows]
    positions = _padded([np.concatenate([np.arange(length) for length in row]) for row in lengths])
    segments = _padded([np.repeat(np.arange(1, len(row) + 1), row) for row in lengths])
    scored, read = int((targets != IGNORE).sum()), sum(map(sum, lengths))
    made = Batch(tokens, targets, positions, segments, scored=scored, read=read)
    if not prefix:
        return made
    given = _padded(
        [np.concatenate([np.arange(len(one.ids) - 1) < one.scored.argmax() for one in row]) for row in rows]
    )
    return made._replace(prefix=given.bool())


def _answers(examples: Sequence[Example], start: int | None) -> Batch:
    """The decoder reads what it says one place later, after `start`."""
    if start is None:
        raise ValueError("a decoder beside an encoder needs the id that it begins with")
    tokens = _padded([np.concatenate(([start], one.ids[:-1])) for one in examples])
    targets = _padded([np.where(one.scored, one.ids, IGNORE) for one in examples], IGNORE)
    positions, segments = _counted([len(one.ids) for one in examples])
    sources = [one.source for one in examples if one.source is not None]
    encoder = EncoderInput(_padded(sources), *_counted([len(one) for one in sources]))
    scored, read = int((targets != IGNORE).sum()), sum(len(one.ids) for one in examples) + sum(map(len, sources))
    return Batch(tokens, targets, positions, segments, scored=scored, read=read, encoder=encoder)


def _labelled(task: Task, examples: Sequence[Example]) -> Batch:
    """Texts whole, and what is asked of each or of their words."""
    tokens = _padded([one.ids for one in examples])
    positions, segments = _counted([len(one.ids) for one in examples])
    types = None
    if any(one.types is not None for one in examples):
        types = _padded([np.zeros(len(one.ids), np.int64) if one.types is None else one.types for one in examples])
    made = Batch(
        tokens, torch.full_like(tokens, IGNORE), positions, segments, 0, sum(len(one.ids) for one in examples), types
    )
    if task == "tag":
        targets = _padded([np.asarray(one.label) for one in examples], IGNORE)
        return made._replace(targets=targets, scored=int((targets != IGNORE).sum()))
    labels = np.stack([np.asarray(one.label) for one in examples])
    kind = np.int64 if labels.dtype.kind in "iub" else np.float32
    return made._replace(labels=torch.from_numpy(labels.astype(kind)), scored=len(examples))


def _width(task: Task, one: Example) -> int:
    """Places that an example takes in a row: of a text, its last token is only asked for."""
    return len(one.ids) - 1 if task == "lm" else len(one.ids)


def _size(one: Example) -> int:
    return len(one.ids) + (0 if one.source is None else len(one.source))


def _padded(rows: Sequence[np.ndarray], fill: int = 0) -> Tensor:
    """(B, T) int64, T that of the longest."""
    filled = np.full((len(rows), max(map(len, rows), default=0)), fill, np.int64)
    for number, row in enumerate(rows):
        filled[number, : len(row)] = row
    return torch.from_numpy(filled)


def _counted(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Positions and segments of rows of one document each, (B, T) int64."""
    return _padded([np.arange(one) for one in lengths]), _padded([np.ones(one, np.int64) for one in lengths])
