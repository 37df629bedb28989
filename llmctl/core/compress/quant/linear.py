"""Linear layers whose weights stay in few bits: kernels that read them packed."""

import torch
from torch import Tensor

from llmctl.core.compress.frozen import StandIn, product
from llmctl.core.compress.quant.grid import Codes, dense
from llmctl.core.model.layers import Linear
from llmctl.spec.quant import Grid


def held(source: Linear, codes: Codes, grid: Grid, dtype: torch.dtype) -> Linear:
    """A Linear that computes with codes in place of another's weight; its bias and adapter are the other's.

    Args:
        source: may be on the meta device.
        codes: of its weight, on the device that it will run on.
        dtype: of activations, and of `dense`.
    """
    return CodedLinear(source, codes, grid, dtype)


class CodedLinear(StandIn):
    """A Linear whose weight is held as codes, and made dense only while it multiplies.

    Attributes:
        grid: what the codes stand for.
        dtype: of `dense`.
    """

    def __init__(self, source: Linear, codes: Codes, grid: Grid, dtype: torch.dtype):
        super().__init__(source)
        self.grid, self.dtype = grid, dtype
        self.register_buffer("weight_codes", codes.codes)
        self.register_buffer("weight_scale", codes.scale)
        self.register_buffer("weight_zero", codes.zero)

    def codes(self) -> Codes:
        """The weight as it was given."""
        return Codes(self.weight_codes, self.weight_scale, self.weight_zero)

    def plain(self, x: Tensor) -> Tensor:
        """The product, whatever the adapter; in the dtype of autocast, or of the input."""
        return product(x, self.bias, self._made, *self.codes())

    def dense(self) -> Tensor:
        """The matrix, (outputs, inputs), made anew."""
        return self._made(self.dtype, *self.codes())

    def _made(self, dtype: torch.dtype, *codes: Tensor | None) -> Tensor:
        return dense(Codes(*codes), self.grid, dtype, (self.out_features, self.in_features))
