"""Significance: whether two systems, judged on the same examples, differ by more than chance would have it."""

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float64]

GROUPS = 20_000  # examples that are drawn one by one; of more, as many random groups
FEW = 64  # distinct differences that are drawn as counts
BLOCK_BYTES = 32 << 20  # of random numbers held at a time
ROUNDING = 1e-12  # sums in another order differ by less, relative to the sum of sizes


def difference(pairs: Sums) -> float:
    """B's figure less A's, each a sum of values over a sum of weights.

    Args:
        pairs: (N, 4) float64, a row for each example: A's value and weight, B's value and weight. Where all weights
            are 1 the figures are means.
    """
    value_a, weight_a, value_b, weight_b = pairs.sum(0).tolist()
    return value_b / weight_b - value_a / weight_a


def bootstrap(pairs: Sums, replicates: int, seed: int) -> NDArray[np.float64]:
    """The difference in `replicates` test sets of examples drawn from these with replacement: (replicates,) float64.

    A and B are judged on the same draws. Of more than GROUPS examples, random groups of equal size are drawn instead,
    which spread as the examples do.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 6; paired: Koehn, "Statistical
    significance tests for machine translation evaluation", 2004.
    """
    chance = np.random.default_rng(seed)
    if _means(pairs):
        values, counts = np.unique(_gains(pairs), return_counts=True)
        if len(values) <= FEW:
            return chance.multinomial(len(pairs), counts / len(pairs), replicates) @ values / len(pairs)
    groups = _grouped(pairs, chance)
    found = np.empty(replicates)
    for start, stop in _blocks(replicates, len(groups)):
        drawn = chance.integers(0, len(groups), (stop - start, len(groups)), dtype=np.int32)  # (r, n)
        sums = [groups[:, column][drawn].sum(1) for column in range(4)]
        with np.errstate(divide="ignore", invalid="ignore"):  # draws without weight
            found[start:stop] = sums[2] / sums[3] - sums[0] / sums[1]
    return found


def interval(drawn: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Where the middle `level` (0.95) of drawn differences lies: the percentile interval."""
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def by_bootstrap(drawn: NDArray[np.float64], found: float) -> float:
    """The chance, two-sided, of a difference as large as the one found if there were none: drawn ones, centred at 0.

    Source: Riezler and Maxwell, "On some pitfalls in automatic evaluation and significance testing for MT", 2005,
    figure 2; two-sided, as sacrebleu has it.
    """
    size = abs(found) * (1 - ROUNDING)
    return float((np.count_nonzero(np.abs(drawn - drawn.mean()) >= size) + 1) / (len(drawn) + 1)) if size else 1.0


def by_randomisation(pairs: Sums, replicates: int, seed: int) -> float:
    """The chance, two-sided, of a difference as large as the one found if it did not matter who is A and who is B.

    The two sides of each pair are swapped at random, in `replicates` ways; in all ways where there are no more of
    them; and by counting where every difference has one size (0 and 1: McNemar's exact test). Of more than GROUPS
    examples, random groups are swapped as one, which is a test of its own right: fewer ways to swap.

    Source: Noreen, "Computer-Intensive Methods for Testing Hypotheses", 1989, chapter 2 (the + 1).
    """
    pairs = pairs[(pairs[:, :2] != pairs[:, 2:]).any(1)] if _means(pairs) else pairs
    if not len(pairs):
        return 1.0
    gains = _gains(pairs)
    if _means(pairs) and len(np.unique(np.abs(gains))) == 1:
        return mcnemar(int((gains < 0).sum()), int((gains > 0).sum()))
    chance = np.random.default_rng(seed)
    groups = _grouped(pairs, chance)
    swap = groups[:, [2, 3, 0, 1]] - groups  # (n, 4), what swapping adds to the sums
    total = groups.sum(0)
    size = abs(_of(total[None])[0]) - ROUNDING * max(1e-300, float(np.abs(_of(groups)).max()))
    if len(groups) < 63 and 2 ** len(groups) <= replicates:
        ways = np.arange(2 ** len(groups))[:, None] >> np.arange(len(groups)) & 1  # (2**n, n)
        return float(np.mean(np.abs(_of(total + ways.astype(np.float64) @ swap)) >= size))
    extreme = 0
    for start, stop in _blocks(replicates, len(groups)):
        ways = chance.integers(0, 2, (stop - start, len(groups)), dtype=np.int8).astype(np.float64)
        extreme += np.count_nonzero(np.abs(_of(total + ways @ swap)) >= size)
    return (extreme + 1) / (replicates + 1)


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


def _means(pairs: Sums) -> bool:
    return bool((pairs[:, [1, 3]] == 1).all())


def _gains(pairs: Sums) -> NDArray[np.float64]:
    """What each example is better with B, (N,); the size of 0.3 - 0.2 and 0.2 - 0.1 is one."""
    return np.round(pairs[:, 2] - pairs[:, 0], 12)


def _of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The differences of rows of sums, (r, 4) -> (r,)."""
    with np.errstate(divide="ignore", invalid="ignore"):  # groups without weight
        return np.nan_to_num(sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1])


def _grouped(pairs: Sums, chance: np.random.Generator) -> Sums:
    """The pairs, or where they are many the sums of GROUPS random groups of one size, but for one example."""
    if len(pairs) <= GROUPS:
        return pairs
    starts = np.linspace(0, len(pairs), GROUPS, endpoint=False).astype(np.int64)
    return np.add.reduceat(pairs[chance.permutation(len(pairs))], starts, axis=0)


def _blocks(replicates: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of replicates that are drawn together."""
    rows = max(1, BLOCK_BYTES // (8 * size))
    return ((start, min(replicates, start + rows)) for start in range(0, replicates, rows))
