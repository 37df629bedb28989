"""Objectives: a model and a batch to a loss, kept as sum and count."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from llmctl.core.data.batch import Batch
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.cross_entropy import linear_cross_entropy

Name = Literal["clm"]


class Loss(NamedTuple):
    """A loss not yet divided, so that micro-batches and processes of unequal counts add up right.

    Attributes:
        total: scalar float32, nats, summed over scored tokens.
        count: how many were scored.
    """

    total: Tensor
    count: int


def clm(model: Transformer, batch: Batch, cross_document: bool = False) -> Loss:
    """Causal language modelling: each token from those before it.

    Args:
        model: a decoder.
        batch: (B, T) rows on the model's device.
        cross_document: let tokens see earlier documents of their row, and count positions through the row.
    """
    apart = {} if cross_document else {"positions": batch.positions, "segments": batch.segments}
    hidden = model(batch.tokens, **apart)  # (B, T, D)
    total = linear_cross_entropy(hidden.flatten(0, 1), model.head.weight, batch.targets.flatten())
    return Loss(total, batch.scored)


OBJECTIVES: dict[str, Callable[..., Loss]] = {"clm": clm}
