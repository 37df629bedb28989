"""Differences: how far two systems are apart in each figure of each task, and whether chance alone explains it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.core.compare.examples import Examples, Side
from llmctl.core.metrics import significance
from llmctl.core.metrics.significance import Paired, ratio
from llmctl.errors import Exit, UserError
from llmctl.spec.compare import Comparing

# Figures that are a ratio of two sums over all examples, times a factor.
RATIOS = {
    "nll_per_token": ("nll", "tokens", 1.0),
    "nll_per_word": ("nll", "words", 1.0),
    "bits_per_byte": ("nll", "bytes", 1 / math.log(2)),
}
CORPUS = frozenset({"bleu", "chrf", "chrf++", "ter"})  # whose value of many texts is no mean of theirs
SENTENCE = "sentence_"  # so the means of these are called
# What is not compared beside them: their parts, and an example's own values of what they say.
PARTS = frozenset(name for top, bottom, _ in RATIOS.values() for name in (top, bottom)) | {
    "perplexity", "bits_per_token", "byte_perplexity", "word_perplexity"
}  # fmt: skip


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
            if comparing.test == "mcnemar" and not _is_right_or_wrong(sums):
                notes.append(f"{figure} is not 1 or 0, for right and wrong, as McNemar's test wants: left out.")
            else:
                found.append(_tested(task, figure, sums, comparing, known.get(figure)))
    found += _summaries(a, b, {(one.task, one.figure) for one in found}, comparing)
    if comparing.metric and (unknown := set(comparing.metric) - {one.figure.removeprefix(SENTENCE) for one in found}):
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


def paired(a: Side, b: Side, comparing: Comparing) -> Iterator[dict[str, Any]]:
    """Each example with both systems' scores, and in `scores` what B is better: negative where it is worse."""
    for task, mine, other in _tasks(a, b)[0]:
        rows = _aligned(mine, other)
        known = a.better.get(task.partition(",")[0], {})
        names = [name for name in mine.scores if name in other.scores]
        signs = {name: 1 if comparing.more_is_better(name, known.get(name)) else -1 for name in names}
        for row, number in enumerate(mine.ids):
            there = row if rows is None else int(rows[row])
            first = {name: mine.scores[name][row] for name in names}
            second = {name: other.scores[name][there] for name in names}
            gains = {name: signs[name] * (second[name] - first[name]) for name in names}
            finite = {name: gain for name, gain in gains.items() if math.isfinite(gain)}
            yield {"doc_id": number, "task": task, "a": first, "b": second, "scores": finite}


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
        asked, other = (a.records[row], b.records[there]) if a.ours == b.ours else (0, 0)
        unlike = "want another answer" if wanted and b.targets[there] and wanted != b.targets[there] else ""
        if unlike or (asked and other and asked != other):
            raise UserError(
                f"{a.line(row)} and {b.line(there)} are both example {a.ids[row]!r}, but "
                f"{unlike or 'hold another record'}.",
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
) -> Iterator[tuple[str, Paired]]:
    """What each figure is made of."""
    both = [name for name in a.scores if name in b.scores and not (name in a.together or name in b.together)]
    ratios = {name: one for name, one in RATIOS.items() if one[0] in both and one[1] in both}
    usual = (*a.together, *ratios, *(name for name in both if not (ratios and name in PARTS)))
    name_of = f" of {task}" if task else ""

    def columns(names: Sequence[str], factor: float) -> Iterator[NDArray[np.float64]]:
        for scores, order in ((a.scores, None), (b.scores, rows)):
            found = np.stack([np.array(scores[name]) for name in names], 1)  # (N, 1 or 2)
            found[:, 0] *= factor
            yield found if order is None else found[order]

    for name in dict.fromkeys(comparing.metric or usual):
        if name in a.together and name in b.together:
            first, second = a.together[name], b.together[name]
            if first.rows.shape == second.rows.shape:
                yield name, Paired(first.rows, second.rows, _each(first.ends))
            else:
                notes.append(f"{name}{name_of} is made of other labels with A than with B: left out.")
            continue
        top, bottom, factor = ratios.get(name) or (*name.partition("/")[::2], 1.0)
        parts = [part for part in (top, bottom) if part]
        if not set(parts) <= set(both):
            continue
        pairs = Paired(*columns(parts, factor), ratio if bottom else None)
        whole = np.isfinite(np.concatenate([pairs.a, pairs.b], 1)).all(1)
        if not whole.all():
            notes.append(f"{(~whole).sum()} of {len(whole)} examples{name_of} have no {name}: left out.")
        elif bottom and not (pairs.a[:, 1].sum() > 0 and pairs.b[:, 1].sum() > 0):
            notes.append(f"There are no {bottom}{name_of}: {name} is left out.")
        else:
            yield f"{SENTENCE if name in CORPUS else ''}{name}", pairs


def _each(ends: Callable[[Sequence[float]], float]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """A figure of sums, of many rows of sums."""
    return lambda sums: np.array([ends(row) for row in sums.tolist()])


def _is_right_or_wrong(pairs: Paired) -> bool:
    return pairs.ends is None and bool(np.isin(pairs.a, (0.0, 1.0)).all() and np.isin(pairs.b, (0.0, 1.0)).all())


def _tested(task: str, figure: str, pairs: Paired, comparing: Comparing, said: bool | None) -> Difference:
    """One figure with its interval and its test."""
    more, test = comparing.more_is_better(figure, said), comparing.test
    drawn = significance.bootstrap(pairs, comparing.replicates, comparing.seed)
    low, high = significance.interval(drawn, comparing.ci)
    up = down = 0
    if pairs.ends is None or pairs.ends is ratio:
        alone = (pairs.a, pairs.b) if pairs.ends is None else (_parts(pairs.a), _parts(pairs.b))
        gains = alone[1][:, 0] - alone[0][:, 0]
        up, down = int((gains > 1e-12).sum()), int((gains < -1e-12).sum())
    if test == "mcnemar":
        chance = significance.mcnemar(down, up)
    elif test == "bootstrap":
        chance = significance.by_bootstrap(drawn, pairs.difference)
    else:
        chance = significance.by_randomisation(pairs, comparing.replicates, comparing.seed)
    wins, losses = (up, down) if more else (down, up)
    return Difference(task, figure, *pairs.figures, low, high, chance, more, test, len(pairs.a), wins, losses)


def _parts(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each example's own ratio, (N, 1)."""
    return (sums[:, 0] / np.maximum(sums[:, 1], 1e-300))[:, None]


def _summaries(a: Side, b: Side, known: set[tuple[str, str]], comparing: Comparing) -> Iterator[Difference]:
    """Figures of which only values and standard errors are known: taken as of independent examples.

    Raises:
        UserError: they are of other examples with A than with B, by their number or the version of the task.
    """
    spread = significance.normal_quantile((1 + comparing.ci) / 2)
    for task in a.figures:
        said = a.better.get(task.partition(",")[0], {}) | b.better.get(task.partition(",")[0], {})
        for figure, (value, error) in a.figures[task].items():
            unwanted = bool(comparing.metric) and figure not in comparing.metric
            if (task, figure) in known or unwanted or figure not in b.figures.get(task, {}):
                continue
            other, second = b.figures[task][figure]
            _same_examples(task.partition(",")[0], a, b)
            width, found = spread * math.hypot(error, second), other - value
            chance = math.nan if math.isnan(width) else significance.by_errors(found, error, second)
            more = comparing.more_is_better(figure, said.get(figure))
            yield Difference(task, figure, value, other, found - width, found + width, chance, more, "errors")


def _same_examples(task: str, a: Side, b: Side) -> None:
    """Whether results of a task are of as many examples, and of one version of it.

    Raises:
        UserError: they are not.
    """
    for one, other, what in zip(a.judged.get(task, ()), b.judged.get(task, ()), ("examples", "version"), strict=False):
        if one and other and one != other:
            raise UserError(
                f"{a.name} and {b.name} are of other examples of {task}: {what} {one} and {other}.",
                "Both have to be judged on the same examples.",
                Exit.MISMATCH,
            )
