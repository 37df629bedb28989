"""CodedCache: keys and values of earlier tokens in 8 or 4 bits, those of the last few as they are."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from llmctl.core.model.cache import marked
from llmctl.spec.model import ModelConfig

WINDOW = 32  # tokens before the one that is read that are kept as they are
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
        recent: (layers, B, Hkv, WINDOW, D), the tokens after those that have codes.
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
        codes = torch.empty((*shape[:-1], dim if bits == 8 else dim // 2), device=device, dtype=_CODES[bits])
        scale = torch.empty((*shape[:-1], groups), **half)
        recent = torch.empty((*shape[:3], WINDOW, dim), device=device, dtype=dtype)
        return cls(codes, scale, None if bits == 8 else torch.empty_like(scale), recent)

    def put(self, layer: int, x: Tensor, start: int) -> None:
        """Code the numbers x (B, Hkv, T, D) of tokens from `start` on."""
        end, groups = start + x.shape[2], self.scale.shape[-1]
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
            self.least[layer, :, :, start:end] = least
        self.codes[layer, :, :, start:end] = codes
        self.scale[layer, :, :, start:end] = scale

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

    def append(self, layer: int, x: Tensor, coded: int, held: int) -> Tensor:
        """Take in x (B, Hkv, T, D) after `held` tokens, of which `coded` have codes.

        Returns:
            All numbers, (B, Hkv, held + T, D); tokens that leave the window get codes, which are read the next time.
        """
        new = torch.cat((self.recent[layer, :, :, : held - coded], x), 2) if held > coded else x
        found = torch.cat((self.dense(layer, coded), new), 2) if coded else new
        done = max(coded, coded + new.shape[2] - WINDOW)
        if done > coded:
            self.put(layer, new[:, :, : done - coded], coded)
        self.recent[layer, :, :, : new.shape[2] - (done - coded)] = new[:, :, done - coded :]
        return found

    def rows(self, rows: Tensor | list[int]) -> "Kept":
        """Those of the rows at these places."""
        least = None if self.least is None else self.least[:, rows]
        return Kept(self.codes[:, rows], self.scale[:, rows], least, self.recent[:, rows])

    def grown(self, capacity: int) -> "Kept":
        """The same with room for so many tokens."""

        def more(held: Tensor) -> Tensor:
            made = held.new_empty(*held.shape[:3], capacity, held.shape[4])
            made[:, :, :, : held.shape[3]] = held
            return made

        least = None if self.least is None else more(self.least)
        return Kept(more(self.codes), more(self.scale), least, self.recent)


_CODES = {8: torch.int8, 4: torch.uint8}


@dataclass
class CodedCache:
    """It stands where KVCache does: a token sees itself and the WINDOW before it as they are, earlier ones as codes.

    What is read in one pass, as a prompt is, sees itself as it is. Each step unpacks one layer after another, so this
    saves memory, and takes time.

    Source: the grid by token and group of channels of Sheng et al., "FlexGen", arXiv:2303.06865, section 5, and the
    window of Liu et al., "KIVI", arXiv:2402.02750, section 3.3; keys go by token here too.

    Attributes:
        keys: rotated where positions are rotary.
        length: tokens held, the same in every row.
        coded: the first ones, which have codes.
        segments: as in KVCache.
    """

    keys: Kept
    values: Kept
    length: int = 0
    coded: int = 0
    segments: Tensor | None = None

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
        shape = (config.layers, batch, config.kv_heads, capacity, config.head_dim)
        return cls(*(Kept.empty(shape, bits, device, dtype) for _ in range(2)))

    @property
    def capacity(self) -> int:
        """Tokens a row that fit."""
        return self.keys.codes.shape[3]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one layer's keys and values (B, Hkv, T, D) of T new tokens; `advance` follows the last layer.

        Returns:
            All keys and all values of the layer as the new tokens see them, (B, Hkv, length + T, D) each.
        """
        at = (self.coded, self.length)
        return self.keys.append(layer, k, *at), self.values.append(layer, v, *at)

    def mark(self, segments: Tensor | None, tokens: int) -> Tensor | None:
        """As in KVCache."""
        rows, place = self.keys.codes.shape[1], self.keys.codes.device
        self.segments = marked(self.segments, segments, self.length, tokens, (rows, self.capacity), place)
        return None if self.segments is None else self.segments[:, : self.length + tokens]

    def advance(self, tokens: int) -> None:
        """Count `tokens` as held, once every layer has appended them."""
        self.length += tokens
        self.coded = max(self.coded, self.length - WINDOW)

    def truncate(self, length: int) -> None:
        """Forget every token after the first `length`.

        Raises:
            ValueError: fewer are held.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot keep {length} of {self.length} tokens")
        self.length, self.coded = length, min(self.coded, length)

    def select(self, rows: Tensor) -> "CodedCache":
        """A cache of the rows at these places, (N,) int64, in their order; a row may come several times."""
        return self._of(rows)

    def keep(self, places: list[int]) -> "CodedCache":
        """The rows at these places, and no others."""
        return self._of(places)

    def grown(self, capacity: int) -> "CodedCache":
        """The same tokens in a cache with room for `capacity`."""
        marks = None
        if self.segments is not None:
            marks = self.segments.new_ones(self.segments.shape[0], capacity)
            marks[:, : self.capacity] = self.segments
        return replace(self, keys=self.keys.grown(capacity), values=self.values.grown(capacity), segments=marks)

    def _of(self, rows: Tensor | list[int]) -> "CodedCache":
        marks = None if self.segments is None else self.segments[rows]
        return replace(self, keys=self.keys.rows(rows), values=self.values.rows(rows), segments=marks)


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale in float32, and 0 of 0."""
    return torch.where(scale == 0, 0, 1 / scale.float())
