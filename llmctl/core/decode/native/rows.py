"""NativeRows: what Rows are, read by the native step."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from llmctl.core.decode.native.blocks import Blocks
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
        self._blocks = Blocks(self.engine)
        self._workspace = Workspace(self.engine.library)
        self._order: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values that are held."""
        return self._blocks.nbytes

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
            if length > len(text):
                raise ValueError(f"cannot keep {length} of {len(text)} tokens")
            if length < len(text):
                self._blocks.cut(row, length)
                del text[length:]

    def skip(self, layers: frozenset[int]) -> None:
        """As `Rows.skip`."""
        left = [layer for layer in range(self.engine.layers) if layer not in layers]
        self._order = torch.tensor(left, dtype=torch.int32) if layers else None

    def keep(self, places: Sequence[int]) -> None:
        """As `Rows.keep`."""
        if list(places) != list(range(len(self))):
            self._blocks.keep(places)
            self.texts = [list(self.texts[place]) for place in places]

    @torch.inference_mode()
    def snapshot(self, place: int, length: int) -> Prefix:
        """As `Rows.snapshot`."""
        pairs = [self._blocks.get(place, layer, length) for layer in range(self.engine.layers)]
        return Prefix(tuple(self.texts[place][:length]), [(k.to(self.dtype), v.to(self.dtype)) for k, v in pairs])

    def _check(self, lengths: Iterable[int]) -> None:
        """Raise the model's own error where texts are longer than its learned positions."""
        if self.model.config.position == "learned":
            self.model._check_fits(max(lengths))

    def _begin(self, text: tuple[int, ...]) -> int:
        """A row for a text: how many of its tokens are known. The last one is always read.

        What rows share are whole blocks: of rows that are read in the same pass as well, since in each layer keys and
        values of all tokens are written before the first is attended to.
        """
        row = len(self)
        others = ((common((text[:-1], held)) // PANEL * PANEL, place) for place, held in enumerate(self.texts))
        length, other = max(others, default=(0, 0))
        kept = ((common((text[:-1], prefix.ids)), prefix) for prefix in self.prefixes)
        size, prefix = max(kept, default=(0, None), key=lambda one: one[0])
        self._blocks.add()
        self.texts.append(list(text))
        if size > length:
            self._blocks.write(row, 0, size)
            for layer, (keys, values) in enumerate(prefix.pairs):
                self._blocks.put(row, layer, keys[:, :size], values[:, :size])
        elif length:
            self._blocks.share(row, other, length)
        self._blocks.write(row, max(size, length), len(text))
        return max(size, length)

    def _read_on(self, news: Sequence[Sequence[int]], last: bool) -> Tensor:
        """Read new tokens, one or more, into every row."""
        known = [len(text) for text in self.texts]
        self._check(length + len(new) for length, new in zip(known, news, strict=True))
        for row, (text, new) in enumerate(zip(self.texts, news, strict=True)):
            text += new
            self._blocks.write(row, known[row], len(text))
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
            request = Request(
                ids[begin:end], rows[begin:end], at[begin:end], self._blocks.table, self._blocks.memory, mine
            )
            found.append(self.engine.run(request, self._workspace, self._order))
        scores = torch.cat(found) if len(found) > 1 else found[0]
        if last:
            return scores
        counts = [len(self.texts[row]) - start for row, start in zip(places, known, strict=True)]
        out = scores.new_zeros(len(counts), max(counts), scores.shape[1])
        for one, part in zip(out, scores.split(counts), strict=True):
            one[: len(part)] = part
        return out
