"""single: one more token of one row through the layers of a settled model: what their modules do, in far fewer calls.

At 30 layers of width 576 the matrices of a step are read in 7 ms, and what torch and Python do around them took as
long as half of that. What stands in for a layer here calls the kernels that its modules come to call, one after
another, with what is the same in every layer made once a step. Parts that are rare are the modules themselves.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl.core.compress.frozen import StandIn
from llmctl.core.model.attend import attend
from llmctl.core.model.cache import KVCache
from llmctl.core.model.layers import MLP, Attention, Block, Shared, Stack
from llmctl.core.model.matrices import Linear
from llmctl.core.model.norms import RMSNorm, one_row
from llmctl.spec.model import Rotation

Layer = Callable[[Tensor, "Pass"], Tensor]  # (1, width) to the same
Branch = Callable[[Tensor], Tensor]
Product = Callable[[Tensor], Tensor]  # (1, I) to (1, O)


class Pass(NamedTuple):
    """What the layers of one pass have in common, one token of one row, H query heads and Hkv of keys and values.

    Attributes:
        shared: the same for the modules.
        heads: (H + 2 Hkv, D), where a layer puts its queries, keys and values once they are turned.
        queries: (1, Hkv, H / Hkv, D), those of them: the heads of a group stand in a row like tokens.
        pair: (2, 1, Hkv, D), the keys and values.
        angles: cosines and sines for all of those, (H + 2 Hkv, D) each; those of values are 1 and 0.
        places: by window, the slot of the token, the first slot in view, and how many there are.
    """

    shared: Shared
    heads: Tensor
    queries: Tensor
    pair: Tensor
    angles: dict[Rotation, tuple[Tensor, Tensor]]
    places: dict[int | None, tuple[int, int, int]]


class Single:
    """The layers of a stack, for one token of one row.

    Args:
        stack: of a decoder, its matrices settled; what is done to its modules later is not seen, but for adapters,
            hooks and views of attention: with any of those this is not the way.
    """

    def __init__(self, stack: Stack):
        config = stack.config
        self.heads, self.kept, self.size = config.heads, config.kv_heads, config.head_dim
        self.dtype = next(iter(stack.layers.values())).attention_norm.weight.dtype
        self._layers = {name: _layer(block, self.dtype) for name, block in stack.layers.items()}
        modules = list(stack.modules())
        self._between = [hooks for one in modules for hooks in (one._forward_hooks, one._forward_pre_hooks)]
        self._between += [one._modules for one in modules if isinstance(one, Linear)]  # where an adapter sits
        self._attentions = [block.attention for block in stack.layers.values()]

    def __deepcopy__(self, known: dict) -> None:
        """Nothing: a copy of the stack has other matrices."""
        return None

    def __call__(self, names: Iterable[str], x: Tensor, shared: Shared) -> Tensor | None:
        """(1, 1, width) through the layers of these names, to the same; None: this is not the way."""
        if not self.fits(x, shared):
            return None
        step, x = self._pass(shared, x.dtype), x[0]
        for name in names:
            x = self._layers[name](x, step)
        return x[None]

    def fits(self, x: Tensor, shared: Shared) -> bool:
        """Whether it is one token of one row after others, all of which it sees, and nobody stands or looks between."""
        return (
            x.shape[0] == x.shape[1] == 1
            and x.dtype == self.dtype
            and type(shared.cache) is KVCache
            and shared.place is None
            and all(mask.seen is None and mask.bias is None for mask in shared.masks.values())
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not any(self._between)
            and all(one.attend is attend and one.extra is None for one in self._attentions)
        )

    def _pass(self, shared: Shared, dtype: torch.dtype) -> Pass:
        turned, all_ = self.heads + self.kept, self.heads + 2 * self.kept
        heads = torch.empty((all_, self.size), dtype=dtype)
        angles = {}
        for kind, (cos, sin) in shared.angles.items():
            if cos.shape[-1] == self.size:
                both = torch.stack((torch.ones_like(heads), torch.zeros_like(heads)))
                both[0, :turned], both[1, :turned] = cos[0, 0], sin[0, 0]
                angles[kind] = both[0], both[1]
        places = {
            window: (view.put.start, view.seen.start, view.seen.stop - view.seen.start)
            for window, view in shared.cache.views.items()
        }
        queries = heads[: self.heads].view(1, self.kept, -1, self.size)
        return Pass(shared, heads, queries, heads[self.heads :].view(2, 1, self.kept, self.size), angles, places)


def _layer(block: Block, dtype: torch.dtype) -> Layer:
    """What does for one token what a layer does."""
    if block.cross_attention is not None:
        return _module(block)
    attention_norm, mlp_norm = _norm(block.attention_norm), _norm(block.mlp_norm)
    attention, mlp, join = _attention(block.attention, dtype), _mlp(block.mlp, dtype), block.join
    after = [None if one is None else _norm(one) for one in (block.attention_out_norm, block.mlp_out_norm)]
    if block.parallel:
        return lambda x, step: x + attention(attention_norm(x), step) + mlp(mlp_norm(x))

    def layer(x: Tensor, step: Pass) -> Tensor:
        x = join(x, lambda normal: attention(normal, step), attention_norm, after[0])
        return join(x, mlp, mlp_norm, after[1])

    return layer


def _module(module: nn.Module) -> Layer:
    """A module that is given what the layers share."""
    return lambda x, step: module(x[None], step.shared)[0]


def _norm(norm: nn.Module) -> Branch:
    if type(norm) is RMSNorm:
        return partial(one_row, weight=norm.weight.detach(), eps=norm.eps, plus_one=norm.plus_one)
    return norm.forward


def _attention(module: Attention, dtype: torch.dtype) -> Layer:
    """Attention of one token; where positions turn a part of a head or nothing is joined, the module itself."""
    plain = type(module) is Attention and module.joint is not None and module.softcap is None
    multiplied = module.joint.single(dtype, (module.q, module.k, module.v)) if plain else None
    if multiplied is None:
        return _module(module)
    out, slow = product_of(module.out, dtype), _module(module)
    q_norm, k_norm, number, window = module.q_norm, module.k_norm, module.layer, module.window
    rotation, size, scale = module.rotation, module.head_dim, module.scale
    inner, both = module.q.out_features, module.q.out_features + module.k.out_features
    half = size // 2

    def attention(x: Tensor, step: Pass) -> Tensor:
        made = multiplied(x)  # (1, (H + 2 Hkv) D)
        if q_norm is not None:
            q, k, v = made[:, :inner], made[:, inner:both], made[:, both:]
            made = torch.cat((q_norm.forward(q), k_norm.forward(k), v), 1)
        heads = made.view(-1, size)
        if rotation is None:
            step.heads.copy_(heads)
        else:
            cos, sin = step.angles[rotation]
            torch.addcmul(heads * cos, heads.roll(half, -1), sin, out=step.heads)
        pair, (at, first, count) = step.shared.cache.pairs[number], step.places[window]
        pair.select(3, at).copy_(step.pair)
        keys, values = pair.narrow(3, first, count).unbind()
        y = F.scaled_dot_product_attention(step.queries, keys, values, scale=scale)
        return out(y.view(1, inner))

    return lambda x, step: attention(x, step) if rotation is None or rotation in step.angles else slow(x, step)


def _mlp(module: MLP, dtype: torch.dtype) -> Branch:
    up, down, activation = product_of(module.up, dtype), product_of(module.down, dtype), module.activation
    if module.gate is None:
        return lambda x: down(activation(up(x)))
    multiplied = None if module.joint is None else module.joint.single(dtype, (module.gate, module.up))
    if multiplied is None:
        gate = product_of(module.gate, dtype)
        return lambda x: down(activation(gate(x)).mul_(up(x)))

    def mlp(x: Tensor) -> Tensor:
        gate, up = multiplied(x).chunk(2, 1)
        return down(activation(gate).mul_(up))

    return mlp


def product_of(linear: Linear, dtype: torch.dtype) -> Product:
    """The product with a matrix and its bias."""
    return (linear.single(dtype) if isinstance(linear, StandIn) else None) or linear.forward
