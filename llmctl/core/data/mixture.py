"""Mixture: examples of several sets in one order, a pure function of the seed, so that resuming is exact."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from llmctl.core.data.examples import Example, Examples
from llmctl.errors import UserError


@dataclass(frozen=True, eq=False)
class Mixture:
    """Sets of examples, and what share of each pass is drawn from each.

    A pass has as many examples as there are. Each part has its share of them, rounded so that they add up, and is
    gone through in an order of its own, anew shuffled each time it is through. So where shares are those of the
    sizes, each pass has each example once.

    Attributes:
        parts: sets of one task; those without examples are left out.
        weights: of the parts, in any unit, all more than 0 for parts that have examples.
        seed: of the orders.

    Raises:
        UserError: no part has an example.
    """

    parts: Sequence[Examples]
    weights: Sequence[float]
    seed: int

    def __post_init__(self) -> None:
        if not self.epoch:
            raise UserError("There are no examples to learn from.", "The files are empty, or all of it was left out.")

    @property
    def epoch(self) -> int:
        """Examples of one pass."""
        return sum(len(part) for part in self.parts)

    @property
    def times(self) -> list[float]:
        """How often a pass has each example of each part, on average."""
        sizes = tuple(len(part) for part in self.parts)
        drawn = quotas(sizes, tuple(map(float, self.weights)))
        return [count / size if size else 0.0 for count, size in zip(drawn, sizes, strict=True)]

    def index(self, number: int) -> tuple[int, int]:
        """The part, and the example in it, that is taken as number 0, 1, ..."""
        sizes = tuple(len(part) for part in self.parts)
        return place(number, sizes, tuple(map(float, self.weights)), self.seed)

    def __getitem__(self, number: int) -> Example:
        part, one = self.index(number)
        return self.parts[part][one]


def place(number: int, sizes: tuple[int, ...], weights: tuple[float, ...], seed: int) -> tuple[int, int]:
    """The part and the place in it of example `number` of a mixture; see `Mixture`."""
    epoch, slot = divmod(number, sum(sizes))
    quota = quotas(sizes, weights)
    parts, ranks = _slots(quota, seed, epoch)
    part = int(parts[slot])
    again, at = divmod(epoch * quota[part] + int(ranks[slot]), sizes[part])
    return part, int(_order(sizes[part], seed, part, again)[at])


@lru_cache(maxsize=8)
def quotas(sizes: tuple[int, ...], weights: tuple[float, ...]) -> tuple[int, ...]:
    """How many examples of a pass each part has: its share, the largest remainders rounded up; one at least."""
    total = sum(sizes)
    wanted = np.where(np.array(sizes) > 0, np.array(weights, np.float64), 0.0)
    wanted = wanted / wanted.sum() * total
    given = np.floor(wanted + 1e-9).astype(np.int64)
    for part in np.argsort(given - wanted, kind="stable")[: total - int(given.sum())]:
        given[part] += 1
    for part in np.flatnonzero((given == 0) & (wanted > 0)):
        given[part] += 1
        given[np.argmax(given)] -= 1
    return tuple(given.tolist())


@lru_cache(maxsize=4)
def _slots(quota: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each slot of a pass: its part, and how many slots before it are of that part."""
    parts = np.repeat(np.arange(len(quota)), quota)
    ranks = np.concatenate([np.arange(count) for count in quota])
    generator = np.random.Generator(np.random.PCG64([0x6D697865, seed, epoch]))
    order = generator.permutation(len(parts))
    return parts[order], ranks[order]


@lru_cache(maxsize=64)
def _order(size: int, seed: int, part: int, again: int) -> np.ndarray:
    """The order in which a part is gone through for the (again + 1)-th time."""
    return np.random.Generator(np.random.PCG64([0x70617274, seed, part, again])).permutation(size)
