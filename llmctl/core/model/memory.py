"""What an encoder-decoder's decoder knows of the source: its encoder's hidden states, and keys and values of them."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class EncoderInput(NamedTuple):
    """Rows for the encoder of an encoder-decoder.

    Attributes:
        tokens: (B, S) int64.
        positions: (B, S) int64, or None: counted through the row.
        segments: (B, S) int64, the document of each token, 0 for padding, or None: each row is one document. In
            a packed row, segment i of the decoder's row sees segment i of this one.
    """

    tokens: Tensor
    positions: Tensor | None = None
    segments: Tensor | None = None

    def to(self, device: torch.device, pinned: bool = False) -> "EncoderInput":
        """The same on a device; `pinned`: through pinned memory, without waiting."""
        parts = (part if part is None or not pinned else part.pin_memory() for part in self)
        return EncoderInput(*(None if part is None else part.to(device, non_blocking=pinned) for part in parts))


@dataclass
class Memory:
    """What the decoder's cross-attention reads, one row for each row of the decoder.

    Attributes:
        hidden: (B, S, width), the encoder's last hidden states.
        segments: (B, S) int64, 0 where a source token is padding; None: every token of the row is seen.
        kept: by layer, the keys and the values (B, Hkv, S, D) of `hidden`, once a pass with a cache has needed them.
    """

    hidden: Tensor
    segments: Tensor | None = None
    kept: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def select(self, rows: Tensor) -> "Memory":
        """The rows at these places, (N,) int64, in their order; a row may come several times."""
        segments = None if self.segments is None else self.segments[rows]
        kept = {layer: (k[rows], v[rows]) for layer, (k, v) in self.kept.items()}
        return Memory(self.hidden[rows], segments, kept)
