"""NativeRows: what Rows are, read by the native step."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from llmctl.core.decode.native.blocks import GONE, Blocks
from llmctl.core.decode.native.build import Unavailable
from llmctl.core.decode.native.engine import Request, Workspace, engine_of
from llmctl.core.decode.native.layout import PANEL
from llmctl.core.decode.prefix import Prefix
from llmctl.core.decode.rows import Rows, common
from llmctl.core.model.transformer import Transformer

CHUNK = 512  # tokens that are read in one pass


class NativeRows(Rows):
    """Texts side by side that a model has read, by the native step; as `Rows`.

    Raises:
        Unavailable: the native step does not do what is asked for.
    """

    def __init__(self, model: Transformer, kv_bits: int = 0, start: Sequence[int] = ()):
        if kv_bits:
            raise Unavailable(f"keys and values are kept in {kv_bits} bits")
        if start:
            raise Unavailable("it has an encoder")
        self.model, self.kv_bits, self.start, self.virtual = model, 0, [], 0
        self.engine = engine_of(model)
        self.device, self.dtype = torch.device("cpu"), next(model.parameters()).dtype
        self.texts: list[list[int]] = []
        self.prefixes: list[Prefix] = []
        windows = zip(self.engine.pools, (None, self.engine.window), strict=True)
        pools = {number: Blocks(self.engine, *one) for number, one in enumerate(windows) if one[0]}
        self._numbers, self._pools = tuple(pools), tuple(pools.values())
        self._workspace = Workspace(self.engine.library)
        self._order: Tensor | None = None

    @property
    def divisible(self) -> bool:
        """As `Rows.divisible`."""
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values that are held."""
        return sum(pool.nbytes for pool in self._pools)

    @torch.inference_mode()
    def add(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """As `Rows.add`."""
        unique = list(dict.fromkeys(map(tuple, texts)))
        first = len(self)
        self._check(map(len, unique))
        known = [self._begin(text) for text in unique]
        scores = self._read(range(first, len(self)), known, last=True)
        if len(texts) > len(unique):
            places = [unique.index(tuple(text)) for text in texts]
            self.keep([*range(first), *(first + place for place in places)])
            scores = scores[places]
        return scores

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """As `Rows.step`."""
        return self._read_on([(token,) for token in tokens], last=True)

    @torch.inference_mode()
    def read(self, news: Sequence[Sequence[int]], last: bool = False) -> Tensor:
        """As `Rows.read`."""
        return self._read_on(news, last)

    def cut(self, lengths: Sequence[int]) -> None:
        """As `Rows.cut`."""
        for row, (text, length) in enumerate(zip(self.texts, lengths, strict=True)):
            if length > len(text) or not all(pool.sees(row, length) for pool in self._pools):
                raise ValueError(f"cannot go back from {len(text)} to {length} tokens")
            if length < len(text):
                for pool in self._pools:
                    pool.cut(row, length)
                del text[length:]

    def skip(self, layers: frozenset[int]) -> None:
        """As `Rows.skip`."""
        left = [layer for layer in range(self.engine.layers) if layer not in layers]
        self._order = torch.tensor(left, dtype=torch.int32) if layers else None

    def keep(self, places: Sequence[int]) -> None:
        """As `Rows.keep`."""
        if list(places) != list(range(len(self))):
            for pool in self._pools:
                pool.keep(places)
            self.texts = [list(self.texts[place]) for place in places]

    @torch.inference_mode()
    def snapshot(self, place: int, length: int) -> Prefix | None:
        """As `Rows.snapshot`."""
        if any(GONE in pool.rows[place] for pool in self._pools):
            return None
        held = {layer: pool for pool in self._pools for layer in pool.layers}
        pairs = [held[layer].get(place, layer, length) for layer in range(self.engine.layers)]
        return Prefix(tuple(self.texts[place][:length]), pairs)

    def _check(self, lengths: Iterable[int]) -> None:
        """Raise the model's own error where texts are longer than its learned positions."""
        if self.model.config.position == "learned":
            self.model._check_fits(max(lengths))

    def _begin(self, text: tuple[int, ...]) -> int:
        """A row for a text: how many of its tokens are known. The last one is always read.

        What rows share are whole blocks: of rows that are read in the same pass as well, since in each layer keys and
        values of all tokens are written before the first is attended to.
        """
        row, length, other = len(self), 0, 0
        for place, held in enumerate(self.texts):
            same = common((text[:-1], held)) // PANEL * PANEL
            if same > length and all(pool.sees(place, same) for pool in self._pools):
                length, other = same, place
        kept = ((common((text[:-1], prefix.ids)), prefix) for prefix in self.prefixes)
        size, prefix = max(kept, default=(0, None), key=lambda one: one[0])
        self.texts.append(list(text))
        for pool in self._pools:
            pool.add()
            if size > length:
                pool.write(row, 0, size)
                for layer in pool.layers:
                    keys, values = prefix.pairs[layer]
                    pool.put(row, layer, keys[:, :size], values[:, :size])
            elif length:
                pool.share(row, other, length)
            pool.write(row, max(size, length), len(text))
        return max(size, length)

    def _read_on(self, news: Sequence[Sequence[int]], last: bool) -> Tensor:
        """Read new tokens, one or more, into every row."""
        known = [len(text) for text in self.texts]
        self._check(length + len(new) for length, new in zip(known, news, strict=True))
        for row, (text, new) in enumerate(zip(self.texts, news, strict=True)):
            text += new
            for pool in self._pools:
                pool.write(row, known[row], len(text))
        return self._read(range(len(self)), known, last)

    def _read(self, places: Sequence[int], known: Sequence[int], last: bool) -> Tensor:
        """Read the texts of some rows, of each the tokens after those known; what is returned is as of `Rows.read`."""
        ids, rows, at, asked = [], [], [], []
        for row, start in zip(places, known, strict=True):
            new, end = self.texts[row][start:], len(self.texts[row])
            ids += new
            rows += [row] * len(new)
            at += range(start, end)
            asked += [len(ids) - 1] if last else range(len(ids) - len(new), len(ids))
        found = []
        for begin in range(0, len(ids), CHUNK):
            end = begin + CHUNK
            mine = [number - begin for number in asked if begin <= number < end]
            held = ((pool.table, pool.memory) for pool in self._pools)
            pools = dict(zip(self._numbers, held, strict=True))
            request = Request(ids[begin:end], rows[begin:end], at[begin:end], pools, mine)
            found.append(self.engine.run(request, self._workspace, self._order))
        for pool in self._pools:
            for row in places:
                pool.drop(row, len(self.texts[row]))
        scores = torch.cat(found) if len(found) > 1 else found[0]
        if last:
            return scores
        counts = [len(self.texts[row]) - start for row, start in zip(places, known, strict=True)]
        out = scores.new_zeros(len(counts), max(counts), scores.shape[1])
        for one, part in zip(out, scores.split(counts), strict=True):
            one[: len(part)] = part
        return out
