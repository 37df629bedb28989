"""Aspects of a task beside accuracy, in the manner of HELM: robustness, fairness, calibration, efficiency."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmctl.core.benchmark.calibration import Calibration, calibration
from llmctl.core.benchmark.figures import Sums, figures, mean_stderr
from llmctl.core.benchmark.outcome import Figure, Outcome
from llmctl.core.benchmark.records import field_of
from llmctl.core.benchmark.shift import shifted
from llmctl.errors import UserError
from llmctl.spec.benchmark import ANSWERS, CHOICES, REFERENCES, Task
from llmctl.spec.sets import LABELS, TAGS
from llmctl.spec.suite import Aspects, Shift

# Fields that hold answers, which no shift may touch.
KEPT = frozenset({CHOICES, *ANSWERS, *REFERENCES, *LABELS, *TAGS, "completion", "completions", "id"})
Again = Callable[[Sequence[dict[str, Any]]], Outcome]


@dataclass(frozen=True)
class Robustness:
    """What shifts of the texts did to a task's main figure.

    Attributes:
        worst: the mean of each record's worst score, the text as it is among them; of a figure that records have not
            each, the worst figure.
        shifts: the figure with each shift.
        changed: share of the records whose prompt each shift changed at all.
    """

    worst: Figure
    shifts: dict[Shift, Figure]
    changed: dict[Shift, float]


@dataclass(frozen=True)
class Group:
    """The main figure of one group of records."""

    records: int
    figure: Figure


@dataclass(frozen=True)
class Fairness:
    """The main figure group by group.

    Attributes:
        groups: by the value of the group's field, as text.
        worst: name of the worst group.
        gap: how far the best group's figure is from the worst one's.
    """

    groups: dict[str, Group]
    worst: str
    gap: float


@dataclass(frozen=True)
class Efficiency:
    """What asking a task once took, the loading of the model and all shifts left out.

    Attributes:
        seconds: for all records.
        seconds_per_record, tokens_per_second: tokens read and written.
        read, written: tokens.
    """

    seconds: float
    seconds_per_record: float
    tokens_per_second: float
    read: int
    written: int


def robustness(outcome: Outcome, aspects: Aspects, again: Again) -> Robustness:
    """Ask a task's records again with each shift.

    Args:
        outcome: of the records as they are; where its main figure is a mean, its samples get the scores `robustness`
            and those of each shift, under its name.
        again: asks other records in their place.

    Raises:
        UserError: a field that is to be shifted is in no record.

    Source: Liang et al., arXiv:2211.09110, section 4.5: worst case over the perturbations of each instance.
    """
    main = outcome.main
    records = [sample.record for sample in outcome.samples]
    fields = aspects.shift_field or shifted_fields(outcome.task, records)
    if unknown := [name for name in fields if not any(name in record for record in records)]:
        known = ", ".join(shifted_fields(outcome.task, records))
        raise UserError(
            f"{outcome.task.name}: no record has the field {unknown[0]!r} of --shift-field.", f"Name {known}."
        )
    outcomes, changed = [outcome], {}
    each_shift: dict[Shift, Figure] = {}
    for shift in aspects.shift:
        made = list(shifted(records, shift, fields, outcome.task.seed))
        outcomes.append(outcome if made == records else again(made))
        pairs = zip(outcomes[-1].samples, outcome.samples, strict=True)
        changed[shift] = sum((new.prompt, new.asked) != (old.prompt, old.asked) for new, old in pairs) / max(
            1, len(records)
        )
        each_shift[shift] = outcomes[-1].figures[main]
    better = outcome.figures[main].higher_is_better
    worse = min if better else max
    if main in outcome.together:
        worst = worse((one.figures[main] for one in outcomes), key=lambda one: one.value)
    else:
        each = list(zip(*([sample.scores[main] for sample in one.samples] for one in outcomes), strict=True))
        values = np.array([worse(scores) for scores in each], np.float64)
        worst = Figure(float(values.mean()), mean_stderr(values), better)
        for sample, scores in zip(outcome.samples, each, strict=True):
            sample.scores |= dict(zip(aspects.shift, scores[1:], strict=True)) | {"robustness": worse(scores)}
    return Robustness(worst, each_shift, changed)


def shifted_fields(task: Task, records: Iterable[dict[str, Any]]) -> tuple[str, ...]:
    """The fields whose texts a shift changes where none is named: all but answers, groups and choices."""
    theirs = {value.partition(".")[0] for ours, value in task.mapping.items() if ours in KEPT}
    kept = (KEPT | theirs | {(task.group or "").partition(".")[0]}) - {
        value for ours, value in task.mapping.items() if ours not in KEPT
    }
    return tuple(dict.fromkeys(name for record in records for name in record if name not in kept))


def fairness(outcome: Outcome, field: str) -> Fairness:
    """The main figure of each group of records.

    Args:
        field: that says to which group a record belongs; dotted names look inside.

    Raises:
        UserError: a record without that field.
    """
    by: dict[str, list[int]] = {}
    for place, sample in enumerate(outcome.samples):
        by.setdefault(str(field_of(sample.record, field)), []).append(place)
    groups = {name: Group(len(places), figure_among(outcome, places)) for name, places in sorted(by.items())}
    values = {name: group.figure.value for name, group in groups.items()}
    better = outcome.figures[outcome.main].higher_is_better
    worst = (min if better else max)(values, key=values.__getitem__)
    return Fairness(groups, worst, max(values.values()) - min(values.values()))


def figure_among(outcome: Outcome, places: Sequence[int]) -> Figure:
    """The main figure of some of the records, one at least."""
    name = outcome.main
    sums = outcome.together.get(name)
    some = {} if sums is None else {name: Sums(sums.rows[list(places)], sums.ends)}
    return figures((name,), [outcome.samples[place] for place in places], some, outcome.task.seed)[name]


def calibrated(outcome: Outcome) -> Calibration | None:
    """Calibration where every record has the chances of choices of which one at least is right; else None."""
    samples = outcome.samples
    if not samples or not all(sample.right and _is_distribution(sample.chances) for sample in samples):
        return None
    return calibration([sample.chances for sample in samples], [sample.right for sample in samples])


def efficiency(outcome: Outcome) -> Efficiency:
    """What asking the task took."""
    seconds = max(1e-9, outcome.seconds)
    tokens = outcome.read + outcome.written
    return Efficiency(seconds, seconds / max(1, len(outcome.samples)), tokens / seconds, outcome.read, outcome.written)


def _is_distribution(chances: Sequence[float]) -> bool:
    return len(chances) > 1 and math.isclose(math.fsum(chances), 1, abs_tol=1e-3)
