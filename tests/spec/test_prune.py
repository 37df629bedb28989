"""Options of pruning: what fits what, which matrices are meant, and how a share grows over a run."""

from fractions import Fraction
from pathlib import Path

import pytest

from llmctl.errors import UserError
from llmctl.spec.gradual import Gradual
from llmctl.spec.prune import PruneConfig, targets
from tests.core.variants import VARIANTS


def test_a_pattern_fixes_the_sparsity():
    with pytest.raises(UserError, match=r"--pattern 2:4 fixes the sparsity at 0.5, but --sparsity is 0.6"):
        PruneConfig(pattern="2:4", sparsity=0.6)
    assert PruneConfig(pattern="4:8", sparsity=0.5).share == PruneConfig(pattern="4:8").share == 0.5
    with pytest.raises(UserError, match="--per does not fit"):
        PruneConfig(pattern="2:4", per="row")
    for sparsity in (-0.1, 1.0):
        with pytest.raises(UserError, match="0 to less than 1"):
            PruneConfig(sparsity=sparsity)


def test_matrices_of_the_layers_are_pruned_but_for_what_is_kept():
    config = VARIANTS["t5"]
    names = targets(config, PruneConfig(keep=("cross_attention", "mlp.down")))
    assert all(".layers." in name for name in names)
    assert {name.split(".", 3)[3] for name in names} == {
        *(f"attention.{part}" for part in ("q", "k", "v", "out")), "mlp.up", "mlp.gate"
    }  # fmt: skip
    with pytest.raises(UserError, match=r"--keep mlp\.dwon is no matrix"):
        targets(config, PruneConfig(keep=("mlp.dwon",)))
    with pytest.raises(UserError, match="leaves no matrix"):
        targets(config, PruneConfig(keep=("*",)))


def test_rows_that_do_not_divide_by_a_run_are_refused_by_name():
    config = VARIANTS["llama"].resized(ff=42)
    with pytest.raises(UserError, match=r"decoder.layers.0.mlp.down have 42 weights"):
        targets(config, PruneConfig(pattern="2:4"))
    assert targets(config, PruneConfig(pattern="2:4", keep=("down",)))


def test_the_share_grows_as_the_formula_says_and_ends_with_what_was_asked_for():
    """s_f + (s_i - s_f) (1 - (t - t_0) / n dt)^3, in exact arithmetic."""
    plan = Gradual(prune_to=0.8, prune_from=0.2, prune_begin=10, prune_end=90, prune_every=20)
    steps = [step for step in range(1, 101) if plan.changes(step, 100)]
    assert steps == [10, 30, 50, 70, 90]
    for step in steps:
        wanted = Fraction(8, 10) - Fraction(6, 10) * (1 - Fraction(step - 10, 80)) ** 3
        assert plan.share(step, 100) == pytest.approx(float(wanted), abs=1e-12)
    assert plan.share(90, 100) == 0.8
    shares = Gradual(prune_to=0.5, prune_begin=0.1, prune_end=0.5, prune_every=10, prune_schedule="linear")
    assert [shares.share(step, 100) for step in (10, 30, 50)] == [0.0, 0.25, 0.5]
    once = Gradual(prune_to=0.5, prune_begin=0.25, prune_schedule="once")
    assert [step for step in range(1, 101) if once.changes(step, 100)] == [25] and once.share(25, 100) == 0.5


def test_a_run_too_short_to_be_pruned_to_the_end_is_refused():
    with pytest.raises(UserError, match="--prune-begin is step 10 and --prune-end step 200, of 100"):
        Gradual(prune_to=0.5, prune_begin=10, prune_end=200).check(100, None)
    with pytest.raises(UserError, match="--keep-zeros needs a checkpoint"):
        Gradual(keep_zeros=True).check(100, None)
    with pytest.raises(UserError, match="--prune-to is about a model's own weights"):
        Gradual(prune_to=0.5).check(100, Path("base"), whole=False)
    with pytest.raises(UserError, match=r"--prune-from is 0\.9, wanted 0 to --prune-to"):
        Gradual(prune_to=0.5, prune_from=0.9)
    with pytest.raises(UserError, match="--prune-schedule says nothing without --prune-to"):
        Gradual(prune_schedule="linear")
    with pytest.raises(UserError, match="--prune-end, --prune-every say nothing beside --prune-schedule once"):
        Gradual(prune_to=0.5, prune_schedule="once", prune_end=0.9, prune_every=3)
    assert not Gradual().asked
