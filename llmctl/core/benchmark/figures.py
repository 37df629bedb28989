"""Figures: what a task's samples come to, each with its standard error."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmctl.core.benchmark.outcome import Figure, Sample
from llmctl.spec.benchmark import LOWER

REPLICATES = 1000  # of a bootstrap, where that is not too many draws
LEAST = 100
DRAWS = 20_000_000


class Sums(NamedTuple):
    """A figure of all records together, made of sums over them.

    Attributes:
        rows: (N, K) float64, what each record adds.
        ends: makes the figure of the K sums.
    """

    rows: NDArray[np.float64]
    ends: Callable[[Sequence[float]], float]


class Interval(NamedTuple):
    """Where a figure lies, at a level of confidence."""

    low: float
    high: float


class Answered(NamedTuple):
    """What a model answered to a task.

    Attributes:
        samples: of each record.
        together: figures that are not means over the records.
        choices: that all records share; () where they do not.
        few: records that had fewer examples than wanted.
    """

    samples: list[Sample]
    together: Mapping[str, Sums]
    choices: tuple[str, ...] = ()
    few: int = 0


def figures(
    names: Sequence[str], samples: Sequence[Sample], together: Mapping[str, Sums], seed: int
) -> dict[str, Figure]:
    """The figures of a task.

    The standard error of a mean is the sample's standard deviation over the root of the number of records; that of
    another figure is the standard deviation of the figure over bootstrap samples of the records.

    Args:
        names: of the figures; one that is not in `together` is the mean of the samples' scores of that name, and is
            left out where no sample has one.
        together: figures that are not means over the records.
        seed: of the bootstrap.

    Source: the bootstrap: Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979, method 1.
    """
    made = {}
    for name in names:
        better = name not in LOWER
        if name in together:
            sums = together[name]
            value = sums.ends(sums.rows.sum(axis=0).tolist())
            made[name] = Figure(value, bootstrap_stderr(sums, seed), better)
        elif samples and all(name in sample.scores for sample in samples):
            values = np.array([sample.scores[name] for sample in samples], np.float64)
            made[name] = Figure(float(values.mean()), mean_stderr(values), better)
    return made


def mean_stderr(values: NDArray[np.float64]) -> float | None:
    """The standard error of the mean of (N,) values; None for a single one."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def bootstrap_stderr(sums: Sums, seed: int) -> float | None:
    """The standard deviation of a figure over bootstrap samples; None where it is a number in fewer than two."""
    known = replicated(sums, seed)
    return float(known.std(ddof=1)) if len(known) > 1 else None


def intervals(
    names: Sequence[str], samples: Sequence[Sample], together: Mapping[str, Sums], seed: int, level: float
) -> dict[str, Interval]:
    """The interval that holds the middle `level` of bootstrap samples of each figure; arguments as of `figures`."""
    made = {}
    for name in names:
        sums = together.get(name)
        if sums is None:
            values = np.array([[sample.scores[name]] for sample in samples], np.float64)
            sums = Sums(values, lambda totals: totals[0] / len(samples))
        known = replicated(sums, seed)
        if len(known):
            low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
            made[name] = Interval(float(low), float(high))
    return made


def replicated(sums: Sums, seed: int) -> NDArray[np.float64]:
    """A figure over bootstrap samples, where it is a number; of fewer than two records none.

    Records that add the same are drawn together, as many as there are of each.
    """
    records = len(sums.rows)
    if records < 2:
        return np.zeros(0)
    stream = np.random.default_rng(seed % 2**64)
    kinds, counts = np.unique(sums.rows, axis=0, return_counts=True)  # (U, K), (U,)
    replicates = min(REPLICATES, max(LEAST, DRAWS // len(kinds)))
    found = [sums.ends((stream.multinomial(records, counts / records) @ kinds).tolist()) for _ in range(replicates)]
    return np.array([value for value in found if math.isfinite(value)])
