"""Calibration by hand, and scikit-learn as a second opinion."""

import numpy as np
import pytest
from sklearn.metrics import auc, brier_score_loss

from llmctl.core.benchmark.calibration import brier, calibration, coverage_curve, ece


def test_bins_of_equal_mass_hold_as_many_records_and_those_of_equal_width_what_falls_in():
    sure, right = np.array([0.95, 0.85, 0.75, 0.65]), np.array([1.0, 0.0, 1.0, 1.0])
    # mass, two bins: (0.9 sure, 1 of 2 right) and (0.7 sure, both right)
    assert ece(sure, right, bins=2, by="mass") == pytest.approx((0.4 * 2 + 0.3 * 2) / 4)
    # width, two bins: all four are above a half: 0.8 sure, 3 of 4 right
    assert ece(sure, right, bins=2, by="width") == pytest.approx(0.05)
    # more bins than records: one each
    assert ece(sure, right, bins=10, by="mass") == pytest.approx((0.05 + 0.85 + 0.25 + 0.35) / 4)


def test_a_model_that_is_right_as_often_as_it_is_sure_has_no_calibration_error():
    sure = np.repeat([0.5, 0.75, 1.0], 4)
    right = np.array([1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1], float)
    assert ece(sure, right) == pytest.approx(0)
    assert ece(sure, 1 - right) > 0.3


def test_the_order_of_records_changes_nothing_even_where_confidences_are_equal():
    stream = np.random.default_rng(0)
    sure, right = stream.integers(1, 5, 50) / 5, stream.integers(0, 2, 50).astype(float)
    order = stream.permutation(50)
    assert ece(sure, right) == pytest.approx(ece(sure[order], right[order]))
    assert coverage_curve(sure, right) == pytest.approx(coverage_curve(sure[order], right[order]))


def test_the_brier_score_of_two_choices_is_twice_that_of_scikit_learn():
    stream = np.random.default_rng(1)
    chance, truth = stream.random(100), stream.integers(0, 2, 100)
    rows = np.stack([1 - chance, chance], axis=1).tolist()
    assert brier(rows, [(int(one),) for one in truth]) == pytest.approx(2 * brier_score_loss(truth, chance))


def test_selective_accuracy_is_that_of_the_surest_tenth():
    # 20 records; the surest two are right, of the others none
    rows = [[0.5 + number / 100, 0.5 - number / 100] for number in range(20)]
    right = [(0,) if number >= 18 else (1,) for number in range(20)]
    found = calibration(rows, right)
    assert found.selective_accuracy == 1 and found.accuracy == 0.1
    curve = coverage_curve(np.array([row[0] for row in rows]), np.array([0 in known for known in right], float))
    shares = np.arange(1, 21) / 20
    assert found.coverage_area == pytest.approx(curve.mean())
    assert abs(found.coverage_area - auc(shares, curve) / (shares[-1] - shares[0])) < 0.05  # a sum against a trapeze


def test_of_several_right_choices_either_will_do_and_the_brier_score_looks_at_the_first():
    found = calibration([[0.2, 0.5, 0.3], [0.6, 0.2, 0.2]], [(2, 1), (2,)])
    assert found.accuracy == 0.5
    assert found.brier == pytest.approx(((0.04 + 0.25 + 0.49) + (0.36 + 0.04 + 0.64)) / 2)
