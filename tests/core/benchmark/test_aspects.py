"""Aspects and means by hand, from outcomes that are written down here."""

import math

import numpy as np
import pytest

from llmctl.core.benchmark.aspects import calibrated, efficiency, fairness, robustness, shifted_fields
from llmctl.core.benchmark.figures import Sums, figures
from llmctl.core.benchmark.outcome import Figure, Outcome, Sample
from llmctl.core.benchmark.suite import about, figures_of, run_suite
from llmctl.errors import UserError
from llmctl.spec.benchmark import Task
from llmctl.spec.suite import Aspects, Entry, Suite

RECORDS = [
    {"question": "IT IS LATE", "answer": "Yes", "site": {"name": "north"}},
    {"question": "It is early", "answer": "No", "site": {"name": "north"}},
    {"question": "late", "answer": "No", "site": {"name": "south"}},
    {"question": "42", "answer": "Yes", "site": {"name": "west"}},
]


def task(**options: object) -> Task:
    return Task(name="late", file="late.jsonl", kind="choice", **options)


def outcome(
    scores: list[float], given: Task | None = None, records: list[dict] | None = None, **more: object
) -> Outcome:
    """An outcome with these scores as its acc."""
    samples = [
        Sample(number, record, str(record.get("question")), scores={"acc": score})
        for number, (record, score) in enumerate(zip(records or RECORDS, scores, strict=True))
    ]
    made = figures(("acc",), samples, {}, 0)
    return Outcome(given or task(), "choice", made, samples, 2.0, 90, 10, len(samples), **more)


def test_robustness_is_the_mean_of_each_records_worst_score():
    """The model of this test reads capitals, and else only the word early."""

    def again(records):
        return outcome([float("LATE" in r["question"] or "early" in r["question"]) for r in records], None, records)

    found = robustness(outcome([1, 1, 0, 1]), Aspects(shift=("lower", "upper")), again)
    # lower: 0 1 0 0; upper: 1 0 1 0; the worst of each record with its text as it is: 0 0 0 0
    assert {name: figure.value for name, figure in found.shifts.items()} == {"lower": 0.25, "upper": 0.5}
    assert found.changed == {"lower": 0.5, "upper": 0.5}
    assert found.worst == Figure(0.0, 0.0, True)
    asked = outcome([1, 1, 0, 1])
    assert robustness(asked, Aspects(shift=("lower",)), again).worst.value == 0.25
    assert asked.samples[0].scores == {"acc": 1, "lower": 0, "robustness": 0}


def test_records_that_a_shift_leaves_alone_are_not_asked_again():
    def never(records):
        raise AssertionError

    found = robustness(outcome([1, 0, 1, 1]), Aspects(shift=("expand",)), never)
    assert found.changed == {"expand": 0.0} and found.worst.value == found.shifts["expand"].value == 0.75


def test_a_figure_of_all_records_together_has_the_worst_of_its_values_and_one_for_each_group():
    def product(rights: list[float]) -> Outcome:
        rows = np.array([[one, 1.0] for one in rights])
        sums = {"mcc": Sums(rows, lambda sums: sums[0] * sums[0] / sums[1])}
        samples = [Sample(number, record) for number, record in enumerate(RECORDS)]
        return Outcome(task(), "choice", figures(("mcc",), samples, sums, 0), samples, 1.0, 1, 1, 4, together=sums)

    found = robustness(product([1, 1, 0, 1]), Aspects(shift=("lower",)), lambda records: product([0, 1, 0, 1]))
    assert found.worst.value == found.shifts["lower"].value == 1.0  # 2 x 2 / 4, where it was 3 x 3 / 4
    groups = fairness(product([1, 1, 0, 1]), "site.name").groups
    assert {name: group.figure.value for name, group in groups.items()} == {"north": 2.0, "south": 0.0, "west": 1.0}


def test_fairness_names_the_worst_group_and_how_far_it_is_from_the_best():
    found = fairness(outcome([1, 0, 0, 1]), "site.name")
    assert {name: (group.records, group.figure.value) for name, group in found.groups.items()} == {
        "north": (2, 0.5),
        "south": (1, 0.0),
        "west": (1, 1.0),
    }
    assert found.worst == "south" and found.gap == 1.0
    assert found.groups["south"].figure.stderr is None  # of one record
    with pytest.raises(UserError, match=r"site\.place"):
        fairness(outcome([1, 0, 0, 1]), "site.place")


def test_a_shift_leaves_answers_and_groups_alone_unless_it_is_told():
    records = [{"ask": "a", "sol": "b", "label": "c", "choices": ["d"], "where": "e", "gold": "f"}]
    asked = task(group="where", map=("prompt=ask", "answer=sol"))
    assert shifted_fields(asked, records) == ("ask",)
    assert shifted_fields(task(map=("prompt=label",)), records) == ("ask", "sol", "label", "where")


def test_calibration_wants_chances_that_sum_to_one_and_a_right_choice():
    sure = outcome([1, 0, 1, 1])
    for sample in sure.samples:
        sample.chances, sample.right = (0.75, 0.25), (0 if sample.scores["acc"] else 1,)
    found = calibrated(sure)
    assert found is not None and found.ece == pytest.approx(0) and found.accuracy == found.confidence == 0.75
    sure.samples[0].chances = (0.75, 0.75)  # several labels may hold
    assert calibrated(sure) is None
    assert calibrated(outcome([1, 1, 1, 1])) is None


def test_efficiency_is_of_records_and_tokens():
    found = efficiency(outcome([1, 0, 1, 1]))
    assert (found.seconds_per_record, found.tokens_per_second) == (0.5, 50.0)


def test_a_suite_has_weighted_means_of_all_tasks_and_of_categories():
    scores = {"one": [1, 1, 1, 0], "two": [1, 0, 0, 0], "bleu": [0, 0, 0, 0]}
    tasks = {name: Task(name=name, file=f"{name}.jsonl") for name in scores}

    def ask(asked, records):
        found = outcome(scores[asked.name], asked)
        if asked.name != "bleu":
            return found
        return Outcome(asked, "generate", {"bleu": Figure(40.0, 2.0, True)}, found.samples, 1.0, 1, 1, 4)

    entries = (
        Entry(tasks["one"], Aspects(), 2.0, "easy"),
        Entry(tasks["two"], Aspects(), 1.0, "easy"),
        Entry(tasks["bleu"], Aspects(), 1.0),
    )
    result = run_suite(Suite("all", entries), ask)
    assert result.mean.value == pytest.approx((2 * 0.75 + 0.25 + 0.4) / 4)
    assert result.mean.stderr == pytest.approx(math.hypot(2 * 0.25, 0.25, 0.02) / 4)
    assert result.categories["easy"].value == pytest.approx((2 * 0.75 + 0.25) / 3)
    assert figures_of(result)["two.acc"] == 0.25 and figures_of(result)["easy"] == result.categories["easy"].value
    assert about(result)["suite"]["weights"] == {"one": 2.0, "two": 1.0, "bleu": 1.0}


def test_records_of_the_training_text_are_told_apart_task_by_task(tmp_path):
    texts = ["the keeper of the light climbs all the stairs each night and counts them", "one two three " * 5]
    (tmp_path / "train.txt").write_text(f"Before. {texts[0].upper()}. After.", encoding="utf-8")
    leaked, clean = [{"q": texts[0]}, {"q": texts[1]}], [{"q": texts[1]}, {"q": "too short"}]
    given = {"a": leaked, "b": clean}

    def ask(asked, records):
        return outcome([1, 0], asked, given[asked.name])

    searched = Aspects(train=(str(tmp_path / "train.txt"),))
    suite = Suite("all", tuple(Entry(Task(name=name, file="-"), searched) for name in given))
    result = run_suite(suite, ask)
    first, second = (one.contamination for one in result.judged)
    assert (first.judged, first.contaminated, first.share) == (2, 1, 0.5)
    assert first.clean.value == 0.0 and first.overlaps == (1.0, 0.0)
    assert (second.judged, second.contaminated, second.clean.value) == (1, 0, 0.5)
    assert len(result.warnings) == 1 and "a: 1 of 2 records" in result.warnings[0]
    assert "overlaps" not in about(result)["aspects"]["a"]["contamination"]


def test_records_of_stdin_are_not_asked_twice():
    with pytest.raises(UserError, match="stdin"):
        Entry(Task(name="x", file="-"), Aspects(shift=("lower",)))
