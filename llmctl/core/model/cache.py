"""What a model keeps of the tokens that it has read, so that it reads each once: their keys and values, or sums."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import torch
from torch import Tensor

from llmctl.core.model.linear import Features, Sums, chunked, step
from llmctl.spec.model import ModelConfig

if TYPE_CHECKING:
    from llmctl.core.model.coded import CodedCache


@dataclass
class KVCache:
    """Room for `capacity` tokens in each of B rows; the first `length` slots are filled.

    Attributes:
        keys: (layers, B, Hkv, capacity, D), rotated where positions are rotary.
        values: (layers, B, Hkv, capacity, D).
        length: tokens held, the same in every row; rows of unequal length are padded on the left.
        segments: (B, capacity) int64, 0 where a slot is padding; None while no row has padding.
    """

    keys: Tensor
    values: Tensor
    length: int = 0
    segments: Tensor | None = None

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        batch: int,
        capacity: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "KVCache":
        """An empty cache: batch rows of `capacity` tokens, in the dtype that the model computes in."""
        shape = (config.layers, batch, config.kv_heads, capacity, config.head_dim)
        keys = torch.empty(shape, device=device, dtype=dtype)
        return cls(keys, torch.empty_like(keys))

    @property
    def capacity(self) -> int:
        """Tokens a row that fit."""
        return self.keys.shape[3]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's keys and values of T new tokens after the `length` held; `advance` follows the last layer.

        Args:
            layer: number of the layer.
            k: (B, Hkv, T, D).
            v: (B, Hkv, T, D).

        Returns:
            All keys and all values of the layer, (B, Hkv, length + T, D): views, not copies.
        """
        end = self.length + k.shape[2]
        keys, values = self.keys[layer], self.values[layer]  # (B, Hkv, capacity, D)
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def mark(self, segments: Tensor | None, tokens: int) -> Tensor | None:
        """Note which of the `tokens` new slots are padding, before the layers append.

        Args:
            segments: (B, T) int64, or None where none of them is; then 1 if other slots are marked.
            tokens: T.

        Returns:
            (B, length + T) of all slots, or None while no slot was ever marked.

        Raises:
            ValueError: the tokens do not fit in the cache.
        """
        rows = self.keys.shape[1]
        self.segments = marked(self.segments, segments, self.length, tokens, (rows, self.capacity), self.keys.device)
        return None if self.segments is None else self.segments[:, : self.length + tokens]

    def advance(self, tokens: int) -> None:
        """Count `tokens` as held, once every layer has appended them."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget every token after the first `length`.

        Raises:
            ValueError: fewer are held.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot keep {length} of {self.length} tokens")
        self.length = length

    def select(self, rows: Tensor) -> "KVCache":
        """A cache of the rows at these places, (N,) int64, in their order; a row may come several times."""
        marks = None if self.segments is None else self.segments[rows]
        return KVCache(self.keys[:, rows], self.values[:, rows], self.length, marks)

    def keep(self, places: list[int]) -> "KVCache":
        """The rows at these places, ascending, and no others; they move up without a second cache."""
        for to, place in enumerate(places):
            if to != place:
                self.keys[:, to], self.values[:, to] = self.keys[:, place], self.values[:, place]
        marks = None if self.segments is None else self.segments[places]
        return KVCache(self.keys[:, : len(places)], self.values[:, : len(places)], self.length, marks)

    def grown(self, capacity: int) -> "KVCache":
        """The same tokens in a cache with room for `capacity`."""
        held = self.capacity
        layers, rows, heads, _, dim = self.keys.shape
        keys, values = (one.new_empty(layers, rows, heads, capacity, dim) for one in (self.keys, self.values))
        keys[:, :, :, :held], values[:, :, :, :held] = self.keys, self.values
        marks = None
        if self.segments is not None:
            marks = self.segments.new_ones(rows, capacity)
            marks[:, :held] = self.segments
        return KVCache(keys, values, self.length, marks)


def marked(
    held: Tensor | None,
    segments: Tensor | None,
    length: int,
    tokens: int,
    slots: tuple[int, int],
    device: torch.device,
) -> Tensor | None:
    """The marks of all slots of a cache, (B, capacity) int64, once those of `tokens` new ones after `length` are noted.

    Args:
        held: those of before, changed in place; None while no slot is padding.
        segments: (B, tokens) int64 of the new ones; None: none of them is padding.
        slots: (B, capacity).

    Raises:
        ValueError: the tokens do not fit.
    """
    end = length + tokens
    if end > slots[1]:
        raise ValueError(f"{end} tokens do not fit in a cache of {slots[1]}")
    if segments is None and held is None:
        return None
    if held is None:
        held = torch.ones(slots, dtype=torch.int64, device=device)
    held[:, length:end] = 1 if segments is None else segments
    return held


@dataclass
class LinearState:
    """What a model with linear attention keeps of the tokens that it has read; it stands where KVCache does.

    Each row is one document.

    Attributes:
        values: (layers, B, Hkv, D, D) float32, as in `Sums`: they grow with the tokens, so their dtype is not the
            model's.
        keys: (layers, B, Hkv, D) float32.
        length: tokens read, the same in every row; rows of unequal length are padded on the left.
    """

    values: Tensor
    keys: Tensor
    length: int = 0
    capacity: int = sys.maxsize  # tokens; there is room for any number

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        batch: int,
        capacity: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "LinearState":
        """That of no token, for `batch` rows; `capacity` and `dtype` are KVCache's, and mean nothing here."""
        shape = (config.layers, batch, config.kv_heads, config.head_dim)
        keys = torch.zeros(shape, device=device, dtype=torch.float32)
        return cls(keys.new_zeros(*shape, config.head_dim), keys)

    def read(self, layer: int, f: Features, v: Tensor) -> Tensor:
        """One layer's outputs (B, H, T, D) of T new tokens, which are added to its sums."""
        start = Sums(self.values[layer], self.keys[layer])
        if v.shape[2] == 1:
            return step(f, v, start)
        out, last = chunked(f, v, start=start)
        self.values[layer], self.keys[layer] = last
        return out

    def mark(self, segments: Tensor | None, tokens: int) -> Tensor | None:
        """The segments of the T new tokens, as they are: (B, T), 0 where one is padding, or None.

        Raises:
            ValueError: a row holds more than one document.
        """
        if segments is not None and bool((segments > 1).any()):
            raise ValueError("a row of a LinearState is one document: wanted segments 0 and 1")
        return segments

    def advance(self, tokens: int) -> None:
        """Count `tokens` as read, once every layer has added them."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Nothing, if `length` tokens are held.

        Raises:
            ValueError: another number: what was added to a sum cannot be told apart in it.
        """
        if length != self.length:
            raise ValueError(f"a LinearState of {self.length} tokens cannot go back to {length}")

    def select(self, rows: Tensor) -> "LinearState":
        """A state of the rows at these places, (N,) int64, in their order; a row may come several times."""
        return LinearState(self.values[:, rows], self.keys[:, rows], self.length)

    def keep(self, places: list[int]) -> "LinearState":
        """The rows at these places, and no others."""
        return LinearState(self.values[:, places], self.keys[:, places], self.length)

    def grown(self, capacity: int) -> "LinearState":
        """Itself: there is room."""
        return self


Cache = Union[KVCache, LinearState, "CodedCache"]

CACHES: dict[str, type[KVCache] | type[LinearState]] = {"softmax": KVCache, "linear": LinearState}


def cache_for(
    config: ModelConfig,
    batch: int,
    capacity: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Cache:
    """An empty cache of the kind that the model's attention takes: rows of `capacity` tokens at first."""
    return CACHES[config.attention].allocate(config, batch, capacity, device, dtype)
