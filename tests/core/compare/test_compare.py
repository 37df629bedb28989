"""Comparing as others use it: sums of all examples together, results that hold their samples, intervals drawn."""

import json

import numpy as np
import pytest

from llmctl.core.benchmark.figures import Sums
from llmctl.core.compare.differences import Difference, differences
from llmctl.core.compare.examples import Examples, Side, read_side
from llmctl.core.compare.picture import strips
from llmctl.errors import UserError
from llmctl.spec.compare import Comparing


def side(name, scores, together=None):
    examples = Examples(name, together=together or {})
    for number, score in enumerate(scores):
        examples.add(number, number + 1, 0, {"acc": score})
    return Side(name, {"task": examples})


def micro(rows):
    return {"micro": Sums(np.array(rows, float), lambda sums: sums[0] / sums[1])}


def test_a_figure_of_all_together_is_that_of_the_summed_rows():
    a = side("a", [1, 0, 1, 0], micro([[1, 1], [0, 3], [2, 2], [0, 4]]))
    b = side("b", [1, 1, 1, 0], micro([[1, 1], [3, 3], [2, 2], [1, 4]]))
    found, notes = differences(a, b, Comparing(replicates=200))
    assert [(one.figure, one.a, one.b) for one in found] == [("micro", 0.3, 0.7), ("acc", 0.5, 0.75)] and not notes
    assert found[0].p == pytest.approx(0.5)  # two pairs differ: of four ways to swap two are as far apart


def test_a_figure_of_other_labels_is_left_out():
    found, notes = differences(
        side("a", [1, 0], micro([[1, 1], [0, 1]])),
        side("b", [1, 1], {"micro": Sums(np.ones((2, 3)), sum)}),
        Comparing(replicates=100),
    )
    assert [one.figure for one in found] == ["acc"] and "other labels" in notes[0]


def test_results_may_hold_their_samples(tmp_path):
    samples = [{"doc_id": 3 - i, "metrics": ["acc"], "acc": i, "filter": "none"} for i in (0, 1)]
    file = tmp_path / "whole.json"
    file.write_text(json.dumps({"results": {"arc": {"acc,none": 0.5}}, "samples": {"arc": samples}}))
    found = read_side(file)
    assert (found.tasks["arc"].ids, found.tasks["arc"].scores["acc"].tolist()) == ([3, 2], [0.0, 1.0])
    file.write_text(json.dumps({"results": {}, "samples": {"arc": [{"doc_id": 1}]}}))
    with pytest.raises(UserError, match="sample 0 of arc has no scores"):
        read_side(file)
    file.write_text(json.dumps({"model": "x"}))
    with pytest.raises(UserError, match="no results and no examples"):
        read_side(file)


@pytest.mark.parametrize(("key", "value"), [("n-samples", {"effective": 20}), ("versions", "1f")])
def test_results_of_other_examples_are_refused(tmp_path, key, value):
    known = {"results": {"arc": {"acc,none": 0.5, "acc_stderr,none": 0.1}}, "n-samples": {}, "versions": {}}
    sides = []
    for name, told in (("a", value), ("b", value), ("c", {"effective": 30} if key == "n-samples" else "2e")):
        (tmp_path / f"{name}.json").write_text(json.dumps({**known, key: {"arc": told}}))
        sides.append(read_side(tmp_path / f"{name}.json"))
    assert differences(sides[0], sides[1], Comparing())[0][0].test == "errors"
    with pytest.raises(UserError, match="are of other examples of arc"):
        differences(sides[0], sides[2], Comparing())


def test_other_records_under_the_same_numbers_are_refused(tmp_path):
    for name, digest in (("a", "1f"), ("b", "2e")):
        record = {"doc_id": 0, "doc_hash": digest, "target": 1, "prediction": "x", "scores": {"acc": 1}}
        (tmp_path / name).write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"a:1 and .*b:1 are both example 0, but hold another record"):
        differences(read_side(tmp_path / "a"), read_side(tmp_path / "b"), Comparing(replicates=100))


def test_intervals_are_drawn_around_no_difference():
    def one(figure, a, b, low, high):
        return Difference("", figure, a, b, low, high, 0.5, True, "bootstrap")

    found = [one("acc", 0, 0.5, 0.0, 1.0), one("acc", 0, -1.0, -1.0, -0.5), one("f1", 0, 0, 0, 0)]
    drawn = [strip.replace("\u00a0", " ") for strip in strips(found, 9)]
    assert drawn == ["    |-o--", "o-- |", "    o"]
