"""Linear layers in few bits on a CUDA GPU: tinygemm's four bits, products of bytes, products of e4m3.

Each is tried on a small matrix before it is used: where torch or the GPU cannot do it, or its layout is another, the
matrix is made dense for each product as anywhere else.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from llmctl.core.compress.quant.grid import FP8_MOST, Codes, quantise
from llmctl.core.compress.quant.kernels import group_of, token_scales
from llmctl.core.compress.quant.linear import CodedLinear, grouped
from llmctl.core.model.layers import Linear
from llmctl.spec.quant import Grid

FEW = 128  # rows up to which tinygemm is used; beyond, the matrix is made dense
LEAST = 17  # rows that a product of bytes takes
TRIED = (64, 256)  # the matrix on which kernels are tried
CLOSE = 0.02  # relative error at most


class TinyLinear(CodedLinear):
    """Whole numbers of up to 4 bits, by groups, times bf16."""

    @classmethod
    def fits(cls, codes: Codes, grid: Grid, shape: tuple[int, int]) -> bool:
        """Whole numbers of 4 bits, rows in eights, groups of a multiple of 32 columns; inputs as they are."""
        few = grid.kind == "int" and grid.bits <= 4 and not grid.dynamic and shape[0] % 8 == 0
        size = shape[1] // codes.scale.shape[1] if few else 0
        return few and group_of(shape[1], size) is not None and _works(cls, Grid("int", 4, 128), codes.codes.device)

    def hold(self, codes: Codes) -> None:
        """Take the codes."""
        self.register_buffer("weight_scale", codes.scale)
        self.register_buffer("weight_zero", codes.zero)
        self.group, values = grouped(codes, self.in_features)
        tiles = next(count for count in (8, 4, 2) if self.in_features % (16 * count) == 0)
        numbers = (codes.codes + 8).to(torch.uint8)
        pairs = numbers[:, ::2] << 4 | numbers[:, 1::2]
        self.register_buffer("weight_packed", torch.ops.aten._convert_weight_to_int4pack(pairs, tiles))
        self.register_buffer("weight_values", values)

    def codes(self) -> Codes:
        """The weight as it was given: what an identity matrix multiplies to."""
        one = torch.eye(self.in_features, dtype=torch.bfloat16, device=self.weight_packed.device)
        plain = torch.zeros_like(self.weight_values)
        plain[..., 0] = 1
        numbers = torch.ops.aten._weight_int4pack_mm(one, self.weight_packed, self.group, plain)
        return Codes(numbers.t().round().to(torch.int8), self.weight_scale, self.weight_zero)

    def swift(self, x: Tensor) -> Tensor | None:
        """The product (N, O) of x (N, I) and the bias, in its dtype, by bf16 arithmetic."""
        if x.shape[0] > FEW or x.dtype == torch.float32:
            return None
        y = torch.ops.aten._weight_int4pack_mm(x.bfloat16(), self.weight_packed, self.group, self.weight_values)
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class TokenBytesLinear(CodedLinear):
    """Whole numbers of 8 bits, times inputs in 8 bits."""

    @classmethod
    def fits(cls, codes: Codes, grid: Grid, shape: tuple[int, int]) -> bool:
        """Bytes with one scale a row and no zero points; rows and columns in eights."""
        fit = grid.kind == "int" and grid.dynamic and codes.zero is None and codes.scale.shape[1] == 1
        fit = fit and shape[0] % 8 == 0 and shape[1] % 8 == 0
        return fit and _works(cls, Grid("int", 8, dynamic=True), codes.codes.device)

    def swift(self, x: Tensor) -> Tensor:
        """The product (N, O) of x (N, I) and the bias, in its dtype."""
        unit = token_scales(x, 127.5)
        rows = (x / unit).round_().clamp_(-128, 127).to(torch.int8)
        lacking = max(0, LEAST - x.shape[0])
        sums = torch._int_mm(F.pad(rows, (0, 0, 0, lacking)), self.weight_codes.t())[: x.shape[0]]
        y = sums.float() * unit.float() * self.weight_scale.float().t()
        return (y if self.bias is None else y + self.bias).to(x.dtype)


class TokenFloatsLinear(CodedLinear):
    """Weights in e4m3, times inputs in e4m3."""

    @classmethod
    def fits(cls, codes: Codes, grid: Grid, shape: tuple[int, int]) -> bool:
        """One scale a row; rows and columns in sixteens."""
        fit = grid.kind == "fp8" and grid.dynamic and codes.scale.shape[1] == 1
        fit = fit and shape[0] % 16 == 0 and shape[1] % 16 == 0
        return fit and _works(cls, Grid("fp8", 8, dynamic=True), codes.codes.device)

    def swift(self, x: Tensor) -> Tensor | None:
        """The product (N, O) of x (N, I) and the bias, in bf16; None: x is of another dtype."""
        if x.dtype != torch.bfloat16:
            return None
        unit = token_scales(x, FP8_MOST)
        rows = (x / unit).clamp_(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn)
        scale = self.weight_scale.float().t().contiguous()  # (1, O)
        y = torch._scaled_mm(rows, self.weight_codes.t(), unit.float(), scale, out_dtype=torch.bfloat16)
        return y if self.bias is None else y + self.bias


@lru_cache
def _works(kind: type[CodedLinear], grid: Grid, device: torch.device) -> bool:
    """Whether a kernel gives what the dense matrix does."""
    source = Linear(TRIED[1], TRIED[0], bias=False, device="meta")
    weight, x = (torch.randn(rows, TRIED[1], device=device, dtype=torch.bfloat16) for rows in (TRIED[0], 4))
    codes = quantise(weight, grid, torch.bfloat16)
    plain = CodedLinear(source, codes, grid, torch.bfloat16)
    try:
        y = kind(source, codes, grid, torch.bfloat16).swift(x)
    except RuntimeError:  # what torch says of kernels that it has not, and of GPUs that are too old
        return False
    wanted = plain.rounded(x).float() @ plain.dense().float().t()
    return y is not None and bool((y.float() - wanted).norm() <= CLOSE * wanted.norm())


KERNELS: tuple[type[CodedLinear], ...] = (TinyLinear, TokenBytesLinear, TokenFloatsLinear)
