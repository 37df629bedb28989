"""Linear layers whose weights stay in few bits: kernels that read them packed, where device, shape and grid allow."""

from collections.abc import Callable

import torch
from torch import Tensor

from llmctl.core.compress.frozen import StandIn, product
from llmctl.core.compress.quant.grid import BIAS, E2M1, FP8_MOST, Codes, dense
from llmctl.core.compress.quant.kernels import (
    Bytes,
    Nibbles,
    block_rows,
    bytes_are_fast,
    group_of,
    looked_up,
    token_scales,
)
from llmctl.core.compress.quant.straight import Straight
from llmctl.core.model.layers import Linear
from llmctl.spec.quant import Grid

FEW = 96  # rows up to which a kernel of 4 bits is faster than one product with a matrix that is made for it
HALVES = [round(2 * value) for value in E2M1]
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
        """Take the codes; they are packed when they are first multiplied, or with others."""
        super().hold(codes)
        self._matrix: Bytes | Straight | None = None

    @property
    def matrix(self) -> Bytes | Straight:
        """The weight as the kernel takes it."""
        if self._matrix is None:
            self.matrix = packed_bytes([self.codes()], self.grid.dynamic)
        return self._matrix

    @matrix.setter
    def matrix(self, packed: Bytes | Straight) -> None:
        self._matrix, self.weight_codes = packed, None

    def codes(self) -> Codes:
        """The weight as it was given."""
        codes = self.weight_codes if self._matrix is None else self._matrix.codes
        return Codes(codes, self.weight_scale, self.weight_zero)

    def swift(self, x: Tensor) -> Tensor:
        """The product (N, O) of x (N, I) and the bias, in its dtype."""
        return self.matrix.product(x, self.bias, self.grid.dynamic)

    def single(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
        """As in `StandIn`."""
        return self.matrix.single(dtype, self.bias, self.grid.dynamic)


def packed_bytes(parts: list[Codes], dynamic: bool) -> Bytes | Straight:
    """Matrices with one scale a row as one, below each other; all have zero points or none.

    Args:
        dynamic: tokens are rounded to a byte each.
    """
    codes, scale = (
        torch.cat(some) if len(some) > 1 else some[0] for some in zip(*(one[:2] for one in parts), strict=True)
    )
    zero = None if parts[0].zero is None else torch.cat([one.zero for one in parts])[:, 0]
    if Straight.fits(codes, scale, zero, dynamic):
        return Straight(codes, scale[:, 0])
    return Bytes(codes, scale[:, 0], zero)


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

    def single(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
        """As in `StandIn`."""
        return self.matrix.single(dtype, self.bias)


class PlanesLinear(CodedLinear):
    """Whole numbers of more than 4 bits by groups, and e2m1, on a CPU: each is the sum of two numbers of 4 bits."""

    @classmethod
    def fits(cls, codes: Codes, grid: Grid, shape: tuple[int, int]) -> bool:
        """Rows in sixteens, groups of a multiple of 32 columns; inputs as they are."""
        fit = grid.kind in ("int", "mxfp4") and not grid.dynamic and shape[0] % 16 == 0 and block_rows() > 0
        return fit and group_of(shape[1], shape[1] // codes.scale.shape[1]) is not None

    def hold(self, codes: Codes) -> None:
        """Take the codes."""
        self.register_buffer("weight_scale", codes.scale)
        self.register_buffer("weight_zero", codes.zero)
        self.group, values = grouped(self._plain(codes), self.in_features)
        if self.grid.kind == "mxfp4":
            table = torch.tensor(HALVES + [-half for half in HALVES], dtype=torch.int8)
            halves = table.index_select(0, codes.codes.reshape(-1).int()).view(codes.codes.shape)
            first = halves.clamp(-8, 7)
            second = halves - first
            lost = codes.codes == 8  # -0 is to be known again
            planes, scales = (first - lost.to(torch.int8), second + lost.to(torch.int8)), (values, values)
        else:
            planes = codes.codes >> 4, (codes.codes & 15) - 8  # a code is 16 times the first, and the second, and 8
            scale, shift = values.float().unbind(-1)
            high, low = (16 * scale, shift + 8 * scale), (scale, torch.zeros_like(scale))
            scales = tuple(torch.stack(pair, -1).bfloat16() for pair in (high, low))
        packed = [Nibbles.of(plane, scale, self.group) for plane, scale in zip(planes, scales, strict=True)]
        self.register_buffer("weight_packed", torch.stack([plane.packed for plane in packed]))
        self.register_buffer("weight_values", torch.stack([plane.values for plane in packed]))

    def _plain(self, codes: Codes) -> Codes:
        """Codes whose scales are numbers: of e2m1 what half a unit stands for."""
        if self.grid.kind != "mxfp4":
            return codes
        return Codes(codes.codes, torch.exp2(codes.scale.float() - BIAS - 1), None)

    @property
    def planes(self) -> list[Nibbles]:
        """The weight as the kernel takes it."""
        pairs = zip(self.weight_packed, self.weight_values, strict=True)
        return [Nibbles(packed, values, self.group) for packed, values in pairs]

    def codes(self) -> Codes:
        """The weight as it was given."""
        first, second = (plane.numbers for plane in self.planes)
        if self.grid.kind != "mxfp4":
            return Codes(16 * first + second + 8, self.weight_scale, self.weight_zero)
        halves = first + second
        places = torch.zeros(HALVES[-1] + 1, dtype=torch.uint8)
        places[HALVES] = torch.arange(len(HALVES), dtype=torch.uint8)
        negative = (halves < 0) | ((halves == 0) & (second != 0))
        return Codes(places[halves.abs().int()] | negative.to(torch.uint8) << 3, self.weight_scale, None)

    def swift(self, x: Tensor) -> Tensor | None:
        """The product (N, O) of x (N, I) and the bias, in its dtype, by bf16 arithmetic; None: many rows of float32."""
        if x.dtype == torch.float32 and x.shape[0] > EXACT:
            return None
        given, (first, second) = x.bfloat16(), self.planes
        if x.shape[0] <= FEW // 2:
            made = first.product(given).float() + second.product(given)
        else:
            made = given @ first.dense().add_(second.dense())
        return (made if self.bias is None else made + self.bias).to(x.dtype)


class FloatsLinear(CodedLinear):
    """Weights in e4m3 on a CPU: no kernel multiplies them, but they are made dense faster than by torch's cast."""

    @classmethod
    def fits(cls, codes: Codes, grid: Grid, shape: tuple[int, int]) -> bool:
        """Columns in pairs, one scale a row."""
        return grid.kind == "fp8" and shape[1] % 2 == 0 and codes.scale.shape[1] == 1

    def _made(self, dtype: torch.dtype) -> Tensor:
        return looked_up(self.weight_codes, self.weight_scale, dtype)


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
    "cpu": lambda: (NibblesLinear, BytesLinear, PlanesLinear, FloatsLinear),
    "cuda": _cuda,
}
