"""Line: one completion while it is written: its random stream, its tokens, and what rules must remember of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llmctl.core.decode.guide import Guide


@dataclass(eq=False)
class Line:
    """The state of one completion, as far as the choice of its next token looks at it.

    Attributes:
        key: `stream_key` of its random stream.
        prompt: ids before it, which its decoder has read.
        limit: how many tokens it may have.
        ngram: of how many tokens the runs are that may not come twice; 0: none.
        guide: what its text is held to, or None.
        written: ids so far; only `push` and `cut` change them.
        offer: the ids of a word that begins if its first is the next token.
        owed: where a word began that must be finished, and its ids; None where none must.
        seen: each id of the prompt and of what was written, with how often it was written.
    """

    key: int
    prompt: tuple[int, ...]
    limit: int
    ngram: int = 0
    guide: Guide | None = None
    written: list[int] = field(default_factory=list)
    offer: tuple[int, ...] = field(default=(), init=False)
    owed: tuple[int, tuple[int, ...]] | None = field(default=None, init=False)
    seen: dict[int, int] = field(init=False)
    _runs: dict[tuple[int, ...], tuple[int, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        written, self.written = self.written, []
        self.seen = dict.fromkeys(self.prompt, 0)
        self._runs = {}
        if self.ngram:
            for end in range(self.ngram, len(self.prompt) + 1):
                self._note(self.prompt[end - self.ngram : end])
        for token in written:
            self.push(token)

    @property
    def step(self) -> int:
        """How many tokens were written: the number of the next one, from 0."""
        return len(self.written)

    @property
    def done(self) -> bool:
        """Whether the guide's text is complete, so that nothing may follow but its end."""
        return self.guide is not None and self.guide.done

    def push(self, token: int) -> None:
        """Write a token."""
        if self.offer[:1] == (token,):
            self.owed = self.step, self.offer
        self.offer = ()
        self.written.append(token)
        self.seen[token] = self.seen.get(token, 0) + 1
        if self.ngram:
            run = self.tail(self.ngram)
            if len(run) == self.ngram:
                self._note(run)
        if self.guide is not None:
            self.guide.push(token)

    def cut(self, step: int) -> None:
        """Take back the tokens after so many."""
        prompt = frozenset(self.prompt)
        for _ in range(len(self.written) - step):
            if self.ngram:
                run = self.tail(self.ngram)
                if len(run) == self.ngram:
                    self._runs[run[:-1]] = self._runs[run[:-1]][:-1]
            token = self.written.pop()
            self.seen[token] -= 1
            if not self.seen[token] and token not in prompt:
                del self.seen[token]
        self.offer = ()
        if self.owed is not None and step <= self.owed[0]:
            self.owed = None
        if self.guide is not None:
            self.guide.cut(step)

    def copy(self) -> "Line":
        """Another one that has come as far, and goes on by itself."""
        twin = Line(self.key, (), self.limit, self.ngram, None if self.guide is None else self.guide.copy())
        twin.prompt, twin.written = self.prompt, list(self.written)
        twin.offer, twin.owed = self.offer, self.owed
        twin.seen, twin._runs = dict(self.seen), dict(self._runs)
        return twin

    def tail(self, count: int) -> tuple[int, ...]:
        """The last ids of prompt and completion; fewer where there are not so many."""
        if count <= 0:
            return ()
        if count <= len(self.written):
            return tuple(self.written[-count:])
        return (*self.prompt[max(0, len(self.prompt) + len(self.written) - count) :], *self.written)

    def repeating(self) -> tuple[int, ...]:
        """The ids that would complete a run of `ngram` tokens for the second time."""
        return self._runs.get(self.tail(self.ngram - 1), ()) if self.ngram else ()

    def _note(self, run: Sequence[int]) -> None:
        before = tuple(run[:-1])
        self._runs[before] = (*self._runs.get(before, ()), run[-1])


def completing(line: Line, runs: Iterable[tuple[int, ...]]) -> list[int]:
    """The last ids of those runs of two tokens or more whose others the text ends with."""
    return [run[-1] for run in runs if line.tail(len(run) - 1) == run[:-1]]
