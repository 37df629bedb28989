"""settle: the matrices of a model that is only read from now on, laid out as this CPU multiplies them fastest.

oneDNN's own layout, blocks of rows interleaved, is read in one stream. Measured on two cores with AVX512-BF16, against
torch's product with a plain matrix: in bf16 one token in 0.5 of the time and 16 in 0.7; in float32 one in 0.5 to 0.75
and 128 in 0.35 to 0.5. The numbers are those of the plain matrix, to the bit; sums are taken in another order. Half
precision has no such layout here, and torch's product of many tokens with it takes 18 times that of bf16: they are
multiplied in float32, one matrix at a time.
"""

import platform
from collections.abc import Callable, Sequence
from copy import copy
from functools import lru_cache
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from llmctl.core.compress.frozen import StandIn, product
from llmctl.core.compress.pages import give_back
from llmctl.core.compress.quant.quicken import PackedHead, quicken
from llmctl.core.decode.single import Single
from llmctl.core.model.heads import Head
from llmctl.core.model.layers import Block, Linear
from llmctl.core.model.matrices import Joint
from llmctl.core.model.transformer import Transformer

X86 = ("x86_64", "amd64")
FEW = 24  # tokens up to which half precision is multiplied as it is


def settle(model: Transformer) -> None:
    """Lay out the matrices of a model that only decodes from now on, in place and once; twice is as once.

    Each is packed and its source given up, so that none stands in memory twice, but for a table of tokens that is the
    head's matrix too. There are then no parameters to train or to save, and `dense` makes a matrix anew. On other
    devices, and where no layout is faster, matrices stay as they are.
    """
    for layer in model.layers:
        sources = []
        attention, mlp = layer.attention, layer.mlp
        attention.joint = _settled(layer, "attention", ("q", "k", "v"), attention.joint, sources)
        mlp.joint = _settled(layer, "mlp", ("gate", "up") if mlp.gate is not None else (), mlp.joint, sources)
        for path, module in list(layer.named_modules()):
            if type(module) is Linear and module.weight is not None and (kind := _kind(module.weight)):
                owner, _, name = path.rpartition(".")
                sources.append(module.weight.detach())
                setattr(layer.get_submodule(owner), name, kind(module))
        give_back(sources, model.parameters())
    head = model.head
    if head is not None and head.weight is not None and head.swift is None and packs(head.weight):
        if isinstance(head, Head):
            source = Linear(head.weight.shape[1], head.weight.shape[0], bias=False, device="meta")
            source.weight = head.weight
            head.hold(PackedLinear(source))
            give_back([source.weight.detach()], model.parameters())
        else:
            head.swift = PackedHead(head.weight)
    quicken(model)
    if model.decoder is not None:
        model.decoder.swift = Single(model.decoder)


@lru_cache
def _layouts() -> frozenset[torch.dtype]:
    """The types whose matrices this CPU multiplies faster in oneDNN's layout."""
    if not torch.backends.mkldnn.is_available() or platform.machine().lower() not in X86:
        return frozenset()
    return frozenset({torch.float32} | ({torch.bfloat16} if torch.cpu._is_avx512_bf16_supported() else set()))


def packs(weight: Tensor) -> bool:
    """Whether a matrix is multiplied faster once it is packed."""
    return weight.device.type == "cpu" and weight.dtype in _layouts()


class Packed:
    """A matrix and its bias as oneDNN lays them out, or some of the rows; not a buffer: little can be done with one."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.dtype = weight.dtype
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 1)
        self._bias = None if bias is None else bias.detach()
        self._span: slice | None = None  # of rows; None: all

    def __deepcopy__(self, known: dict) -> "Packed":
        """Itself: nothing changes it."""
        return self

    def parts(self, sizes: Sequence[int]) -> "list[Packed]":
        """Runs of so many rows; each multiplies with all of them and takes its own."""
        found = [copy(self) for _ in sizes]
        for part, size, end in zip(found, sizes, accumulate(sizes), strict=True):
            part._span = slice(end - size, end)
        return found

    def product(self, x: Tensor) -> Tensor:
        """(..., I) to (..., O), in the matrix's own dtype."""
        y = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return y if self._span is None else y[..., self._span]

    def single(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
        """As in `StandIn`; None where only some of the rows are meant."""
        if self._span is not None or dtype != self.dtype:
            return None
        multiply, packed, bias = torch.ops.mkldnn._linear_pointwise.default, self._packed, self._bias
        return lambda x: multiply(x, packed, bias, "none", [], "")

    def dense(self) -> Tensor:
        """The matrix (O, I), made anew."""
        weight = self._packed.to_dense()
        return weight if self._span is None else weight[self._span]


class PackedLinear(StandIn):
    """A Linear whose weight is packed: there is no parameter `weight`."""

    def __init__(self, source: Linear, matrix: Packed | None = None):
        super().__init__(source)
        self.matrix = Packed(source.weight, source.bias) if matrix is None else matrix

    def plain(self, x: Tensor) -> Tensor:
        """The product, whatever the adapter."""
        cast = torch.is_autocast_enabled(x.device.type)
        if torch.is_grad_enabled() or cast or x.dtype != self.matrix.dtype:
            return product(x, self.bias, self._made)
        return self.matrix.product(x)

    def single(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
        """As in `StandIn`."""
        return self.matrix.single(dtype)

    def dense(self) -> Tensor:
        """The matrix, (outputs, inputs), made anew."""
        return self.matrix.dense()

    def _made(self, dtype: torch.dtype) -> Tensor:
        return self.dense().to(dtype)


class HalfLinear(StandIn):
    """A Linear with a weight of half precision, on a CPU that multiplies no more than a few tokens of it fast."""

    def __init__(self, source: Linear):
        super().__init__(source)
        self.weight = source.weight

    def plain(self, x: Tensor) -> Tensor:
        """The product, whatever the adapter."""
        if x.dtype != torch.float16 or torch.is_grad_enabled() or x.shape[:-1].numel() <= FEW:
            return super().plain(x)
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.float(), self.weight.float(), bias).half()


def _kind(weight: Tensor) -> type[PackedLinear] | type[HalfLinear] | None:
    """What stands in for a Linear with such a weight; None: nothing."""
    if packs(weight):
        return PackedLinear
    return HalfLinear if weight.dtype == torch.float16 and weight.device.type == "cpu" and _layouts() else None


class PackedJoint:
    """Products of the same tokens with several matrices, which become parts of one."""

    def __init__(self, weight: Tensor, bias: Tensor | None, sizes: list[int]):
        self.matrix, self.sizes = Packed(weight, bias), sizes

    def __deepcopy__(self, known: dict) -> "PackedJoint":
        """Itself: nothing changes it."""
        return self

    def __call__(self, x: Tensor, linears: tuple[Linear, ...]) -> list[Tensor] | None:
        """(..., I) to (..., O) of each; None of another dtype than the matrix's."""
        return list(self.matrix.product(x).split(self.sizes, -1)) if x.dtype == self.matrix.dtype else None

    def single(self, dtype: torch.dtype, linears: tuple[Linear, ...]) -> Callable[[Tensor], Tensor] | None:
        """As in `StandIn`, with all of them."""
        return self.matrix.single(dtype)


def _settled(
    layer: Block, owner: str, names: Sequence[str], known: Joint | None, sources: list[Tensor]
) -> Joint | None:
    """What multiplies with these matrices of a layer at once, in whose place its parts stand; or what is known."""
    module = layer.get_submodule(owner)
    linears = [module.get_submodule(name) for name in names]
    if known is not None or not linears or not _joins(linears):
        return known
    biased = linears[0].bias is not None
    bias = torch.cat([one.bias.detach() for one in linears]) if biased else None
    made = PackedJoint(torch.cat([one.weight.detach() for one in linears]), bias, [one.out_features for one in linears])
    for name, one, part in zip(names, linears, made.matrix.parts(made.sizes), strict=True):
        sources.append(one.weight.detach())
        setattr(module, name, PackedLinear(one, part))
    return made


def _joins(linears: list[Linear]) -> bool:
    """Whether matrices are packed as one; a part on which an adapter sits would be multiplied with all of it."""
    if any(type(one) is not Linear or one.weight is None or one.adapter is not None for one in linears):
        return False
    kinds = {(one.weight.dtype, one.bias is None) for one in linears}
    return len(kinds) == 1 and all(packs(one.weight) for one in linears)
