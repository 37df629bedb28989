"""graph: a step of decoding recorded once as a CUDA graph and replayed, so that a GPU does not wait for Python.

A graph has fixed addresses and shapes: it reads tokens and places from tensors of its own, writes into the cache where
those say, and attends to every slot of the cache, masked. It holds until the cache moves, or has other rows.

Source: the recipe of gpt-fast (pytorch-labs), and torch.cuda.CUDAGraph's documentation for warming up and capture.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llmctl.core.model.attend import Mask, placed_mask
from llmctl.core.model.cache import Cache, KVCache
from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig

AFTER = 8  # steps with the same cache and rows, before one is recorded: that takes as long as some tens of steps
WARM = 3  # times that the work is done before it is recorded

Work = Callable[[], Tensor]
Record = Callable[[Work], Work]  # of work to what does it again, with the same tensors


def captured(work: Work) -> Work:
    """The work as a CUDA graph: called, it is replayed, and gives the same tensor each time, with new numbers in it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = work()

    def replay() -> Tensor:
        graph.replay()
        return made

    return replay


class Recorded:
    """The steps of one set of rows, recorded where they repeat.

    Args:
        record: how work is recorded; another than `captured` in tests.
        after: steps that are alike before the next is recorded.
    """

    def __init__(self, model: Transformer, record: Record = captured, after: int = AFTER):
        self.model, self.record, self.after = model, record, after
        self.fits = fits(model.config)
        self._seen, self._alike = (), 0
        self._step: Step | None = None

    def step(self, cache: Cache, tokens: Sequence[int]) -> Tensor | None:
        """(B, V) float32, the scores after one more token of each row; None: not recorded, and nothing was read."""
        if not self.fits or not isinstance(cache, KVCache) or not tokens or min(cache.lengths) == 0:
            return None
        seen = (len(tokens), cache.capacity, *(one.data_ptr() for one in cache.keys))
        self._alike = self._alike + 1 if seen == self._seen else 0
        if seen != self._seen:
            self._seen, self._step = seen, None
        if self._alike < self.after or cache.length >= cache.capacity:
            return None
        if self._step is None:
            self._step = Step(self.model, cache, self.record)
        return self._step(tokens)


def fits(config: ModelConfig) -> bool:
    """Whether a model's step can be recorded: slots are places in the row, and angles do not depend on its length."""
    by_row = config.rope_scaling is not None and config.rope_scaling.kind in ("dynamic", "longrope")
    return config.kind == "decoder" and config.attention == "softmax" and config.window is None and not by_row


class Step:
    """One step over a cache, recorded."""

    def __init__(self, model: Transformer, cache: KVCache, record: Record):
        self.cache, device = cache, cache.keys[0].device
        for one in (*cache.keys, *cache.values):  # what was never written may be no number, and 0 times that is none
            one[:, :, cache.length :] = 0
        self.tokens = torch.zeros((len(cache.lengths), 1), dtype=torch.int64, device=device)
        fixed = FixedCache(cache)
        self.places = fixed.held
        self._hold()  # what is done before it is recorded writes where the first step will

        def work() -> Tensor:
            return model.head(model(self.tokens, cache=fixed)[:, 0]).float()  # (B, V)

        self._replay = record(work)

    def __call__(self, tokens: Sequence[int]) -> Tensor:
        """(B, V) float32, the scores after one more token of each row, which the cache then holds."""
        self.tokens.copy_(torch.tensor(tokens)[:, None])
        self._hold()
        made = self._replay().clone()
        self.cache.lengths = [length + 1 for length in self.cache.lengths]
        return made

    def _hold(self) -> None:
        self.places.copy_(torch.tensor(self.cache.lengths)[:, None])


class FixedCache:
    """A KVCache as a recorded step sees it: one token a row, written where a tensor says, and all slots in view.

    Attributes:
        held: (B, 1) int64, tokens that each row holds: the place of the next.
        length: more than none; what a model asks for is only whether a row begins.
    """

    length = 1

    def __init__(self, cache: KVCache):
        self.keys, self.values = cache.keys, cache.values
        rows, device = len(cache.lengths), cache.keys[0].device
        self.held = torch.zeros((rows, 1), dtype=torch.int64, device=device)
        self._rows = torch.arange(rows, device=device)[:, None]  # (B, 1)
        self._slots = torch.arange(cache.capacity, device=device)[None]  # (1, S)

    def open(self, tokens: int, segments: Tensor | None, device: torch.device) -> None:
        """Nothing: every pass is of one token a row."""

    def advance(self) -> None:
        """Nothing: who replays counts."""

    def places(self, tokens: int, device: torch.device) -> Tensor:
        """(B, 1), of the one token of each row."""
        return self.held

    def mask(
        self, tokens: int, window: int | None, slopes: Tensor | None, prefix: Tensor | None, dtype: torch.dtype
    ) -> Mask:
        """All slots up to the new token's."""
        return placed_mask(self.held, self._slots, window, slopes, dtype)

    def ahead(self, tokens: int, window: int | None) -> Tensor:
        """How many places each slot is after the new token, (B, 1, S) int64."""
        return self._slots[:, None] - self.held[:, :, None]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's keys and values (B, Hkv, 1, D); all slots of the layer, (B, Hkv, S, D)."""
        keys, values = self.keys[layer], self.values[layer]
        keys[self._rows, :, self.held] = k.transpose(1, 2)
        values[self._rows, :, self.held] = v.transpose(1, 2)
        return keys, values
