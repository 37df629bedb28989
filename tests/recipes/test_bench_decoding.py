"""The benchmark of decoding runs, on little, and weights in few bits are held in few bytes."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "recipes" / "bench" / "decoding.py"


def test_the_benchmark_of_decoding_compares_what_is_held_in_few_bits_with_16():
    made = subprocess.run([sys.executable, SCRIPT, "--quick"], capture_output=True, text=True, check=True)
    found = json.loads(made.stdout)
    assert set(found["ratios"]) == {"int8", "int4", "w8a8"}
    held = {name: one["weight_bytes"] for name, one in found["contenders"].items()}
    tables = 2 * 2 * 512 * 256  # embedding and head, which stay in 16 bits
    layers = held["llmctl bf16"] - tables
    assert layers == held["llmctl fp16"] - tables
    assert held["int8"] - tables < 0.53 * layers and held["int4"] - tables < 0.30 * layers
    assert all(one["decode_tokens_per_second"] > 0 for one in found["contenders"].values())
