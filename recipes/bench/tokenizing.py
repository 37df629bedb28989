"""Speed of `llmctl tokenize` beside bare `tokenizers` writing a file: interleaved runs, medians, one JSON object.

    python recipes/bench/tokenizing.py                        # 50 MB of Python source, byte-level BPE, 8192 tokens
    python recipes/bench/tokenizing.py --algorithm unigram --vocab-size 8192
    python recipes/bench/tokenizing.py --input my.jsonl --runs 7

The bare run reads the same JSON lines, calls `encode_batch_fast` on batches and writes uint16 or uint32, which is what
a careful script of thirty lines does. Each run is a process of its own; times are of the whole process, and `encode`
is without start-up and the loading of the tokenizer. Both give the same ids, which is checked.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]

BARE = """
import json, sys, time
import numpy as np
from tokenizers import Tokenizer
source, tokenizer, out, eos, dtype = sys.argv[1:]
backend = Tokenizer.from_file(tokenizer)
backend.encode_special_tokens = True
started = time.perf_counter()
def batches():
    batch = []
    for line in open(source, "rb"):
        batch.append(json.loads(line)["text"])
        if len(batch) == 256:
            yield batch
            batch = []
    yield batch
with open(out, "wb") as file:
    for batch in batches():
        for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
            np.array([*encoding.ids, int(eos)], dtype=dtype).tofile(file)
print(time.perf_counter() - started)
"""

OURS = """
import sys, time
from pathlib import Path
from llmctl.core.data.encode import write_shards
from llmctl.core.data.read import read_texts
from llmctl.core.text.threads import use_threads
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.spec.data import Sharding
source, tokenizer, out, threads = sys.argv[1:]
use_threads(int(threads))
tokenizer = Tokenizer.open(tokenizer)
started = time.perf_counter()
Path(out).mkdir()
sharding = Sharding(held_out=0.0, shard_tokens=10**12)
for _ in write_shards(read_texts([source]), tokenizer, Path(out), sharding, int(threads)):
    pass
print(time.perf_counter() - started)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input", type=Path, help="JSON lines with a field text; default: made here")
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--algorithm", default="bpe")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(options, Path(scratch)), indent=2))


def measure(options: argparse.Namespace, scratch: Path) -> dict:
    """Interleaved runs: bare, the core of tokenize, the command, bare, ..."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "RAYON_NUM_THREADS": str(options.threads),
        "TOKENIZERS_PARALLELISM": "true",
    }

    def python(*argv: object) -> tuple[str, float]:
        started = time.perf_counter()
        done = subprocess.run([sys.executable, *map(str, argv)], env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        return done.stdout.strip(), time.perf_counter() - started

    source = options.input or scratch / "source.jsonl"
    if options.input is None:
        python("-c", MAKE, source, options.megabytes * 10**6)
    size = [] if options.algorithm in ("byte", "char") else ["--vocab-size", options.vocab_size]
    tokenizer = scratch / "tokenizer"
    _, training = python(
        *["-m", "llmctl", "train-tokenizer", source, "-o", tokenizer, "--algorithm", options.algorithm, *size],
        *["--limit", 3000, "-q"],
    )
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    vocab = {t["content"]: t["id"] for t in json.loads((tokenizer / "tokenizer.json").read_text())["added_tokens"]}
    eos = vocab[config.get("eos_token") or config["sep_token"]]
    seconds: dict[str, list[float]] = {
        "bare": [],
        "bare_process": [],
        "encode": [],
        "encode_process": [],
        "command": [],
    }
    for number in range(options.runs):
        out = scratch / f"{number}"
        bare = scratch / "bare.bin"
        dtype = "<u4" if options.vocab_size > 65_536 else "<u2"
        inside, whole = python("-c", BARE, source, tokenizer / "tokenizer.json", bare, eos, dtype)
        seconds["bare"].append(float(inside))
        seconds["bare_process"].append(whole)
        inside, whole = python("-c", OURS, source, tokenizer, out, options.threads)
        seconds["encode"].append(float(inside))
        seconds["encode_process"].append(whole)
        command = ["-m", "llmctl", "tokenize", source, "--tokenizer", tokenizer, "-o", f"{out}-command", "-q"]
        seconds["command"].append(python(*command, "--threads", options.threads)[1])
        if number == 0 and not np.array_equal(np.fromfile(bare, dtype), np.fromfile(out / "train-00000.ds", dtype)):
            sys.exit("the ids differ")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    with open(source, "rb") as lines:
        megabytes = sum(len(json.loads(line)["text"].encode()) for line in lines) / 1e6
    return {
        "algorithm": options.algorithm,
        "vocab": options.vocab_size if size else None,
        "megabytes": round(megabytes, 1),
        "threads": options.threads,
        "runs": options.runs,
        "training_seconds": round(training, 2),
        "megabytes_per_second": {name: round(megabytes / median, 2) for name, median in medians.items()},
        "ratio_encode_to_bare": round(medians["bare"] / medians["encode"], 2),
        "ratio_command_to_bare_process": round(medians["bare_process"] / medians["command"], 2),
        "same_ids": True,
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()},
    }


MAKE = """
import json, sys
from itertools import cycle
from llmctl.core.data.corpus import documents
path, wanted = sys.argv[1], int(sys.argv[2])
written, records = 0, list(documents("source"))
with open(path, "w") as file:
    for number, record in enumerate(cycle(records)):
        text = record["text"].replace("self", f"self{number // len(records)}" if number >= len(records) else "self")
        file.write(json.dumps({"text": text}) + "\\n")
        written += len(text.encode())
        if written >= wanted:
            break
"""


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


if __name__ == "__main__":
    main()
