"""Limits of figures: how they are named, and when they are missed."""

import pytest

from llmctl.errors import Exit, UserError
from llmctl.spec.limits import check_limits, parse_limits


def test_a_number_alone_is_about_the_main_figure_and_names_may_hold_an_equals_sign():
    assert parse_limits("--fail-under", ["0.5", "b=-2", "c=d=1e-3", "0.6"], "a") == {"a": 0.6, "b": -2, "c=d": 1e-3}


@pytest.mark.parametrize("text", ["b=1", "a=", "x", "a=nan", "a=inf", "a=-1", ""])
def test_what_is_no_limit_of_a_known_figure_is_refused(text):
    with pytest.raises(UserError, match="wanted NAME=NUMBER, NAME one of a") as refused:
        parse_limits("--fail-under", [text], "a", ("a",), least=0)
    assert refused.value.code == Exit.USAGE


def test_figures_under_and_over_their_limits_are_told_together_and_nan_misses_all():
    check_limits({"a": 0.5, "b": 3.0}, {"a": 0.5}, {"b": 3.0})
    with pytest.raises(UserError) as missed:
        check_limits({"a": 0.4, "b": 3.1, "c": float("nan")}, {"a": 0.5, "c": -1}, {"b": 3.0, "c": 9})
    assert missed.value.code == Exit.THRESHOLD and missed.value.problem.count("c is nan") == 2
    assert "a is 0.4, under 0.5 (--fail-under)" in missed.value.problem and "b is 3.1, over 3" in missed.value.problem
    with pytest.raises(UserError) as unknown:
        check_limits({"a": 1.0}, {"z": 1.0})
    assert unknown.value.code == Exit.USAGE and "a" in unknown.value.hint
