"""Perplexity: how surprised a model is by text, in sliding windows, each token scored once."""

import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.core.metrics.passages import Passage
from llmctl.core.model.transformer import Transformer
from llmctl.errors import Exit, UserError

LOGIT_BYTES = 64 << 20  # of fp32 scores held at a time
POOL = 8  # batches' worth of windows that are sorted by length


@dataclass(frozen=True)
class Perplexity:
    """A sum over documents.

    Attributes:
        nll: -log probability of all scored tokens, nats.
        tokens: scored tokens.
        bytes: UTF-8 bytes of their text.
        documents: those with at least one scored token.
        windows: rows that passed through the model.
    """

    nll: float = 0.0
    tokens: int = 0
    bytes: int = 0
    documents: int = 0
    windows: int = 0

    @property
    def nll_per_token(self) -> float:
        """Nats a token; NaN when nothing was scored."""
        return self.nll / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp of the nats a token: infinity where that overflows, NaN when nothing was scored."""
        return math.inf if self.nll_per_token > 709 else math.exp(self.nll_per_token)

    @property
    def bits_per_token(self) -> float:
        """Bits a token; NaN when nothing was scored."""
        return self.nll_per_token / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """Bits a byte of text, which compares models of different tokenizers; NaN when there was no text."""
        return self.nll / math.log(2) / self.bytes if self.bytes else math.nan


class Window(NamedTuple):
    """Tokens of one pass: the model reads `ids`, and the last `scored` of them are predicted."""

    ids: list[int]
    scored: int


def windows(ids: list[int], window: int, stride: int) -> Iterator[Window]:
    """Cut a document into overlapping windows so that each token but the first is scored exactly once.

    Windows begin at 0, stride, 2 x stride, ...; after the first, each scores what the one before did not reach, with at
    least window - stride tokens of context. A stride of the whole window is taken as window - 1: the two
    neighbours share one token, for without it the first token of each window would have no context and go unscored.

    Source: "Perplexity of fixed-length models", Hugging Face transformers documentation.
    """
    stride = min(stride, window - 1)
    end = 1
    begin = 0
    while end < len(ids):
        stop = min(begin + window, len(ids))
        yield Window(ids[begin:stop], stop - end)
        end = stop
        begin += stride


def perplexity(
    model: Transformer, passages: Iterable[Passage], window: int, stride: int, batch_tokens: int = 8192
) -> Iterator[Perplexity]:
    """Score documents; yields the running sum after each batch, so that the last one is the result.

    Holds one document and POOL batches at a time.

    Args:
        window: tokens of context and prediction together, at least 2.
        stride: by how many tokens a window moves on, 1 to window.
        batch_tokens: tokens that pass through the model at once, at least one window.

    Raises:
        UserError: ids that the model does not know, or scores that are not numbers.
    """
    total = Perplexity()
    pool: list[Window] = []
    for passage in passages:
        if passage.ids and max(passage.ids) >= model.config.vocab:
            raise UserError(
                f"The text has a token {max(passage.ids)}, but the model knows only {model.config.vocab} "
                f"(0 to {model.config.vocab - 1}).",
                "The tokenizer and the model do not belong together.",
                Exit.MISMATCH,
            )
        if len(passage.ids) < 2:
            continue
        total = replace(total, documents=total.documents + 1, bytes=total.bytes + passage.bytes)
        for one in windows(passage.ids, window, stride):
            pool.append(one)
            if len(pool) * window >= POOL * batch_tokens:
                total = yield from _scored(model, pool, batch_tokens, total)
                pool = []
    total = yield from _scored(model, pool, batch_tokens, total)
    yield total


def _scored(
    model: Transformer, pool: list[Window], batch_tokens: int, total: Perplexity
) -> Generator[Perplexity, None, Perplexity]:
    """The sum after each batch of a pool, whose windows are batched by length so that little is padded."""
    pool = sorted(pool, key=lambda one: len(one.ids))
    while pool:
        rows = max(1, batch_tokens // len(pool[-1].ids))
        batch, pool = pool[-rows:], pool[:-rows]
        total = replace(
            total,
            nll=total.nll + nll_of(model, batch),
            tokens=total.tokens + sum(one.scored for one in batch),
            windows=total.windows + len(batch),
        )
        yield total
    return total


@torch.inference_mode()
def nll_of(model: Transformer, batch: list[Window]) -> float:
    """-log probability, in nats, of the scored tokens of some windows, summed in fp64.

    Rows are padded on the right, where causal attention never looks. Logits are made for scored places only, and in
    chunks.

    Raises:
        UserError: the sum is NaN.
    """
    device = next(model.parameters()).device
    longest = max(len(one.ids) for one in batch)
    tokens = torch.tensor([one.ids + [0] * (longest - len(one.ids)) for one in batch], device=device)  # (B, T)
    hidden = model(tokens[:, :-1])  # (B, T - 1, D)
    scored = torch.zeros(tokens[:, 1:].shape, dtype=torch.bool)
    for row, one in enumerate(batch):
        scored[row, len(one.ids) - 1 - one.scored : len(one.ids) - 1] = True
    scored = scored.to(device)
    total = _chunked_nll(model, hidden[scored], tokens[:, 1:][scored])
    if math.isnan(total):
        raise UserError("The model's scores are not numbers (NaN).", "Try --dtype fp32, or llmctl verify.")
    return total


def _chunked_nll(model: Transformer, hidden: Tensor, targets: Tensor) -> float:
    """Summed cross-entropy in nats: hidden (N, D) any float, targets (N,) int64."""
    rows = max(1, LOGIT_BYTES // (4 * model.config.vocab))
    exact = torch.float32 if hidden.device.type == "mps" else torch.float64
    total = torch.zeros((), dtype=exact, device=hidden.device)
    for start in range(0, len(targets), rows):
        logits = model.head(hidden[start : start + rows]).float()  # (n, V)
        losses = F.cross_entropy(logits, targets[start : start + rows], reduction="none")
        total += losses.sum(dtype=exact)
    return float(total)
