"""Comparing: what must not get worse, and of which figures more is better."""

import pytest

from llmctl.errors import Exit, UserError
from llmctl.spec.compare import Comparing


def missed(comparing, gains, worse=()):
    with pytest.raises(UserError) as error:
        comparing.check(gains, worse)
    assert error.value.code == Exit.THRESHOLD
    return error.value.problem


def test_a_limit_is_about_one_figure_all_of_a_name_or_all():
    gains = {"arc:acc": -0.02, "arc:f1": 0.1, "piqa:acc": 0.01}
    assert missed(Comparing(fail_under=("acc=0",)), gains) == "arc:acc gains -0.02, under --fail-under 0."
    assert "piqa:acc" in missed(Comparing(fail_under=("piqa:acc=0.02",)), gains)
    assert missed(Comparing(fail_under=("0.05",)), gains).count("gains") == 2
    Comparing(fail_under=("-0.05",)).check(gains, ())
    Comparing(fail_under=("0", "arc:acc=-0.05")).check(gains, ())  # the one that is named has its own
    with pytest.raises(UserError, match="about bleu") as error:
        Comparing(fail_under=("bleu=1",)).check(gains, ())
    assert error.value.code == Exit.USAGE


def test_worse_by_more_than_chance_is_missed_only_where_that_is_asked_for():
    Comparing().check({"acc": -0.5}, ["acc"])
    assert "acc is worse" in missed(Comparing(fail_worse=True), {"acc": -0.5}, ["acc"])


def test_of_losses_and_errors_less_is_better():
    comparing = Comparing(lower=("latency",))
    ups = {name: comparing.more_is_better(name) for name in ("acc", "latency", "nll/tokens", "ter", "sentence_ter")}
    assert ups == {"acc": True, "latency": False, "nll/tokens": False, "ter": False, "sentence_ter": False}
    assert comparing.more_is_better("ter", True) and not comparing.more_is_better("acc", False)


@pytest.mark.parametrize(
    "wrong",
    [{"replicates": 10}, {"ci": 95}, {"seed": -1}, {"metric": ("",)}, {"metric": ("a/b/c",)}, {"fail_under": ("a=b",)}],
)
def test_what_makes_no_sense_is_a_usage_error(wrong):
    with pytest.raises(UserError) as error:
        Comparing(**wrong)
    assert error.value.code == Exit.USAGE
