"""The benchmark of guessing runs, on little, and says what guesses bring."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import environment

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "bench" / "guessing.py"


def test_the_benchmark_of_guessing_compares_with_plain_decoding():
    command = [sys.executable, SCRIPT, "--quick", "--dtype", "fp32"]
    made = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    found = json.loads(made.stdout)
    ways = found["ways"]
    assert set(ways) == {"plain", "0 right", "1 right"} and set(found["passes"]) == {"2", "4", "8", "16"}
    assert ways["0 right"]["right"] == 0 and ways["0 right"]["tokens_a_pass"] == 1
    assert ways["1 right"]["right"] == 1 and ways["1 right"]["tokens_a_pass"] > 3
    assert all(one["same"] == 1 and one["speedup"] > 0 for name, one in ways.items() if name != "plain")
