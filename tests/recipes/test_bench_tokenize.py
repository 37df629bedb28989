"""The benchmark of tokenize runs, on a little data, and finds the same ids on both sides."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "bench" / "tokenizing.py"


@pytest.mark.slow
def test_the_benchmark_of_tokenize_reports_medians_and_ratios():
    command = [sys.executable, SCRIPT, "--megabytes", "1", "--runs", "1", "--vocab-size", "1000"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert report["same_ids"] is True
    assert report["ratio_encode_to_bare"] > 0
    assert report["megabytes_per_second"].keys() >= {"bare", "encode", "command"}
