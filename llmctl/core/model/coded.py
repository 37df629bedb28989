"""CodedCache: keys and values of earlier tokens in 8 or 4 bits, those of the last few as they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llmctl.core.model.slots import SLACK, Slots, View
from llmctl.spec.model import ModelConfig

WINDOW = 32  # tokens before the one that is read that are kept as they are
RING = WINDOW + SLACK  # tokens of which that is kept, so that some can be forgotten again
GROUP = 32  # channels of a head that share a scale and a least value, in 4 bits
_MOST = 65504.0  # the largest float16


@dataclass(frozen=True)
class Kept:
    """Keys, or values, of all layers.

    Attributes:
        codes: (layers, B, Hkv, capacity, D) int8; of 4 bits (layers, B, Hkv, capacity, D/2) uint8, channel i beside
            channel i + D/2.
        scale: (layers, B, Hkv, capacity, G) float16, G groups a head.
        least: the same, of 4 bits; x = scale * code + least. None of 8 bits, where x = scale * code.
        recent: (layers, B, Hkv, RING, D), the last tokens as they are, token i of a row at i modulo RING.
    """

    codes: Tensor
    scale: Tensor
    least: Tensor | None
    recent: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, ...], bits: int, device: torch.device | str | None, dtype: torch.dtype) -> "Kept":
        """Room for (layers, B, Hkv, capacity, D) numbers."""
        dim = shape[-1]
        groups = 1 if bits == 8 or dim % GROUP else dim // GROUP
        half = {"dtype": torch.float16, "device": device}
        codes = torch.zeros((*shape[:-1], dim if bits == 8 else dim // 2), device=device, dtype=_CODES[bits])
        scale = torch.zeros((*shape[:-1], groups), **half)  # numbers: what is not seen counts 0 times
        recent = torch.zeros((*shape[:3], RING, dim), device=device, dtype=dtype)
        return cls(codes, scale, None if bits == 8 else torch.zeros_like(scale), recent)

    def _put(self, layer: int, x: Tensor, put: slice | tuple[Tensor, Tensor]) -> None:
        """Code the numbers x (B, Hkv, T, D) of the tokens of a pass, which go to the slots `View.put`."""
        groups = self.scale.shape[-1]
        parts = x.float().unflatten(-1, (groups, -1))  # (B, Hkv, T, G, D/G)
        if self.least is None:
            scale = (parts.abs().amax(-1) / 127).clamp(max=_MOST).half()  # (B, Hkv, T, G)
            codes = (parts * _inverse(scale)[..., None]).round().clamp(-127, 127).flatten(-2).to(torch.int8)
        else:
            low, high = parts.aminmax(dim=-1)
            least, scale = low.clamp(-_MOST, _MOST).half(), ((high - low) / 15).clamp(max=_MOST).half()
            whole = (parts - least.float()[..., None]) * _inverse(scale)[..., None]
            whole = whole.round().clamp(0, 15).flatten(-2).to(torch.uint8)  # (B, Hkv, T, D)
            first, second = whole.chunk(2, -1)
            codes = first | (second << 4)
            _write(self.least[layer], put, least)
        _write(self.codes[layer], put, codes)
        _write(self.scale[layer], put, scale)

    def dense(self, layer: int, count: int) -> Tensor:
        """(B, Hkv, count, D) what the codes of the first tokens stand for, in the dtype of `recent`."""
        dtype = self.recent.dtype
        codes = self.codes[layer, :, :, :count]
        if self.least is not None:
            codes = torch.cat((codes & 15, codes >> 4), -1)
        groups = self.scale.shape[-1]
        parts = codes.to(dtype).unflatten(-1, (groups, -1)) * self.scale[layer, :, :, :count, :, None].to(dtype)
        if self.least is not None:
            parts += self.least[layer, :, :, :count, :, None].to(dtype)
        return parts.flatten(-2)

    def append(self, layer: int, x: Tensor, view: View, lengths: list[int], counts: list[int]) -> Tensor:
        """Take in x (B, Hkv, T, D) of a pass.

        Args:
            lengths: tokens that each row held before.
            counts: how many of the T each row has.

        Returns:
            All numbers, (B, Hkv, S, D): those of the new tokens and of WINDOW before them as they are.
        """
        dense, longest, end = self.dense(layer, max(lengths)), max(lengths), view.seen.stop
        found = torch.cat((dense, dense.new_zeros(*x.shape[:2], end - longest, x.shape[3])), 2) if longest else x
        ring = self.recent[layer]  # (B, Hkv, RING, D)
        if isinstance(view.put, slice):
            late = torch.arange(max(0, longest - WINDOW), longest, device=x.device)
            if longest:
                found[:, :, late] = ring[:, :, late % RING]
                found[:, :, view.put] = x
        else:
            rows, slots = view.put
            late = torch.tensor(lengths, device=x.device)[:, None] - torch.arange(WINDOW, 0, -1, device=x.device)
            late = late.clamp(min=0)  # (B, WINDOW); the first token several times in a short row
            found[rows, :, late] = ring[rows, :, late % RING]
            found[rows, :, slots] = x.transpose(1, 2)
        self._put(layer, x, view.put)
        for count in set(counts) - {0}:  # most often one number
            rows = [row for row, own in enumerate(counts) if own == count]
            new = min(count, RING)
            places = torch.tensor([[lengths[row] + count - new + i for i in range(new)] for row in rows])
            index = torch.tensor(rows, device=x.device)[:, None]
            ring[index, :, places.to(x.device) % RING] = x[rows, :, count - new : count].transpose(1, 2)
        return found

    def part(self, start: int, stop: int) -> "Kept":
        """These rows: views."""
        return self._each(lambda held: held[:, start:stop])

    def keep(self, places: list[int]) -> "Kept":
        """The rows at these places."""
        return self._each(lambda held: held[:, places])

    def more(self, rows: int, capacity: int) -> "Kept":
        """The same with room for so many rows and tokens, or fewer."""

        def moved(held: Tensor, slots: int) -> Tensor:
            made = held.new_zeros(held.shape[0], rows, held.shape[2], slots, held.shape[4])
            made[:, : held.shape[1], :, : held.shape[3]] = held[:, :rows, :, :slots]
            return made

        least = None if self.least is None else moved(self.least, capacity)
        return Kept(moved(self.codes, capacity), moved(self.scale, capacity), least, moved(self.recent, RING))

    def _each(self, of: Callable[[Tensor], Tensor]) -> "Kept":
        least = None if self.least is None else of(self.least)
        return Kept(of(self.codes), of(self.scale), least, of(self.recent))

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        parts = (self.codes, self.scale, self.recent, self.least)
        return sum(part.nbytes for part in parts if part is not None)


_CODES = {8: torch.int8, 4: torch.uint8}


class CodedCache(Slots):
    """It stands where KVCache does: a token sees itself and the WINDOW before it as they are, earlier ones as codes.

    What is read in one pass, as a prompt is, sees itself as it is. Each step unpacks one layer after another, so this
    saves memory, and takes time. Layers with a window keep all tokens.

    Source: the grid by token and group of channels of Sheng et al., "FlexGen", arXiv:2303.06865, section 5, and the
    window of Liu et al., "KIVI", arXiv:2402.02750, section 3.3; keys go by token here too.

    Attributes:
        keys: rotated where positions are rotary.
        values: as they are.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        bits: Literal[8, 4],
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(config, rows, capacity, drops=False)
        shape = (config.layers, rows, config.kv_heads, capacity, config.head_dim)
        self.keys, self.values = (Kept.empty(shape, bits, device, dtype) for _ in range(2))

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        batch: int,
        capacity: int,
        bits: Literal[8, 4],
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "CodedCache":
        """An empty cache: batch rows of `capacity` tokens; dtype is that in which the model computes.

        Raises:
            ValueError: heads of an odd number of channels do not go into bytes by twos.
        """
        if bits == 4 and config.head_dim % 2:
            raise ValueError(f"head_dim {config.head_dim} is odd: 4 bits go into bytes by twos")
        return cls(config, batch, capacity, bits, device, dtype)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one layer's keys and values (B, Hkv, T, D) of the T new tokens of a pass.

        Returns:
            The keys and values of the layer that they may see, (B, Hkv, S, D) each.
        """
        window = self.windows[layer]
        given = (self.views[None], self.lengths, self.counts)
        seen = self.views[window].seen
        return tuple(kept.append(layer, x, *given)[:, :, seen] for kept, x in ((self.keys, k), (self.values, v)))

    @property
    def nbytes(self) -> int:
        """Bytes of all that there is room for."""
        return self.keys.nbytes + self.values.nbytes

    def rows(self, start: int, stop: int) -> "CodedCache":
        """These rows, as a cache over the same memory: passes over it are to be told to this one by `took`."""
        part = object.__new__(CodedCache)
        part.__dict__ |= self.__dict__
        part.lengths, part.first = self.lengths[start:stop], self.first[start:stop]
        part.keys, part.values = self.keys.part(start, stop), self.values.part(start, stop)
        return part

    def took(self, part: "CodedCache", start: int) -> None:
        """Take over what was read into `rows(start, ...)`."""
        self.lengths[start : start + len(part.lengths)] = part.lengths

    def add(self, rows: int, most: int | None = None) -> None:
        """So many empty rows more, after the others."""
        self.lengths, self.first = self.lengths + [0] * rows, self.first + [0] * rows
        self.keys, self.values = (kept.more(len(self.lengths), self.capacity) for kept in (self.keys, self.values))

    def grow(self, capacity: int) -> None:
        """Have room for `capacity` tokens in each row."""
        self.capacity = capacity
        self.keys, self.values = (kept.more(len(self.lengths), capacity) for kept in (self.keys, self.values))

    def keep(self, places: Sequence[int]) -> None:
        """Leave the rows at these places, in this order; a row may come several times."""
        places = list(places)
        self.lengths, self.first = [self.lengths[place] for place in places], [0] * len(places)
        self.keys, self.values = self.keys.keep(places), self.values.keep(places)


def _write(held: Tensor, put: slice | tuple[Tensor, Tensor], x: Tensor) -> None:
    """x (B, Hkv, T, n) into slots of (B, Hkv, capacity, n)."""
    if isinstance(put, slice):
        held[:, :, put] = x
    else:
        rows, slots = put
        held[rows, :, slots] = x.transpose(1, 2)


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale in float32, and 0 of 0."""
    return torch.where(scale == 0, 0, 1 / scale.float())
