"""The recipes of an encoder and of an encoder-decoder, with a smaller model and fewer steps."""

import json
import subprocess
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMALL = [
    "PRESET=1m",
    "VOCAB=512",
    "LONGER=30",
    "TRAIN=--batch-tokens 1024 --optimizer muon --lr 3e-3 --eval-tokens 4000",
]


@pytest.mark.slow
@pytest.mark.parametrize("target, objective", [("bert", "mlm"), ("bert", "mlm+nsp"), ("t5", "span")])
def test_it_trains_on_text_that_it_makes_and_shows_what_was_learned(tmp_path, venv, shell, target, objective):
    out = tmp_path / "out"
    given = [f"VENV={venv}", f"OUT={out}", *SMALL, *([f"BERT={objective}"] if target == "bert" else [])]
    command = ["make", "-C", str(RECIPES), target, *given]
    first = subprocess.run(command, env=shell, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    metrics = json.loads((out / target / "llmctl.json").read_text())["metrics"]
    assert metrics["heldout_loss"] < 0.95 * metrics["heldout_loss_before"]
    assert ("heldout_next_sentence_accuracy" in metrics) == (objective == "mlm+nsp")
    assert "held-out loss" in first.stderr and "after" in first.stderr
    fills = [line for line in first.stdout.splitlines() if '"fills"' in line]
    assert len(fills) == (2 if target == "bert" else 0)
    assert all(len(json.loads(line)["fills"][0]) == 3 for line in fills)
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    second = subprocess.run(command, env=shell, capture_output=True, text=True)
    assert second.returncode == 0 and " pretrain " not in second.stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == made
