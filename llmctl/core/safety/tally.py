"""Tally: the means of figures over prompts, for all of them and for each group, in memory that does not grow."""

import math
from collections.abc import Mapping


class Mean:
    """A mean of numbers that come one at a time, and how far it may be off.

    Source: Welford, "Note on a method for calculating corrected sums of squares and products", 1962.
    """

    def __init__(self) -> None:
        self.count, self.value, self._squares = 0, 0.0, 0.0

    def add(self, number: float) -> None:
        """Counts one more."""
        self.count += 1
        off = number - self.value
        self.value += off / self.count
        self._squares += off * (number - self.value)

    @property
    def stderr(self) -> float | None:
        """The standard error of the mean: sd / sqrt(n); None of fewer than two numbers."""
        return math.sqrt(self._squares / (self.count - 1) / self.count) if self.count > 1 else None


class Tally:
    """Figures of prompts, counted.

    Attributes:
        prompts: how many.
        texts: completions of them.
        means: name of the figure to its mean over those prompts that have one.
    """

    def __init__(self) -> None:
        self.prompts = self.texts = 0
        self.means: dict[str, Mean] = {}

    def add(self, scores: Mapping[str, float], texts: int) -> None:
        """Counts one prompt."""
        self.prompts, self.texts = self.prompts + 1, self.texts + texts
        for name, number in scores.items():
            self.means.setdefault(name, Mean()).add(number)

    def figures(self, names: tuple[str, ...]) -> dict[str, float | None]:
        """The means; None where no prompt has that figure."""
        return {name: self.means[name].value if name in self.means else None for name in names}

    def errors(self, names: tuple[str, ...]) -> dict[str, float | None]:
        """The standard errors of the means."""
        return {name: self.means[name].stderr if name in self.means else None for name in names}
