"""Heads: hidden states to the scores of tokens and of labels."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl.core.model.layers import ACTIVATIONS, Linear
from llmctl.core.model.norms import LayerNorm
from llmctl.spec.model import ModelConfig


class Projection(NamedTuple):
    """How features become logits: capped(features weight' + bias).

    Attributes:
        weight: (V, width).
        bias: (V,) or None.
        softcap: logits become softcap * tanh(logits / softcap), or None.
    """

    weight: Tensor
    bias: Tensor | None
    softcap: float | None


class _Scores(nn.Module):
    """Hidden states to logits; what `Head` and `TiedHead` share.

    Attributes:
        adapter: None, or what stands in for the product, as in `Linear`.
        swift: None, or the product with the matrix as it is now, without the bias, by a faster kernel.
    """

    def __init__(self, config: ModelConfig, device=None, dtype=None):
        super().__init__()
        self.swift: Callable[[Tensor], Tensor] | None = None
        made = {"device": device, "dtype": dtype}
        self.transform = self.norm = None
        if config.head_transform:
            self.transform = Linear(config.width, config.width, **made)
            self.norm = LayerNorm(config.width, config.norm_eps, **made)
            self.activation = ACTIVATIONS[config.activation]
        self.bias = nn.Parameter(torch.empty(config.vocab, **made)) if config.head_bias else None
        self.scale, self.softcap = config.logit_scale, config.logit_softcap
        self.adapter: nn.Module | None = None

    def features(self, hidden: Tensor) -> Tensor:
        """What meets the matrix: (..., width) to the same."""
        if self.transform is not None:
            hidden = self.norm(self.activation(self.transform(hidden)))
        return hidden if self.scale == 1 else hidden * self.scale

    @property
    def projection(self) -> Projection:
        """What makes logits of the features."""
        weight = self.dense()
        if self.adapter is not None:
            weight = self.adapter.weight(self).to(weight.dtype)
        return Projection(weight, self.bias, self.softcap)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) to (..., V)."""
        features = self.features(hidden)
        logits = self.plain(features) if self.adapter is None else self.adapter(self, features)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def plain(self, features: Tensor) -> Tensor:
        """(..., width) to (..., V), whatever the adapter, and not capped."""
        if self.swift is None or torch.is_grad_enabled():
            return F.linear(features, self.weight, self.bias)
        logits = self.swift(features)
        return logits if self.bias is None else logits + self.bias

    def dense(self) -> Tensor:
        """The matrix, (V, width)."""
        return self.weight


class Head(_Scores):
    """Logits by a matrix of its own.

    Attributes:
        weight: None where something else stands in for the matrix.
    """

    def __init__(self, config: ModelConfig, device=None, dtype=None):
        super().__init__(config, device, dtype)
        self.weight = nn.Parameter(torch.empty(config.vocab, config.width, device=device, dtype=dtype))
        self._held: tuple[Linear, ...] = ()  # in a tuple, else it would be listed as a matrix of its own

    def hold(self, linear: Linear) -> None:
        """Have a Linear without a bias, whose weight is in few bits, stand in for the matrix."""
        self.weight, self._held = None, (linear,)

    def plain(self, features: Tensor) -> Tensor:
        """(..., width) to (..., V), whatever the adapter, and not capped."""
        if not self._held:
            return super().plain(features)
        logits = self._held[0](features)
        return logits if self.bias is None else logits + self.bias

    def dense(self) -> Tensor:
        """The matrix, (V, width)."""
        return self._held[0].dense() if self._held else self.weight


class TiedHead(_Scores):
    """Logits by the token embedding's own matrix, which is not among its parameters."""

    def __init__(self, config: ModelConfig, embedding: nn.Embedding, device=None, dtype=None):
        super().__init__(config, device, dtype)
        self._embedding = (embedding,)  # in a tuple, else its weight would be listed twice

    @property
    def weight(self) -> Tensor:
        """(V, width), the embedding's."""
        return self._embedding[0].weight


class Classifier(nn.Module):
    """Scores of labels, after a dense layer where the family has one; of texts in a decoder, a matrix alone."""

    def __init__(self, config: ModelConfig, device=None, dtype=None):
        super().__init__()
        made = {"device": device, "dtype": dtype}
        dense = config.classifier_dense != "none"
        self.dense = Linear(config.width, config.width, **made) if dense else None
        self.activation = DENSE[config.classifier_dense]
        self.out = Linear(config.width, len(config.labels), bias=not config.classifier_bare, **made)
        self.dropout = config.dropout if config.classifier_dropout is None else config.classifier_dropout
        if config.classifier_bare:
            self.dropout = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., L)."""
        x = self._dropped(x)
        return self.out(x if self.dense is None else self._dropped(self.activation(self.dense(x))))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


DENSE = {"none": nn.Identity(), "tanh": torch.tanh, "relu": F.relu}
