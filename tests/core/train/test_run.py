"""Training runs in a directory: resuming, evaluating, keeping the best."""

import json
import math
from hashlib import sha256
from itertools import islice

import pytest
import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.checkpoint.state import load_state, save_state
from llmctl.core.device import Place
from llmctl.core.train.loop import Step
from llmctl.core.train.pretrain import prepare
from llmctl.errors import UserError
from llmctl.spec.noise import NoiseConfig
from llmctl.spec.plan import TrainPlan
from llmctl.spec.presets import shape
from llmctl.spec.train import TrainConfig, Watch

CPU = Place(torch.device("cpu"), torch.float32)


def run_in(directory, tokens, start=None, steps=12, **options):
    directory.mkdir(exist_ok=True)
    watch = Watch(eval_every=4, save_every=1e-9 if options.pop("save", False) else 1e9)
    config = TrainConfig(steps=steps, batch_tokens=128, **{"warmup": 2, **options})
    sizes = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ff": 64, "context": 32}
    model = Checkpoint.open(start).config if start else shape("1m", tokens.vocab, "llama", sizes)
    plan = TrainPlan.of(model, config, tokens.splits["train"].tokens, "fp32")
    return prepare(directory, tokens, start, plan, config, watch, CPU, "clm", NoiseConfig(), seed=0)


def digest(directory):
    return sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def finished(directory, tokens, **options):
    run = run_in(directory, tokens, **options)
    events = list(run.go())
    run.finish()
    return run, events


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("at", [0, 3, 7, 12])
def test_a_run_broken_off_at_any_step_ends_with_the_bytes_of_one_that_was_not(tmp_path, tokens, at, optimizer):
    finished(tmp_path / "whole", tokens, optimizer=optimizer)
    first = run_in(tmp_path / "parts", tokens, optimizer=optimizer, save=True)
    steps = (event for event in first.go() if isinstance(event, Step))
    list(islice(steps, at))  # and whatever was done since the last state is lost
    finished(tmp_path / "parts", tokens, optimizer=optimizer)
    assert digest(tmp_path / "whole") == digest(tmp_path / "parts")
    assert digest(tmp_path / "whole" / "best") == digest(tmp_path / "parts" / "best")
    whole, parts = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    )
    keys = ("step", "tokens", "loss", "lr", "grad_norm", "heldout_loss")
    assert [[record.get(key) for key in keys] for record in whole] == [
        [record.get(key) for key in keys] for record in parts
    ]


def test_it_evaluates_before_after_and_in_between_and_keeps_the_best(tmp_path, tokens):
    run, events = finished(tmp_path / "run", tokens)
    assert [e.step for e in run.evaluations] == [0, 4, 8, 12]
    assert [e.number for e in events if isinstance(e, Step)] == list(range(1, 13))
    assert run.evaluations[0].loss == pytest.approx(math.log(tokens.vocab), abs=0.1)
    assert run.best.loss == min(e.loss for e in run.evaluations)
    assert (digest(tmp_path / "run") == digest(tmp_path / "run" / "best")) == (run.best.step == 12)
    Checkpoint.open(tmp_path / "run" / "best").model()


def test_the_best_stays_when_the_last_is_worse(tmp_path, tokens):
    run = run_in(tmp_path / "run", tokens, lr=1e-3)
    for event in run.go():
        if isinstance(event, Step) and event.number == 9:  # it goes astray
            with torch.no_grad():
                run.model.decoder.norm.weight.mul_(-30)
    run.finish()
    assert run.best.step == 8
    assert digest(tmp_path / "run") != digest(tmp_path / "run" / "best")


def test_an_unfinished_state_is_not_taken_up(tmp_path, tokens):
    run = run_in(tmp_path / "run", tokens, save=True)
    list(islice((e for e in run.go() if isinstance(e, Step)), 5))
    (tmp_path / "run" / ".state" / "unfinished").mkdir()
    (tmp_path / "run" / ".state" / "unfinished" / "state.json").write_text("{")
    again = run_in(tmp_path / "run", tokens)
    assert load_state(tmp_path / "run" / ".state", again.model, again.optimizers)[0] == 4


def test_a_state_that_does_not_fit_on_the_disk_gives_its_space_back_and_keeps_the_one_before(tmp_path):
    model = torch.nn.Linear(4, 4)
    save_state(tmp_path / "state", 1, model, [], {})
    with pytest.raises(TypeError):
        save_state(tmp_path / "state", 2, model, [], {"facts": object()})  # as the disk would, after the tensors
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-000000001"]


def test_going_on_from_a_checkpoint_begins_where_it_ended(tmp_path, tokens):
    before, _ = finished(tmp_path / "first", tokens)
    run = run_in(tmp_path / "second", tokens, start=tmp_path / "first", steps=4)
    first = next(run.go())
    assert first.loss == pytest.approx(before.evaluations[-1].loss, abs=1e-6)


def test_tokens_of_another_tokenizer_are_refused(tmp_path, tokens):
    finished(tmp_path / "first", tokens, steps=1)
    file = tmp_path / "first" / "tokenizer.json"
    about = json.loads(file.read_text())
    about["model"]["vocab"] = {k: (v + 1) % 256 if v < 256 else v for k, v in about["model"]["vocab"].items()}
    file.write_text(json.dumps(about))
    with pytest.raises(UserError, match="another tokenizer"):
        run_in(tmp_path / "second", tokens, start=tmp_path / "first")


def test_recomputing_changes_no_gradient(tmp_path, tokens):
    finished(tmp_path / "kept", tokens, steps=3)
    finished(tmp_path / "computed", tokens, steps=3, recompute=True)
    assert digest(tmp_path / "kept") == digest(tmp_path / "computed")


@pytest.mark.slow
def test_compiled_layers_take_the_same_steps(tmp_path, tokens):
    runs = [run_in(tmp_path / str(compiled), tokens, steps=3, compile=compiled) for compiled in (False, True)]
    losses = [[event.loss for event in run.go() if isinstance(event, Step)] for run in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)  # sums in another order
