"""Norm, Attention, MLP, Block, Stack: the layers, for every family alike."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl.core.model.attend import Mask, attend, cross_mask, self_mask
from llmctl.core.model.cache import Cache
from llmctl.core.model.explicit import LONGEST
from llmctl.core.model.linear import Features, attend_linearly
from llmctl.core.model.matrices import Embedding, Joint, Linear, each
from llmctl.core.model.memory import Memory
from llmctl.core.model.norms import RMSNorm, norm_of
from llmctl.core.model.position import Angles, Rotary, alibi_slopes, places_ahead, relative_buckets, rotate
from llmctl.core.model.virtual import Place
from llmctl.spec.model import ModelConfig, Rotation

Side = Literal["encoder", "decoder"]
Branch = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class Shared(NamedTuple):
    """What the layers of one forward pass have in common, computed once.

    Attributes:
        angles: rotary cosines and sines, by kind of rotation.
        masks: by window (None: the whole row).
        cache: keys and values of earlier tokens, or None.
        memory: what cross-attention reads, or None.
        memory_mask: of cross-attention.
        segments: (B, S) int64 of all tokens in view, 0 where one is padding; None: each row is one document.
        causal: no token sees one after itself.
        place: where keys and values of a prefix go among those of this pass; None: none do.
    """

    angles: dict[Rotation, Angles]
    masks: dict[int | None, Mask]
    cache: Cache | None
    memory: Memory | None
    memory_mask: Mask
    segments: Tensor | None
    causal: bool
    place: Place | None


class Attention(nn.Module):
    """Self-attention of one layer.

    `attend` is the function that makes outputs of queries, keys and values; one of the same signature may stand
    in its place, to look at what it is given.

    Attributes:
        prefix: None, or (2, Hkv, N, D): keys, turned as they should be, and values of N virtual tokens before each row.
        extra: None, or what makes the output of the queries and of what attention made: `extra(self, q, y)`, both
            (B, H, T, D), the queries turned, is then (B, T, width).
        joint: None, or what multiplies with the matrices of q, k and v in one go.
    """

    def __init__(self, config: ModelConfig, layer: int, device=None, dtype=None):
        super().__init__()
        self.prefix: nn.Parameter | None = None
        self.extra: nn.Module | None = None
        self.joint: Joint | None = None
        self.layer = layer
        self.window = config.window_of(layer)
        self.rotation = config.rotation_of(layer)
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.softcap = config.attention_softcap
        self.dropout = config.dropout
        self.attend = attend
        inner, shared = config.heads * config.head_dim, config.kv_heads * config.head_dim
        made = {"device": device, "dtype": dtype}
        self.q = Linear(config.width, inner, bias=config.qkv_bias, **made)
        self.k = Linear(config.width, shared, bias=config.qkv_bias, **made)
        self.v = Linear(config.width, shared, bias=config.qkv_bias, **made)
        self.out = Linear(inner, config.width, bias=config.out_bias, **made)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            sizes = (inner, shared) if config.qk_norm_whole else (config.head_dim, config.head_dim)
            self.q_norm, self.k_norm = (RMSNorm(n, config.norm_eps, config.norm_plus_one, **made) for n in sizes)

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """(B, T, width) to the same."""
        q, k, v = each(x, self.joint, self.q, self.k, self.v)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = self.heads(q), self.heads(k), self.heads(v)  # (B, H, T, D), (B, Hkv, T, D) twice
        turn = None if self.rotation is None else partial(rotate, angles=shared.angles[self.rotation])
        y = self.mix(q, k, v, turn, shared)
        return self.merged(y) if self.extra is None else self.extra(self, q if turn is None else turn(q), y)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, turn: Branch | None, shared: Shared) -> Tensor:
        """Outputs (B, H, T, D) of queries (B, H, T, D) on keys and values (B, Hkv, T, D) and those before them.

        `turn` gives queries or keys their rotary positions.
        """
        if turn is not None:
            q, k = turn(q), turn(k)
        if shared.place is not None:
            k, v = (shared.place.join(own[None], x, 2) for own, x in zip(self.prefix, (k, v), strict=True))
        if shared.cache is not None:
            k, v = shared.cache.append(self.layer, k, v)  # (B, Hkv, S, D)
        return self.attend(q, k, v, shared.masks[self.window], self.scale, self._drop(), self.softcap)

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, heads * D) to (B, heads, T, D)."""
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def merged(self, y: Tensor) -> Tensor:
        """(B, H, T, D) to (B, T, width)."""
        return self.out(y.transpose(1, 2).flatten(2))  # (B, T, H * D) inside

    def _drop(self) -> float:
        return self.dropout if self.training else 0.0


class CrossAttention(Attention):
    """Attention of a decoder's layer on what its encoder made of the source; without positions."""

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """(B, T, width) to the same."""
        q = self.heads(self.q(x))  # (B, H, T, D)
        k, v = self.remember(shared.memory, shared.cache is not None)
        return self.merged(self.attend(q, k, v, shared.memory_mask, self.scale, self._drop(), self.softcap))

    def remember(self, memory: Memory, keep: bool) -> tuple[Tensor, Tensor]:
        """Keys and values of the source, (B, Hkv, S, D) each; `keep`: for the passes to come."""
        if self.layer in memory.kept:
            return memory.kept[self.layer]
        made = self.heads(self.k(memory.hidden)), self.heads(self.v(memory.hidden))
        if keep:
            memory.kept[self.layer] = made
        return made


class LinearAttention(Attention):
    """Self-attention of one layer whose cost grows with the length and not with its square; see `linear`.

    `attend` has the signature of `attend_linearly`; tokens that a cache takes do not pass through it.
    """

    def __init__(self, config: ModelConfig, layer: int, device=None, dtype=None):
        super().__init__(config, layer, device, dtype)
        self.attend = attend_linearly

    def mix(self, q: Tensor, k: Tensor, v: Tensor, turn: Branch | None, shared: Shared) -> Tensor:
        """As in `Attention`."""
        features = Features.of(q, k, shared.segments, turn)
        if shared.cache is not None:
            return shared.cache.read(self.layer, features, v)
        return self.attend(features, v, shared.segments, shared.causal)


ATTENTIONS: dict[str, type[Attention]] = {"softmax": Attention, "linear": LinearAttention}


class MLP(nn.Module):
    """The feed-forward half of a layer, plain or gated (Shazeer, arXiv:2002.05202).

    Attributes:
        joint: None, or what multiplies with the matrices of gate and up in one go.
    """

    def __init__(self, config: ModelConfig, device=None, dtype=None):
        super().__init__()
        made = {"bias": config.mlp_bias, "device": device, "dtype": dtype}
        self.gate = Linear(config.width, config.ff, **made) if config.gated else None
        self.up = Linear(config.width, config.ff, **made)
        self.down = Linear(config.ff, config.width, **made)
        self.activation = ACTIVATIONS[config.activation]
        self.joint: Joint | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        if self.joint is None:  # what the gate gave is let go before the other is made
            return self.down(self.activation(self.gate(x)) * self.up(x))
        gate, up = each(x, self.joint, self.gate, self.up)
        return self.down(self.activation(gate) * up)


def _pre(x: Tensor, branch: Branch, norm: Branch, after: Branch | None) -> Tensor:
    """Xiong et al., arXiv:2002.04745."""
    return x + branch(norm(x))


def _post(x: Tensor, branch: Branch, norm: Branch, after: Branch | None) -> Tensor:
    """Vaswani et al., arXiv:1706.03762, section 3.1."""
    return norm(x + branch(x))


def _output(x: Tensor, branch: Branch, norm: Branch, after: Branch | None) -> Tensor:
    """OLMo 2, arXiv:2501.00656, section 3.2."""
    return x + norm(branch(x))


def _sandwich(x: Tensor, branch: Branch, norm: Branch, after: Branch | None) -> Tensor:
    """Gemma 2, arXiv:2408.00118, section 2."""
    return x + after(branch(norm(x)))


# How one half of a layer joins the stream, by where its norm is.
PLACES: dict[str, Callable[[Tensor, Branch, Branch, Branch | None], Tensor]] = {
    "pre": _pre,
    "post": _post,
    "output": _output,
    "sandwich": _sandwich,
}


class Block(nn.Module):
    """One layer: attention, cross-attention where there is a source, then MLP, each added to the stream."""

    def __init__(self, config: ModelConfig, layer: int, side: Side, device=None, dtype=None):
        super().__init__()
        made = {"device": device, "dtype": dtype}
        crossed, sandwich = side == "decoder" and config.kind == "encoder-decoder", config.norm_place == "sandwich"
        self.attention_norm = norm_of(config, **made)
        self.attention = ATTENTIONS[config.attention](config, layer, **made)
        self.attention_out_norm = norm_of(config, **made) if sandwich else None
        self.cross_attention_norm = norm_of(config, **made) if crossed else None
        self.cross_attention = CrossAttention(config, layer, **made) if crossed else None
        self.cross_attention_out_norm = norm_of(config, **made) if crossed and sandwich else None
        self.mlp_norm = norm_of(config, **made)
        self.mlp = MLP(config, **made)
        self.mlp_out_norm = norm_of(config, **made) if sandwich else None
        self.dropout, self.parallel, self.join = config.dropout, config.parallel, PLACES[config.norm_place]

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        """(B, T, width) to the same."""
        attention, mlp = self._branch(self.attention, shared=shared), self._branch(self.mlp)
        if self.parallel:
            return x + attention(self.attention_norm(x)) + mlp(self.mlp_norm(x))
        x = self.join(x, attention, self.attention_norm, self.attention_out_norm)
        if self.cross_attention is not None:
            cross = self._branch(self.cross_attention, shared=shared)
            x = self.join(x, cross, self.cross_attention_norm, self.cross_attention_out_norm)
        return self.join(x, mlp, self.mlp_norm, self.mlp_out_norm)

    def _branch(self, module: nn.Module, **given: Shared) -> Branch:
        """The module, its output dropped in training."""
        if self.training and self.dropout:
            return lambda x: F.dropout(module(x, **given), self.dropout)
        return partial(module, **given)


class Stack(nn.Module):
    """The layers in a row, and the norm after them where each has its norms before.

    Args:
        side: an encoder's tokens see each other both ways, a decoder's only those before them.

    Attributes:
        swift: None, or what may do what the layers of some names do, faster: `swift(names, x, shared)` is then what
            comes out of them, or None.
    """

    def __init__(self, config: ModelConfig, side: Side, device=None, dtype=None):
        super().__init__()
        made = {"device": device, "dtype": dtype}
        layers = range(config.stacks[side])
        self.config, self.causal = config, side == "decoder"
        self.swift: Callable[[Iterable[str], Tensor, Shared], Tensor | None] | None = None
        self.layers = nn.ModuleDict({str(i): Block(config, i, side, **made) for i in layers})
        self.norm = norm_of(config, **made) if config.norm_place != "post" else None
        relative = config.position == "relative"
        self.relative = Embedding(config.relative_buckets, config.heads, **made) if relative else None
        self.windows = tuple({config.window_of(i): None for i in layers})
        rotations = {config.rotation_of(i): None for i in layers}
        self.rotaries = {kind: Rotary(config, kind) for kind in rotations if kind is not None}
        self.slopes = alibi_slopes(config.heads) if config.position == "alibi" else None

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        segments: Tensor | None = None,
        cache: Cache | None = None,
        prefix: Tensor | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """The stream after every layer, normalised.

        Args:
            x: (B, T, width).
            positions: (B or 1, T) int64.
            segments: (B, T) int64 or None.
            cache: earlier tokens, or None.
            prefix: (B, T) bool, tokens that are seen by those before them too, or None.
            memory: of the source, for a decoder that has one.

        Returns:
            (B, T, width).
        """
        shared = self.prepare(x, positions, segments, cache, prefix, memory)
        made = None if self.swift is None else self.swift(self.layers, x, shared)
        if made is None:
            for layer in self.layers.values():
                x = layer(x, shared)
            made = x
        return made if self.norm is None else self.norm(made)

    @property
    def virtual(self) -> int:
        """The virtual tokens whose keys and values stand before each row."""
        first = next(iter(self.layers.values())).attention.prefix
        return 0 if first is None else first.shape[2]

    def prepare(
        self,
        x: Tensor,
        positions: Tensor,
        segments: Tensor | None,
        cache: Cache | None,
        prefix: Tensor | None,
        memory: Memory | None,
    ) -> Shared:
        """What the layers of one pass have in common; arguments as for `forward`."""
        if prefix is not None and self.config.attention == "linear":
            raise ValueError("linear attention cannot show a prefix both ways")
        tokens = keys = x.shape[1]
        crossing = Mask() if memory is None else cross_mask(segments, memory.segments)
        place = None
        if self.virtual and (cache is None or cache.length == 0):
            place = Place.of(self.virtual, segments)
            segments, prefix = (None if part is None else place.beside(1, part) for part in (segments, prefix))
            keys += place.count
        if cache is not None:
            cache.open(keys, segments, x.device)
        if self.slopes is not None and self.slopes.device != x.device:
            self.slopes = self.slopes.to(x.device)
        kind = x.device.type
        cast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if cast else x.dtype  # of q, k and v
        angles = {name: rotary(positions, dtype) for name, rotary in self.rotaries.items()}
        masks = {}
        if self.config.attention == "softmax":  # a mask has a number for each pair of tokens
            given = (tokens, keys, segments, prefix, cache, dtype, x.device)
            masks = {window: self._mask(window, *given) for window in self.windows}
        kept = kind == "cpu" and keys <= LONGEST and self.config.attention_softcap is None
        if kept and torch.is_grad_enabled():  # one sum for all layers, where attention is explicit
            size = (tokens, keys, dtype, x.device)
            masks = {window: mask._replace(added=mask.summed(*size)) for window, mask in masks.items()}
        return Shared(angles, masks, cache, memory, crossing, segments, self.causal, place)

    def _mask(
        self,
        window: int | None,
        tokens: int,
        keys: int,
        segments: Tensor | None,
        prefix: Tensor | None,
        cache: Cache | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Mask:
        """That of the layers with a window, where the pass is of so many tokens and keys."""
        if cache is None:
            mask = self_mask(tokens, keys, self.causal, window, segments, self.slopes, prefix, device, dtype)
        else:
            mask = cache.mask(tokens, window, self.slopes, prefix, dtype)
        if self.relative is None:
            return mask
        ahead = places_ahead(tokens, keys, device) if cache is None else cache.ahead(tokens, window)
        bias = self.relative(relative_buckets(ahead, self.config, self.causal))  # (B or 1, T, S, H)
        return mask._replace(bias=bias.permute(0, 3, 1, 2).to(dtype).contiguous())
