"""fill: the likeliest tokens in place of each mask."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from llmctl.core.infer.encode import Row, padded
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import UserError
from llmctl.spec.model import ModelConfig

LITERALS = ("[MASK]", "<mask>")  # what people type for a mask, whatever the model's own is


class Fill(NamedTuple):
    """A token for a mask, and its probability."""

    id: int
    score: float


@torch.inference_mode()
def fill(model: Transformer, rows: Sequence[Row], mask: int, top: int, known: int) -> list[list[list[Fill]]]:
    """The `top` likeliest tokens for each mask of each row, best first.

    All masks of a row are filled at once, each as if the others stayed; scores are made for masks only.

    Args:
        mask: id of the mask token.
        top: tokens for each mask.
        known: only ids below this are given; a model's embedding may have more rows than its tokenizer has tokens.

    Raises:
        UserError: the model's scores are not numbers.
    """
    batch = padded(rows, model.config, next(model.parameters()).device)
    hidden = model(batch.tokens, segments=batch.segments, types=batch.types)  # (B, T, D)
    places = (batch.tokens == mask) & batch.real  # (B, T)
    chances = model.head(hidden[places]).float().softmax(dim=-1)  # (N, V)
    if bool(chances.isnan().any()):
        raise UserError("The model's scores are not numbers (NaN).", "Try --dtype fp32, or llmctl verify.")
    scores, ids = chances[:, :known].topk(min(top, known, chances.shape[1]), dim=-1)
    fills = [
        [Fill(*one) for one in zip(*pair, strict=True)] for pair in zip(ids.tolist(), scores.tolist(), strict=True)
    ]
    counts = places.sum(dim=1).tolist()
    return [[fills.pop(0) for _ in range(count)] for count in counts]


def with_masks(text: str, tokenizer: Tokenizer) -> str:
    """The text with [MASK] or <mask> as the model's own mask token, where that leaves no doubt.

    It does where the text has none of the model's own, and the tokenizer knows the other as no token of its own.
    """
    own = tokenizer.token(tokenizer.mask) if tokenizer.mask is not None else None
    if own is None or own in text:
        return text
    for literal in LITERALS:
        if literal in text and tokenizer.id(literal) is None:
            return text.replace(literal, own)
    return text


def spelled(tokenizer: Tokenizer, id: int) -> str:
    """A token as text, its leading space kept; a part of a character as the vocabulary spells it."""
    text = tokenizer.decode([id], skip_special=False)
    return text if text and "\ufffd" not in text else tokenizer.token(id) or ""


def fillable(row: Row, mask: int, config: ModelConfig) -> Row | str:
    """The row, or why its masks cannot be filled."""
    if mask not in row.ids:
        return "the text has no mask: type [MASK] or <mask> where a word is wanted"
    if len(row) > config.context:
        return f"the text has {len(row)} tokens; the model's context holds {config.context}"
    return row
