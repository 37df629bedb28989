"""The quickstart recipe, with a smaller model and fewer steps."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMALL = ["PRESET=1m", "VOCAB=512", "STEPS=20", "TRAIN=--batch-tokens 512 --save-every 0.2"]


def command(venv: Path, out: Path) -> list[str]:
    return ["make", "-C", str(RECIPES), "quickstart", f"VENV={venv}", f"OUT={out}", *SMALL]


@pytest.mark.slow
def test_it_runs_through_shows_its_results_and_finds_everything_up_to_date_the_second_time(tmp_path, venv, shell):
    first = subprocess.run(command(venv, tmp_path / "out"), env=shell, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "held-out loss" in first.stderr and "perplexity" in first.stdout
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    second = subprocess.run(command(venv, tmp_path / "out"), env=shell, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "held-out loss" not in second.stderr and " tokenize " not in second.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == made


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(tmp_path, venv, shell):
    whole = subprocess.run(command(venv, tmp_path / "whole"), env=shell, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    for seconds in (1, 4, 7, 10):
        nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        make = subprocess.Popen(command(venv, tmp_path / "killed"), env=shell, start_new_session=True, **nowhere)
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.killpg(make.pid, signal.SIGKILL)
        make.wait()
    last = subprocess.run(command(venv, tmp_path / "killed"), env=shell, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    for name in ("docs.jsonl", "tokens/tokenizer.json", "tokens/train-00000.ds", "base/model.safetensors"):
        one, other = ((tmp_path / run / name).read_bytes() for run in ("whole", "killed"))
        assert sha256(one).digest() == sha256(other).digest(), name
