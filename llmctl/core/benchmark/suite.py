"""Suite: several tasks asked of one model, each with its aspects, and what they come to together."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llmctl import __version__
from llmctl.core.benchmark.aspects import (
    Efficiency,
    Fairness,
    Robustness,
    calibrated,
    efficiency,
    fairness,
    figure_among,
    robustness,
)
from llmctl.core.benchmark.calibration import BINS, COVERAGE, Calibration
from llmctl.core.benchmark.contamination import LEAST, Contamination, check_training, contamination, training_texts
from llmctl.core.benchmark.outcome import Figure, Outcome
from llmctl.core.benchmark.subject import Subject
from llmctl.spec.benchmark import Task
from llmctl.spec.suite import Entry, Suite

PERCENT = frozenset({"bleu", "chrf", "chrf++", "ter"})  # figures that end at 100; in a mean they end at 1
Ask = Callable[[Task, "Sequence[dict[str, Any]] | None"], Outcome]


@dataclass(frozen=True)
class Leaked:
    """Which records of a task lie in training text.

    Attributes:
        n: words of the runs that were looked for.
        judged: records that are long enough to tell.
        contaminated: records that share a run with the training text.
        share: of those judged.
        overlaps: of each record the share of its runs that were found; None: not judged.
        clean: the main figure on the records that are not contaminated, None where all are.
        words: of training text that was searched.
    """

    n: int
    judged: int
    contaminated: int
    share: float
    overlaps: tuple[float | None, ...]
    clean: Figure | None
    words: int


@dataclass
class Judged:
    """A task, its outcome, and the aspects that were asked for and that it has."""

    entry: Entry
    outcome: Outcome
    efficiency: Efficiency
    calibration: Calibration | None = None
    robustness: Robustness | None = None
    fairness: Fairness | None = None
    contamination: Leaked | None = None

    @property
    def main(self) -> Figure:
        """The task's main figure."""
        return self.outcome.figures[self.outcome.main]

    @property
    def name(self) -> str:
        """Of the task."""
        return self.entry.task.name


@dataclass(frozen=True)
class Mean:
    """The weighted mean of tasks' main figures.

    Attributes:
        value: between 0 and 1; figures in percent count a hundredth.
        stderr: as the tasks' records are drawn anew, the tasks themselves fixed; None where a task has none.
        tasks: those that are in it; one whose main figure is better when smaller is not.
    """

    value: float
    stderr: float | None
    tasks: tuple[str, ...]


@dataclass
class Result:
    """What became of a suite.

    Attributes:
        mean: of all tasks; None where no task has a figure that can be in one.
        categories: mean of each category that tasks name.
    """

    suite: Suite
    judged: list[Judged] = field(default_factory=list)

    @property
    def mean(self) -> Mean | None:
        return mean_figure(self.judged)

    @property
    def categories(self) -> dict[str, Mean]:
        names = dict.fromkeys(one.entry.category for one in self.judged if one.entry.category is not None)
        found = {name: mean_figure([one for one in self.judged if one.entry.category == name]) for name in names}
        return {str(name): mean for name, mean in found.items() if mean is not None}

    @property
    def warnings(self) -> list[str]:
        """What a reader of the figures must know."""
        return [
            f"{one.name}: {leak.contaminated} of {leak.judged} records share {leak.n} words in a row with the training "
            "text; the figure is not of unseen records."
            for one in self.judged
            if (leak := one.contamination) is not None and leak.contaminated
        ]


def run_suite(suite: Suite, ask: Ask, told: Callable[[str], None] = lambda _: None) -> Result:
    """Ask a model all tasks of a suite.

    Training text that several tasks are searched for in is read once for all.

    Args:
        ask: puts a task to the model; with other records than its file's where some are given.
        told: hears what is being done.

    Raises:
        UserError: a task cannot be asked, or training text cannot be read.
    """
    result = Result(suite)
    for entry in suite.entries:
        check_training(entry.aspects.train)
    for entry in suite.entries:
        told(entry.task.name)
        outcome = ask(entry.task, None)
        judged = Judged(entry, outcome, efficiency(outcome), calibrated(outcome))
        if entry.task.group is not None:
            judged.fairness = fairness(outcome, entry.task.group)
        if entry.aspects.shift:
            judged.robustness = robustness(outcome, entry.aspects, lambda made, task=entry.task: ask(task, made))
        result.judged.append(judged)
    for train, n in dict.fromkeys((one.aspects.train, one.aspects.ngram) for one in suite.entries):
        if train:
            told(f"{n}-grams of {', '.join(train)}")
            some = [one for one in result.judged if (one.entry.aspects.train, one.entry.aspects.ngram) == (train, n)]
            _search(some, train, n)
    return result


def mean_figure(judged: Sequence[Judged]) -> Mean | None:
    """The weighted mean of the main figures of tasks."""
    some = [one for one in judged if one.main.higher_is_better and math.isfinite(one.main.value)]
    if not some:
        return None
    total = sum(one.entry.weight for one in some)
    scales = [one.entry.weight / total * (0.01 if one.outcome.main in PERCENT else 1) for one in some]
    errors = [one.main.stderr for one in some]
    known = [error for error in errors if error is not None]
    spread = math.hypot(*(s * e for s, e in zip(scales, known, strict=True))) if len(known) == len(some) else None
    value = math.fsum(scale * one.main.value for scale, one in zip(scales, some, strict=True))
    return Mean(value, spread, tuple(one.name for one in some))


def _search(judged: Sequence[Judged], train: Sequence[str], n: int) -> None:
    """Look for the records of several tasks in training text."""
    records = [sample.record for one in judged for sample in one.outcome.samples]
    found = contamination(records, training_texts(train), n)
    start = 0
    for one in judged:
        samples = one.outcome.samples
        overlaps = found.overlaps[start : start + len(samples)]
        start += len(samples)
        part = Contamination(n, overlaps, found.words, found.documents)
        clean = [place for place, dirty in enumerate(part.contaminated) if not dirty]
        figure = figure_among(one.outcome, clean) if clean else None
        for sample, overlap in zip(samples, overlaps, strict=True):
            sample.overlap = overlap
        one.contamination = Leaked(n, part.judged, sum(part.contaminated), part.share, overlaps, figure, found.words)


def about(result: Result) -> dict[str, Any]:
    """The means and the aspects of each task for a report: {"suite": {...}, "aspects": {task: {...}}}.

    Categories are groups in the shape of lm-evaluation-harness, too.
    """
    mean = result.mean
    suite = {
        "name": result.suite.name,
        "tasks": [one.name for one in result.judged],
        "weights": {one.name: one.entry.weight for one in result.judged},
        "mean": None if mean is None else asdict(mean),
        "categories": {name: asdict(one) for name, one in result.categories.items()},
    }
    found = {"suite": suite, "aspects": {one.name: aspects_of(one) for one in result.judged}}
    if not result.categories:
        return found
    groups = {
        name: {"alias": name, "mean,none": one.value, "mean_stderr,none": "N/A" if one.stderr is None else one.stderr}
        for name, one in result.categories.items()
    }
    return {**found, "groups": groups, "group_subtasks": {name: list(m.tasks) for name, m in result.categories.items()}}


def footprint(subject: Subject) -> dict[str, int]:
    """What a model takes: its parameters, bytes of its weights, and of the process at its peak."""
    return {"parameters": subject.parameters, "bytes": subject.bytes, "peak_memory": subject.place.peak_memory()}


def aspects_of(one: Judged) -> dict[str, Any]:
    """The aspects of a task, those that it has."""
    found: dict[str, Any] = {"signature": signature(one), "efficiency": asdict(one.efficiency)}
    if one.calibration is not None:
        found["calibration"] = asdict(one.calibration)
    if one.robustness is not None:
        found["robustness"] = {
            "worst": one.robustness.worst._asdict(),
            "shifts": {name: figure._asdict() for name, figure in one.robustness.shifts.items()},
            "changed": one.robustness.changed,
        }
    if one.fairness is not None:
        groups = {
            name: {"records": group.records, **group.figure._asdict()} for name, group in one.fairness.groups.items()
        }
        found["fairness"] = {"worst": one.fairness.worst, "gap": one.fairness.gap, "groups": groups}
    if one.contamination is not None:
        leak = {name: value for name, value in vars(one.contamination).items() if name != "overlaps"}
        clean = one.contamination.clean
        found["contamination"] = {**leak, "clean": None if clean is None else clean._asdict()}
    return found


def signature(one: Judged) -> str:
    """How the aspects of a task were computed: name:value with | between."""
    parts: dict[str, object] = {"figure": one.outcome.main}
    if one.calibration is not None:
        parts |= {"ece": f"{BINS}-bins-of-equal-mass", "coverage": COVERAGE}
    if one.robustness is not None:
        aspects = one.entry.aspects
        parts |= {"shift": "+".join(aspects.shift), "fields": "+".join(aspects.shift_field) or "all"}
        parts |= {"seed": one.entry.task.seed}
    if one.entry.task.group is not None:
        parts["group"] = one.entry.task.group
    if one.contamination is not None:
        parts |= {"ngram": one.contamination.n, "least": LEAST, "words": one.contamination.words}
    return "|".join(f"{name}:{value}" for name, value in {**parts, "version": f"llmctl-{__version__}"}.items())


def figures_of(result: Result) -> dict[str, float]:
    """Every figure that --fail-under and --fail-over may name: mean, TASK.acc, TASK.robustness, ...

    Of a suite of one task, also acc, robustness, ... alone.
    """
    found: dict[str, float] = {}
    if (mean := result.mean) is not None:
        found["mean"] = mean.value
    found.update({name: one.value for name, one in result.categories.items()})
    for one in result.judged:
        mine = dict(_named(one))
        if len(result.judged) == 1:
            found.update(mine)
        found.update({f"{one.name}.{name}": value for name, value in mine.items()})
    return found


def _named(one: Judged) -> Iterator[tuple[str, float]]:
    yield from ((name, figure.value) for name, figure in one.outcome.figures.items())
    if one.robustness is not None:
        yield "robustness", one.robustness.worst.value
        yield from ((shift, figure.value) for shift, figure in one.robustness.shifts.items())
    if one.calibration is not None:
        yield "ece", one.calibration.ece
        yield "selective_accuracy", one.calibration.selective_accuracy
    if one.fairness is not None:
        yield "worst_group", one.fairness.groups[one.fairness.worst].figure.value
        yield "gap", one.fairness.gap
    if one.contamination is not None:
        yield "contaminated", one.contamination.share
        if one.contamination.clean is not None:
            yield "clean", one.contamination.clean.value
    yield "seconds_per_record", one.efficiency.seconds_per_record
    yield "tokens_per_second", one.efficiency.tokens_per_second
