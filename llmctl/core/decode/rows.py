"""Rows: texts side by side that a model reads, step by step or many tokens at once, and what may come next in each."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llmctl.core.compress.quant.quicken import quicken
from llmctl.core.decode.graph import Recorded
from llmctl.core.decode.prefix import Prefix
from llmctl.core.decode.speculate.skip import without_layers
from llmctl.core.model.cache import Cache, KVCache, cache_for
from llmctl.core.model.coded import CodedCache
from llmctl.core.model.memory import Memory
from llmctl.core.model.position import BY_ROW, turning_point
from llmctl.core.model.slots import CHUNK, in_one_pass
from llmctl.core.model.transformer import Transformer

SPARE = 256  # tokens after those that are read at first that a cache has room for
SHARED = 16  # tokens at the beginning of two texts that are worth copying rather than reading again


class Rows:
    """Texts side by side that a model has read: it keeps their keys and values, and says what may come next.

    What a row's scores are does not depend on the rows beside it, but for the rounding of sums.

    Args:
        model: made ready to decode, see `quicken`.
        kv_bits: of the keys and values that are kept, 8 or 4; 0: as they are computed.
        start: ids that the decoder of an encoder-decoder begins with; () for a decoder.

    Attributes:
        texts: the ids that each row holds, those of virtual tokens not counted.
        prefixes: beginnings of texts whose keys and values are known.
        most: tokens that a row will come to hold, or None: no memory is taken for more.
        widest: rows that there will be at a time, or None: the same.
        frugal: hold no more than the rows that there are may come to need, though memory is then moved more often.
    """

    most: int | None = None
    widest: int | None = None
    frugal: bool = False

    def __init__(self, model: Transformer, kv_bits: int = 0, start: Sequence[int] = ()):
        quicken(model)
        self._full = self.model = model
        self.kv_bits, self.start = kv_bits, list(start)
        self.texts: list[list[int]] = []
        self.prefixes: list[Prefix] = []
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.virtual = model.virtual_tokens("decoder")
        self.turn = turning_point(model.config)
        self._by_row = model.config.rope_scaling is not None and model.config.rope_scaling.kind in BY_ROW
        self._whole = in_one_pass(model.config)
        self._cache: Cache | None = None
        self._memory: Memory | None = None
        self._recorded = Recorded(model) if self.device.type == "cuda" else None
        self._ways: dict[frozenset[int], tuple[Transformer, Recorded | None]] = {}  # by the layers that are passed by
        self._sources: list[int] = []  # of an encoder-decoder, numbers of the sources in it

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def divisible(self) -> bool:
        """Whether a text may be read part by part: by `add` at first, and then by `read`."""
        return not self._whole and not self.start

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values that there is room for."""
        return 0 if self._cache is None else self._cache.nbytes

    @torch.inference_mode()
    def add(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Read new texts, none empty, as rows after those there are.

        Equal texts are read once, and so are beginnings that are known from other rows or from `prefixes`; long texts
        are read in chunks. Of an encoder-decoder, they are what its encoder reads.

        Returns:
            (n, V) float32, the scores of what may come after each.
        """
        unique = list(dict.fromkeys(map(tuple, texts)))
        first = len(self)
        if self.model.encoder_embed is not None:
            self._join(self._encoded(unique))
            fresh = max(self._sources, default=-1) + 1
            self._sources += range(fresh, fresh + len(unique))
        read = [list(text) for text in unique] if self.model.encoder_embed is None else [self.start] * len(unique)
        self._admit(len(read), max(map(len, read)))
        self.texts += [[] for _ in read]
        self._begin(first, read)
        found = []
        for start, stop in _alike([len(text) - len(own) for text, own in zip(read, self.texts[first:], strict=True)],
                                  [bool(own) for own in self.texts[first:]]):  # fmt: skip
            found.append(self._read(first + start, first + stop, [
                text[len(own) :] for text, own in zip(read[start:stop], self.texts[first + start : first + stop],
                                                      strict=True)]))  # fmt: skip
        scores = torch.cat(found)
        if len(texts) > len(unique):
            places = [unique.index(tuple(text)) for text in texts]
            self.keep([*range(first), *(first + place for place in places)])
            scores = scores[places]
        return scores

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Every row reads one token: (B, V) float32, the scores of what may come next."""
        if self.turn is not None and any(len(text) + self.virtual == self.turn for text in self.texts):
            return self.read([[token] for token in tokens], last=True)
        self._grow(1)
        scores = None if self._recorded is None else self._recorded.step(self._cache, tokens)
        if scores is None:
            ids = torch.tensor(tokens, device=self.device)[:, None]
            hidden = self.model(ids, cache=self._cache, memory=self._memory)  # (B, 1, D)
            scores = self.model.head(hidden[:, 0]).float()
        for text, token in zip(self.texts, tokens, strict=True):
            text.append(token)
        return scores

    @torch.inference_mode()
    def read(self, news: Sequence[Sequence[int]], last: bool = False) -> Tensor:
        """Every row reads one or more tokens.

        Returns:
            (B, T, V) float32, T the most tokens of a row: the scores after each; those after the end of shorter rows
            mean nothing. `last`: (B, V), those after each row's last token.
        """
        new = [list(one) for one in news]
        if not last:
            return self._read(0, len(self), new, last)
        runs = _alike(list(map(len, new)), [False] * len(new))
        return torch.cat([self._read(start, stop, new[start:stop]) for start, stop in runs])

    def cut(self, lengths: Sequence[int]) -> None:
        """Have each row forget its tokens after so many; virtual ones are not counted.

        Raises:
            ValueError: a row holds fewer, or has dropped what those see.
        """
        self._cache.cut([length + self.virtual for length in lengths])
        for text, length in zip(self.texts, lengths, strict=True):
            del text[length:]

    def skip(self, layers: frozenset[int]) -> None:
        """Have what is read from now on pass these layers by; none: go through all again."""
        if not self._ways:
            self._ways[frozenset()] = self._full, self._recorded
        if layers not in self._ways:
            model, whole = without_layers(self._full, layers), self._ways[frozenset()][1]
            self._ways[layers] = model, None if whole is None else Recorded(model, whole.record, whole.after)
        self.model, self._recorded = self._ways[layers]

    @torch.inference_mode()
    def keep(self, places: Sequence[int]) -> None:
        """Leave these rows, in this order; one may come several times."""
        if list(places) == list(range(len(self))):
            return
        self._cache.keep(places)
        self.texts = [list(self.texts[place]) for place in places]
        if self._memory is not None:
            sources = [self._sources[place] for place in places]
            if sources != self._sources:  # rows of one source may change places
                self._memory = self._memory.select(torch.tensor(places, dtype=torch.int64, device=self.device))
            self._sources = sources

    @torch.inference_mode()
    def snapshot(self, place: int, length: int) -> Prefix | None:
        """The first tokens of a row, with a copy of their keys and values; None where they cannot stand alone."""
        cache = self._cache
        if self._whole or not isinstance(cache, KVCache) or cache.first[place] or self._memory is not None:
            return None
        end = length + self.virtual
        pairs = [cache.held(place, layer) for layer in range(len(cache.keys))]
        return Prefix(tuple(self.texts[place][:length]), [(k[:, :end].clone(), v[:, :end].clone()) for k, v in pairs])

    def _admit(self, rows: int, tokens: int) -> None:
        """Empty rows in the cache, with room for texts of so many tokens."""
        if self._cache is None:
            made = (self.model.config, rows, self._room(tokens + SPARE, tokens))
            if self.kv_bits:
                self._cache = CodedCache.allocate(*made, self.kv_bits, self.device, self.dtype)
            else:
                self._cache = cache_for(*made, self.device, self.dtype)
            return
        cache = self._cache
        if self.frugal:
            enough = self._room(cache.capacity, max(tokens, cache.length - self.virtual))
            if enough < cache.capacity:
                cache.grow(enough)
        cache.add(rows, len(self) + rows if self.frugal else self.widest)
        if self.virtual + tokens > cache.capacity:
            cache.grow(self._room(tokens + SPARE, tokens))

    def _grow(self, tokens: int) -> None:
        """Have room for so many tokens more in the longest row."""
        cache = self._cache
        wanted = cache.length + tokens
        if wanted > cache.capacity:  # few completions are as long as they may be
            cache.grow(self._room(2 * cache.capacity, wanted))

    def _room(self, good: int, needed: int) -> int:
        """Slots of a row: a good number, if it comes to hold so many tokens, and those that are needed."""
        return self.virtual + max(needed, good if self.most is None else min(good, self.most))

    def _begin(self, first: int, read: list[list[int]]) -> None:
        """Have new rows begin with what is known of their texts; the last token of a text is always read."""
        if self._whole or self.kv_bits or not isinstance(self._cache, KVCache) or self._memory is not None:
            return
        together = common(read) if len(read) > 1 else 0
        for number, text in enumerate(read):
            row, cache = first + number, self._cache
            known = [(common((text[:-1], other)), place) for place, other in enumerate(self.texts[:row])
                     if not cache.first[place]]  # fmt: skip
            kept = [(common((text[:-1], prefix.ids)), prefix) for prefix in self.prefixes]
            length, place = max(known, default=(0, 0))
            size, prefix = max(kept, default=(0, None), key=lambda one: one[0])
            if max(length, size, min(together, len(text) - 1)) < SHARED:
                continue
            if number == 0 and together > max(length, size):  # the others copy it from here
                self._read(row, row + 1, [text[: min(together, len(text) - 1)]])
            elif length >= size:
                cache.copy(place, row, self.virtual + length)
                self.texts[row] = text[:length]
            else:
                cache.fill(row, prefix.pairs, self.virtual + size)
                self.texts[row] = text[:size]

    def _read(self, start: int, stop: int, news: list[list[int]], last: bool = True) -> Tensor:
        """Read new tokens, one or more, into some of the rows, as `read` does into all."""
        asked = [len(new) for new in news]
        if self.turn is not None:
            self._turn(start, stop, news)
        self._grow(max(map(len, news)))
        every = (start, stop) == (0, len(self))
        cache = self._cache if every else self._cache.rows(start, stop)
        memory = self._memory if every or self._memory is None else self._memory.rows(start, stop)
        longest = max(map(len, news))
        size = longest if self._whole else min(max(1, CHUNK - self.virtual), longest)
        found: list[Tensor] = []
        ends = [None] * len(news)
        for at in range(0, longest, size):
            parts = [new[at : at + size] for new in news]
            hidden = self._pass(cache, memory, parts)  # (B, T, D)
            for row, part in enumerate(parts):
                if part:
                    ends[row] = hidden[row, len(part) - 1]
            if not last:
                found.append(self.model.head(hidden).float())
        for text, new in zip(self.texts[start:stop], news, strict=True):
            text += new
        if not every:
            self._cache.took(cache, start)
        if last:
            return self.model.head(torch.stack(ends)).float()
        again = [len(new) - count for new, count in zip(news, asked, strict=True)]  # read before what was asked for
        return _after(torch.cat(found, 1), again) if any(again) else torch.cat(found, 1)

    def _pass(self, cache: Cache, memory: Memory | None, news: list[list[int]]) -> Tensor:
        """One pass over new tokens, of unequal number: hidden states (B, T, D)."""
        counts = [len(new) for new in news]
        longest = max(counts)
        tokens = torch.tensor([new + [0] * (longest - len(new)) for new in news], device=self.device)  # (B, T)
        segments = positions = prefix = None
        if min(counts) < longest:
            ends = torch.tensor(counts, device=self.device)[:, None]
            segments = (torch.arange(longest, device=self.device) < ends).long()  # (B, T)
            if self._by_row:  # the places of padding are not the row's
                starts = torch.tensor(cache.lengths, device=self.device)[:, None] - self.virtual * (cache.length > 0)
                positions = starts + torch.minimum(torch.arange(longest, device=self.device), ends - 1)
        first = self.virtual if cache.length == 0 else 0
        cache.expect([first + count for count in counts])
        if self.model.config.prefix_lm and cache.length == 0:
            prefix = torch.ones_like(tokens, dtype=torch.bool) if segments is None else segments.bool()
        known = {"positions": positions, "segments": segments, "prefix": prefix}
        return self.model(tokens, cache=cache, memory=memory, **known)

    def _turn(self, start: int, stop: int, news: list[list[int]]) -> None:
        """Where the angles of all places change with the length of a row, it is read again up to the new tokens."""
        for row, new in zip(range(start, stop), news, strict=True):
            text = self.texts[row]
            if text and len(text) + self.virtual <= self.turn < len(text) + self.virtual + len(new):
                part = self._cache.rows(row, row + 1)
                part.cut([0])
                self._cache.took(part, row)
                new[:0] = text
                text.clear()

    def _encoded(self, texts: Sequence[Sequence[int]]) -> Memory:
        """What the encoder makes of texts."""
        longest = max(map(len, texts))
        tokens = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=self.device)  # (n, S)
        lengths = torch.tensor([len(text) for text in texts], device=self.device)
        segments = (torch.arange(longest, device=self.device) < lengths[:, None]).long()
        return self.model.encode(tokens, segments=None if bool(segments.all()) else segments)

    def _join(self, memory: Memory) -> None:
        """Take over the sources of new rows."""
        self._memory = memory if self._memory is None else self._memory.joined(memory)


def rows_of(model: Transformer, kv_bits: int = 0, start: Sequence[int] = ()) -> Rows:
    """The rows for a model: of the native step, where `ready` has laid it out for that; arguments as for `Rows`."""
    from llmctl.core.decode.native.engine import made
    from llmctl.core.decode.native.rows import NativeRows  # which are Rows themselves

    return NativeRows(model, kv_bits, start) if made(model) and not kv_bits else Rows(model, kv_bits, start)


def _after(scores: Tensor, places: list[int]) -> Tensor:
    """(B, T, V) scores of each row from its place on; what is missing at the end means nothing."""
    count = scores.shape[1] - min(places)
    wanted = torch.tensor(places, device=scores.device)[:, None] + torch.arange(count, device=scores.device)
    rows = torch.arange(len(places), device=scores.device)[:, None]
    return scores[rows, wanted.clamp(max=scores.shape[1] - 1)]


def common(texts: Sequence[Sequence[int]], most: int | None = None) -> int:
    """How many tokens all of them begin with, at most `most`."""
    end = min(map(len, texts), default=0)
    end = end if most is None else min(end, most)
    if all(list(text[:end]) == list(texts[0][:end]) for text in texts[1:]):
        return end
    return next(at for at, column in enumerate(zip(*texts, strict=False)) if len(set(column)) > 1)


def _alike(sizes: list[int], begun: list[bool]) -> Iterator[tuple[int, int]]:
    """Runs of neighbours that are read together: of not too unequal sizes, and all or none with a beginning."""
    start = 0
    for stop in range(1, len(sizes) + 1):
        if stop < len(sizes) and begun[stop] == begun[start]:
            run = sizes[start : stop + 1]
            if max(run) <= 2 * min(run) + 8 and max(run) * len(run) <= 4 * CHUNK:
                continue
        yield start, stop
        start = stop
