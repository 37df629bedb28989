"""Linear, Embedding: the matrices of a model, and the places where an adapter or a faster product stands in for one."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """nn.Linear without first weights: torch's own cost a second, loading half of torch when the device is meta.

    Attributes:
        adapter: None, or what stands in for the product: `adapter(self, x)` is then the output (see core/adapt).
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True, device=None, dtype=None):
        super().__init__(inputs, outputs, bias, device, dtype)
        self.adapter: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return self.plain(x) if self.adapter is None else self.adapter(self, x)

    def plain(self, x: Tensor) -> Tensor:
        """The product, whatever the adapter."""
        return F.linear(x, self.weight, self.bias)

    def dense(self) -> Tensor:
        """The matrix, (outputs, inputs), in a dtype of floats."""
        return self.weight

    def reset_parameters(self) -> None:
        """Nothing: `initialise` or a checkpoint fills the parameters."""


Joint = Callable[[Tensor, tuple[Linear, ...]], list[Tensor] | None]


def each(x: Tensor, joint: Joint | None, *linears: Linear) -> list[Tensor]:
    """The product of x with each matrix; at once where there is a way, and nobody stands or looks in between."""
    if joint is None or torch.is_grad_enabled():
        return [linear(x) for linear in linears]
    for one in linears:
        if one.adapter is not None or one._forward_hooks or one._forward_pre_hooks:
            return [linear(x) for linear in linears]
    made = joint(x, linears)
    return [linear(x) for linear in linears] if made is None else made


class Embedding(nn.Embedding):
    """nn.Embedding without first weights.

    Attributes:
        adapter: None, or what stands in for the table: `adapter(self, ids)` is then the output.
    """

    def __init__(self, rows: int, width: int, device=None, dtype=None):
        super().__init__(rows, width, device=device, dtype=dtype)
        self.adapter: nn.Module | None = None

    def forward(self, ids: Tensor) -> Tensor:
        """(...) int64 to (..., width)."""
        return self.plain(ids) if self.adapter is None else self.adapter(self, ids)

    def plain(self, ids: Tensor) -> Tensor:
        """The rows of the table, whatever the adapter."""
        return F.embedding(ids, self.weight)

    def reset_parameters(self) -> None:
        """Nothing: `initialise` or a checkpoint fills the parameters."""
