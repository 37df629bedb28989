"""Blocks: keys and values of rows, 32 positions at a time, that rows which begin alike hold together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmctl.core.decode.native.engine import Engine
from llmctl.core.decode.native.layout import PANEL
from llmctl.core.model.slots import SLACK

FIRST = 16  # blocks that there is room for at first
GONE = -1


class Blocks:
    """The blocks of some rows; a block that several rows hold is copied before one of them writes into it.

    Args:
        layers: those whose keys and values they hold.
        window: of these layers, or None: they see everything.

    Attributes:
        memory: (room, bytes of a block) uint8, laid out as step.cpp says.
        rows: the blocks of each row, GONE where a row has let go of one.
        table: the same as (rows, most blocks) int32.
    """

    def __init__(self, engine: Engine, layers: list[int], window: int | None):
        self.engine, self.layers, self.window = engine, layers, window
        self.size = len(layers) * engine.kv_heads * 2 * PANEL * engine.dim * engine.kv_dtype.itemsize  # bytes of one
        self.memory = torch.empty(0, self.size, dtype=torch.uint8)
        self.rows: list[list[int]] = []
        self._holders: list[int] = []  # of each block
        self._free: list[int] = []
        self._table: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks that are held."""
        return (len(self._holders) - len(self._free)) * self.size

    @property
    def table(self) -> Tensor:
        """(rows, most blocks) int32."""
        if self._table is None:
            most = max(map(len, self.rows))
            self._table = torch.tensor([row + [0] * (most - len(row)) for row in self.rows], dtype=torch.int32)
        return self._table

    def write(self, row: int, start: int, stop: int) -> None:
        """Have a row own the blocks of these positions."""
        held = self.rows[row]
        for number in range(start // PANEL, -(-stop // PANEL)):
            if number == len(held):
                held.append(self._new())
                self.memory[held[number]] = 0
            elif self._holders[held[number]] > 1:
                fresh = self._new()
                self.memory[fresh] = self.memory[held[number]]
                self._let_go(held[number])
                held[number] = fresh
            else:
                continue
            self._table = None

    def share(self, row: int, other: int, length: int) -> None:
        """Have a row without blocks hold those of another's first tokens, whose number is a multiple of PANEL."""
        self.rows[row] = self.rows[other][: length // PANEL]
        self._take(self.rows[row])
        self._table = None

    def drop(self, row: int, length: int) -> None:
        """Let go of what is out of sight in a row of so many tokens, some of which may still be forgotten."""
        if self.window is None:
            return
        held = self.rows[row]
        for number in range(max(0, length - self.window - SLACK) // PANEL - 1, -1, -1):
            if held[number] == GONE:
                break
            self._let_go(held[number])
            held[number] = GONE
            self._table = None

    def sees(self, row: int, length: int) -> bool:
        """Whether a row still holds all that tokens after its first `length` see."""
        if self.window is None:
            return True
        return GONE not in self.rows[row][max(0, length + 1 - self.window) // PANEL : -(-length // PANEL)]

    def add(self) -> None:
        """A row without blocks."""
        self.rows.append([])
        self._table = None

    def cut(self, row: int, length: int) -> None:
        """Let go of the blocks of a row after so many tokens."""
        for block in self.rows[row][-(-length // PANEL) :]:
            self._let_go(block)
        del self.rows[row][-(-length // PANEL) :]
        self._table = None

    def keep(self, places: Sequence[int]) -> None:
        """Leave these rows, in this order; one may come several times."""
        kept = [list(self.rows[place]) for place in places]
        for row in kept:
            self._take(row)
        for row in self.rows:
            for block in row:
                self._let_go(block)
        self.rows, self._table = kept, None

    def put(self, row: int, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write a layer's keys and values (Hkv, S, D) of a row's first tokens, whose blocks it owns."""
        blocks = self.rows[row][: -(-keys.shape[1] // PANEL)]
        pair, dim = self._pair, self.engine.dim
        missing = (0, dim - keys.shape[2], 0, len(blocks) * PANEL - keys.shape[1])
        k, v = (
            torch.nn.functional.pad(x.to(self.engine.kv_dtype), missing).unflatten(1, (-1, PANEL))
            for x in (keys, values)
        )  # (Hkv, blocks, 32, dim)
        k = k.unflatten(3, (-1, pair)).permute(1, 0, 3, 2, 4)  # (blocks, Hkv, dim / pair, 32, pair)
        v = v.unflatten(3, (-1, PANEL)).unflatten(2, (-1, pair)).permute(1, 0, 4, 2, 5, 3)
        both = torch.stack((k.flatten(2), v.flatten(2)), 2)  # (blocks, Hkv, 2, 32 dim)
        view, slot = self._view(), self.layers.index(layer)
        for place, block in enumerate(blocks):
            view[block, slot] = both[place]

    def get(self, row: int, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values (Hkv, length, D) of a row's first tokens."""
        blocks = self.rows[row][: -(-length // PANEL)]
        pair, dim = self._pair, self.engine.dim
        both = self._view()[blocks, self.layers.index(layer)]  # (blocks, Hkv, 2, 32 dim)
        k = both[:, :, 0].unflatten(2, (dim // pair, PANEL, pair)).permute(1, 0, 3, 2, 4)
        v = both[:, :, 1].unflatten(2, (dim // PANEL, PANEL // pair, PANEL, pair)).permute(1, 0, 3, 5, 2, 4)
        k, v = k.reshape(k.shape[0], -1, dim), v.reshape(v.shape[0], -1, dim)
        return tuple(x[:, :length, : self.engine.head_dim].contiguous() for x in (k, v))

    @property
    def _pair(self) -> int:
        return 2 if self.engine.kv_dtype == torch.bfloat16 else 1

    def _view(self) -> Tensor:
        """(room, layers, Hkv, 2, 32 dim) numbers."""
        engine = self.engine
        return self.memory.view(engine.kv_dtype).view(len(self.memory), len(self.layers), engine.kv_heads, 2, -1)

    def _new(self) -> int:
        if not self._free:
            room, held = max(FIRST, 2 * len(self._holders)), len(self._holders)
            memory = self.memory.new_empty(room, self.size)
            memory[:held] = self.memory
            self.memory = memory
            self._free = list(range(room - 1, held - 1, -1))
            self._holders += [0] * (room - held)
        block = self._free.pop()
        self._holders[block] = 1
        return block

    def _take(self, blocks: list[int]) -> None:
        for block in blocks:
            if block != GONE:
                self._holders[block] += 1

    def _let_go(self, block: int) -> None:
        if block == GONE:
            return
        self._holders[block] -= 1
        if not self._holders[block]:
            self._free.append(block)
