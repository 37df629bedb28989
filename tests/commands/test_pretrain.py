"""pretrain as a process: what it writes, prints and refuses, and that a killed run ends with the same bytes."""

import json
import random
import signal
import time
from hashlib import sha256

import pytest

SMALL = ["--width", 32, "--layers", 2, "--heads", 4, "--kv-heads", 2, "--ff", 64, "--context", 64]
SHORT = ["--steps", 12, "--batch-tokens", 512, "--eval-every", 4]


@pytest.fixture(scope="module")
def tokens(corpus_file, tmp_path_factory):
    from subprocess import run
    from sys import executable

    from tests.conftest import environment

    path = tmp_path_factory.mktemp("pretrain") / "tokens"
    command = [
        executable,
        "-m",
        "llmctl",
        "tokenize",
        corpus_file,
        "--vocab-size",
        "300",
        "--held-out",
        "0.1",
        "-o",
        path,
    ]
    run(command, check=True, env=environment(), capture_output=True)
    return path


def lines(log):
    return log.read_bytes().count(b"\n") if log.exists() else 0


def digest(path):
    return sha256((path / "model.safetensors").read_bytes()).hexdigest()


def test_it_prints_the_path_it_made_and_records_what_it_did(run, tokens, tmp_path):
    done = run("pretrain", tokens, *SMALL, *SHORT, "-o", "base")
    assert (done.returncode, done.stdout) == (0, "base\n"), done.stderr
    about = json.loads((tmp_path / "base" / "llmctl.json").read_text())
    assert about["command"] == "pretrain" and about["seed"] == 0 and about["options"]["steps"] == 12
    metrics = about["metrics"]
    assert metrics["steps"] == 12 and metrics["heldout_loss"] < metrics["heldout_loss_before"]
    names = {path.name for path in (tmp_path / "base").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "metrics.jsonl"} <= names
    assert not any(name.startswith(".") for name in names) and not (tmp_path / "base.partial").exists()
    records = [json.loads(line) for line in (tmp_path / "base" / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 13))
    assert {"tokens", "lr", "grad_norm", "tokens_per_second", "mfu", "peak_memory", "seconds"} <= steps[0].keys()
    assert [record["step"] for record in records if "heldout_loss" in record] == [0, 4, 8, 12]

    again = run("pretrain", tokens, *SMALL, *SHORT, "-o", "base", "--json")
    assert json.loads(again.stdout)["up_to_date"] is True
    other = run("pretrain", tokens, *SMALL, *SHORT, "-o", "base", "--lr", 0.1)
    assert other.returncode == 1 and "--lr" in other.stderr and "--force" in other.stderr


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_bytes(start, run, tokens, tmp_path):
    options = [*SMALL, "--steps", 150, "--batch-tokens", 512, "--eval-every", 40, "--save-every", 0.2]
    assert run("pretrain", tokens, *options, "-o", "whole").returncode == 0
    chance, log = random.Random(0), tmp_path / "killed.partial" / "metrics.jsonl"
    for _ in range(3):
        process, before, wanted = start("pretrain", tokens, *options, "-o", "killed"), lines(log), chance.randint(1, 30)
        while process.poll() is None and lines(log) - before < wanted:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    assert run("pretrain", tokens, *options, "-o", "killed").returncode == 0
    for part in ("", "best"):
        assert digest(tmp_path / "whole" / part) == digest(tmp_path / "killed" / part)
    names = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("whole", "killed")]
    assert names[0] == names[1] and not (tmp_path / "killed.partial").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_75_and_the_same_command_goes_on(start, run, tokens, tmp_path, number):
    options = [*SMALL, "--steps", 3000, "--batch-tokens", 512, "-o", "base"]
    process = start("pretrain", tokens, *options)
    until = time.monotonic() + 60
    log = tmp_path / "base.partial" / "metrics.jsonl"
    while time.monotonic() < until and not (log.exists() and log.read_text().count('"loss"') > 2):
        time.sleep(0.02)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 75 and stdout == "" and "goes on" in stderr and "Traceback" not in stderr
    assert not (tmp_path / "base").exists()
    held = json.loads(next((tmp_path / "base.partial" / ".state").glob("step-*/state.json")).read_text())["step"]
    assert 0 < held < 3000
    wrong = run("pretrain", tokens, *options, "--lr", 0.5)
    assert wrong.returncode == 1 and "--lr" in wrong.stderr
    again = start("pretrain", tokens, *options)
    while again.poll() is None and log.read_text().count('"loss"') <= held + 1:
        time.sleep(0.02)
    again.send_signal(number)
    assert f"after step {held}" in again.communicate(timeout=60)[1]


def test_a_dry_run_writes_nothing_and_loads_no_torch(run, tokens, tmp_path):
    done = run("pretrain", tokens, *SMALL, *SHORT, "-o", "base", "--dry-run", env={"PYTHONPROFILEIMPORTTIME": "1"})
    facts = json.loads(done.stdout)
    assert facts["steps"] == 12 and facts["bytes"]["total"] > 0 and facts["parameters"] > 0
    assert "| torch" not in done.stderr and not (tmp_path / "base").exists()
    assert not list(tmp_path.iterdir())


def test_it_goes_on_from_a_checkpoint_and_refuses_to_change_its_shape(run, tokens, tmp_path):
    assert run("pretrain", tokens, *SMALL, *SHORT, "-o", "first").returncode == 0
    done = run("pretrain", tokens, "--from", "first", *SHORT, "-o", "second", "--json")
    before = json.loads((tmp_path / "first" / "llmctl.json").read_text())["metrics"]["heldout_loss"]
    assert json.loads(done.stdout)["metrics"]["heldout_loss_before"] == pytest.approx(before, abs=1e-4)
    wrong = run("pretrain", tokens, "--from", "first", "--layers", 3, *SHORT, "-o", "third")
    assert wrong.returncode == 2 and "--layers" in wrong.stderr


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (["--steps", -1], 2, "--steps"),
        (["--steps", 5, "--epochs", 1], 2, "--epochs"),
        (["--heads", 5], 4, "heads"),
        (["--block", 4096], 4, "--block"),
        (["--preset", "9q"], 2, "9q"),
        (["--device", "cuda:7"], 2, "cuda"),
        (["--from", "nowhere"], 1, "nowhere"),
    ],
)
def test_what_cannot_be_is_refused_in_two_lines(run, tokens, options, code, word, tmp_path):
    done = run("pretrain", tokens, "-o", "base", *options)
    assert done.returncode == code and word in done.stderr and done.stdout == ""
    assert done.stderr.startswith("error:") and len(done.stderr.splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_it_reads_the_path_of_the_tokens_from_a_pipe(run, tokens):
    done = run("pretrain", "-", *SMALL, "--steps", 2, "--batch-tokens", 256, "-o", "base", stdin=f"{tokens}\n")
    assert done.stdout == "base\n", done.stderr


@pytest.mark.parametrize("family", ["gpt2", "bloom", "native"])
def test_every_family_trains_and_a_native_one_says_who_can_open_it(run, tokens, family):
    sizes = ["--width", 32, "--layers", 2, "--heads", 4, "--context", 64]
    done = run("pretrain", tokens, "--family", family, *sizes, "--steps", 2, "--batch-tokens", 256, "-o", "base")
    assert done.returncode == 0, done.stderr
    assert ("only llmctl" in done.stderr) == (family == "native")


def test_events_for_tensorboard_hold_the_losses(run, tokens, tmp_path):
    done = run("pretrain", tokens, *SMALL, "--steps", 3, "--batch-tokens", 256, "--tensorboard", "-o", "base")
    assert done.returncode == 0, done.stderr
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    file = next((tmp_path / "base" / "tensorboard").iterdir())
    tags = {value.tag for event in EventFileLoader(str(file)).Load() for value in event.summary.value}
    assert {"loss", "lr", "heldout_loss"} <= tags
