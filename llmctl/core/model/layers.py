"""Norm, Attention, MLP, Block, Stack: the layers, for every family alike."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl.core.model.attend import Mask, attend, causal_mask
from llmctl.core.model.cache import KVCache
from llmctl.core.model.position import Angles, Rotary, alibi_slopes, rotate
from llmctl.core.model.rms import rms_norm_trained
from llmctl.spec.model import ModelConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class Shared(NamedTuple):
    """What the layers of one forward pass have in common, computed once.

    Attributes:
        angles: rotary cosines and sines, or None.
        masks: by window (None: the whole row).
        cache: keys and values of earlier tokens, or None.
    """

    angles: Angles | None
    masks: dict[int | None, Mask]
    cache: KVCache | None


class Linear(nn.Linear):
    """nn.Linear without first weights: torch's own cost a second, loading half of torch when the device is meta."""

    def reset_parameters(self) -> None:
        """Nothing: `initialise` or a checkpoint fills the parameters."""


class Embedding(nn.Embedding):
    """nn.Embedding without first weights."""

    def reset_parameters(self) -> None:
        """Nothing: `initialise` or a checkpoint fills the parameters."""


class RMSNorm(nn.Module):
    """x over its root mean square, times a weight. Source: Zhang and Sennrich, arXiv:1910.07467."""

    def __init__(self, width: int, eps: float, device: torch.device | str | None, dtype: torch.dtype | None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same."""
        if x.requires_grad and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32:
            return rms_norm_trained(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)  # autocast gives q and k in bf16


class LayerNorm(nn.Module):
    """x less its mean, over its deviation, times a weight, plus a bias. Source: Ba et al., arXiv:1607.06450."""

    def __init__(self, width: int, eps: float, device: torch.device | str | None, dtype: torch.dtype | None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(width, device=device, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


NORMS: dict[str, type[nn.Module]] = {"rms": RMSNorm, "layer": LayerNorm}


class Attention(nn.Module):
    """Self-attention of one layer."""

    def __init__(self, config: ModelConfig, layer: int, device=None, dtype=None):
        super().__init__()
        self.layer = layer
        self.window = config.window_of(layer)
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.dropout = config.dropout
        inner, shared = config.heads * config.head_dim, config.kv_heads * config.head_dim
        made = {"device": device, "dtype": dtype}
        self.q = Linear(config.width, inner, bias=config.qkv_bias, **made)
        self.k = Linear(config.width, shared, bias=config.qkv_bias, **made)
        self.v = Linear(config.width, shared, bias=config.qkv_bias, **made)
        self.out = Linear(inner, config.width, bias=config.out_bias, **made)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps, device, dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps, device, dtype) if config.qk_norm else None

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """(B, T, width) to the same."""
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, -1, self.head_dim)  # (B, T, H, D)
        k = self.k(x).view(batch, tokens, -1, self.head_dim)  # (B, T, Hkv, D)
        v = self.v(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)  # (B, Hkv, T, D)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)  # (B, H, T, D), (B, Hkv, T, D)
        if shared.angles is not None:
            q, k = rotate(q, shared.angles), rotate(k, shared.angles)
        if shared.cache is not None:
            k, v = shared.cache.append(self.layer, k, v)  # (B, Hkv, S, D)
        dropout = self.dropout if self.training else 0.0
        y = attend(q, k, v, shared.masks[self.window], self.scale, dropout)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, -1))  # (B, T, H * D) inside


class MLP(nn.Module):
    """The feed-forward half of a layer, plain or gated (Shazeer, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, device=None, dtype=None):
        super().__init__()
        made = {"bias": config.mlp_bias, "device": device, "dtype": dtype}
        self.gate = Linear(config.width, config.ff, **made) if config.gated else None
        self.up = Linear(config.width, config.ff, **made)
        self.down = Linear(config.ff, config.width, **made)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One layer: attention, then MLP, each on normalised input and added to the stream."""

    def __init__(self, config: ModelConfig, layer: int, device=None, dtype=None):
        super().__init__()
        norm = NORMS[config.norm]
        self.attention_norm = norm(config.width, config.norm_eps, device, dtype)
        self.attention = Attention(config, layer, device, dtype)
        self.mlp_norm = norm(config.width, config.norm_eps, device, dtype)
        self.mlp = MLP(config, device, dtype)
        self.dropout = config.dropout

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """(B, T, width) to the same."""
        x = x + self._dropped(self.attention(self.attention_norm(x), shared))
        return x + self._dropped(self.mlp(self.mlp_norm(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


class Stack(nn.Module):
    """The layers in a row and the norm after them."""

    def __init__(self, config: ModelConfig, device=None, dtype=None):
        super().__init__()
        self.layers = nn.ModuleDict({str(i): Block(config, i, device, dtype) for i in range(config.layers)})
        self.norm = NORMS[config.norm](config.width, config.norm_eps, device, dtype)
        self.windows = tuple({config.window_of(i): None for i in range(config.layers)})
        self.rotary = Rotary(config) if config.position == "rope" else None
        self.slopes = alibi_slopes(config.heads) if config.position == "alibi" else None

    def forward(self, x: Tensor, positions: Tensor, segments: Tensor | None, cache: KVCache | None) -> Tensor:
        """The stream after every layer, normalised.

        Args:
            x: (B, T, width).
            positions: (B or 1, T) int64.
            segments: (B, T) int64 or None.
            cache: earlier tokens, or None.

        Returns:
            (B, T, width).
        """
        shared = self._prepare(x, positions, segments, cache)
        for layer in self.layers.values():
            x = layer(x, shared)
        return self.norm(x)

    def _prepare(self, x: Tensor, positions: Tensor, segments: Tensor | None, cache: KVCache | None) -> Shared:
        tokens = keys = x.shape[1]
        if cache is not None:
            segments = cache.mark(segments, tokens)  # (B, S)
            keys += cache.length
        if self.slopes is not None and self.slopes.device != x.device:
            self.slopes = self.slopes.to(x.device)
        kind = x.device.type
        cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if cast else x.dtype  # of q, k and v
        angles = None if self.rotary is None else self.rotary(positions, dtype)
        masks = {w: causal_mask(tokens, keys, w, segments, self.slopes, x.device, dtype) for w in self.windows}
        return Shared(angles, masks, cache)
