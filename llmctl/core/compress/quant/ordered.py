"""Ordered: a Linear whose columns lie in another order than its inputs, as GPTQ's act-order leaves them."""

from torch import Tensor

from llmctl.core.compress.frozen import StandIn
from llmctl.core.model.layers import Linear


class Ordered(StandIn):
    """A Linear that gives another its inputs in the order of its columns.

    Args:
        inner: the other.
        order: (I,) int64: column i of the other multiplies input order[i].
    """

    def __init__(self, inner: Linear, order: Tensor):
        super().__init__(inner)
        self._inner = (inner,)  # in a tuple, else it would be listed as a matrix of its own
        self.register_buffer("order", order)

    def plain(self, x: Tensor) -> Tensor:
        """The product, whatever the adapter."""
        return self._inner[0].plain(x.index_select(-1, self.order))

    def dense(self) -> Tensor:
        """The matrix, (outputs, inputs), made anew."""
        return self._inner[0].dense()[:, self.order.argsort()]
