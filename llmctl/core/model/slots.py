"""Slots: which tokens of which row stand where in a cache, and what those of a pass see of them."""

from typing import NamedTuple

import torch
from torch import Tensor

from llmctl.core.model.attend import Mask, placed_mask, self_mask
from llmctl.core.model.position import BY_ROW
from llmctl.spec.memory import BEYOND_WINDOW
from llmctl.spec.model import ModelConfig

SLACK = 64  # tokens that a layer keeps beyond its window, so that as many can be forgotten again
CHUNK = BEYOND_WINDOW - SLACK  # tokens that one pass may read where a layer drops what is out of its window


class View(NamedTuple):
    """Where the T tokens of a pass go in layers of one window, and the S slots that they may see.

    Attributes:
        put: the T slots, the same in every row; or (B, 1) int64 of rows and (B, T) int64 of each row's slots.
        seen: the S slots.
        queries: (B or 1, T) int64, the slots of the T tokens.
    """

    put: slice | tuple[Tensor, Tensor]
    seen: slice
    queries: Tensor

    @property
    def keys(self) -> Tensor:
        """(1, S) int64, the slots that may be seen."""
        return torch.arange(self.seen.start, self.seen.stop, device=self.queries.device)[None]


class Slots:
    """The book of a cache: rows of unequal length, each from slot 0 on, padded on the right.

    A pass is `open`, what each layer writes and reads at the places of `view`, and `advance`.

    Attributes:
        lengths: tokens that each row holds.
        capacity: tokens that a row may hold.
        window: of the layers that have one, or None.
        drops: those layers let go of what they do not see any more.
        first: the place in its row of what stands in slot 0 of such layers.
    """

    def __init__(self, config: ModelConfig, rows: int, capacity: int, drops: bool):
        self.windows = [config.window_of(layer) for layer in range(config.layers)]
        self.window = config.window
        self.drops = drops and config.window is not None and not in_one_pass(config)
        self.capacity = capacity
        self.lengths = [0] * rows
        self.first = [0] * rows
        self.views: dict[int | None, View] = {}
        self.counts: list[int] = []
        self._expected: list[int] | None = None

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(self.lengths, default=0)

    def room(self, layer: int) -> int:
        """Slots of a layer."""
        window = self.windows[layer]
        return self.capacity if window is None or not self.drops else min(self.capacity, window + SLACK + CHUNK)

    def places(self, tokens: int, device: torch.device) -> Tensor:
        """The places of the next `tokens` of each row, (B or 1, T) int64."""
        return places_after(self.lengths, tokens, device)

    def expect(self, counts: list[int]) -> None:
        """Say how many tokens of the next pass each row has, so that nothing need be read back from the device."""
        self._expected = counts

    def open(self, tokens: int, segments: Tensor | None, device: torch.device) -> None:
        """Begin a pass over so many tokens of each row.

        Args:
            segments: (B, T) int64, 0 where a token is padding, which is on the right; None: none is.

        Raises:
            ValueError: they do not fit, or there are more than CHUNK where layers drop tokens.
        """
        rows = len(self.lengths)
        end = self.length + tokens
        if end > self.capacity:
            raise ValueError(f"{end} tokens do not fit in a cache of {self.capacity}")
        self.counts, self._expected = counted(self._expected, rows, tokens, segments), None
        whole = self._view(self.lengths, tokens, None, device)
        self.views = {None: whole}
        if self.window is None:
            return
        span = min(self.room(self.windows.index(self.window)) if self.window in self.windows else end, self.capacity)
        if self.drops and span < self.capacity:
            if tokens > CHUNK:
                raise ValueError(f"{tokens} tokens in one pass; where layers drop tokens, wanted {CHUNK} at most")
            for row, (length, first) in enumerate(zip(self.lengths, self.first, strict=True)):
                if length - first + tokens > span:
                    self._drop(row, length - first, length - first - self.window - SLACK)
                    self.first[row] = length - self.window - SLACK
        starts = [length - first for length, first in zip(self.lengths, self.first, strict=True)]
        self.views[self.window] = self._view(starts, tokens, self.window, device)

    def advance(self) -> None:
        """Count the tokens of a pass as held, once every layer has written them."""
        self.lengths = [length + count for length, count in zip(self.lengths, self.counts, strict=True)]

    def cut(self, lengths: list[int]) -> None:
        """Forget every token of each row after so many.

        Raises:
            ValueError: fewer are held, or what those see has been dropped.
        """
        for held, first, length in zip(self.lengths, self.first, lengths, strict=True):
            if not 0 <= length <= held:
                raise ValueError(f"cannot keep {length} of {held} tokens")
            if first and length - self.window + 1 < first:
                raise ValueError(f"cannot go back from {held} to {length} tokens: {SLACK} at most")
        self.lengths = list(lengths)

    def truncate(self, length: int) -> None:
        """Forget every token after the first `length` of each row."""
        self.cut([length] * len(self.lengths))

    def mask(
        self, tokens: int, window: int | None, slopes: Tensor | None, prefix: Tensor | None, dtype: torch.dtype
    ) -> Mask:
        """What the last `tokens` of the pass that is open see, in layers of that window.

        Args:
            slopes: (H,) float32 of ALiBi, or None.
            prefix: (B, S) bool, tokens that are seen by those before them too, or None.

        Raises:
            ValueError: a prefix that is not all in this pass.
        """
        view = self.views[window]
        slots = view.seen.stop - view.seen.start
        if isinstance(view.put, slice):
            if slopes is None and view.queries.shape[1] == 1:
                return Mask()
            if view.put == view.seen:
                return self_mask(tokens, slots, True, window, None, slopes, prefix, view.queries.device, dtype)
        if prefix is not None:
            raise ValueError("a prefix that is seen both ways is read in one pass")
        return placed_mask(view.queries[:, -tokens:], view.keys, window, slopes, dtype)

    def ahead(self, tokens: int, window: int | None) -> Tensor:
        """How many places each key is after each of the last `tokens` of the pass, (B or 1, T, S) int64."""
        view = self.views[window]
        return view.keys[:, None, :] - view.queries[:, -tokens:, None]

    def _view(self, starts: list[int], tokens: int, window: int | None, device: torch.device) -> View:
        rows, end = len(starts), max(starts) + tokens
        if len(set(starts)) == 1:
            begin = starts[0] + 1 - window if window is not None and tokens == 1 else 0
            return View(slice(starts[0], end), slice(max(0, begin), end), _run(starts[0], end, device)[None])
        queries = places_after(starts, tokens, device)
        return View((_run(0, rows, device)[:, None], queries), slice(0, end), queries)

    def _drop(self, row: int, held: int, lost: int) -> None:
        """Move the last of `held` tokens of a row to the front of layers with a window; the first `lost` go."""
        raise NotImplementedError


def in_one_pass(config: ModelConfig) -> bool:
    """Whether a text is read in one pass: its tokens see later ones, or turn by how long it is; so none is dropped."""
    return config.prefix_lm or (config.rope_scaling is not None and config.rope_scaling.kind in BY_ROW)


def counted(expected: list[int] | None, rows: int, tokens: int, segments: Tensor | None) -> list[int]:
    """How many of the T tokens of a pass each row has: as expected, else by its segments, (B, T) or None."""
    if expected is not None:
        return expected
    return [tokens] * rows if segments is None else (segments != 0).sum(1).tolist()


def places_after(lengths: list[int], tokens: int, device: torch.device) -> Tensor:
    """The places of `tokens` tokens after rows of these lengths, (B or 1, T) int64."""
    if len(set(lengths)) == 1:
        return _run(lengths[0], lengths[0] + tokens, device)[None]
    return torch.tensor(lengths, device=device)[:, None] + _run(0, tokens, device)


def _run(start: int, end: int, device: torch.device) -> Tensor:
    return torch.arange(start, end, device=device)
