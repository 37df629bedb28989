"""The benchmark of eval-rouge runs, on little, and finds the scores of rouge_score."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "bench" / "rouge.py"


def test_the_benchmark_of_rouge_gives_both_the_same_pairs_and_measures_the_command():
    command = [sys.executable, SCRIPT, "--pairs", "4", "--rounds", "1", "--words", "40", "--stem", "--memory", "200"]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(made.stdout)
    assert found["largest_difference"] < 1e-12
    assert set(found["pairs_per_second"]) == {"rouge1", "rouge2", "rougeL", "rougeLsum", "all"}
    assert all(speed > 0 for one in found["pairs_per_second"].values() for speed in one.values())
    assert [one["pairs"] for one in found["memory"]] == [20, 200]
    assert all(1e7 < one["peak_bytes"] < 5e8 for one in found["memory"])
