"""Bootstrap: how far means of figures would move with other examples, in bounded memory."""

from collections.abc import Sequence

import numpy as np

HELD = 1 << 16  # rows that are held, and drawn from exactly
CHUNK = 1 << 12  # rows that are weighted at a time
# How often, in 65,536 draws, a row is there 0, 1, 2 ... times: Poisson's distribution of mean 1.
POISSON = (24109, 24109, 12055, 4018, 1005, 201, 33, 5, 1)


class Bootstrap:
    """Means of K figures over rows that come in any number, and intervals of them.

    While there are no more than 65,536 rows they are held, and each replicate draws as many with replacement. From
    then on each row is in each replicate as often as Poisson's distribution of mean 1 says, which for so many is the
    same but needs no row again.

    Args:
        names: of the K figures.
        replicates: 0: means alone.
        seed: of the draws; how rows are shared out among calls of `add` changes no draw.

    Source: Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979; for streams Chamandy et al., "Estimating
    Uncertainty for Massive Data Streams", 2012.
    """

    def __init__(self, names: Sequence[str], replicates: int = 1000, seed: int = 0):
        self.names, self.replicates, self.seed = tuple(names), replicates, seed
        self.count = 0
        self._total = np.zeros(len(self.names))
        self._rows: list[np.ndarray] = []  # not drawn yet
        self._held = 0
        self._random = np.random.default_rng(seed)
        self._sums = np.zeros((replicates, len(self.names) + 1))  # and how many rows there are, last
        self._times = np.repeat(np.arange(len(POISSON), dtype=np.uint8), POISSON)

    def add(self, rows: np.ndarray) -> None:
        """Takes in some rows, (n, K) float64.

        Raises:
            ValueError: another number of figures.
        """
        rows = np.asarray(rows, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.names):
            raise ValueError(f"rows are {rows.shape}, wanted (n, {len(self.names)})")
        self.count += len(rows)
        self._total += rows.sum(axis=0)
        if not self.replicates:
            return
        self._rows.append(rows)
        self._held += len(rows)
        if self.count > HELD and self._held >= CHUNK:
            rows = np.concatenate(self._rows)
            whole = len(rows) // CHUNK * CHUNK
            for first in range(0, whole, CHUNK):
                self._weigh(rows[first : first + CHUNK])
            self._rows, self._held = [rows[whole:]], len(rows) - whole

    @property
    def means(self) -> list[float]:
        """The mean of each figure over all rows; nan where there is none."""
        return (self._total / self.count).tolist() if self.count else [float("nan")] * len(self.names)

    def interval(self, level: float) -> list[tuple[float, float]]:
        """Of each figure the low and high percentile between which its mean lies in this share of the replicates.

        Raises:
            ValueError: `level` is not between 0 and 1, there are no replicates, or no rows.
        """
        if not 0 < level < 1 or not self.replicates or not self.count:
            raise ValueError(f"an interval of level {level}, {self.replicates} replicates and {self.count} rows")
        means = self._means()
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return list(zip(low.tolist(), high.tolist(), strict=True))

    def ratio_interval(self, part: str, whole: str, level: float) -> tuple[float, float]:
        """The same of the sum of one figure over that of another, as nats over tokens: both are drawn together.

        Raises:
            ValueError: as for `interval`.
        """
        if not 0 < level < 1 or not self.replicates or not self.count:
            raise ValueError(f"an interval of level {level}, {self.replicates} replicates and {self.count} rows")
        means = self._means()
        ratios = means[:, self.names.index(part)] / means[:, self.names.index(whole)]
        low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def _means(self) -> np.ndarray:
        """(replicates, K) float64."""
        rows = np.concatenate(self._rows) if self._rows else np.zeros((0, len(self.names)))
        if self.count > HELD:
            if len(rows):
                self._weigh(rows)
                self._rows, self._held = [], 0
            return self._sums[:, :-1] / self._sums[:, -1:]
        random = np.random.default_rng(self.seed)
        means = np.empty((self.replicates, len(self.names)))
        for mean in means:
            times = np.bincount(random.integers(0, len(rows), len(rows)), minlength=len(rows))
            mean[:] = times @ rows / len(rows)
        return means

    def _weigh(self, rows: np.ndarray) -> None:
        """Puts each row into each replicate as often as it is drawn there."""
        draws = self._random.integers(0, 1 << 16, (self.replicates, len(rows)), dtype=np.uint16)
        ones = np.ones((len(rows), 1))
        self._sums += self._times[draws].astype(np.float64) @ np.hstack([rows, ones])
