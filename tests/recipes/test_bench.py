"""The benchmarks of start-up and training run, on little, and say what they measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment

BENCH = Path(__file__).resolve().parents[2] / "recipes" / "bench"


@pytest.mark.slow
def test_the_benchmark_of_training_lets_the_contenders_take_turns():
    command = [sys.executable, BENCH / "pretraining.py", "--rounds", "1", "--steps", "1"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tokens_per_second"].keys() == {"llmctl", "llmctl-llama", "transformers"} and found["ratio"] > 0
    assert all(5 < loss < 10 for loss in found["last_loss"].values())


@pytest.mark.slow
def test_the_benchmark_of_objectives_gives_transformers_the_same_batches():
    command = [sys.executable, BENCH / "objectives.py", "--rounds", "1", "--steps", "1"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ratio_to_clm"].keys() == found["ratio_to_transformers"].keys() == {"clm", "mlm", "span"}
    first = found["last_loss"]
    assert all(5 < first[name] < 12 for name in first if name != "span-transformers")  # T5's own first weights: 50


@pytest.mark.slow
def test_the_benchmark_of_fine_tuning_gives_the_trainer_the_same_examples():
    command = [
        sys.executable,
        BENCH / "finetuning.py",
        "--rounds",
        "1",
        "--steps",
        "1",
        "--width",
        "64",
        "--layers",
        "2",
    ]
    command += ["--method", "lora", "--layout", "llmctl", "peft-packed"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["lora"]
    assert found["fastest_other"] == "peft-packed" and found["ratio"] > 0
    assert all(8 < loss < 10 for loss in found["last_loss"].values())


def test_no_benchmark_is_named_like_a_module_that_others_import():
    """A script's own directory is searched first: bench/tokenize.py once stood in for the standard library's."""
    assert not {path.stem for path in BENCH.glob("*.py")} & set(sys.stdlib_module_names)
