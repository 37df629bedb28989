"""distill and refresh: what they make, record and refuse; that a run goes on to the same bytes; answers on disk."""

import json
import shutil
import signal
import time
from hashlib import sha256

import pytest

from llmctl.spec.families import read_config

SHORT = ["--batch-tokens", 256, "--eval-tokens", 256, "--dtype", "fp32"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("distill") / "text.txt"
    path.write_text("\n".join(f"the list of {n} things that the thing lists" for n in range(400)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokens(tiny, text, tmp_path_factory):
    from subprocess import run
    from sys import executable

    from tests.conftest import environment

    lines = text.with_name("lines.jsonl")
    lines.write_text("".join(json.dumps({"text": line}) + "\n" for line in text.read_text().splitlines()))
    path = tmp_path_factory.mktemp("distill") / "tokens"
    argv = ["tokenize", lines, "--tokenizer", tiny, "--held-out", "0.1", "-o", path]
    run([executable, "-m", "llmctl", *argv], check=True, env=environment(), capture_output=True)
    return path


def about(directory):
    return json.loads((directory / "llmctl.json").read_text())


def digest(directory):
    return sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def records(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_student_of_some_layers_is_made_measured_and_found_up_to_date(call, tiny, tokens, tmp_path):
    argv = ["distill", tiny, tokens, "--layers", 1, "--steps", 6, *SHORT, "--eval", tokens, "--speed-tokens", 0]
    done = call(*argv, "-o", "out")
    assert (done.code, done.out) == (0, "out\n"), done.err
    assert "began as" in done.err and "KL, nats a token" in done.err
    config = read_config(tmp_path / "out")
    assert (config.layers, config.width, config.vocab) == (1, 32, 300)
    made = about(tmp_path / "out")["metrics"]
    assert made["layers"] == [{"stack": "decoder", "layer": 0, "began_as": "teacher's layer 0"}]
    assert made["heldout_kl"] < made["heldout_kl_before"] and made["after"]["kl"] > 0
    assert made["heldout_loss"] == pytest.approx(made["heldout_kl"]) and made["ratios"]["smaller"] > 1
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"tokenizer.json", "config.json", "best"}
    again = call(*argv, "-o", "out", "--json")
    assert json.loads(again.out)["up_to_date"] is True
    missed = call(*argv, "-o", "strict", "--fail-under", "kept=9")
    assert missed.code == 6 and not (tmp_path / "strict").exists()


def test_unlabelled_text_and_a_student_of_its_own_are_enough(call, tiny, text, tmp_path):
    assert call("distill", tiny, text, "--width", 16, "--start", "fresh", "--steps", 1, *SHORT, "-o", "first").code == 0
    done = call("distill", tiny, "first", text, "--steps", 2, *SHORT, "--loss", "jsd", "--hard", 0.1, "-o", "out")
    assert done.code == 0, done.err
    assert read_config(tmp_path / "out").width == 16
    assert [parent["path"] for parent in about(tmp_path / "out")["parents"]] == ["first"]


@pytest.mark.parametrize("preset", ["tinybert", "minilm", "minillm", "gkd", "sequence"])
def test_presets_train_and_an_interrupted_run_ends_with_the_same_bytes(
    preset, call, tiny, tokens, tmp_path, monkeypatch
):
    argv = ["distill", tiny, tokens, "--preset", preset, "--layers", 1, "--steps", 4, *SHORT, "--eval-every", 2]
    assert call(*argv, "-o", "whole").code == 0
    from llmctl.core.train import run

    kept, note = run.Run._note, run.Run._note

    def stopping(self, step):
        kept(self, step)
        if step.number == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(run.Run, "_note", stopping)
    assert call(*argv, "-o", "parts").code == 75
    monkeypatch.setattr(run.Run, "_note", note)
    assert call(*argv, "-o", "parts").code == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    losses = [[one["loss"] for one in records(tmp_path / name) if "loss" in one] for name in ("whole", "parts")]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_all_answers_on_disk_teach_as_the_teacher_does_and_are_used_again(call, tiny, tokens, tmp_path):
    argv = ["distill", tiny, tokens, "--layers", 1, "--steps", 5, *SHORT]
    assert call(*argv, "-o", "dense").code == 0
    stored = [*argv, "--cache", "answers", "--top-k", 300]
    first = call(*stored, "-o", "one")
    assert first.code == 0 and "answers" in first.err
    second = call(*stored, "-o", "two")
    assert second.code == 0 and "answers:" not in second.err
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    dense, listed = (records(tmp_path / name)[-1] for name in ("dense", "one"))
    assert listed["heldout_loss"] == pytest.approx(dense["heldout_loss"], rel=1e-4)
    other = call(*argv, "--cache", "answers", "--top-k", 5, "-o", "three")
    assert other.code == 4 and "k 300 there and 5 here" in other.err
    few = call(*argv, "--epochs", 2, "--cache", "few", "--top-k", 5, "-o", "four")
    assert few.code == 2 and "--steps and --epochs" in few.err
    assert call(*argv[:5], "--epochs", 2, *SHORT, "--cache", "few", "--top-k", 5, "-o", "four").code == 0
    rows = json.loads((tmp_path / "few" / "answers.json").read_text())["rows"]["train"]
    assert rows < about(tmp_path / "four")["metrics"]["tokens"] / 64  # the second pass asks nothing anew


def test_what_it_costs_is_said_without_torch_and_the_teacher_is_in_it(run, tiny, tokens, tmp_path):
    done = run("distill", tiny, tokens, "--layers", 1, "--steps", 5, "-o", "out", "--dry-run", "--json")
    facts = json.loads(done.stdout)
    assert facts["bytes"]["teacher"] > 0 and facts["steps"] == 5 and facts["teacher_parameters"] > facts["parameters"]
    assert facts["bytes"]["total"] == sum(size for name, size in facts["bytes"].items() if name != "total")
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_is_refused_by_name(call, tiny, tokens, text, tmp_path):
    told = call("distill", tiny, tokens, "-o", "out")
    assert told.code == 2 and "--layers" in told.err
    told = call("distill", tiny, tiny, "-o", "out")
    assert told.code == 2 and "is a checkpoint" in told.err
    told = call("distill", tiny, tiny, tokens, "--layers", 1, "-o", "out")
    assert told.code == 2 and "--layers" in told.err
    told = call("distill", tiny, tokens, "--layers", 3, "-o", "out")
    assert told.code == 4 and "2 layers" in told.err
    for idle in ("--everywhere", "--speed-tokens=3"):
        told = call("distill", tiny, tokens, "--layers", 1, "--steps", 1, idle, "-o", "out")
        assert told.code == 2 and f"{idle.partition('=')[0]} says nothing" in told.err
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    vocabulary = json.loads((other / "tokenizer.json").read_text())
    swapped = vocabulary["model"]["vocab"]
    swapped["a"], swapped["b"] = swapped["b"], swapped["a"]
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    told = call("distill", tiny, other, text, "--steps", 1, "-o", "out")
    assert told.code == 4 and "not of one tokenizer" in told.err and "'a'" in told.err
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_that_is_only_padded_otherwise_is_aligned(call, tiny, tokens, tmp_path):
    from llmctl.core.checkpoint.directory import save_checkpoint
    from llmctl.core.model.init import initialise
    from llmctl.core.model.transformer import Transformer

    for vocab in (290, 320):
        config = read_config(tiny).resized(vocab=vocab, layers=1)
        (tmp_path / f"s{vocab}").mkdir()
        save_checkpoint(tmp_path / f"s{vocab}", initialise(Transformer(config), 1), config, tokenizer_from=tiny)
        done = call("distill", tiny, f"s{vocab}", tokens, "--steps", 2, *SHORT, "-o", f"out{vocab}")
        assert done.code == 0, done.err
        assert read_config(tmp_path / f"out{vocab}").vocab == vocab


def test_a_run_is_made_again_on_new_data_from_its_start_or_from_what_it_became(call, tiny, text, tokens, tmp_path):
    new = tmp_path / "new.txt"
    new.write_text("a thing that is new lists the things of the list\n" * 300)
    assert call("distill", tiny, text, "--layers", 1, "--steps", 3, *SHORT, "--lr", 1e-3, "-o", "old").code == 0
    done = call("refresh", "old", new, "-o", "again")
    assert (done.code, done.out) == (0, "again\n"), done.err
    old, again = about(tmp_path / "old"), about(tmp_path / "again")
    assert again["command"] == "distill" and again["options"]["data"] == [str(new)]
    assert {k: v for k, v in again["options"].items() if k not in ("data", "out")} == {
        k: v for k, v in old["options"].items() if k not in ("data", "out")
    }
    assert json.loads(call("refresh", "old", new, "-o", "again", "--json").out)["up_to_date"] is True
    assert call("refresh", "old", new, "--begin", "run", "--change", "steps=1", "-o", "on").code == 0
    made = about(tmp_path / "on")["options"]
    assert made["data"] == ["old", str(new)] and made["layers"] is None and made["steps"] == 1
    straight = call("distill", tiny, "old", new, "--steps", 1, *SHORT, "--lr", 1e-3, "-o", "straight")
    assert straight.code == 0 and digest(tmp_path / "straight") == digest(tmp_path / "on")
    for argv, told in (
        (["old", new, "--change", "stepz=1"], "--stepz"),
        (["old", new, text], "one text"),
        ([tokens, new], "does not learn from data"),
        ([tiny, new], "how it was made"),
    ):
        assert told in call("refresh", *argv, "-o", "no").err


@pytest.mark.slow
def test_from_the_same_layers_the_teachers_distribution_brings_a_student_closer_than_the_text(call, learned, tmp_path):
    found = {}
    argv = ["distill", learned.path, learned.tokens, "--layers", 2, "--steps", 60, "--eval", learned.tokens]
    for name, weights in (("teacher", []), ("text", ["--soft", 0, "--hard", 1])):
        done = call(*argv, *weights, "--speed-tokens", 0, "--eval-tokens", 10_000, "-o", name)
        assert done.code == 0, done.err
        found[name] = about(tmp_path / name)["metrics"]["after"]
    assert found["teacher"]["kl"] <= 0.6 * found["text"]["kl"]


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(run, start, tiny, tokens, tmp_path):
    argv = ["distill", tiny, tokens, "--layers", 1, "--steps", 60, *SHORT]
    assert run(*argv, "-o", "whole").returncode == 0
    process, log = start(*argv, "-o", "parts"), tmp_path / "parts.partial" / "metrics.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") > 10):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert run(*argv, "-o", "parts").returncode == 0
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
