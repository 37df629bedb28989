"""The benchmark of linear attention runs, on little, and its cache does not grow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "bench" / "attention.py"


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--packed", "--dtype", "fp32"]], ids=["whole rows", "packed"])
def test_the_benchmark_of_attention_compares_both_kinds_by_length(options):
    command = [sys.executable, SCRIPT, "--quick", *options]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["lengths"]
    for measures in found.values():
        assert measures.keys() == {
            *("train_tokens_per_second", "prefill_tokens_per_second", "decode_tokens_per_second"),
            *("train_saved_bytes", "cache_bytes"),
        }
        assert all(values[kind] > 0 for values in measures.values() for kind in ("softmax", "linear", "ratio"))
    short, long = (found[length]["cache_bytes"] for length in ("64", "256"))
    assert short["linear"] == long["linear"] and short["softmax"] < long["softmax"]
