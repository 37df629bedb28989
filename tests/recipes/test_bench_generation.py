"""The benchmark of generation runs, on little, beside llama.cpp on the same weights."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "bench" / "generation.py"


def test_the_benchmark_of_generation_compares_torchs_kernels_with_llama_cpp_at_the_same_bits(tmp_path):
    command = [
        sys.executable,
        SCRIPT,
        "--quick",
        "--no-cold",
        "--bits",
        "8",
        "--only",
        "stock,llama.cpp",
        "--threads",
        "1",
    ]
    made = subprocess.run([*command, "--keep", tmp_path], capture_output=True, text=True, check=True)
    found = json.loads(made.stdout)["shapes"]["tiny"]["8"]
    assert set(found["speeds"]) == {"stock", "llama.cpp"} and (tmp_path / "tiny-8.gguf").exists()
    assert set(found["ratios"]) == {
        "prefill stock / llama.cpp", "decode stock / llama.cpp", "batch stock / decode stock"
    }  # fmt: skip
    assert all(speed > 0 for kinds in found["speeds"].values() for speed in kinds.values())
