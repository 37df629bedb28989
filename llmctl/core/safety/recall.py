"""recall: whether a model that reads the beginning of a passage goes on as the passage does, token by token."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from llmctl.core.decode.batch import Desk, Wish
from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.rules import Rules
from llmctl.core.model.transformer import Transformer
from llmctl.core.safety.passages import Passage
from llmctl.spec.sample import Sampling


class Recalled(NamedTuple):
    """What a model wrote after a prefix of a passage.

    Attributes:
        prefix: tokens of the passage that it read, those right before the suffix.
        written: ids, as many as the suffix has, or fewer where it ended the text.
        exact: it wrote the whole suffix.
        matched: tokens that it wrote as the suffix has them, before the first that differs.
        longest: tokens of the longest run that the suffix has anywhere.
    """

    prefix: int
    written: tuple[int, ...]
    exact: bool
    matched: int
    longest: int

    @property
    def scores(self) -> dict[str, float]:
        """Its figures."""
        found = {"memorized": self.exact, "matched_tokens": self.matched, "longest_run": self.longest}
        return {name: float(value) for name, value in found.items()}


def recall(
    model: Transformer,
    passages: Iterable[Passage],
    prefixes: Sequence[int],
    suffix: int,
    start: int | None = None,
    eos: frozenset[int] = frozenset(),
    known: int | None = None,
    rows: int = 16,
) -> Iterator[tuple[Passage, list[Recalled]]]:
    """Each passage with what the model wrote after each of its prefixes, greedily; in order, batched.

    Args:
        model: a decoder.
        prefixes: numbers of tokens; the suffix that is asked for is the same for all of them.
        suffix: tokens at the end of each passage.
        start: a token that the model reads first, or None.
        eos: ids that end what it writes.
        known: only ids below this are written.
        rows: continuations at a time.

    Raises:
        UserError: the model's scores are not numbers.

    Source: Carlini et al., "Quantifying Memorization Across Neural Language Models", arXiv:2202.07646, definition 3.1
    and section 4: a string is memorized if the model writes it when it reads the k tokens before it.
    """
    desk = Desk(model, rows)
    chooser = Chooser(
        Sampling(temperature=0.0, max_tokens=suffix), Rules(), model.config.vocab, known, eos, desk.rows.device
    )
    waiting: deque[tuple[Passage, list[Wish]]] = deque()
    written: dict[int, list[int]] = {}
    open_: set[int] = set()
    source, more = iter(passages), True
    while more or waiting:
        while more and len(open_) < 2 * rows and len(waiting) < 4 * rows:
            passage = next(source, None)
            more = passage is not None
            if passage is not None:
                wishes = [Wish(_read(passage.ids, size, suffix, start), chooser, 0, suffix, eos) for size in prefixes]
                for wish in wishes:
                    written[id(wish)] = []
                    open_.add(id(wish))
                    desk.ask(wish)
                waiting.append((passage, wishes))
        for event in desk.step() if desk.busy else ():
            if event.picked is not None:
                written[id(event.wish)].append(event.picked.id)
            if event.finish:
                open_.discard(id(event.wish))
        while waiting and not any(id(wish) in open_ for wish in waiting[0][1]):
            passage, wishes = waiting.popleft()
            wanted = passage.ids[-suffix:]
            yield (
                passage,
                [recalled(size, written.pop(id(wish)), wanted) for size, wish in zip(prefixes, wishes, strict=True)],
            )


def recalled(prefix: int, written: Sequence[int], wanted: Sequence[int]) -> Recalled:
    """How what was written compares with the suffix that was wanted."""
    pairs = enumerate(zip(written, wanted, strict=False))
    matched = next((place for place, (ours, theirs) in pairs if ours != theirs), min(len(written), len(wanted)))
    return Recalled(prefix, tuple(written), matched == len(wanted), matched, longest_run(written, wanted))


def longest_run(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the longest run of neighbours that both have."""
    longest, before = 0, [0] * (len(other) + 1)
    for item in one:
        now = [0] * (len(other) + 1)
        for place, candidate in enumerate(other):
            if item == candidate:
                now[place + 1] = before[place] + 1
        longest, before = max(longest, *now), now
    return longest


def _read(ids: list[int], size: int, suffix: int, start: int | None) -> list[int]:
    """What the model reads: the `size` tokens before the suffix."""
    prefix = ids[len(ids) - suffix - size : len(ids) - suffix]
    return prefix if start is None else [start, *prefix]
