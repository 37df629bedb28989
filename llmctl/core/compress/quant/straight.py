"""Straight: products of bf16 tokens with bytes that lie row after row, as a checkpoint has them.

For a few tokens torch's own kernel takes bf16 and bytes as they are, so that a product of one token is one call where
oneDNN's packed bytes want ten. A step of a model of 135M is done in 0.92 of the time on one core and 0.75 on two, one
of four rows in 0.76. It is as near (1.7e-3 of a product, the rounding of the result; dense weights in bf16 lose
2.4e-3). Its time grows with the tokens; more of them become whole numbers of two bytes, as with `Bytes`, which oneDNN
multiplies with plain rows: 512 tokens in the same time, 16 to 32 rows in 1.15 of it. Matrices beyond some 4 MB are
read more slowly than oneDNN's own layout (a step of 1.1B took 1.4 times as long); those, and float32 and float16, for
which that kernel is slow, are not held so.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llmctl.core.compress.quant.kernels import TOKENS, token_bytes

FEW = 8  # tokens up to which torch's kernel is faster
LARGE = 1 << 22  # numbers of a matrix from which oneDNN's layout is faster
COLUMNS = 32  # of a multiple of which that kernel is right


class Straight:
    """A matrix of bytes with one scale a row, or some of its rows.

    Args:
        codes: (O, I) int8, I a multiple of COLUMNS.
        scale: (O,) bf16, what a unit of each row stands for.
    """

    def __init__(self, codes: Tensor, scale: Tensor):
        self.codes, self._scale = codes.contiguous(), scale.contiguous()

    @classmethod
    def fits(cls, codes: Tensor, scale: Tensor, zero: Tensor | None, dynamic: bool) -> bool:
        """Whether it can hold such a matrix, and is faster than `Bytes`; dynamic: each token in one byte."""
        few = codes.numel() < LARGE and codes.shape[1] % COLUMNS == 0
        return few and scale.dtype == torch.bfloat16 and zero is None and not dynamic

    def __deepcopy__(self, known: dict) -> "Straight":
        """Itself: nothing changes it."""
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of its rows."""
        return self.codes.nbytes

    def parts(self, sizes: list[int]) -> "list[Straight]":
        """Runs of so many rows."""
        return [Straight(*part) for part in zip(self.codes.split(sizes), self._scale.split(sizes), strict=True)]

    def product(self, x: Tensor, bias: Tensor | None, dynamic: bool = False) -> Tensor:
        """x W' + bias, (N, O) in the dtype of x (N, I)."""
        if x.dtype == torch.bfloat16 and x.shape[0] <= FEW:
            y = torch._weight_int8pack_mm(x.contiguous(), self.codes, self._scale)
        elif x.shape[0] <= TOKENS:
            y = self._of_many(x)
        else:
            y = torch.cat([self._of_many(rows) for rows in x.split(TOKENS)])
        return y if bias is None else y.add_(bias)

    def single(self, dtype: torch.dtype, bias: Tensor | None, dynamic: bool) -> Callable[[Tensor], Tensor] | None:
        """`product` for one token (1, I) of a dtype, where every call counts; None: it has no shorter way."""
        if dtype != torch.bfloat16:
            return None
        codes, scale, multiply = self.codes, self._scale, torch._weight_int8pack_mm
        if bias is None:
            return lambda x: multiply(x, codes, scale)
        return lambda x: multiply(x, codes, scale).add_(bias)

    def _of_many(self, x: Tensor) -> Tensor:
        rows, unit = token_bytes(x)
        sums = torch._int_mm(rows.bitwise_xor_(128).view(torch.int8), self.codes.t())  # (parts N, O) int32
        y, *lower = reversed(sums.float().split(x.shape[0]))
        for part in lower:
            y = torch.add(part, y, alpha=256)
        return y.mul_(unit).mul_(self._scale).to(x.dtype)
