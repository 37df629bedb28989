"""Virtual tokens: vectors, or keys and values, that stand for no token, and where in a row they go."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Place(NamedTuple):
    """N virtual tokens right before the first token of each row that is no padding.

    There they are as near to a row's tokens as if they had been typed, however the row is padded.

    Attributes:
        count: N.
        order: (B, N + T) int64, which of the virtual tokens followed by the T slots of a row comes at each slot;
            None: as they are.
    """

    count: int
    order: Tensor | None

    @classmethod
    def of(cls, count: int, segments: Tensor | None) -> "Place":
        """That of `count` virtual tokens in rows of these segments, (B, T) int64, or None: without padding.

        Raises:
            ValueError: a row holds more than one document.
        """
        if segments is None:
            return cls(count, None)
        if bool((segments > 1).any()):
            raise ValueError("virtual tokens stand before rows of one document: wanted segments 0 and 1")
        pads = (segments.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)  # (B, 1), those on the left
        if not bool(pads.any()):
            return cls(count, None)
        slots = torch.arange(count + segments.shape[1], device=segments.device)
        order = torch.where(slots < pads + count, slots - pads, slots)
        return cls(count, torch.where(slots < pads, slots + count, order))

    def join(self, virtual: Tensor, x: Tensor, dim: int) -> Tensor:
        """What is of virtual tokens, and what is of the row's, in one.

        Args:
            virtual: (1, ..., N, ...), the same in every row.
            x: (B or 1, ..., T, ...), of the same dimensions otherwise.
            dim: of N and T; the rows' is 0.

        Returns:
            (B, ..., N + T, ...), of the dtype of x.
        """
        if self.order is not None and len(x) < len(self.order):
            x = x.expand(len(self.order), *x.shape[1:])
        virtual = virtual.to(x.dtype)
        joined = torch.cat((virtual.expand(len(x), *virtual.shape[1:]), x), dim)
        if self.order is None:
            return joined
        shape = [1] * joined.dim()
        shape[0], shape[dim] = self.order.shape
        return joined.gather(dim, self.order.view(shape).expand_as(joined))

    def beside(self, value: int, x: Tensor) -> Tensor:
        """Numbers (B or 1, T) of a row's tokens, with the same one for every virtual token: (B, N + T)."""
        return self.join(x.new_full((1, self.count), value), x, 1)


class Prompt(nn.Module):
    """Vectors that stand before those of the tokens of each row.

    Attributes:
        vectors: (N, width), of the size that vectors of tokens have once they are scaled.

    Source: Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", arXiv:2104.08691, section 2.
    """

    def __init__(self, vectors: Tensor):
        super().__init__()
        self.vectors = nn.Parameter(vectors)
