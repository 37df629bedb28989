"""Pruning while a model trains: the share that was asked for at every step, zeros that stay, exact resumption."""

import math
from itertools import islice

import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.compress.prune.gradual import prune_gradually, zeros
from llmctl.core.compress.prune.masks import matrices
from llmctl.core.train.loop import Step
from llmctl.errors import UserError
from llmctl.spec.gradual import Gradual
from tests.core.train.test_run import digest, run_in

CUBIC = Gradual(prune_to=0.8, prune_begin=2, prune_end=9, prune_every=3)


def gradual(directory, tokens, how=CUBIC, **options):
    run = run_in(directory, tokens, **options)
    prune_gradually(run, run.model, how)
    return run


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_zeros_of_each_matrix_are_as_many_as_the_schedule_says_and_stay(tmp_path, tokens, optimizer):
    run = gradual(tmp_path / "run", tokens, optimizer=optimizer, weight_decay=0.3, lr=1e-2)
    share, last = 0.0, {}
    for event in run.go():
        if not isinstance(event, Step):
            continue
        if CUBIC.changes(event.number, 12):
            share = CUBIC.share(event.number, 12)
        for path, module in matrices(run.model).items():
            gone = module.weight == 0
            assert int(gone.sum()) == math.floor(share * gone.numel()), (event.number, path)
            assert not bool((last.get(path, gone) & ~gone).any())
            if event.number >= 9:
                last[path] = gone
    run.finish()
    assert share == 0.8
    made = Checkpoint.open(tmp_path / "run").model()
    assert all(torch.equal(module.weight == 0, last[path]) for path, module in matrices(made).items())
    assert run.best.step >= 9  # no model that is not pruned yet is called the best
    best = Checkpoint.open(tmp_path / "run" / "best").model()
    assert zeros(best) == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("at", [1, 4, 6, 10])
def test_a_run_broken_off_while_it_is_pruned_ends_with_the_same_bytes(tmp_path, tokens, at):
    whole = gradual(tmp_path / "whole", tokens)
    list(whole.go())
    whole.finish()
    first = gradual(tmp_path / "parts", tokens, save=True)
    list(islice((event for event in first.go() if isinstance(event, Step)), at))
    again = gradual(tmp_path / "parts", tokens)
    list(again.go())
    again.finish()
    assert again.done == 12 and digest(tmp_path / "whole") == digest(tmp_path / "parts")
    assert digest(tmp_path / "whole" / "best") == digest(tmp_path / "parts" / "best")


def test_zeros_of_a_checkpoint_stay_and_others_join_them(tmp_path, tokens):
    first = gradual(tmp_path / "first", tokens)
    list(first.go())
    first.finish()
    old = {path: module.weight == 0 for path, module in matrices(Checkpoint.open(tmp_path / "first").model()).items()}
    for name, how in (("kept", Gradual(keep_zeros=True)), ("more", Gradual(prune_to=0.9, keep_zeros=True))):
        run = gradual(tmp_path / name, tokens, how, start=tmp_path / "first", steps=10)
        list(run.go())
        run.finish()
        for path, module in matrices(Checkpoint.open(tmp_path / name).model()).items():
            gone = module.weight == 0
            wanted = int(old[path].sum()) if name == "kept" else math.floor(0.9 * gone.numel())
            assert int(gone.sum()) == wanted and bool((gone | ~old[path]).all())
    free = run_in(tmp_path / "free", tokens, start=tmp_path / "first", steps=4)
    list(free.go())
    assert zeros(free.model) < 0.01  # without it they are revived


def test_a_run_that_trains_no_matrix_has_nothing_to_prune(tmp_path, tokens):
    run = run_in(tmp_path / "run", tokens)
    run.model.requires_grad_(False)
    with pytest.raises(UserError, match="trains no matrix"):
        prune_gradually(run, run.model, CUBIC)
