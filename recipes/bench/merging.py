"""llmctl lora-merge against PEFT's merge_and_unload: time and memory of merging an adapter into a random model.

    python recipes/bench/merging.py [--rounds 5] [--layers 12] [--width 768] [--dtype fp32]

Both read the same checkpoint and the same adapter (rank 16, every matrix of the layers) from the same disk and write a
checkpoint that transformers opens: `llmctl lora-merge` as a command, and a script of from_pretrained, merge_and_unload
and save_pretrained. Each run is a process of its own, start and imports included; the two take turns. Peak memory is
what the kernel says of the process (maximum resident set); `imports` is that of a process which only imports what the
contender needs. Medians; prints one JSON object.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEFT = """
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""
IMPORTS = {"llmctl": "import torch, llmctl.core.adapt.merge", "peft": "import torch, peft, transformers"}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base, adapter, out = (Path(scratch) / name for name in ("base", "adapter", "out"))
        made(base, adapter, options)
        contenders = {
            "llmctl": [sys.executable, "-m", "llmctl", "lora-merge", adapter, "--base", base, "-o", out, "-q"],
            "peft": [sys.executable, "-c", PEFT, base, adapter, out],
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        memory: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(options.rounds):
            for name in list(contenders)[:: 1 if number % 2 else -1]:
                shutil.rmtree(out, ignore_errors=True)
                took, peak = measured(contenders[name])
                seconds[name].append(took)
                memory[name].append(peak)
        imports = {name: measured([sys.executable, "-c", code])[1] for name, code in IMPORTS.items()}
        size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    peaks = {name: statistics.median(found) for name, found in memory.items()}
    beyond = {name: peaks[name] - imports[name] for name in peaks}
    report = {
        "seconds": {name: round(value, 2) for name, value in middle.items()},
        "peak_mib": {name: round(value) for name, value in peaks.items()},
        "imports_mib": {name: round(value) for name, value in imports.items()},
        "beyond_imports_mib": {name: round(value) for name, value in beyond.items()},
        "times_as_fast": round(middle["peft"] / middle["llmctl"], 2),
        "share_of_peak": round(peaks["llmctl"] / peaks["peft"], 3),
        "share_beyond_imports": round(beyond["llmctl"] / beyond["peft"], 3),
        "all_seconds": {name: [round(one, 2) for one in times] for name, times in seconds.items()},
        "model_mib": round(size / 2**20),
        "shape": {"layers": options.layers, "width": options.width, "dtype": options.dtype},
        "rounds": options.rounds,
    }
    print(json.dumps(report, indent=2))


def made(base: Path, adapter: Path, options: argparse.Namespace) -> None:
    """A random Llama and a random adapter, by transformers and PEFT, in a process of their own, before any is timed."""
    code = """
import sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
base, adapter, layers, width, dtype, targets = *sys.argv[1:3], *map(int, sys.argv[3:5]), sys.argv[5], sys.argv[6]
torch.manual_seed(0)
shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
config = LlamaConfig(vocab_size=32000, intermediate_size=8 * width // 3, tie_word_embeddings=True, **shape)
model = LlamaForCausalLM(config).to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
model.save_pretrained(base)
found = get_peft_model(model, LoraConfig(r=16, target_modules=targets.split(","), init_lora_weights=False))
found.save_pretrained(adapter)
"""
    words = [base, adapter, options.layers, options.width, options.dtype, ",".join(TARGETS)]
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True, stderr=subprocess.DEVNULL)


def measured(command: list[object]) -> tuple[float, float]:
    """Seconds that a process takes, and its peak memory in MiB."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    start = time.perf_counter()
    process = subprocess.Popen([*map(str, command)], env=os.environ | {"PYTHONPATH": paths}, **quiet)
    _, status, used = os.wait4(process.pid, 0)
    took = time.perf_counter() - start
    if process.returncode is None:
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:5]} ended with {process.returncode}")
    return took, used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
