"""quicken: what decoding one token at a time gains once a model in few bits is whole: fewer calls, a packed head."""

from collections.abc import Callable

import torch
from torch import Tensor

from llmctl.core.compress.quant.kernels import Nibbles, block_rows
from llmctl.core.compress.quant.linear import BytesLinear, CodedLinear, NibblesLinear, multiplied, packed_bytes
from llmctl.core.model.layers import Linear
from llmctl.core.model.transformer import Transformer


def quicken(model: Transformer) -> None:
    """Have a model in few bits on a CPU decode faster, in place; others stay as they are, and twice is as once.

    Matrices that multiply the same tokens become one. A head of bf16 is laid out
    as oneDNN reads it fastest: 1.5 to 2 times as fast for one token as torch's own product, and where it is more than
    arithmetic is the greater part of what is left to read. What a weight was before training goes on, is not used.
    """
    if not any(isinstance(module, CodedLinear) for module in model.modules()):
        return
    for layer in model.layers:
        if layer.attention.joint is None:
            layer.attention.joint = joint((layer.attention.q, layer.attention.k, layer.attention.v))
        if layer.mlp.joint is None and layer.mlp.gate is not None:
            layer.mlp.joint = joint((layer.mlp.gate, layer.mlp.up))
    head = model.head
    if head is None or head.weight is None:  # or in few bits itself
        return
    if head.swift is None or head.swift.stale(head.weight):
        head.swift = PackedHead(head.weight) if PackedHead.fits(head.weight) else None


class PackedHead:
    """A matrix of bf16 in oneDNN's own layout, for products on a CPU."""

    def __init__(self, weight: Tensor):
        self._made_of = _state(weight)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 1)

    @classmethod
    def fits(cls, weight: Tensor) -> bool:
        """Whether that is faster."""
        fast = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
        return fast and weight.dtype == torch.bfloat16 and weight.device.type == "cpu"

    def __deepcopy__(self, known: dict) -> None:
        """Nothing: a copy of the model has another weight."""
        return None

    def stale(self, weight: Tensor) -> bool:
        """Whether the weight is no longer what was packed."""
        return self._made_of != _state(weight)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., I) bf16 to (..., O)."""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, None, "none", [], "")


def _state(weight: Tensor) -> tuple[int, int]:
    return weight.data_ptr(), -1 if weight.is_inference() else weight._version


class BytesJoint:
    """Products of the same tokens with several matrices of bytes, which become parts of one."""

    def __init__(self, linears: tuple[BytesLinear, ...]):
        self.sizes, self.dynamic = [linear.out_features for linear in linears], linears[0].grid.dynamic
        self.matrix = packed_bytes([linear.codes() for linear in linears], self.dynamic)
        for linear, part in zip(linears, self.matrix.parts(self.sizes), strict=True):
            linear.matrix = part

    def __deepcopy__(self, known: dict) -> "BytesJoint":
        """Itself: nothing changes it."""
        return self

    def __call__(self, x: Tensor, linears: tuple[BytesLinear, ...]) -> list[Tensor]:
        """(..., I) to (..., O) of each."""
        y = self.matrix.product(x.flatten(0, -2), None, self.dynamic).view(*x.shape[:-1], -1)
        return _biased(y.split(self.sizes, -1), linears)

    def single(self, dtype: torch.dtype, linears: tuple[BytesLinear, ...]) -> Callable[[Tensor], Tensor] | None:
        """As in `StandIn`, with all of them."""
        return self.matrix.single(dtype, _bias(linears), self.dynamic)


class NibblesJoint:
    """Products of the same tokens with several matrices of 4 bits, which become parts of one."""

    def __init__(self, linears: tuple[NibblesLinear, ...]):
        self.sizes = [linear.out_features for linear in linears]
        packed = torch.cat([linear.weight_packed for linear in linears])
        for linear, part in zip(linears, packed.split(self.sizes), strict=True):
            linear.weight_packed = part
        values = torch.cat([linear.weight_values for linear in linears], 1)
        self.matrix = Nibbles(packed, values, linears[0].group)

    def __deepcopy__(self, known: dict) -> "NibblesJoint":
        """Itself: nothing changes it."""
        return self

    def __call__(self, x: Tensor, linears: tuple[NibblesLinear, ...]) -> list[Tensor] | None:
        """(..., I) to (..., O) of each, or None where the kernel is not the fastest way."""
        y = multiplied(self.matrix, x.flatten(0, -2))
        return None if y is None else _biased(y.view(*x.shape[:-1], -1).split(self.sizes, -1), linears)

    def single(self, dtype: torch.dtype, linears: tuple[NibblesLinear, ...]) -> Callable[[Tensor], Tensor] | None:
        """As in `StandIn`, with all of them."""
        return self.matrix.single(dtype, _bias(linears))


def _biased(parts: tuple[Tensor, ...], linears: tuple[Linear, ...]) -> list[Tensor]:
    return [part if one.bias is None else part + one.bias for part, one in zip(parts, linears, strict=True)]


def _bias(linears: tuple[Linear, ...]) -> Tensor | None:
    """The biases of all, (O,), or None."""
    return None if linears[0].bias is None else torch.cat([one.bias.detach() for one in linears])


def joint(linears: tuple[Linear, ...]) -> BytesJoint | NibblesJoint | None:
    """What multiplies the same tokens with several matrices, or None where nothing is gained."""
    kinds = {(type(one), getattr(one, "grid", None), one.bias is None) for one in linears}
    if len(kinds) > 1:
        return None
    if type(linears[0]) is BytesLinear and len({one.weight_zero is None for one in linears}) == 1:
        return BytesJoint(linears)
    if type(linears[0]) is NibblesLinear and all(one.out_features % block_rows() == 0 for one in linears):
        return NibblesJoint(linears)
    return None
