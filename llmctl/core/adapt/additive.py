"""Scaling and Bottleneck: what is put after a matrix, or before it, rather than beside it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Scaling(nn.Module):
    """IA3: learned factors of the features that leave a matrix, bias included, or of those that enter it.

    Attributes:
        factor: (out,) or (in,) float32.
        entering: whether they are of what enters.

    Source: Liu et al., arXiv:2205.05638, section 3.3.
    """

    def __init__(self, factor: nn.Parameter, entering: bool):
        super().__init__()
        self.factor, self.entering = factor, entering

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if self.entering:
            return layer.plain((x * self.factor).to(x.dtype))
        y = layer.plain(x)
        return (y * self.factor).to(y.dtype)


class Bottleneck(nn.Module):
    """y + up(gelu(down(y))) of a matrix's output y. Source: Houlsby et al., arXiv:1902.00751, section 2.1.

    Attributes:
        down: to the bottleneck's width.
        up: back; zeros at first, so that nothing changes.
        dropout: share of y that is dropped on its way in, in training.
    """

    def __init__(self, features: int, width: int, dropout: float = 0.0):
        super().__init__()
        self.down, self.up = nn.Linear(features, width), nn.Linear(width, features)
        self.dropout = dropout

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        y = layer.plain(x)
        z = y if y.dtype == self.down.weight.dtype or torch.is_autocast_enabled(y.device.type) else y.float()
        z = F.dropout(z, self.dropout) if self.training and self.dropout else z
        return y + self.up(F.gelu(self.down(z))).to(y.dtype)
