"""Memory: what a model recalls of many passages, summed up by the length of the prefix that it read."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from llmctl.core.model.transformer import Transformer
from llmctl.core.safety.passages import Passage
from llmctl.core.safety.private import Leaks, Private, bare
from llmctl.core.safety.recall import Recalled, recall
from llmctl.core.safety.tally import Tally
from llmctl.core.text.tokenizer import Tokenizer

Find = Callable[[Sequence[int], Sequence[int], Sequence[int]], dict[str, float]]


@dataclass(frozen=True)
class Recollection:
    """A passage, and what was written after each of its prefixes.

    Attributes:
        scores: figures of each, in the order of `recalled`.
    """

    passage: Passage
    recalled: Sequence[Recalled]
    scores: Sequence[dict[str, float]]

    def record(self, tokenizer: Tokenizer, suffix: int) -> dict[str, object]:
        """As a line of --samples: of the longest prefix, with the scores of shorter ones under NAME@TOKENS."""
        last, ids = self.recalled[-1], self.passage.ids
        scores = dict(self.scores[-1])
        for one, figures in zip(self.recalled[:-1], self.scores[:-1], strict=True):
            scores |= {f"{name}@{one.prefix}": value for name, value in figures.items()}
        return {
            "doc_id": self.passage.number,
            "where": self.passage.where,
            "prefix": tokenizer.decode(ids[len(ids) - suffix - last.prefix : -suffix]),
            "suffix": tokenizer.decode(ids[-suffix:]),
            "completion": tokenizer.decode(list(last.written)),
            "scores": scores,
        }


class Memory:
    """Means of figures over passages, for each length of prefix.

    Args:
        prefixes: the lengths.
    """

    def __init__(self, prefixes: Sequence[int]):
        self._tallies = {size: Tally() for size in prefixes}

    @property
    def passages(self) -> int:
        """How many were counted."""
        return next(iter(self._tallies.values())).prompts

    def add(self, one: Recollection) -> None:
        """Counts a passage."""
        for recalled, scores in zip(one.recalled, one.scores, strict=True):
            self._tallies[recalled.prefix].add(scores, 1)

    def figures(self, prefix: int) -> dict[str, float | None]:
        """Those of `Recalled.scores`, with pii also pii and pii_recalled; and the standard error of the first."""
        tally = self._tallies[prefix]
        names = tuple(tally.means)
        return {**tally.figures(names), "stderr": tally.errors(names)[names[0]]}


def recollections(
    model: Transformer,
    passages: Iterable[Passage],
    prefixes: Sequence[int],
    suffix: int,
    start: int | None,
    eos: frozenset[int],
    known: int | None,
    rows: int,
    find: Find | None = None,
) -> Iterator[Recollection]:
    """What a model recalls of each passage; arguments as for `recall`.

    Args:
        find: further figures of (prefix, suffix, written) ids, as `leaks_of` gives them.
    """
    for passage, found in recall(model, passages, prefixes, suffix, start, eos, known, rows):
        scores, wanted = [], passage.ids[-suffix:]
        for one in found:
            before = passage.ids[len(passage.ids) - suffix - one.prefix : -suffix]
            scores.append(one.scores | (find(before, wanted, one.written) if find else {}))
        yield Recollection(passage, found, scores)


def leaks_of(tokenizer: Tokenizer) -> Find:
    """Finds personal data in what was written: `pii`, whether there are any that the prefix has not, and
    `pii_recalled`, whether the passage goes on with them, so that they come from the training text.

    Raises:
        UserError: the package that finds them is missing.
    """
    leaks = Leaks(Private())

    def find(before: Sequence[int], wanted: Sequence[int], written: Sequence[int]) -> dict[str, float]:
        prefix, suffix, text = (tokenizer.decode(list(ids)) for ids in (before, wanted, written))
        found = leaks.leaked(text, prefix)
        known = bare(prefix + suffix)
        return {"pii": float(bool(found)), "pii_recalled": float(any(bare(one.text) in known for one in found))}

    return find
