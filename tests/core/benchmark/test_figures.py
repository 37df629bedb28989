"""Figures and their standard errors."""

import numpy as np
import pytest

from llmctl.core.benchmark.figures import Sums, figures, intervals
from llmctl.core.benchmark.outcome import Sample

VALUES = np.random.default_rng(1).random(200)
SAMPLES = [Sample(number, {}, scores={"acc": value}) for number, value in enumerate(VALUES)]
RATIO = Sums(np.stack([VALUES, np.ones(200)], axis=1), lambda sums: sums[0] / sums[1])


def test_a_mean_has_the_standard_error_of_a_mean():
    found = figures(("acc",), SAMPLES, {}, 0)["acc"]
    assert found.value == pytest.approx(VALUES.mean())
    assert found.stderr == pytest.approx(VALUES.std(ddof=1) / 200**0.5)


def test_the_bootstrap_of_a_mean_finds_that_error_too():
    found = figures(("f1",), SAMPLES, {"f1": RATIO}, 0)["f1"]
    assert found.value == pytest.approx(VALUES.mean())
    assert found.stderr == pytest.approx(VALUES.std(ddof=1) / 200**0.5, rel=0.1)  # 1000 samples: 2 % off, mostly
    assert found == figures(("f1",), SAMPLES, {"f1": RATIO}, 0)["f1"]


def test_an_interval_holds_what_the_error_says():
    low, high = intervals(("acc",), SAMPLES, {}, 0, 0.95)["acc"]
    assert high - low == pytest.approx(2 * 1.96 * VALUES.std(ddof=1) / 200**0.5, rel=0.15)
    assert low < VALUES.mean() < high


def test_a_single_record_has_no_error_and_no_interval():
    assert figures(("acc",), SAMPLES[:1], {}, 0)["acc"].stderr is None
    assert intervals(("acc",), SAMPLES[:1], {}, 0, 0.9) == {}


def test_a_score_that_some_records_lack_is_no_figure():
    assert figures(("acc", "f1"), [*SAMPLES, Sample(0, {})], {}, 0) == {}
