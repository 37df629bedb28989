"""Differences: how far two systems are apart in each figure of each task, and whether chance alone explains it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmctl.core.compare.examples import Examples, Side
from llmctl.core.metrics import significance
from llmctl.errors import Exit, UserError
from llmctl.spec.compare import Comparing

# Figures that are a ratio of two sums over all examples, times a factor.
RATIOS = {
    "nll_per_token": ("nll", "tokens", 1.0),
    "nll_per_word": ("nll", "words", 1.0),
    "bits_per_byte": ("nll", "bytes", 1 / math.log(2)),
}
PARTS = frozenset(name for top, bottom, _ in RATIOS.values() for name in (top, bottom))


@dataclass(frozen=True)
class Difference:
    """B beside A in one figure of one task.

    Attributes:
        task: "" where there is but one, without a name.
        figure: its name.
        a, b: the figure of each; a mean, or a ratio of sums.
        low, high: the interval of b - a.
        p: the chance of a difference as large, if there were none; nan where nothing is known of how figures spread.
        p_holm: the same, raised for all that is compared.
        more: whether more of it is better.
        test: by which p was found.
        examples: how many; 0 where only the figures are known.
        wins, losses: examples in which B is better, and worse.
    """

    task: str
    figure: str
    a: float
    b: float
    low: float
    high: float
    p: float
    more: bool
    test: str
    examples: int = 0
    wins: int = 0
    losses: int = 0
    p_holm: float = math.nan

    @property
    def name(self) -> str:
        """Of task and figure: "arc:acc"."""
        return f"{self.task}:{self.figure}" if self.task else self.figure

    @property
    def difference(self) -> float:
        """B's less A's."""
        return self.b - self.a

    @property
    def gain(self) -> float:
        """How much B is better: the difference, or where less is better what it is less."""
        return self.difference if self.more else -self.difference

    def verdict(self, level: float) -> str:
        """B is better or worse by more than chance, or neither is known."""
        if not self.p_holm < 1 - level:
            return ""
        return "better" if self.gain > 0 else "worse"


def differences(a: Side, b: Side, comparing: Comparing) -> tuple[list[Difference], list[str]]:
    """Every figure that is compared, in the order of A's tasks, and what was left out and why.

    Raises:
        UserError: the two do not have the same examples, or no figure in common.
    """
    pairs, notes = _tasks(a, b)
    found = []
    for task, mine, other in pairs:
        rows = _aligned(mine, other)
        known = a.better.get(task.partition(",")[0], {}) | b.better.get(task.partition(",")[0], {})
        for figure, sums in _figures(task, mine, other, rows, comparing, notes):
            found.append(_tested(task, figure, sums, comparing, known.get(figure), mine))
    found += _summaries(a, b, {(one.task, one.figure) for one in found}, comparing)
    if comparing.metric and (unknown := set(comparing.metric) - {one.figure for one in found}):
        notes.append(f"Not both have {', '.join(sorted(unknown))}.")
    if not found:
        raise UserError(
            f"{a.name} and {b.name} have no figure in common. {' '.join(notes)}".strip(), code=Exit.MISMATCH
        )
    counted = [place for place, one in enumerate(found) if not math.isnan(one.p)]
    raised = significance.holm([found[place].p for place in counted])
    for place, chance in zip(counted, raised, strict=True):
        found[place] = replace(found[place], p_holm=chance)
    return found, notes


def _tasks(a: Side, b: Side) -> tuple[list[tuple[str, Examples, Examples]], list[str]]:
    """Tasks whose examples both have; where each has one alone, and one of the names is missing, these."""
    if len(a.tasks) == len(b.tasks) == 1 and "" in {*a.tasks, *b.tasks}:
        ((first, mine),), ((second, other),) = a.tasks.items(), b.tasks.items()
        return [(first or second, mine, other)], []
    notes = [
        f"{one.name} has no examples of {task}, which {other.name} has: it is left out."
        for one, other in ((a, b), (b, a))
        for task in other.tasks
        if task not in one.tasks and task not in one.figures
    ]
    return [(task, mine, b.tasks[task]) for task, mine in a.tasks.items() if task in b.tasks], notes


def _aligned(a: Examples, b: Examples) -> NDArray[np.int64] | None:
    """B's rows in A's order, (N,); None where they are.

    Raises:
        UserError: one has an example that the other lacks, or another one under the same number.
    """
    rows = None
    if a.ids != b.ids:
        place = {number: row for row, number in enumerate(b.ids)}
        for one, other, known in ((a, b, place), (b, a, dict.fromkeys(a.ids))):
            lost = next((row for row, number in enumerate(one.ids) if number not in known), None)
            if lost is not None:
                raise UserError(
                    f"{one.line(lost)} is example {one.ids[lost]!r}, which {other.where} does not have "
                    f"({len(one.ids)} examples and {len(other.ids)}).",
                    "Both have to be judged on the same examples: give both the same --limit.",
                    Exit.MISMATCH,
                )
        rows = np.array([place[number] for number in a.ids])
    for row, wanted in enumerate(a.targets):
        there = row if rows is None else int(rows[row])
        if wanted and b.targets[there] and wanted != b.targets[there]:
            raise UserError(
                f"{a.line(row)} and {b.line(there)} are both example {a.ids[row]!r}, but want another answer.",
                "Both have to be judged on the same examples.",
                Exit.MISMATCH,
            )
    return rows


def _figures(
    task: str,
    a: Examples,
    b: Examples,
    rows: NDArray[np.int64] | None,
    comparing: Comparing,
    notes: list[str],
) -> Iterator[tuple[str, significance.Sums]]:
    """Of each figure the values and weights of all examples, (N, 4)."""
    both = [name for name in a.scores if name in b.scores]
    ratios = {name: ratio for name, ratio in RATIOS.items() if ratio[0] in both and ratio[1] in both}
    wanted = comparing.metric or (*ratios, *(name for name in both if not (ratios and name in PARTS)))
    ones = np.ones(len(a.ids))

    def columns(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if not name:
            return ones, ones
        second = np.array(b.scores[name])
        return np.array(a.scores[name]), second if rows is None else second[rows]

    for name in wanted:
        top, bottom, factor = ratios.get(name) or (*name.partition("/")[::2], 1.0)
        if top not in both or (bottom and bottom not in both):
            continue
        (value_a, value_b), (weight_a, weight_b) = columns(top), columns(bottom)
        sums = np.stack([factor * value_a, weight_a, factor * value_b, weight_b], 1)  # (N, 4)
        whole = int(np.isfinite(sums).all(1).sum())
        if whole < len(sums):
            notes.append(f"{len(sums) - whole} of {len(sums)} examples of {task or a.where} have no {name}: left out.")
        elif not (sums[:, [1, 3]].sum(0) > 0).all():
            notes.append(f"{name} of {task or a.where} has no {bottom}: left out.")
        else:
            yield name, sums


def _tested(
    task: str, figure: str, sums: significance.Sums, comparing: Comparing, said: bool | None, a: Examples
) -> Difference:
    """One figure with its interval and its test."""
    value_a, weight_a, value_b, weight_b = sums.sum(0).tolist()
    more = comparing.more_is_better(figure, said)
    drawn = significance.bootstrap(sums, comparing.replicates, comparing.seed)
    low, high = significance.interval(drawn, comparing.ci)
    gains = (sums[:, 2] / np.maximum(sums[:, 3], 1e-300)) - (sums[:, 0] / np.maximum(sums[:, 1], 1e-300))
    up, down = int((gains > 1e-12).sum()), int((gains < -1e-12).sum())
    if comparing.test == "mcnemar":
        odd = next((row for row, one in enumerate(sums) if not {*one.tolist()} <= {0.0, 1.0} or one[1] != 1), None)
        if odd is not None:
            raise UserError(
                f"--test mcnemar is for right and wrong, 1 and 0, but {figure} is {sums[odd, 0]:g} and "
                f"{sums[odd, 2]:g} at {a.line(odd)}.",
                "Leave --test out, or choose 0/1 figures with --metric.",
                Exit.MISMATCH,
            )
        chance = significance.mcnemar(down, up)
    elif comparing.test == "bootstrap":
        chance = significance.by_bootstrap(drawn, significance.difference(sums))
    else:
        chance = significance.by_randomisation(sums, comparing.replicates, comparing.seed)
    wins, losses = (up, down) if more else (down, up)
    figures = (value_a / weight_a, value_b / weight_b, low, high, chance)
    return Difference(task, figure, *figures, more, comparing.test, len(sums), wins, losses)


def _summaries(a: Side, b: Side, known: set[tuple[str, str]], comparing: Comparing) -> Iterator[Difference]:
    """Figures of which only values and standard errors are known: taken as of independent examples."""
    spread = significance.normal_quantile((1 + comparing.ci) / 2)
    for task in a.figures:
        said = a.better.get(task.partition(",")[0], {}) | b.better.get(task.partition(",")[0], {})
        for figure, (value, error) in a.figures[task].items():
            unwanted = bool(comparing.metric) and figure not in comparing.metric
            if (task, figure) in known or unwanted or figure not in b.figures.get(task, {}):
                continue
            other, second = b.figures[task][figure]
            width, found = spread * math.hypot(error, second), other - value
            chance = math.nan if math.isnan(width) else significance.by_errors(found, error, second)
            more = comparing.more_is_better(figure, said.get(figure))
            yield Difference(task, figure, value, other, found - width, found + width, chance, more, "errors")
