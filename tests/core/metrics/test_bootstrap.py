"""Intervals of means: as wide as theory says, the same however rows arrive, from held rows or from a stream."""

import numpy as np
import pytest

from llmctl.core.metrics import bootstrap
from llmctl.core.metrics.bootstrap import Bootstrap


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(5).beta(2, 5, (count, 2))


def test_intervals_are_those_of_the_normal_distribution_for_many_rows_held_or_streamed(monkeypatch):
    made = rows(6000)
    for held in (1 << 16, 500):
        monkeypatch.setattr(bootstrap, "HELD", held)
        found = Bootstrap(["a", "b"], 1000, 1)
        found.add(made)
        error = made.std(axis=0) / len(made) ** 0.5
        for (low, high), mean, one in zip(found.interval(0.95), made.mean(axis=0), error, strict=True):
            # 1000 replicates know their 2.5th percentile to about a twelfth of the error.
            assert [low, high] == pytest.approx([mean - 1.96 * one, mean + 1.96 * one], abs=0.25 * one)
        assert found.means == pytest.approx(made.mean(axis=0).tolist(), rel=1e-12)


@pytest.mark.parametrize("held", [1 << 16, 500])
def test_how_rows_are_shared_out_changes_no_interval(monkeypatch, held):
    monkeypatch.setattr(bootstrap, "HELD", held)
    monkeypatch.setattr(bootstrap, "CHUNK", 128)
    whole, parts = Bootstrap(["a", "b"], 50, 2), Bootstrap(["a", "b"], 50, 2)
    made = rows(2000)
    whole.add(made)
    for begin in range(0, 2000, 37):
        parts.add(made[begin : begin + 37])
    assert np.allclose(whole.interval(0.9), parts.interval(0.9), rtol=1e-12)


def test_few_rows_are_drawn_as_many_times_as_there_are():
    found = Bootstrap(["a"], 200)
    found.add(np.array([[0.0], [1.0]]))
    assert set(np.quantile(found._means(), [0, 0.5, 1])) == {0.0, 0.5, 1.0}
    with pytest.raises(ValueError):
        found.add(np.zeros((3, 2)))
    with pytest.raises(ValueError):
        Bootstrap(["a"]).interval(0.95)
