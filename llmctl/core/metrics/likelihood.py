"""Likelihood: how likely given tokens are to a model, after given others; every score of a text is made here."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from llmctl.core.decode.prompt import check_known, start_id, text_ids
from llmctl.core.decode.rules import opening
from llmctl.core.metrics.branches import branched, read_stem, splits, stem_of, trunks
from llmctl.core.metrics.scored import Asked, Found, Scored, in_order, last_places, padded, pooled, scored
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.position import BY_ROW
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig


def likelihoods(
    model: Transformer,
    asked: Iterable[Asked],
    batch_tokens: int = 8192,
    window: int | None = None,
    each: bool = False,
) -> Iterator[Scored]:
    """What is asked for, in its order.

    Reads on in pools, sorted by length so that little is padded, and reads what neighbours begin with alike once.
    What a text's score is does not depend on its neighbours but for the rounding of sums.

    Args:
        batch_tokens: tokens that pass through the model at once, at least one text.
        window: tokens that the model reads of a text at most, the last ones; None: its context, or where nothing
            bounds that, all.
        each: give the log probability of each token too.

    Raises:
        UserError: ids that the model does not know, more scored tokens than its window, or scores that are NaN.
        ValueError: nothing is before the scored tokens.
    """
    return in_order(in_passes(model, asked, batch_tokens, window, each))


def in_passes(
    model: Transformer,
    asked: Iterable[Asked],
    batch_tokens: int = 8192,
    window: int | None = None,
    each: bool = False,
) -> Iterator[Found]:
    """The same after each pass of the model: in any order, with the number of each."""
    window = reach(model) if window is None else window
    fitted = (_fitted(model, one, window) for one in asked)
    return pooled(fitted, lambda one: one.size, lambda pool: passes(model, pool, batch_tokens, each), batch_tokens)


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
        return Asked([opening(config), *ids], len(ids), source)
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


def passes(model: Transformer, pool: Sequence[Asked], batch_tokens: int, each: bool) -> Iterator[Found]:
    """What each pass scored of a pool, longest texts first."""
    longest = max((one.size for one in pool), default=0)
    apart = not splits(model, longest)
    groups = trunks(pool, batch_tokens, apart)
    stem = [] if apart else stem_of(pool, groups)
    held = read_stem(model, stem) if stem else None
    order = sorted(groups, key=lambda group: (group.shared > 0, max(pool[number].size for number in group.members)))
    while order:
        batch = [order.pop()]
        rows, size = len(batch[0].members), max(pool[number].size for number in batch[0].members)
        alike = batch[0].shared > 0
        while order and (order[-1].shared > 0) == alike and (rows + len(order[-1].members)) * size <= batch_tokens:
            batch.append(order.pop())
            rows += len(batch[-1].members)
        texts = [[pool[number] for number in group.members] for group in batch]
        flat = [one for group in texts for one in group]
        if alike or held is not None:
            hidden = branched(model, texts, [group.shared for group in batch], held)
        else:
            hidden = whole(model, flat)
        numbers = [number for group in batch for number in group.members]
        yield list(zip(numbers, scored(model, hidden, [one.targets for one in flat], each), strict=True))


@torch.inference_mode()
def whole(model: Transformer, batch: Sequence[Asked]) -> Tensor:
    """What a model makes of the places where the scored tokens are predicted, of all texts in a row: (N, D).

    One pass, padded on the right, where causal attention never looks. Equal sources are encoded once.
    """
    device = next(model.parameters()).device
    read = [one.ids[:-1] for one in batch]
    tokens, segments = padded(read, device)  # (B, T)
    config, known = model.config, {}
    if config.rope_scaling is not None and config.rope_scaling.kind in BY_ROW:  # padding is no place of the row
        ends = torch.tensor([[len(row) - 1] for row in read], device=device)
        known["positions"] = torch.minimum(torch.arange(tokens.shape[1], device=device), ends)
    if config.prefix_lm:
        ends = torch.tensor([[len(one.context)] for one in batch], device=device)
        known["prefix"] = torch.arange(tokens.shape[1], device=device) < ends
    if config.kind == "encoder-decoder":
        sources = list(dict.fromkeys(tuple(one.encoder) for one in batch))
        source, seen = padded(sources, device)
        places = {one: place for place, one in enumerate(sources)}
        rows = torch.tensor([places[tuple(one.encoder)] for one in batch], device=device)
        known["memory"] = model.encode(*EncoderInput(source, None, seen)).select(rows)
    hidden = model(tokens, segments=segments, **known)  # (B, T, D)
    return last_places(hidden, list(map(len, read)), [one.scored for one in batch])


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
