"""Asked and Scored: tokens whose likelihood is wanted, and how likely a model finds them where they stand."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError

LOGIT_BYTES = 64 << 20  # of fp32 scores held at a time
POOL = 8  # batches' worth of tokens that are sorted by length

T = TypeVar("T")


class Asked(NamedTuple):
    """Tokens of one pass: the model reads `ids`, and the last `scored` of them are predicted.

    Attributes:
        ids: what is read; of an encoder-decoder, by its decoder, from its start token on. One more than `scored` or
            more.
        scored: how many.
        encoder: what the encoder of an encoder-decoder reads; () for a decoder.
    """

    ids: Sequence[int]
    scored: int
    encoder: Sequence[int] = ()

    @property
    def context(self) -> Sequence[int]:
        """What is read before the scored tokens."""
        return self.ids[: len(self.ids) - self.scored]

    @property
    def targets(self) -> Sequence[int]:
        """The scored tokens."""
        return self.ids[len(self.ids) - self.scored :]

    @property
    def size(self) -> int:
        """Tokens that pass through the model, and one."""
        return len(self.ids) + len(self.encoder)


class Scored(NamedTuple):
    """How likely the scored tokens are.

    Attributes:
        nll: -log probability of them all, nats.
        tokens: how many.
        greedy: whether each of them is the likeliest where it stands.
        logprobs: of each its log probability, nats, where that was asked for.
    """

    nll: float
    tokens: int
    greedy: bool
    logprobs: tuple[float, ...] = ()


Found = list[tuple[int, Scored]]  # what one pass scored, in any order: numbers of items, and what became of each


def pooled(
    items: Iterable[T], size: Callable[[T], int], passes: Callable[[Sequence[T]], Iterator[Found]], batch_tokens: int
) -> Iterator[Found]:
    """After each pass of a model, what it scored of items that are read on in pools: what is held is bounded.

    Args:
        size: tokens of an item; a pool holds POOL times `batch_tokens`.
        passes: scores a pool, its numbers those within the pool.
    """
    pool: list[T] = []
    begin = held = 0
    for item in items:
        pool.append(item)
        held += size(item)
        if held >= POOL * batch_tokens:
            yield from ([(begin + number, one) for number, one in found] for found in passes(pool))
            begin, held, pool = begin + len(pool), 0, []
    yield from ([(begin + number, one) for number, one in found] for found in passes(pool))


def in_order(found: Iterable[Found]) -> Iterator[Scored]:
    """What was scored, in the order of its numbers."""
    waiting: dict[int, Scored] = {}
    wanted = 0
    for some in found:
        waiting.update(some)
        while wanted in waiting:
            yield waiting.pop(wanted)
            wanted += 1


@torch.inference_mode()
def scored(model: Transformer, hidden: Tensor, targets: Sequence[Sequence[int]], each: bool = False) -> list[Scored]:
    """How likely tokens are, given what a model makes of the places where they are predicted.

    Args:
        hidden: (N, D) any float, what stands there, of all texts in a row.
        targets: of each text its scored tokens, N in all.
        each: give the log probability of each token too.

    Raises:
        UserError: scores that are NaN.
    """
    flat = torch.tensor([id for some in targets for id in some], dtype=torch.int64, device=hidden.device)  # (N,)
    size = max(1, LOGIT_BYTES // (4 * model.config.vocab))
    parts = [hidden.new_zeros(0, dtype=torch.float32)]
    best = [flat.new_zeros(0, dtype=torch.bool)]
    for start in range(0, len(flat), size):
        logits, wanted = model.head(hidden[start : start + size]).float(), flat[start : start + size]  # (n, V), (n,)
        parts.append(-F.cross_entropy(logits, wanted, reduction="none"))
        best.append(logits.argmax(-1) == wanted)
    logprobs = torch.cat(parts).cpu().double()  # sums are those of fp64
    if bool(logprobs.isnan().any()):
        raise UserError("The model's scores are not numbers (NaN).", "Try --dtype fp32, or llmctl verify.")
    counts = [len(some) for some in targets]
    pairs = zip(logprobs.split(counts), torch.cat(best).cpu().split(counts), strict=True)
    return [Scored(0.0 - float(own.sum()), len(own), bool(right.all()), tuple(own.tolist()) if each else ())
            for own, right in pairs]  # fmt: skip


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Rows as (B, T) int64; and (B, T) int64, 0 where one is padding, which is on the right; None: nothing is."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.int64, device=device)
    if all(len(row) == longest for row in rows):
        return tokens, None
    ends = torch.tensor([[len(row)] for row in rows], device=device)
    return tokens, (torch.arange(longest, device=device) < ends).long()


def last_places(hidden: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> Tensor:
    """The last `counts` of the first `lengths` places of each row: (B, T, D) to (N, D), row after row."""
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    columns = [place for length, count in zip(lengths, counts, strict=True) for place in range(length - count, length)]
    return hidden[torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64)]
