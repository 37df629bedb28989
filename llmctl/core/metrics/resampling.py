"""Resampling of translation scores: intervals, and tests of differences, drawn as sacrebleu draws them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llmctl.core.metrics.translation import Counts

BLOCK = 1 << 24  # choices of a shuffle held at a time
COLUMNS = 1 << 14  # pairs of them that are summed at a time


class Interval(NamedTuple):
    """Where the middle share of resampled scores lies, and their mean; `margin` is half of its width."""

    mean: float
    low: float
    high: float
    margin: float


def resampled(systems: Sequence[Counts], resamples: int, seed: int) -> Iterator[list[float]]:
    """The scores of all systems on one resample after another: as many pairs, drawn with replacement.

    The draws, and their sums in float32, are sacrebleu's for the same seed, which holds all of them at once; here
    memory is that of one.

    Args:
        systems: counted on the same references, each with its rows.

    Source: Koehn, "Statistical significance tests for machine translation evaluation", EMNLP 2004.
    """
    chance = np.random.default_rng(seed)
    rows = [counts.rows().astype(np.float32, copy=False) for counts in systems]
    for _ in range(resamples):
        drawn = chance.integers(0, len(rows[0]), len(rows[0]))
        yield [counts.score(each[drawn].sum(0)) for counts, each in zip(systems, rows, strict=True)]


def shuffled(system: Counts, baseline: Counts, shuffles: int, seed: int) -> Iterator[float]:
    """The difference of scores, without its sign, where each pair's two outputs change sides or not by chance.

    Source: Riezler and Maxwell, "On some pitfalls in automatic evaluation and significance testing for MT", 2005. The
    choices are sacrebleu's for the same seed, and so is the order of the sums: a mean length of references may be a
    third, and a difference that is as large as the real one must not become larger by rounding.
    """
    chance = np.random.default_rng(seed)
    ours, theirs = system.rows(), baseline.rows()  # (N, K)
    most = 32 * max(1, BLOCK // (32 * len(ours)))  # numpy makes 32 choices of one random number
    for start in range(0, shuffles, most):
        chosen = chance.integers(2, size=(min(most, shuffles - start), len(ours)), dtype=bool)
        first, second = np.zeros((2, len(chosen), ours.shape[1]))
        for at in range(0, len(ours), COLUMNS):
            part = slice(at, at + COLUMNS)
            changed = chosen[:, part].astype(np.float64)
            kept = 1 - changed
            one, other = ours[part].astype(np.float64), theirs[part].astype(np.float64)
            first += changed @ other + kept @ one
            second += kept @ other + changed @ one
        for one, other in zip(first, second, strict=True):
            yield abs(system.score(one) - system.score(other))


def interval(scores: Sequence[float], level: float) -> Interval:
    """The percentile interval of resampled scores; 0.95 is sacrebleu's."""
    ordered = np.sort(np.array(scores))
    cut = int(len(ordered) * (1 - level) / 2 + 1e-9)
    low, high = ordered[cut], ordered[len(ordered) - cut - 1]
    return Interval(float(ordered.mean()), float(low), float(high), float(0.5 * (high - low)))


def bootstrap_p(ours: Sequence[float], theirs: Sequence[float], difference: float) -> float:
    """How likely resampled differences are to lie further from their mean than `difference`, two-sided."""
    spread = np.abs(np.array(ours) - np.array(theirs))
    return share_above(spread - spread.mean(), difference)


def share_above(drawn: "Sequence[float] | np.ndarray", difference: float) -> float:
    """The p-value: the share of drawn differences above `difference`, with one more that is (Noreen, 1989)."""
    return float((np.sum(np.array(drawn) > difference) + 1) / (len(drawn) + 1))
