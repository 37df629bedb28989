"""ROUGE of many pairs: each as it comes, and the means, in bounded memory."""

from collections.abc import Iterable, Iterator

import numpy as np

from llmctl.core.data.pairs import Pair
from llmctl.core.metrics.bootstrap import Bootstrap
from llmctl.core.metrics.rouge.score import Rouge, Score
from llmctl.core.metrics.rouge.words import plain, unicode

TOGETHER = 256  # pairs that are added at a time


class Means:
    """Scores of pairs, and what they come to.

    Args:
        resamples: of the intervals; 0: there are none.

    Attributes:
        references: how many of them pairs have, each number once.
        wordless: pairs that score 0 as a reference is no words to the tokenizer "rouge", but some to "unicode".
    """

    def __init__(self, rouge: Rouge, resamples: int = 0, seed: int = 0):
        self.rouge = rouge
        self.references: set[int] = set()
        self.wordless = 0
        self._totals = Bootstrap(
            [f"{kind}.{part}" for kind in rouge.config.kinds for part in Score._fields], resamples, seed
        )

    def score(self, pairs: Iterable[Pair]) -> Iterator[tuple[Pair, dict[str, Score]]]:
        """The pairs with their scores, in order; the means hold once all are read."""
        rows: list[list[float]] = []
        for pair in pairs:
            scores = self.rouge.score(pair.prediction, pair.references)
            self.references.add(len(pair.references))
            row = [value for score in scores.values() for value in score]
            if not any(row) and self.rouge.config.words == "rouge":
                self.wordless += any(unicode(text) and not plain(text) for text in pair.references)
            rows.append(row)
            if len(rows) == TOGETHER:
                self._totals.add(np.array(rows))
                rows.clear()
            yield pair, scores
        if rows:
            self._totals.add(np.array(rows))

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return self._totals.count

    def means(self, level: float | None = None) -> dict[str, dict[str, float]]:
        """Of each kind its means, and with a level the ends of the interval that its mean F1 has.

        Raises:
            ValueError: a level without resamples, or without pairs.
        """
        width = len(Score._fields)
        values = self._totals.means
        found = {
            kind: dict(zip(Score._fields, values[at * width : (at + 1) * width], strict=True))
            for at, kind in enumerate(self.rouge.config.kinds)
        }
        if level is not None:
            for (low, high), scores in zip(
                self._totals.interval(level)[width - 1 :: width], found.values(), strict=True
            ):
                scores |= {"low": low, "high": high}
        return found
