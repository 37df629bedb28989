"""Linear layers whose weights stay in few bits: kernels that read them packed, where device, shape and grid allow."""

from collections.abc import Callable

import torch
from torch import Tensor

from llmctl.core.compress.frozen import StandIn, product
from llmctl.core.compress.quant.grid import FP8_MOST, Codes, dense
from llmctl.core.compress.quant.kernels import Bytes, Nibbles, block_rows, bytes_are_fast, group_of, token_scales
from llmctl.core.model.layers import Linear
from llmctl.spec.quant import Grid

FEW = 64  # rows up to which a kernel of 4 bits is faster than one product with a matrix that is made for it
EXACT = 4  # rows up to which it multiplies float32, too: those of a step, where nothing else is fast


def held(source: Linear, codes: Codes, grid: Grid, dtype: torch.dtype) -> Linear:
    """A Linear that computes with codes in place of another's weight; its bias and adapter are the other's.

    Args:
        source: may be on the meta device.
        codes: of its weight, on the device that it will run on.
        dtype: of activations, and of `dense`.
    """
    shape = (source.out_features, source.in_features)
    kernels = KERNELS.get(codes.codes.device.type)
    kind = next((kind for kind in kernels() if kind.fits(codes, grid, shape)), CodedLinear) if kernels else CodedLinear
    return kind(source, codes, grid, dtype)


class CodedLinear(StandIn):
    """A Linear whose weight is held as codes, and made dense only while it multiplies.

    Attributes:
        grid: what the codes stand for.
        dtype: of `dense`.
    """

    def __init__(self, source: Linear, codes: Codes, grid: Grid, dtype: torch.dtype):
        super().__init__(source)
        self.grid, self.dtype = grid, dtype
        self.hold(codes)

    @classmethod
    def fits(cls, codes: Codes, grid: Grid, shape: tuple[int, int]) -> bool:
        """Whether it can hold codes of a matrix (outputs, inputs), and multiplies faster than those before it."""
        return True

    def hold(self, codes: Codes) -> None:
        """Take the codes."""
        self.register_buffer("weight_codes", codes.codes)
        self.register_buffer("weight_scale", codes.scale)
        self.register_buffer("weight_zero", codes.zero)

    def codes(self) -> Codes:
        """The weight as it was given."""
        return Codes(self.weight_codes, self.weight_scale, self.weight_zero)

    def plain(self, x: Tensor) -> Tensor:
        """The product, whatever the adapter; in the dtype of autocast, or of the input."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        learned = x.requires_grad or (self.bias is not None and self.bias.requires_grad)
        rows = None if learned and torch.is_grad_enabled() else self.swift(x.flatten(0, -2).to(dtype))
        if rows is None:
            return product(self.rounded(x), self.bias, self._made)
        return rows.view(*x.shape[:-1], -1)

    def swift(self, x: Tensor) -> Tensor | None:
        """The product (N, O) of x (N, I) and the bias, in its dtype, or None where no kernel is faster."""
        return None

    def rounded(self, x: Tensor) -> Tensor:
        """Inputs in 8 bits where the grid has them so, each token by itself; its gradient passes as if they were not.

        As compressed-tensors has it.
        """
        if not self.grid.dynamic:
            return x
        given = x.detach()
        if self.grid.kind == "fp8":
            scale = token_scales(given, FP8_MOST)
            made = (given / scale).clamp_(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn).to(x.dtype) * scale
        else:
            scale = token_scales(given, 127.5)
            made = (given / scale).round_().clamp_(-128, 127) * scale
        return x + (made - given) if x.requires_grad else made

    def dense(self) -> Tensor:
        """The matrix, (outputs, inputs), made anew."""
        return self._made(self.dtype)

    def _made(self, dtype: torch.dtype) -> Tensor:
        return dense(self.codes(), self.grid, dtype, (self.out_features, self.in_features))


class BytesLinear(CodedLinear):
    """Whole numbers of up to 8 bits with one scale a row, on a CPU that multiplies bytes."""

    @classmethod
    def fits(cls, codes: Codes, grid: Grid, shape: tuple[int, int]) -> bool:
        """Whole numbers, one scale a row."""
        return grid.kind == "int" and codes.scale.shape[1] == 1 and bytes_are_fast()

    def hold(self, codes: Codes) -> None:
        """Take the codes."""
        self.register_buffer("weight_scale", codes.scale)
        self.register_buffer("weight_zero", codes.zero)
        self.matrix = Bytes(codes.codes, codes.scale[:, 0], None if codes.zero is None else codes.zero[:, 0])

    def codes(self) -> Codes:
        """The weight as it was given."""
        return Codes(self.matrix.codes, self.weight_scale, self.weight_zero)

    def swift(self, x: Tensor) -> Tensor:
        """The product (N, O) of x (N, I) and the bias, in its dtype."""
        return self.matrix.product(x, self.bias, self.grid.dynamic)


class NibblesLinear(CodedLinear):
    """Whole numbers of up to 4 bits, by groups, on a CPU."""

    @classmethod
    def fits(cls, codes: Codes, grid: Grid, shape: tuple[int, int]) -> bool:
        """Whole numbers of 4 bits, rows in sixteens, groups of a multiple of 32 columns; inputs as they are."""
        few = grid.kind == "int" and grid.bits <= 4 and not grid.dynamic
        size = shape[1] // codes.scale.shape[1] if few else 0
        return few and shape[0] % 16 == 0 and group_of(shape[1], size) is not None and block_rows() > 0

    def hold(self, codes: Codes) -> None:
        """Take the codes."""
        self.register_buffer("weight_scale", codes.scale)
        self.register_buffer("weight_zero", codes.zero)
        self.group, values = grouped(codes, self.in_features)
        packed = Nibbles.of(codes.codes, values, self.group)
        self.register_buffer("weight_packed", packed.packed)
        self.register_buffer("weight_values", packed.values)

    @property
    def matrix(self) -> Nibbles:
        """The weight as the kernel takes it."""
        return Nibbles(self.weight_packed, self.weight_values, self.group)

    def codes(self) -> Codes:
        """The weight as it was given."""
        return Codes(self.matrix.numbers, self.weight_scale, self.weight_zero)

    def swift(self, x: Tensor) -> Tensor | None:
        """The product (N, O) of x (N, I) and the bias, in its dtype, by bf16 arithmetic; None: many rows of float32."""
        made = multiplied(self.matrix, x)
        return made if made is None or self.bias is None else made.add_(self.bias)


def grouped(codes: Codes, columns: int) -> tuple[int, Tensor]:
    """The group that kernels of 4 bits take for a matrix of so many columns, and `Nibbles.values`."""
    group = group_of(columns, columns // codes.scale.shape[1])
    repeated = columns // group // codes.scale.shape[1]
    scale = codes.scale.float()
    shift = torch.zeros_like(scale) if codes.zero is None else -scale * codes.zero
    values = torch.stack((scale.t(), shift.t()), -1).repeat_interleave(repeated, 0)  # (I / group, O, 2)
    return group, values.bfloat16().contiguous()


def multiplied(matrix: Nibbles, x: Tensor) -> Tensor | None:
    """x W' (N, O) of x (N, I), in its dtype, by bf16 arithmetic; None: many rows of float32."""
    if x.dtype == torch.float32 and x.shape[0] > EXACT:
        return None
    given = x.bfloat16()
    return (matrix.product(given) if x.shape[0] <= FEW else given @ matrix.dense()).to(x.dtype)


def _cuda() -> "tuple[type[CodedLinear], ...]":
    from llmctl.core.compress.quant.cuda import KERNELS

    return KERNELS


# Kernels of each kind of device, those that read least first.
KERNELS: dict[str, Callable[[], tuple[type[CodedLinear], ...]]] = {
    "cpu": lambda: (NibblesLinear, BytesLinear),
    "cuda": _cuda,
}
