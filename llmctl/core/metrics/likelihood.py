"""Likelihood: how likely given tokens are to a model, after given others; every score of a text is made here."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from llmctl.core.decode.prompt import check_known, start_id, text_ids
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.position import BY_ROW
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig

LOGIT_BYTES = 64 << 20  # of fp32 scores held at a time
POOL = 8  # batches' worth of tokens that are sorted by length


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


def likelihoods(
    model: Transformer,
    asked: Iterable[Asked],
    batch_tokens: int = 8192,
    window: int | None = None,
    each: bool = False,
) -> Iterator[Scored]:
    """What is asked for, in its order.

    Reads on in pools of POOL batches' worth of tokens, sorted by length so that little is padded: what is held is
    bounded. What a text's score is does not depend on its neighbours but for the rounding of sums.

    Args:
        batch_tokens: tokens that pass through the model at once, at least one text.
        window: tokens that the model reads of a text at most, the last ones; None: its context, or where nothing
            bounds that, all.
        each: give the log probability of each token too.

    Raises:
        UserError: ids that the model does not know, more scored tokens than its window, or scores that are NaN.
        ValueError: nothing is before the scored tokens.
    """
    window = reach(model) if window is None else window
    pool: list[Asked] = []
    held = 0
    for one in asked:
        pool.append(_fitted(model, one, window))
        held += len(one.ids) + len(one.encoder)
        if held >= POOL * batch_tokens:
            yield from _in_order(model, pool, batch_tokens, each)
            pool, held = [], 0
    yield from _in_order(model, pool, batch_tokens, each)


def continuation(tokenizer: Tokenizer, context: str, text: str, config: ModelConfig, special: bool = False) -> Asked:
    """A text after a context, to be scored.

    The space that a context ends in belongs to the text. Both are encoded as one, and what goes beyond the ids of the
    context alone is scored: one token at least. After an empty context stands the token that begins a text.
    An encoder-decoder's encoder reads the context, and its decoder the text, without a token that ends it.

    Args:
        special: parse special tokens typed in the texts.

    Raises:
        UserError: the text is empty, or there is nothing that it could stand after.

    Source: the harness of Gao et al., "A framework for few-shot language model evaluation": its figures are these.
    """
    if not text:
        raise UserError("The text to score is empty.", "Give it a word.")
    bare = context.rstrip()
    text = context[len(bare) :] + text
    if config.kind == "encoder-decoder":
        ids, source = tokenizer.encode(text, special), text_ids(tokenizer, bare, config, special)
        check_known([*ids, *source], config)
        return Asked([config.opens or 0, *ids], len(ids), source)
    before = text_ids(tokenizer, bare, config, special) if bare else []
    ids = text_ids(tokenizer, bare + text, config, special) if bare else tokenizer.encode(text, special)
    check_known(ids, config)
    scored = max(1, len(ids) - len(before))
    if len(ids) > scored:
        return Asked(ids, scored)
    start = start_id(tokenizer, config)
    if start is None:
        raise UserError("There is nothing before the text, and this model has no token that begins one.", "Prompt it.")
    return Asked(ids, len(ids) - 1) if ids[:1] == [start] and len(ids) > 1 else Asked([start, *ids], len(ids))


def reach(model: Transformer) -> int | None:
    """Tokens of a text that a model reads at most: what virtual ones leave of its context; None: any number."""
    config = model.config
    return None if config.position == "relative" else config.context - model.virtual_tokens("decoder")


def in_batches(
    model: Transformer, pool: Sequence[Asked], batch_tokens: int, each: bool = False
) -> Iterator[list[tuple[int, Scored]]]:
    """After each pass of the model what it scored of a pool, longest texts first, each with its number in the pool."""
    order = sorted(range(len(pool)), key=lambda number: _size(pool[number]))
    while order:
        rows = max(1, batch_tokens // max(1, _size(pool[order[-1]])))
        batch, order = order[-rows:], order[:-rows]
        found = score(model, [pool[number] for number in batch], each)
        yield list(zip(batch, found, strict=True))


@torch.inference_mode()
def score(model: Transformer, batch: Sequence[Asked], each: bool = False) -> list[Scored]:
    """What is asked for, in one pass of the model.

    Rows are padded on the right, where causal attention never looks. Logits are made for scored places only, and in
    chunks.

    Raises:
        UserError: scores that are NaN.
    """
    device = next(model.parameters()).device
    read = [list(one.ids[:-1]) for one in batch]
    tokens, real = _padded(read, device)  # (B, T), (B, T) or None
    config, known = model.config, {}
    if (
        config.rope_scaling is not None and config.rope_scaling.kind in BY_ROW
    ):  # the places of padding are not the row's
        ends = torch.tensor([[len(row) - 1] for row in read], device=device)
        known["positions"] = torch.minimum(torch.arange(tokens.shape[1], device=device), ends)
    if config.prefix_lm:
        ends = torch.tensor([[len(one.ids) - one.scored] for one in batch], device=device)
        known["prefix"] = torch.arange(tokens.shape[1], device=device) < ends
    if config.kind == "encoder-decoder":
        source, seen = _padded([list(one.encoder) for one in batch], device)
        known["encoder"] = EncoderInput(source, None, seen)
    hidden = model(tokens, segments=real, **known)  # (B, T, D)
    counts = [one.scored for one in batch]
    places = [(row, len(ids) - count + i) for row, (ids, count) in enumerate(zip(read, counts, strict=True))
              for i in range(count)]  # fmt: skip
    rows, columns = torch.tensor(places, device=device).reshape(-1, 2).T
    targets = torch.tensor([id for one in batch for id in one.ids[len(one.ids) - one.scored :]], device=device)
    return _split(*chances(model, hidden[rows, columns], targets), counts, each)


def chances(model: Transformer, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log probabilities of tokens, and whether each is the likeliest.

    Args:
        hidden: (N, D) any float, what stands where each is predicted.
        targets: (N,) int64.

    Returns:
        (N,) float32 of nats, and (N,) bool, both on the CPU.
    """
    size = max(1, LOGIT_BYTES // (4 * model.config.vocab))
    logprobs, best = [hidden.new_zeros(0, dtype=torch.float32)], [targets.new_zeros(0, dtype=torch.bool)]
    for start in range(0, len(targets), size):
        logits, wanted = model.head(hidden[start : start + size]).float(), targets[start : start + size]  # (n, V)
        logprobs.append(-F.cross_entropy(logits, wanted, reduction="none"))
        best.append(logits.argmax(-1) == wanted)
    return torch.cat(logprobs).cpu(), torch.cat(best).cpu()


def _split(logprobs: Tensor, best: Tensor, counts: Sequence[int], each: bool) -> list[Scored]:
    """What belongs to each text, of all scored tokens in a row; summed in fp64."""
    if bool(logprobs.isnan().any()):
        raise UserError("The model's scores are not numbers (NaN).", "Try --dtype fp32, or llmctl verify.")
    found = []
    for own, right in zip(logprobs.double().split(list(counts)), best.split(list(counts)), strict=True):
        nll = -float(own.sum()) if len(own) else 0.0
        found.append(Scored(nll, len(own), bool(right.all()), tuple(own.tolist()) if each else ()))
    return found


def _padded(rows: Sequence[list[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Rows as (B, T) int64, and of those of unequal length which tokens are there, (B, T) int64."""
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    if all(len(row) == longest for row in rows):
        return tokens, None
    ends = torch.tensor([[len(row)] for row in rows], device=device)
    return tokens, (torch.arange(longest, device=device) < ends).long()


def _fitted(model: Transformer, one: Asked, window: int | None) -> Asked:
    """What is asked for with no more of its beginning than a model reads."""
    if not 0 <= one.scored < len(one.ids):
        raise ValueError(f"{one.scored} of {len(one.ids)} tokens are to be scored: wanted at least one before them")
    check_known([*one.ids, *one.encoder], model.config)
    if window is None or len(one.ids) - 1 <= window:
        return one
    if one.scored > window or model.config.kind == "encoder-decoder":
        raise UserError(
            f"{one.scored} tokens are to be scored, but the model reads {window} at once.",
            "Shorten the text.",
            Exit.MISMATCH,
        )
    return one._replace(ids=one.ids[-window - 1 :])


def _in_order(model: Transformer, pool: Sequence[Asked], batch_tokens: int, each: bool) -> list[Scored]:
    found = dict(pair for batch in in_batches(model, pool, batch_tokens, each) for pair in batch)
    return [found[number] for number in range(len(pool))]


def _size(one: Asked) -> int:
    return len(one.ids) + len(one.encoder)
