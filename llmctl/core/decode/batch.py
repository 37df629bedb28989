"""Desk: continuous batching: completions are made side by side, those that have ended leave, waiting ones enter."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llmctl.core.decode.choose import Chooser, Picked
from llmctl.core.decode.line import Line
from llmctl.core.decode.prefix import Prefix
from llmctl.core.decode.rows import SHARED, Rows, common, rows_of
from llmctl.core.decode.rules import Rules
from llmctl.core.model.coded import GROUP, RING
from llmctl.core.model.slots import in_one_pass
from llmctl.core.model.transformer import Transformer
from llmctl.errors import Exit, UserError
from llmctl.spec.memory import BEYOND_WINDOW, kv_cache

Finish = Literal["stop", "length"]
PART = 256  # tokens of a prompt that are read between two tokens of those beside it


@dataclass(eq=False)
class Wish:
    """A completion that is wanted.

    Attributes:
        prompt: ids, one at least; of an encoder-decoder, what its encoder reads.
        chooser: how its tokens are chosen.
        key: `stream_key` of its random stream.
        limit: how many tokens it may have.
        eos: ids that end it.
        stopped: told each new token that is not in `eos`; True ends it.
        drafted: tokens that were guessed ahead of the model, so far.
        accepted: those of them that it kept.
    """

    prompt: Sequence[int]
    chooser: Chooser
    key: int
    limit: int
    eos: frozenset[int] = frozenset()
    stopped: Callable[[int], bool] | None = None
    drafted: int = 0
    accepted: int = 0


class Event(NamedTuple):
    """What became of a wish in a step: a token, its end, or both.

    Attributes:
        picked: the token; None if it ends without another one.
        finish: why it has ended, or None.
    """

    wish: Wish
    picked: Picked | None
    finish: Finish | None


class Desk:
    """Completions in the making.

    What is written does not depend on what is written beside it, but for the rounding of sums.

    Args:
        rows: completions at a time.
        kv_bits: as for `Rows`.
        rules: of the checkpoint; an encoder-decoder needs their `start`.
        memory: bytes that keys and values may take, or None: fewer rows go on at a time where they are too long.
    """

    def __init__(
        self,
        model: Transformer,
        rows: int = 16,
        kv_bits: int = 0,
        rules: Rules | None = None,
        memory: int | None = None,
    ):
        self.model, self.most, self.memory = model, rows, memory
        self.start = () if rules is None else rules.start
        self.rows: Rows = self._made(model, kv_bits)
        self.rows.widest, self.rows.frugal = rows, memory is not None
        self._waiting: deque[Wish] = deque()
        self._wishes: list[Wish] = []
        self._lines: list[Line] = []
        self._unread: dict[Wish, Sequence[int]] = {}  # what is left of prompts that are read part by part
        self._before: Sequence[int] = ()  # the last prompt that was read
        self._kept: Prefix | None = None

    def _made(self, model: Transformer, kv_bits: int) -> Rows:
        """The rows that it works with."""
        return rows_of(model, kv_bits, self.start)

    @property
    def busy(self) -> bool:
        """Whether there is anything left to do."""
        return bool(self._waiting or self._wishes)

    @property
    def waiting(self) -> int:
        """Wishes that have not begun."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Completions in the making, those whose prompts are being read among them."""
        return len(self._wishes)

    def ask(self, wish: Wish) -> None:
        """Take a wish; those that came first begin first.

        Raises:
            UserError: its keys and values alone take more memory than there is.
        """
        if self.memory is not None and self._bytes(1, self._length(wish)) > self.memory:
            tokens = self._length(wish)
            problem = f"Keys and values of {tokens} tokens take {self._bytes(1, tokens):,} bytes, but"
            raise UserError(
                f"{problem} {self.memory:,} are left for them.", "Raise --memory, or lower --max-tokens.", Exit.SPACE
            )
        self._waiting.append(wish)

    def cancel(self, wish: Wish) -> None:
        """Let go of a wish; nothing more is heard of it."""
        if wish in self._wishes:
            self._keep([place for place, one in enumerate(self._wishes) if one is not wish])
            self._unread.pop(wish, None)
        elif wish in self._waiting:
            self._waiting.remove(wish)

    def step(self) -> list[Event]:
        """Have every completion go on by one token, after those that there is room for have begun.

        A long prompt that comes while others are written is read part by part, so that they need not wait for it.

        Raises:
            UserError: a model's scores are not numbers, or rules leave no token.
        """
        scores = [self._read_on()] if self._wishes else []
        events = [Event(wish, None, "length") for wish in self._unfit()]
        fresh = self._entering()
        if fresh:
            self.rows.most = max(map(self._length, [*self._wishes, *fresh]))
            first = len(self._wishes)
            scores.append(self.rows.add([self._first_part(wish) for wish in fresh]))
            self._wishes += fresh
            self._lines += [wish.chooser.line(wish.prompt, wish.key, wish.limit) for wish in fresh]
            self._remember(first + row for row, wish in enumerate(fresh) if wish not in self._unread)
        if not scores:
            return events
        live = [place for place, wish in enumerate(self._wishes) if wish in self._unread]
        picked = self._pick(scores[0] if len(scores) == 1 else torch.cat(scores))
        for place, token in picked.items():
            wish, line = self._wishes[place], self._lines[place]
            finish: Finish | None = None
            if token.id in wish.eos or (wish.stopped is not None and wish.stopped(token.id)) or line.done:
                finish = "stop"
            elif line.step >= wish.limit:
                finish = "length"
            if finish is None:
                live.append(place)
            events.append(Event(wish, token, finish))
        if len(live) < len(self._wishes):
            self._keep(sorted(live))
        return events

    def _read_on(self) -> Tensor:
        """Every row reads its last token, or the next part of its prompt: (B, V), the scores of what may come next."""
        if not self._unread:
            return self.rows.step([line.written[-1] for line in self._lines])
        news, read = [], []
        for place, (wish, line) in enumerate(zip(self._wishes, self._lines, strict=True)):
            rest = self._unread.pop(wish, ())
            news.append(rest[:PART] if rest else line.written[-1:])
            if len(rest) > PART:
                self._unread[wish] = rest[PART:]
            elif rest:
                read.append(place)
        scores = self.rows.read(news, last=True)
        self._remember(read)
        return scores

    def _first_part(self, wish: Wish) -> Sequence[int]:
        """What of a prompt is read at once: all, unless it is long and others would wait."""
        if not self._wishes or not self.rows.divisible:
            return wish.prompt
        known = [common((text, wish.prompt)) for text in (*self.rows.texts, *(one.ids for one in self.rows.prefixes))]
        end = max(known) + PART
        if len(wish.prompt) <= end + PART:
            return wish.prompt
        self._unread[wish] = wish.prompt[end:]
        return wish.prompt[:end]

    def _pick(self, scores: Tensor) -> dict[int, Picked]:
        """The next token of each row that is written, from scores (B, V): those of one chooser are chosen together."""
        groups: dict[int, list[int]] = {}
        for place, wish in enumerate(self._wishes):
            if wish not in self._unread:
                groups.setdefault(id(wish.chooser), []).append(place)
        found: dict[int, Picked] = {}
        for places in groups.values():
            chooser, lines = self._wishes[places[0]].chooser, [self._lines[place] for place in places]
            some = scores if len(places) == len(scores) else scores[places]
            found.update(zip(places, chooser.pick(some, lines), strict=True))
        return dict(sorted(found.items())) if len(groups) > 1 else found

    def _keep(self, live: list[int]) -> None:
        """Leave only these; the last rows take the places of those that go, so that few move."""
        count, held = len(live), set(live)
        late = [place for place in live if place >= count]
        places = [place if place in held else late.pop() for place in range(count)]
        self.rows.keep(places)
        self._wishes, self._lines = [self._wishes[p] for p in places], [self._lines[p] for p in places]

    def _unfit(self) -> list[Wish]:
        """Wishes for no token, which end before they begin."""
        found = [wish for wish in self._waiting if wish.limit <= 0]
        for wish in found:
            self._waiting.remove(wish)
        return found

    def _entering(self) -> list[Wish]:
        """The wishes that begin now, by length: those of like length are read together."""
        fresh: list[Wish] = []
        longest = max(map(self._length, self._wishes), default=0)
        while self._waiting and len(self._wishes) + len(fresh) < self.most:
            longest = max(longest, self._length(self._waiting[0]))
            count = len(self._wishes) + len(fresh) + 1
            if self.memory is not None and count > 1 and self._bytes(count, longest) > self.memory:
                break
            fresh.append(self._waiting.popleft())
        return sorted(fresh, key=lambda wish: len(wish.prompt))

    def _remember(self, places: Iterable[int]) -> None:
        """Keep the beginning that prompts share with those before them: rows may leave before the next one comes.

        Args:
            places: of rows whose prompts have just been read.
        """
        for place in places:
            wish = self._wishes[place]
            before, self._before = self._before, wish.prompt
            size = common((before, wish.prompt))
            known = max((common((prefix.ids, wish.prompt)) for prefix in self.rows.prefixes), default=0)
            if size >= SHARED and size > known and not self.start:
                kept = self.rows.snapshot(place, size)
                if kept is not None:
                    self.rows.prefixes = [*(one for one in self.rows.prefixes if one is not self._kept), kept]
                    self._kept = kept

    def _length(self, wish: Wish) -> int:
        """Tokens that its row may come to hold; the last one is not read."""
        return len(self.start or wish.prompt) + wish.limit - 1 + self.rows.virtual

    def _bytes(self, rows: int, tokens: int) -> int:
        """Bytes of the keys and values of so many rows of so many tokens."""
        return kept_bytes(self.rows, rows, tokens)


def kept_bytes(rows: Rows, count: int, tokens: int) -> int:
    """Bytes of the keys and values of so many texts of so many tokens, as those rows keep them."""
    config, whole, bits = rows.model.config, rows.dtype.itemsize, rows.kv_bits
    source = tokens if rows.start else 0
    if not bits:
        beyond = tokens if in_one_pass(config) else BEYOND_WINDOW
        return count * kv_cache(config, tokens, whole, source=source, beyond=beyond)
    scales = 2 / config.head_dim if bits == 8 else 4 / min(GROUP, config.head_dim)
    coded = kv_cache(config, tokens, 1, source=source, beyond=tokens) * (bits / 8 + scales)
    return count * (int(coded) + kv_cache(config, RING, whole))
