"""Significance: against scipy's exact tests and by hand; intervals hold what they should; equals do not differ."""

import itertools

import numpy as np
import pytest
from scipy import stats

from llmctl.core.metrics import significance as s


def paired(a, b, weights=None, b_weights=None):
    a, b = np.asarray(a, float), np.asarray(b, float)
    if weights is None:
        return s.Paired(a[:, None], b[:, None])
    return s.Paired(np.stack([a, weights], 1), np.stack([b, b_weights], 1), s.ratio)


def drawn(count, gain, seed=0):
    chance = np.random.default_rng(seed)
    a = chance.normal(size=count)
    return a, a + gain + chance.normal(size=count)


def test_mcnemar_is_the_exact_binomial_test():
    for a, b in [(0, 0), (0, 1), (3, 9), (9, 3), (40, 40), (500, 580), (120_000, 121_000)]:
        expected = stats.binomtest(min(a, b), a + b).pvalue if a + b else 1.0
        assert s.mcnemar(a, b) == pytest.approx(expected, rel=1e-9)


def test_of_right_and_wrong_the_randomisation_test_is_mcnemars():
    a, b = [1] * 30 + [0] * 12 + [1] * 5, [1] * 30 + [1] * 12 + [0] * 5
    assert s.by_randomisation(paired(a, b), 100, 0) == pytest.approx(s.mcnemar(5, 12))
    halves = s.by_randomisation(paired(np.array(a) / 10 + 0.3, np.array(b) / 10 + 0.3), 100, 0)  # rounding is no size
    assert halves == pytest.approx(s.mcnemar(5, 12))


def test_few_pairs_are_swapped_in_all_ways_as_scipy_does():
    a, b = drawn(9, 0.7)
    exact = stats.permutation_test(
        (a, b), lambda x, y: np.mean(y - x), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert s.by_randomisation(paired(a, b), 10_000, 0) == pytest.approx(exact, abs=1e-12)


def test_many_pairs_are_swapped_at_random_and_in_groups():
    a, b = drawn(200, 0.15)
    expected = stats.ttest_rel(a, b).pvalue  # normal differences: the two tests agree but for the random draws
    assert s.by_randomisation(paired(a, b), 20_000, 1) == pytest.approx(expected, abs=0.01)
    a, b = drawn(3 * s.GROUPS + 7, 0.005, seed=2)
    expected = stats.ttest_rel(a, b).pvalue
    assert 0.01 < expected < 0.9
    assert s.by_randomisation(paired(a, b), 1000, 1) == pytest.approx(expected, abs=0.06)


def test_a_ratio_is_swapped_with_its_weights():
    a, weights = [3.0, 1.0, 2.0], [1.0, 2.0, 4.0]
    b, other = [1.0, 5.0, 2.0], [2.0, 2.0, 3.0]
    pairs = paired(a, b, weights, other)
    assert pairs.difference == pytest.approx(8 / 7 - 6 / 7)
    ways = []
    for swaps in itertools.product((False, True), repeat=3):
        swap = np.array(swaps)[:, None]
        other = s.Paired(np.where(swap, pairs.b, pairs.a), np.where(swap, pairs.a, pairs.b), s.ratio)
        ways.append(abs(other.difference) >= abs(pairs.difference) - 1e-12)
    assert s.by_randomisation(pairs, 100, 0) == pytest.approx(np.mean(ways))


def test_a_figure_of_all_examples_together_is_drawn_from_its_sums():
    """The mean said as a ratio, through a function of sums, spreads and is tested as the mean itself."""
    a, b = drawn(60, 0.3)
    mean, ones = paired(a, b), np.ones(60)
    whole = paired(a, b, ones, ones)
    assert whole.difference == pytest.approx(mean.difference)
    assert np.std(s.bootstrap(whole, 3000, 0)) == pytest.approx(np.std(s.bootstrap(mean, 3000, 1)), rel=0.08)
    assert s.by_randomisation(whole, 3000, 0) == pytest.approx(s.by_randomisation(mean, 3000, 0), abs=0.02)


@pytest.mark.parametrize("count", [400, 3 * s.GROUPS])
def test_the_bootstrap_spreads_as_the_mean_does(count):
    a, b = drawn(count, 0.3)
    found = s.bootstrap(paired(a, b), 800, 0)
    error = np.std(b - a) / np.sqrt(count)
    assert np.std(found) == pytest.approx(error, rel=0.1)  # 800 draws know a spread to 2.5 %
    low, high = s.interval(found, 0.95)
    mean = np.mean(b - a)
    assert (mean - low, high - mean) == pytest.approx((1.96 * error, 1.96 * error), rel=0.2)
    small = s.bootstrap(paired(*drawn(count, 0.0, seed=5)), 400, 0)
    assert s.by_bootstrap(found, mean) < 0.003 < s.by_bootstrap(small, float(np.mean(small)) / 10)


def test_counts_are_drawn_as_single_examples_are():
    chance = np.random.default_rng(0)
    a, b = chance.integers(0, 2, 500), chance.integers(0, 2, 500)
    few = s.bootstrap(paired(a, b), 4000, 0)
    slightly = s.bootstrap(paired(a + 1e-6 * chance.normal(size=500), b), 4000, 0)
    assert np.std(few) == pytest.approx(np.std(slightly), rel=0.05)
    assert np.mean(few) == pytest.approx(np.mean(b - a), abs=0.003)


def test_the_same_seed_gives_the_same_and_equal_systems_do_not_differ():
    a, b = drawn(50, 0.2)
    pairs = paired(a, b)
    assert s.by_randomisation(pairs, 500, 3) == s.by_randomisation(pairs, 500, 3)
    assert (s.bootstrap(pairs, 50, 3) == s.bootstrap(pairs, 50, 3)).all()
    same = paired(a, a)
    assert s.by_randomisation(same, 500, 0) == 1.0
    assert s.by_bootstrap(s.bootstrap(same, 50, 0), 0.0) == 1.0


def test_where_nothing_differs_chances_are_spread_evenly():
    """Of a hundred comparisons of equals, about five fall under 0.05."""
    chances = [s.by_randomisation(paired(*drawn(40, 0.0, seed=seed)), 200, seed) for seed in range(200)]
    assert 3 <= sum(p < 0.05 for p in chances) <= 20
    assert 0.4 < np.mean(chances) < 0.6


def test_holm_by_hand():
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([0.9, 0.6]) == [1.0, 1.0]
    assert s.holm([]) == []


def test_independent_figures_are_compared_by_their_errors():
    assert s.by_errors(0.1, 0.03, 0.04) == pytest.approx(2 * stats.norm.sf(2), rel=1e-9)
    assert (s.by_errors(0.0, 0.0, 0.0), s.by_errors(0.1, 0.0, 0.0)) == (1.0, 0.0)
