"""Significance: whether two systems, judged on the same examples, differ by more than chance would have it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

GROUPS = 20_000  # examples that are drawn one by one; of more, as many random groups
FEW = 64  # distinct differences that are drawn as counts
BLOCK_BYTES = 32 << 20  # of random numbers held at a time
ROUNDING = 1e-12  # sums in another order differ by less, relative to the sizes that are summed


@dataclass(frozen=True)
class Paired:
    """What two systems add, example by example, to the sums that a figure is made of.

    Attributes:
        a, b: (N, K) float64, a row for each example, the same one in both.
        ends: makes figures, (R,), of sums, (R, K), of N examples; None: K is 1, and the figure is the mean.
    """

    a: Numbers
    b: Numbers
    ends: Callable[[Numbers], Numbers] | None = None

    @property
    def figures(self) -> tuple[float, float]:
        """A's and B's."""
        return float(self.of(self.a.sum(0)[None])[0]), float(self.of(self.b.sum(0)[None])[0])

    @property
    def difference(self) -> float:
        """B's figure less A's."""
        first, second = self.figures
        return second - first

    def of(self, sums: Numbers) -> Numbers:
        """Figures of sums: (R, K) to (R,)."""
        if self.ends is None:
            return sums[:, 0] / len(self.a)
        with np.errstate(divide="ignore", invalid="ignore"):  # draws without weight
            return self.ends(sums)

    def gains(self) -> Numbers:
        """Of a mean, what each example is better with B: (N,); 0.3 - 0.2 and 0.2 - 0.1 are of one size."""
        return np.round(self.b[:, 0] - self.a[:, 0], 12)


def ratio(sums: Numbers) -> Numbers:
    """A figure that is one sum over another: (R, 2) to (R,)."""
    return sums[:, 0] / sums[:, 1]


def bootstrap(pairs: Paired, replicates: int, seed: int) -> Numbers:
    """The difference in `replicates` test sets of examples drawn from these with replacement: (replicates,) float64.

    A and B are judged on the same draws. Of more than GROUPS examples, random groups of equal size are drawn instead,
    which spread as the examples do.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 6; paired: Koehn, "Statistical
    significance tests for machine translation evaluation", 2004.
    """
    chance, examples = np.random.default_rng(seed), len(pairs.a)
    if pairs.ends is None:
        values, counts = np.unique(pairs.gains(), return_counts=True)
        if len(values) <= FEW:
            return chance.multinomial(examples, counts / examples, replicates) @ values / examples
    a, b = _grouped(pairs, chance)
    found = np.empty(replicates)
    for start, stop in _blocks(replicates, len(a)):
        rows = np.arange(stop - start)[:, None]
        drawn = chance.integers(0, len(a), (stop - start, len(a))) + rows * len(a)  # (r, n)
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
        found[start:stop] = pairs.of(times @ b) - pairs.of(times @ a)
    return found


def interval(drawn: Numbers, level: float) -> tuple[float, float]:
    """Where the middle `level` (0.95) of drawn differences lies: the percentile interval."""
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def by_bootstrap(drawn: Numbers, found: float) -> float:
    """The chance, two-sided, of a difference as large as the one found if there were none: drawn ones, centred at 0.

    Source: Riezler and Maxwell, "On some pitfalls in automatic evaluation and significance testing for MT", 2005,
    figure 2; two-sided, as sacrebleu has it.
    """
    size = abs(found) * (1 - ROUNDING)
    return float((np.count_nonzero(np.abs(drawn - np.nanmean(drawn)) >= size) + 1) / (len(drawn) + 1)) if size else 1.0


def by_randomisation(pairs: Paired, replicates: int, seed: int) -> float:
    """The chance, two-sided, of a difference as large as the one found if it did not matter who is A and who is B.

    The two sides of each pair are swapped at random, in `replicates` ways; in all ways where there are no more of
    them; and by counting where every difference has one size (0 and 1: McNemar's exact test). Of more than GROUPS
    examples, random groups are swapped as one, which is a test of its own right: fewer ways to swap.

    Source: Noreen, "Computer-Intensive Methods for Testing Hypotheses", 1989, chapter 2 (the + 1).
    """
    unlike = (pairs.a != pairs.b).any(1)
    if not unlike.any():
        return 1.0
    if pairs.ends is None:
        gains = pairs.gains()[unlike]
        if len(np.unique(np.abs(gains))) == 1:
            return mcnemar(int((gains < 0).sum()), int((gains > 0).sum()))
    chance = np.random.default_rng(seed)
    a, b = _grouped(Paired(pairs.a[unlike], pairs.b[unlike]), chance)
    total_a, total_b, swap = pairs.a.sum(0), pairs.b.sum(0), b - a
    first, second = pairs.figures
    size = abs(second - first) - ROUNDING * (abs(first) + abs(second))

    def extreme(ways: Numbers) -> int:
        moved = ways @ swap  # (r, K)
        return np.count_nonzero(np.abs(pairs.of(total_b - moved) - pairs.of(total_a + moved)) >= size)

    if len(swap) < 63 and 2 ** len(swap) <= replicates:
        ways = np.arange(2 ** len(swap))[:, None] >> np.arange(len(swap)) & 1  # (2**n, n)
        return extreme(ways.astype(np.float64)) / len(ways)
    found = 0
    for start, stop in _blocks(replicates, len(swap)):
        found += extreme(chance.integers(0, 2, (stop - start, len(swap)), dtype=np.int8).astype(np.float64))
    return (found + 1) / (replicates + 1)


def mcnemar(only_a: int, only_b: int) -> float:
    """The chance, two-sided, that of the examples which one system alone gets right so few fall to one of them.

    Args:
        only_a: examples that A gets right and B does not.
        only_b: the reverse.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947; the exact
    form, by the binomial distribution.
    """
    count, few = only_a + only_b, min(only_a, only_b)
    if only_a == only_b:
        return 1.0
    term = math.exp(math.lgamma(count + 1) - math.lgamma(few + 1) - math.lgamma(count - few + 1) - count * math.log(2))
    total = 0.0
    for k in range(few, -1, -1):
        total += term
        if term <= total * 1e-17:
            break
        term *= k / (count - k + 1)
    return min(1.0, 2 * total)


def by_errors(found: float, error_a: float, error_b: float) -> float:
    """The chance, two-sided, of a difference as large as this between figures of known standard errors.

    For figures whose examples are not known: they are taken as independent, which finds less than a paired test.
    """
    spread = math.hypot(error_a, error_b)
    if not spread:
        return 0.0 if found else 1.0
    return math.erfc(abs(found) / spread / math.sqrt(2))


def normal_quantile(level: float) -> float:
    """Under which so much of a standard normal distribution lies: 1.96 of 0.975."""
    return NormalDist().inv_cdf(level)


def holm(chances: Sequence[float]) -> list[float]:
    """The chances of several tests, each raised so that all that stay under a level may be believed together.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    raised, least = [0.0] * len(chances), 0.0
    for rank, place in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        least = max(least, min(1.0, (len(chances) - rank) * chances[place]))
        raised[place] = least
    return raised


def _grouped(pairs: Paired, chance: np.random.Generator) -> tuple[Numbers, Numbers]:
    """The rows of both, or where they are many the sums of GROUPS random groups of one size, but for one example."""
    if len(pairs.a) <= GROUPS:
        return pairs.a, pairs.b
    starts = np.linspace(0, len(pairs.a), GROUPS, endpoint=False).astype(np.int64)
    order = chance.permutation(len(pairs.a))
    return np.add.reduceat(pairs.a[order], starts, axis=0), np.add.reduceat(pairs.b[order], starts, axis=0)


def _blocks(replicates: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of replicates that are drawn together."""
    rows = max(1, BLOCK_BYTES // (8 * size))
    return ((start, min(replicates, start + rows)) for start in range(0, replicates, rows))
