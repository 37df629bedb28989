"""The quickstart recipe and those that go on from its base, with a smaller model and fewer steps."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMALL = [
    "PRESET=1m",
    "VOCAB=512",
    "STEPS=20",
    "TRAIN=--batch-tokens 512 --save-every 0.2 --eval-tokens 10000",
    "SUMMARIES=--limit 40",
]
SMALL += ["TUNE=--steps 4 --batch-size 4 --eval-tokens 500", "REPLAY=0.5"]
SMALL += [
    "STUDENT=--layers 2 --steps 3 --batch-tokens 512 --block 128",
    "PRUNE=--ff 192 --recover-steps 2 --recover-batch-tokens 512 --calibration-tokens 2048",
    "QUANTIZE=--scheme int4 --group-size 32 --method gptq --calibration-tokens 2048",
    "JUDGE=--eval-tokens 2000 --speed-tokens 8",
    "KEPT=0.1 0.1 0.1",
]


def command(venv: Path, out: Path, *targets: str) -> list[str]:
    return ["make", "-C", str(RECIPES), *targets, f"VENV={venv}", f"OUT={out}", *SMALL]


@pytest.mark.slow
def test_it_runs_through_shows_its_results_and_finds_everything_up_to_date_the_second_time(tmp_path, venv, shell):
    line = command(venv, tmp_path / "out", "smaller")
    guarded = subprocess.run([*line, "KEPT=0.1 0.1 1.5"], env=shell, capture_output=True, text=True)
    assert guarded.returncode == 2 and "kept is" in guarded.stderr and "under 1.5" in guarded.stderr
    assert (tmp_path / "out" / "pruned").exists() and not (tmp_path / "out" / "quantized").exists()
    line = command(venv, tmp_path / "out", "quickstart", "summaries")
    first = subprocess.run(line, env=shell, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "held-out loss" in first.stderr and "perplexity" in first.stdout
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    second = subprocess.run(line, env=shell, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "held-out loss" not in second.stderr and " tokenize " not in second.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == made
    rows = read(tmp_path / "out" / "smaller.jsonl")
    assert [row["model"] for row in rows] == ["teacher", "student", "pruned", "quantized"]
    sizes = [row["bytes"] for row in rows]
    assert sizes == sorted(sizes, reverse=True) and sizes[3] < sizes[2] / 2
    assert all(row["perplexity"] > 1 and row["tokens_per_second"] > 0 for row in rows)
    assert all(row["kl"] > 0 for row in rows[1:]) and "kl" not in rows[0]
    assert all(row["model"] in first.stdout for row in rows) and "perplexity:" in first.stdout
    rows = read(tmp_path / "out" / "heldout.jsonl")
    assert [row["model"] for row in rows] == ["base", "tuned"]
    assert (tmp_path / "out" / "heldout.txt").read_text() in first.stdout
    report = json.loads((tmp_path / "out" / "rouge-tuned.json").read_text())
    assert rows[1]["rougeL"] == report["rougeL"]["f1"] and "|stem:porter|" in report["signature"]
    assert report["pairs"] == len(read(tmp_path / "out" / "test.jsonl"))
    rows = read(tmp_path / "out" / "summaries.jsonl")
    assert [row["model"] for row in rows] == ["base", "base, 3 examples", "LoRA", "full"]
    assert all(0 <= row["rougeL"] <= row["rouge1"] <= 1 and row["retain_perplexity"] > 1 for row in rows)
    assert rows[0]["retain_perplexity"] == rows[1]["retain_perplexity"] != rows[3]["retain_perplexity"]
    assert all(row["model"] in second.stdout for row in rows)
    shown = subprocess.run(command(venv, tmp_path / "out", "forgetting"), env=shell, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    rows = read(tmp_path / "out" / "forgetting.jsonl")
    before, full, replay, lora = (row["retain_perplexity"] for row in rows)
    assert len({before, full, replay, lora}) == 4 and rows[3]["trained_parameters"] < rows[1]["trained_parameters"]
    asked = read(tmp_path / "out" / "test.jsonl")
    seen = "".join(record["text"] for record in read(tmp_path / "out" / "docs.jsonl"))
    assert len(asked) > 20 and not any(record["completion"] in seen for record in asked)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(tmp_path, venv, shell):
    whole = subprocess.run(command(venv, tmp_path / "whole", "base"), env=shell, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    for seconds in (1, 4, 7, 10):
        nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        make = subprocess.Popen(
            command(venv, tmp_path / "killed", "base"), env=shell, start_new_session=True, **nowhere
        )
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.killpg(make.pid, signal.SIGKILL)
        make.wait()
    last = subprocess.run(command(venv, tmp_path / "killed", "base"), env=shell, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    for name in ("docs.jsonl", "tokens/tokenizer.json", "tokens/train-00000.ds", "base/model.safetensors"):
        one, other = ((tmp_path / run / name).read_bytes() for run in ("whole", "killed"))
        assert sha256(one).digest() == sha256(other).digest(), name
