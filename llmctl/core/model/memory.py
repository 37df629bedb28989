"""What an encoder-decoder's decoder knows of the source: its encoder's hidden states, and keys and values of them."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
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

    def rows(self, start: int, stop: int) -> "Memory":
        """These rows: views."""
        segments = None if self.segments is None else self.segments[start:stop]
        kept = {layer: (k[start:stop], v[start:stop]) for layer, (k, v) in self.kept.items()}
        return Memory(self.hidden[start:stop], segments, kept)

    def joined(self, other: "Memory") -> "Memory":
        """These rows and then those of another one; what is kept is made again when it is needed."""
        longest = max(self.hidden.shape[1], other.hidden.shape[1])
        parts = [(one.hidden, one.hidden.new_ones(one.hidden.shape[:2], dtype=torch.int64) if one.segments is None
                  else one.segments) for one in (self, other)]  # fmt: skip
        hidden, segments = (
            torch.cat([F.pad(part, [0, 0] * (part.dim() - 2) + [0, longest - part.shape[1]]) for part in some])
            for some in zip(*parts, strict=True)
        )
        return Memory(hidden, None if bool(segments.all()) else segments)
