"""Tally: the means of figures over prompts, for all of them and for each group, in memory that does not grow."""

import math
from collections.abc import Mapping

import numpy as np

from llmctl.core.metrics.bootstrap import Bootstrap

BUFFER = 1024  # numbers that are handed on to a bootstrap together


class Mean:
    """A mean of numbers that come one at a time, and how far it may be off.

    Args:
        resamples: of a bootstrap, or 0.
        seed: of that.

    Source: of the squares Welford, "Note on a method for calculating corrected sums of squares and products", 1962.
    """

    def __init__(self, resamples: int = 0, seed: int = 0) -> None:
        self.count, self._total, self._mean, self._squares = 0, 0.0, 0.0, 0.0
        self._bootstrap = Bootstrap(("mean",), resamples, seed) if resamples else None
        self._buffer: list[float] = []

    def add(self, number: float) -> None:
        """Counts one more."""
        self.count += 1
        if self._bootstrap is not None:
            self._buffer.append(number)
            if len(self._buffer) == BUFFER:
                self._hand_on()
        self._total += number
        off = number - self._mean
        self._mean += off / self.count
        self._squares += off * (number - self._mean)

    @property
    def value(self) -> float:
        """The mean, from the sum: of zeros and ones no digit of it is off."""
        return self._total / self.count

    @property
    def stderr(self) -> float | None:
        """The standard error of the mean: sd / sqrt(n); None of fewer than two numbers."""
        return math.sqrt(self._squares / (self.count - 1) / self.count) if self.count > 1 else None

    def interval(self, level: float) -> tuple[float, float]:
        """Between which numbers the means of this share of the bootstrap's resamples lie.

        Raises:
            ValueError: there is no bootstrap.
        """
        if self._bootstrap is None:
            raise ValueError("there are no resamples")
        self._hand_on()
        return self._bootstrap.interval(level)[0]

    def _hand_on(self) -> None:
        if self._bootstrap is not None and self._buffer:
            self._bootstrap.add(np.array(self._buffer)[:, None])
            self._buffer = []


class Tally:
    """Figures of prompts, counted.

    Args:
        resamples: of a bootstrap of each mean, or 0.
        seed: of that.

    Attributes:
        prompts: how many.
        texts: completions of them.
        means: name of the figure to its mean over those prompts that have one.
    """

    def __init__(self, resamples: int = 0, seed: int = 0) -> None:
        self._how = resamples, seed
        self.prompts = self.texts = 0
        self.means: dict[str, Mean] = {}

    def add(self, scores: Mapping[str, float], texts: int) -> None:
        """Counts one prompt."""
        self.prompts, self.texts = self.prompts + 1, self.texts + texts
        for name, number in scores.items():
            self.means.setdefault(name, Mean(*self._how)).add(number)

    def figures(self, names: tuple[str, ...]) -> dict[str, float | None]:
        """The means; None where no prompt has that figure."""
        return {name: self.means[name].value if name in self.means else None for name in names}

    def errors(self, names: tuple[str, ...]) -> dict[str, float | None]:
        """The standard errors of the means."""
        return {name: self.means[name].stderr if name in self.means else None for name in names}

    def intervals(self, level: float) -> dict[str, dict[str, float]]:
        """Of each figure that some prompt has, the interval of its mean: {"low", "high"}."""
        return {
            name: dict(zip(("low", "high"), mean.interval(level), strict=True)) for name, mean in self.means.items()
        }
