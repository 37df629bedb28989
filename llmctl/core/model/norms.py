"""RMSNorm, LayerNorm: what keeps the stream's size, for every family alike."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl.core.model.rms import rms_norm_trained
from llmctl.spec.model import ModelConfig

SMALLEST = 1e-38  # a mean square, so that the inverse of its root is a float32


class RMSNorm(nn.Module):
    """x over its root mean square, times a weight. Source: Zhang and Sennrich, arXiv:1910.07467.

    Wider inputs are runs of `width` channels, each normalised on its own (the heads of queries and keys).
    """

    def __init__(
        self,
        width: int,
        eps: float,
        plus_one: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.eps, self.plus_one = eps, plus_one

    def forward(self, x: Tensor) -> Tensor:
        """(..., n width) to the same."""
        weight, shape = self.weight, x.shape
        if x.numel() == weight.shape[0] and x.device.type == "cpu" and not torch.is_grad_enabled():
            return one_row(x, weight, self.eps, self.plus_one)
        if shape[-1] != weight.shape[0]:
            x = x.unflatten(-1, (-1, weight.shape[0]))
        if self.plus_one:
            return _from_one(x, weight, self.eps).view(shape)
        if x.requires_grad and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32:
            return rms_norm_trained(x, weight, self.eps).view(shape)
        return F.rms_norm(x, weight.shape, weight.to(x.dtype), self.eps).view(shape)  # autocast gives q and k in bf16


def one_row(x: Tensor, weight: Tensor, eps: float, plus_one: bool) -> Tensor:
    """The norm of one token, in as few calls as possible: a third of F.rms_norm's time. x: (..., width)."""
    size = torch.linalg.vector_norm(x, dtype=torch.float32).item()
    inverse = max(size * size / x.shape[-1] + eps, SMALLEST) ** -0.5
    if not plus_one and x.dtype == weight.dtype:
        return torch.addcmul(_nothing(x.dtype), x, weight, value=inverse)  # rounded once
    normal = x.float() * inverse
    return (torch.addcmul(normal, normal, weight) if plus_one else normal * weight).to(x.dtype)


@lru_cache
def _nothing(dtype: torch.dtype) -> Tensor:
    return torch.zeros(1, dtype=dtype, device="cpu")


def _from_one(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm times 1 + weight, which is rounded once, at the end: Gemma's."""
    one = weight.float() + 1.0
    if x.requires_grad and x.device.type == "cpu" and x.dtype == torch.float32:
        return rms_norm_trained(x, one, eps)
    return F.rms_norm(x.float(), one.shape, one, eps).to(x.dtype)


class LayerNorm(nn.Module):
    """x less its mean, over its deviation, times a weight, plus a bias. Source: Ba et al., arXiv:1607.06450."""

    def __init__(
        self,
        width: int,
        eps: float,
        plus_one: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.eps, self.plus_one = eps, plus_one

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same."""
        weight = self.weight + 1 if self.plus_one else self.weight
        return F.layer_norm(x, weight.shape, weight, self.bias, self.eps)


NORMS: dict[str, type[nn.Module]] = {"rms": RMSNorm, "layer": LayerNorm}


def norm_of(config: ModelConfig, device=None, dtype=None) -> nn.Module:
    """A norm of the residual stream."""
    return NORMS[config.norm](config.width, config.norm_eps, config.norm_plus_one, device, dtype)
