"""What a model keeps of the tokens that it has read, so that it reads each once: their keys and values, or sums."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Union

import torch
from torch import Tensor

from llmctl.core.model.linear import Features, Sums, chunked, step
from llmctl.core.model.slots import Slots, counted, places_after
from llmctl.spec.model import ModelConfig

if TYPE_CHECKING:
    from llmctl.core.model.coded import CodedCache


class KVCache(Slots):
    """The keys and values of rows of tokens, side by side.

    Rows of unequal length are padded on the right: what a pass leaves in the slots of padding is not seen, and is
    written over by what comes next. Layers with a window keep what they see, SLACK tokens before, and room to read on.

    Args:
        config: of the model.
        rows: B.
        capacity: tokens that a row may hold.
        dtype: in which the model computes.
        most: rows that there is room for, B or more.

    Attributes:
        keys: of each layer, (B, Hkv, room of the layer, D), rotated where positions are rotary.
        values: of each layer, the same.
        pairs: of each layer, both, (2, B, Hkv, room of the layer, D).
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        most: int = 0,
    ):
        super().__init__(config, rows, capacity, drops=True)
        self.shape = (config.kv_heads, config.head_dim)
        self._own([self._empty(layer, max(most, rows), device, dtype) for layer in range(config.layers)])

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        batch: int,
        capacity: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        most: int = 0,
    ) -> "KVCache":
        """An empty cache, its arguments in the order of all caches."""
        return cls(config, batch, capacity, device, dtype, most)

    @property
    def most(self) -> int:
        """Rows that there is room for."""
        return len(self._stored[0][0])

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's keys and values of the T new tokens of a pass.

        Args:
            layer: number of the layer.
            k: (B, Hkv, T, D).
            v: (B, Hkv, T, D).

        Returns:
            The keys and values of the layer that they may see, (B, Hkv, S, D): views, not copies.
        """
        view = self.views[self.windows[layer]]
        keys, values = self.keys[layer], self.values[layer]
        if isinstance(view.put, slice):
            keys[:, :, view.put], values[:, :, view.put] = k, v
        else:
            rows, slots = view.put
            keys[rows, :, slots], values[rows, :, slots] = k.transpose(1, 2), v.transpose(1, 2)  # (B, T, Hkv, D)
        return keys[:, :, view.seen], values[:, :, view.seen]

    def rows(self, start: int, stop: int) -> "KVCache":
        """These rows, as a cache over the same memory: passes over it are to be told to this one by `took`."""
        part = object.__new__(KVCache)
        part.__dict__ |= self.__dict__
        part.lengths, part.first = self.lengths[start:stop], self.first[start:stop]
        part._own([pair[:, start:stop] for pair in self._stored])
        return part

    def took(self, part: "KVCache", start: int) -> None:
        """Take over what was read into `rows(start, ...)`."""
        stop = start + len(part.lengths)
        self.lengths[start:stop], self.first[start:stop] = part.lengths, part.first

    def add(self, rows: int, most: int | None = None) -> None:
        """So many empty rows more, after the others; `most`: there will be no more than that at a time."""
        self.lengths += [0] * rows
        self.first += [0] * rows
        wanted = len(self.lengths)
        if wanted > self.most:
            self._move(max(wanted, 2 * self.most if most is None else min(2 * self.most, most)), self.capacity)
        self._own(self._stored)

    def grow(self, capacity: int) -> None:
        """Have room for `capacity` tokens, as many as they hold or more, in each row that there is, and no other."""
        self._move(max(1, len(self.lengths)), capacity)

    def keep(self, places: Sequence[int]) -> None:
        """Leave the rows at these places, in this order; a row may come several times."""
        held = self.length
        lengths, first = [self.lengths[place] for place in places], [self.first[place] for place in places]
        if len(places) > self.most:
            self._move(len(places), self.capacity)
        changed = [(to, place) for to, place in enumerate(places) if to != place]
        if changed:
            upwards = all(to < place for to, place in changed) and all(a[1] < b[1] for a, b in pairwise(changed))
            to, place = (list(part) for part in zip(*changed, strict=True))
            for one in chain(*self._stored):
                if upwards:  # none is written over before it is read: no second cache
                    for new, old in changed:
                        one[new, :, :held] = one[old, :, :held]
                else:
                    one[to, :, :held] = one[place, :, :held]
        self.lengths, self.first = lengths, first
        self._own(self._stored)

    def copy(self, source: int, row: int, length: int) -> None:
        """Have an empty row begin with the first tokens of another one, which has dropped none."""
        for one in chain(*self._stored):
            one[row, :, :length] = one[source, :, :length]
        self.lengths[row] = length

    def fill(self, row: int, pairs: Sequence[tuple[Tensor, Tensor]], length: int) -> None:
        """Have an empty row begin with keys and values, of each layer (Hkv, at least length, D) each."""
        for own, given in zip(self._stored, pairs, strict=True):
            for one, x in zip(own, given, strict=True):
                one[row, :, :length] = x[:, :length]
        self.lengths[row] = length

    def held(self, row: int, layer: int) -> tuple[Tensor, Tensor]:
        """The keys and values that a row has in a layer, (Hkv, length or less, D): views."""
        first = self.first[row] if self.windows[layer] is not None else 0
        end = self.lengths[row] - first
        return self.keys[layer][row, :, :end], self.values[layer][row, :, :end]

    @property
    def nbytes(self) -> int:
        """Bytes of all that there is room for."""
        return sum(pair.nbytes for pair in self._stored)

    def _empty(self, layer: int, rows: int, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
        shape = (2, rows, self.shape[0], self.room(layer), self.shape[1])
        return torch.zeros(shape, device=device, dtype=dtype)  # numbers: what is not seen counts 0 times

    def _own(self, stored: list[Tensor]) -> None:
        rows = len(self.lengths)
        self._stored = stored
        self.pairs = [pair[:, :rows] for pair in stored]
        self.keys, self.values = ([pair[part] for pair in self.pairs] for part in (0, 1))

    def _move(self, rows: int, capacity: int) -> None:
        """To memory of another size."""
        old, held = self._stored, self.length
        self.capacity = capacity
        for layer, pair in enumerate(old):
            old[layer] = self._empty(layer, rows, pair.device, pair.dtype)
            old[layer][:, : pair.shape[1], :, :held] = pair[:, :rows, :, :held]
        self._own(old)

    def _drop(self, row: int, held: int, lost: int) -> None:
        for layer, window in enumerate(self.windows):
            if window is not None:
                for one in (self.keys[layer], self.values[layer]):
                    one[row, :, : held - lost] = one[row, :, lost:held].clone()


@dataclass
class LinearState:
    """What a model with linear attention keeps of the tokens that it has read; it stands where KVCache does.

    Each row is one document.

    Attributes:
        values: (layers, B, Hkv, D, D) float32, as in `Sums`: they grow with the tokens, so their dtype is not the
            model's.
        keys: (layers, B, Hkv, D) float32.
        lengths: tokens that each row has read.
    """

    values: Tensor
    keys: Tensor
    lengths: list[int]
    capacity: int = sys.maxsize  # tokens; there is room for any number
    counts: list[int] = field(default_factory=list)
    _expected: list[int] | None = None

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        batch: int,
        capacity: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        most: int = 0,
    ) -> "LinearState":
        """That of no token, for `batch` rows; `capacity`, `dtype` and `most` are KVCache's, and mean nothing here."""
        shape = (config.layers, batch, config.kv_heads, config.head_dim)
        keys = torch.zeros(shape, device=device, dtype=torch.float32)
        return cls(keys.new_zeros(*shape, config.head_dim), keys, [0] * batch)

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths, default=0)

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        return self.values.nbytes + self.keys.nbytes

    def places(self, tokens: int, device: torch.device) -> Tensor:
        """As in KVCache."""
        return places_after(self.lengths, tokens, device)

    def read(self, layer: int, f: Features, v: Tensor) -> Tensor:
        """One layer's outputs (B, H, T, D) of T new tokens, which are added to its sums."""
        start = Sums(self.values[layer], self.keys[layer])
        if v.shape[2] == 1:
            return step(f, v, start)
        out, last = chunked(f, v, start=start)
        self.values[layer], self.keys[layer] = last
        return out

    def expect(self, counts: list[int]) -> None:
        """As in KVCache."""
        self._expected = counts

    def open(self, tokens: int, segments: Tensor | None, device: torch.device) -> None:
        """Begin a pass over T tokens, whose segments are 0 where one is padding: (B, T), or None.

        Raises:
            ValueError: a row holds more than one document.
        """
        if segments is not None and bool((segments > 1).any()):
            raise ValueError("a row of a LinearState is one document: wanted segments 0 and 1")
        self.counts, self._expected = counted(self._expected, len(self.lengths), tokens, segments), None

    def advance(self) -> None:
        """Count the tokens of a pass as read, once every layer has added them."""
        self.lengths = [length + count for length, count in zip(self.lengths, self.counts, strict=True)]

    def cut(self, lengths: list[int]) -> None:
        """Nothing, if each row has read so many tokens.

        Raises:
            ValueError: another number: what was added to a sum cannot be told apart in it.
        """
        if lengths != self.lengths:
            raise ValueError(f"a LinearState of {self.lengths} tokens cannot go back to {lengths}")

    def truncate(self, length: int) -> None:
        """Nothing, if every row has read so many tokens."""
        self.cut([length] * len(self.lengths))

    def rows(self, start: int, stop: int) -> "LinearState":
        """These rows, as a state over the same memory: passes over it are to be told to this one by `took`."""
        return LinearState(self.values[:, start:stop], self.keys[:, start:stop], self.lengths[start:stop])

    def took(self, part: "LinearState", start: int) -> None:
        """Take over what was read into `rows(start, ...)`."""
        self.lengths[start : start + len(part.lengths)] = part.lengths

    def add(self, rows: int, most: int | None = None) -> None:
        """So many rows more, after the others."""
        more = (0, 0, 0, 0, 0, rows)
        self.keys = torch.nn.functional.pad(self.keys, more)
        self.values = torch.nn.functional.pad(self.values, (0, 0, *more))
        self.lengths = self.lengths + [0] * rows

    def keep(self, places: Sequence[int]) -> None:
        """Leave the rows at these places, in this order; a row may come several times."""
        places = list(places)
        self.values, self.keys = self.values[:, places], self.keys[:, places]
        self.lengths = [self.lengths[place] for place in places]

    def grow(self, capacity: int) -> None:
        """Nothing: there is room."""


Cache = Union[KVCache, LinearState, "CodedCache"]

CACHES: dict[str, type[KVCache] | type[LinearState]] = {"softmax": KVCache, "linear": LinearState}


def cache_for(
    config: ModelConfig,
    batch: int,
    capacity: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    most: int = 0,
) -> Cache:
    """An empty cache of the kind that the model's attention takes: rows of `capacity` tokens at first."""
    return CACHES[config.attention].allocate(config, batch, capacity, device, dtype, most)
