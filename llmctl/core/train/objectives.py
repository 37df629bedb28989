"""Objectives: a model and a batch to a loss, kept as sum and count."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from llmctl.core.data.batch import IGNORE, Batch
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.cross_entropy import linear_cross_entropy

Name = Literal["clm"]
SPARSE = 0.7  # share of places scored, below which they are gathered first


class Loss(NamedTuple):
    """A loss not yet divided, so that micro-batches and processes of unequal counts add up right.

    Attributes:
        total: scalar float32, nats, summed over scored tokens.
        count: how many were scored.
    """

    total: Tensor
    count: int


def tokens_loss(model: Transformer, batch: Batch, cross_document: bool = False) -> Loss:
    """The loss of the tokens that the batch asks for, whatever the objective that made it.

    Only hidden states of places that are scored meet the head, for it is the largest matrix.

    Args:
        model: of any kind.
        batch: (B, T) rows on the model's device.
        cross_document: let tokens see earlier documents of their row, and count positions through the row.
    """
    hidden = _hidden(model, batch, cross_document).flatten(0, 1)  # (B * T, width)
    targets = batch.targets.flatten()
    if batch.scored < SPARSE * len(targets):
        scored = (targets != IGNORE).nonzero().squeeze(1)
        hidden, targets = hidden[scored], targets[scored]
    weight, bias, softcap = model.head.projection
    return Loss(linear_cross_entropy(model.head.features(hidden), weight, targets, bias, softcap), batch.scored)


def _hidden(model: Transformer, batch: Batch, cross_document: bool) -> Tensor:
    """(B, T, width) of the places that the targets are about."""
    encoder, apart = batch.encoder, {"positions": batch.positions, "segments": batch.segments}
    if cross_document and model.config.kind == "decoder":
        apart = {}
    elif cross_document:  # both ways, padding would be seen
        apart = {"segments": batch.segments.clamp(max=1)}
        encoder = None if encoder is None else EncoderInput(encoder.tokens, None, encoder.segments.clamp(max=1))
    return model(batch.tokens, types=batch.types, prefix=batch.prefix, encoder=encoder, **apart)


OBJECTIVES: dict[str, Callable[..., Loss]] = {"clm": tokens_loss}
