"""Generation against transformers, litgpt and llama.cpp, on the same weights: reading a prompt, and writing after it.

    python recipes/bench/generation.py [--shapes 135m,1.1b] [--bits 16,8,4] [--rounds 5] [--threads 2] [--batch 32]
                                       [--only native,llama.cpp] [--litgpt PYTHON] [--keep DIR] [--quick]

The shapes are SmolLM2-135M's and TinyLlama's, the weights random; 16 bits are bf16, 8 int8 with a scale a row beside
llama.cpp's Q8_0, 4 int4 with a scale for 32 beside Q4_0. llmctl twice: with its native step, and on torch's kernels
alone (stock). Batch 1, greedy; `batch` is the throughput of so many rows, `first_token` that of `llmctl generate` from
a cold shell. Each contender is a process of its own, and they take turns, so that a busy machine slows all alike.
litgpt runs under the Python that --litgpt names, where it is installed. Prints one JSON object: of each contender
medians over rounds, and `ratios`: medians of the rounds' quotients, what they are quotients of in their names.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SHAPES = {
    "135m": {"vocab": 49152, "width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "ff": 1536, "context": 2048},
    "1.1b": {"vocab": 32000, "width": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "ff": 5632, "context": 2048},
    "tiny": {"vocab": 512, "width": 128, "layers": 2, "heads": 4, "kv_heads": 2, "ff": 256, "context": 256},
}
TIED = ("135m",)
OURS = ("native", "stock")
# What each number of bits is run by: ours and llama.cpp at all of them.
PEERS = {16: ("llama.cpp", "transformers", "litgpt"), 8: ("llama.cpp",), 4: ("llama.cpp",)}
GGUF = {16: "bf16", 8: "q8_0", 4: "q4_0"}
SCHEMES = {8: ("--scheme", "int8"), 4: ("--scheme", "int4", "--group-size", "32")}
OPENING = 16  # tokens before those that are decoded

# Seconds to read so many tokens, of so many rows, and seconds of each of so many steps after them.
Measure = Callable[[int, int, int], tuple[float, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="135m,1.1b", help="with commas between")
    parser.add_argument("--bits", default="16,8,4")
    parser.add_argument("--only", default="", help="contenders; default: all that can run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decoded", type=int, default=32, help="tokens decoded in a round")
    parser.add_argument("--read", type=int, default=512, help="tokens of the prompt whose reading is timed")
    parser.add_argument("--batch", type=int, default=32, help="rows of the throughput of ours; 0: not measured")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--litgpt", metavar="PYTHON", help="a Python that has litgpt")
    parser.add_argument("--keep", metavar="DIR", help="where models are made, and found again")
    parser.add_argument("--cold", action=argparse.BooleanOptionalAction, default=True, help="the first token's time")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round: does it run?")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, path = options.worker
        serve(CONTENDERS[name](Path(path), options.threads))
        return
    if options.quick:
        options.shapes, options.rounds, options.decoded, options.read, options.batch = "tiny", 1, 4, 32, 2
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.keep or scratch)
        found = {
            shape: {bits: raced(made(folder, shape, int(bits)), int(bits), options) for bits in options.bits.split(",")}
            for shape in options.shapes.split(",")
        }
        for shape, by_bits in found.items() if options.cold else ():
            by_bits["first_token_seconds"] = cold(folder / shape, options)
    print(json.dumps({"shapes": found, "threads": options.threads, "rounds": options.rounds}, indent=2))


def made(folder: Path, shape: str, bits: int) -> Path:
    """A checkpoint of that shape in so many bits, with what llama.cpp reads of it beside it."""
    whole = folder / shape
    if not (whole / "config.json").exists():
        checkpoint(whole, SHAPES[shape], shape in TIED)
    path = whole if bits == 16 else folder / f"{shape}-{bits}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True}
    llmctl = [sys.executable, "-m", "llmctl"]
    if not path.exists():
        subprocess.run([*llmctl, "quantize", whole, *SCHEMES[bits], "-o", path], **quiet)
    if not (file := folder / f"{shape}-{bits}.gguf").exists():
        subprocess.run([*llmctl, "export", whole, "--type", GGUF[bits], "-o", file], **quiet)
    return path


def checkpoint(path: Path, sizes: dict[str, int], tie: bool) -> None:
    """A random checkpoint with a tokenizer: bytes, and pairs of them up to its vocabulary."""
    import tokenizers
    import torch
    from tokenizers import decoders, models, pre_tokenizers

    from llmctl.core.checkpoint.directory import save_checkpoint
    from llmctl.core.model.init import initialise
    from llmctl.core.model.transformer import Transformer
    from llmctl.core.text.tokenizer import Tokenizer
    from llmctl.spec.model import ModelConfig

    config = ModelConfig(**sizes, tie=tie, bos=0, eos=(0,))
    path.mkdir(parents=True)
    save_checkpoint(path, initialise(Transformer(config), 0), config, torch.bfloat16)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(one, other) for one in letters for other in letters][: config.vocab - len(letters) - 1]
    words = ["<|end|>", *letters, *(one + other for one, other in merges)]
    backend = tokenizers.Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    Tokenizer(backend, {"eos_token": "<|end|>", "bos_token": "<|end|>"}).save(path)


def raced(path: Path, bits: int, options: argparse.Namespace) -> dict:
    """What all contenders of so many bits reach, in turns, and how ours compare with theirs."""
    named = [name for name in options.only.split(",") if name] or [*OURS, *PEERS[bits]]
    names = [name for name in (*OURS, *PEERS[bits]) if name in named and (name != "litgpt" or options.litgpt)]
    workers = {name: Worker(name, path, bits, options) for name in names}
    asked = {"prefill": (options.read, 1, 0), "decode": (OPENING, 1, options.decoded)}
    if options.batch:
        asked["batch"] = (OPENING, options.batch, options.decoded // 2)
    speeds: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in asked} for name in names}
    try:
        for name in names:  # what is made once is not timed
            workers[name].run(options.read, 1, 2)
        for number in range(options.rounds):
            for name in names[:: 1 if number % 2 else -1]:
                for kind, (read, rows, count) in asked.items():
                    if kind == "batch" and name not in OURS:
                        continue
                    first, step = workers[name].run(read, rows, count)
                    speeds[name][kind].append(rows / step if count else read / first)
    finally:
        for worker in workers.values():
            worker.end()
    report = {
        name: {f"{kind}_tokens_per_second": round(statistics.median(of), 2) for kind, of in kinds.items() if of}
        for name, kinds in speeds.items()
    }
    return {"speeds": report, "ratios": ratios(speeds)}


def ratios(speeds: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Of ours to each peer's, and to the best of them; of batches to single rows."""
    found = {}
    peers = [name for name in speeds if name not in OURS]
    for name in (name for name in OURS if name in speeds):
        for kind in ("prefill", "decode"):
            own = speeds[name][kind]
            for peer in peers:
                found[f"{kind} {name} / {peer}"] = _quotient(own, speeds[peer][kind])
            if len(peers) > 1:
                best = [max(turn) for turn in zip(*(speeds[peer][kind] for peer in peers), strict=True)]
                found[f"{kind} {name} / best"] = _quotient(own, best)
        if speeds[name].get("batch"):
            found[f"batch {name} / decode {name}"] = _quotient(speeds[name]["batch"], speeds[name]["decode"])
    return found


def _quotient(ours: list[float], theirs: list[float]) -> float:
    return round(statistics.median(own / other for own, other in zip(ours, theirs, strict=True)), 3)


class Worker:
    """A contender in a process of its own."""

    def __init__(self, name: str, path: Path, bits: int, options: argparse.Namespace):
        given = path.parent / f"{path.name.split('-')[0]}-{bits}.gguf" if name == "llama.cpp" else path
        python = options.litgpt if name == "litgpt" else sys.executable
        command = [python, __file__, "--threads", str(options.threads), "--worker", name, str(given)]
        settings = (
            os.environ | {"OMP_NUM_THREADS": str(options.threads)} | ({"LLMCTL_NATIVE": "0"} if name == "stock" else {})
        )
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=settings)

    def run(self, read: int, rows: int, count: int) -> tuple[float, float]:
        """Have it read so many tokens and write so many: seconds of the first token, and of each after it."""
        self.process.stdin.write(f"{read} {rows} {count}\n")
        self.process.stdin.flush()
        first, step = json.loads(self.process.stdout.readline())
        return first, step

    def end(self) -> None:
        """Have it go."""
        self.process.stdin.close()
        self.process.wait()


def serve(measure: Measure) -> None:
    """Answer lines of three numbers with two."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        read, rows, count = map(int, line.split())
        out.write(json.dumps(measure(read, rows, count)) + "\n")
        out.flush()


def timed(tokens: "object") -> tuple[float, float]:
    """Seconds of the first item of an iterator, and the mean of those after it."""
    times = [time.perf_counter(), *(time.perf_counter() for _ in tokens)]
    later = len(times) - 2
    return times[1] - times[0], (times[-1] - times[1]) / later if later else 0.0


def ids(row: int, read: int) -> list[int]:
    """A prompt of a row, unlike those of others."""
    return [(7919 * place + 104729 * row) % 251 + 3 for place in range(read)]


def ours(path: Path, threads: int) -> Measure:
    """llmctl, by the rows that `generate` has; LLMCTL_NATIVE=0 leaves the native step out."""
    import torch

    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.decode.ready import ready
    from llmctl.core.decode.rows import rows_of
    from llmctl.core.device import pick

    pick("cpu", "auto", threads)
    model = Checkpoint.open(path).model()
    stock = os.environ.get("LLMCTL_NATIVE") == "0"
    if problem := ready(model, stock):
        raise SystemExit(f"there is no native step: {problem}")

    @torch.inference_mode()
    def write(read: int, rows: int, count: int):
        state = rows_of(model)
        scores = state.add([ids(row, read) for row in range(rows)])
        for number in range(count + 1):
            tokens = scores.argmax(-1).tolist()
            yield tokens
            if number < count:
                scores = state.step(tokens)

    return lambda read, rows, count: timed(write(read, rows, count))


def transformers(path: Path, threads: int) -> Measure:
    """transformers' model of that checkpoint, in a plain loop with its cache."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def write(read: int, rows: int, count: int):
        given = torch.tensor([ids(row, read) for row in range(rows)])
        out = model(given, use_cache=True, logits_to_keep=1)
        for number in range(count + 1):
            token = out.logits[:, -1].argmax(-1)
            yield token.tolist()
            if number < count:
                out = model(token[:, None], past_key_values=out.past_key_values, use_cache=True)

    return lambda read, rows, count: timed(write(read, rows, count))


def litgpt(path: Path, threads: int) -> Measure:
    """litgpt's model of that shape, in a plain loop with its cache; its weights are its own."""
    import torch
    from litgpt import GPT, Config

    torch.set_num_threads(threads)
    told = json.loads((path / "config.json").read_text())
    config = Config(
        block_size=told["max_position_embeddings"], vocab_size=told["vocab_size"], padding_multiple=1,
        n_layer=told["num_hidden_layers"], n_embd=told["hidden_size"], n_head=told["num_attention_heads"],
        n_query_groups=told["num_key_value_heads"], intermediate_size=told["intermediate_size"],
        rotary_percentage=1.0, parallel_residual=False, bias=False, norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )  # fmt: skip
    model = GPT(config).to(torch.bfloat16).eval()
    if told["tie_word_embeddings"]:
        model.lm_head.weight = model.transformer.wte.weight

    @torch.inference_mode()
    def write(read: int, rows: int, count: int):
        model.clear_kv_cache()
        model.max_seq_length = read + count
        model.set_kv_cache(batch_size=rows, dtype=torch.bfloat16)
        given, places = torch.tensor([ids(row, read) for row in range(rows)]), torch.arange(read)
        for number in range(count + 1):
            token = model(given, places)[:, -1].argmax(-1)
            yield token.tolist()
            if number < count:
                given, places = token[:, None], torch.tensor([read + number])

    return lambda read, rows, count: timed(write(read, rows, count))


def llama_cpp(path: Path, threads: int) -> Measure:
    """llama.cpp's server of a GGUF file; the seconds are those that it measures itself."""
    import urllib.request

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.verbosity, params.n_gpu_layers, params.n_parallel, params.fit_params = 0, 0, 1, False
    params.n_ctx = 2048
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def measure(read: int, rows: int, count: int) -> tuple[float, float]:
        how = {"n_predict": count + 1, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        data = json.dumps({"prompt": ids(0, read), **how}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/completion", data, {"Content-Type": "application/json"}
        )
        with opener.open(request, timeout=600) as answer:
            timings = json.load(answer)["timings"]
        if timings["prompt_n"] < read or timings["predicted_n"] != count + 1:
            raise ValueError(f"llama.cpp read {timings['prompt_n']} and wrote {timings['predicted_n']} tokens")
        return timings["prompt_ms"] / 1000, timings["predicted_ms"] / 1000 / max(1, count)

    return measure


def cold(path: Path, options: argparse.Namespace) -> float:
    """Seconds that `llmctl generate` takes for one token, from the shell's call to its end; the best of rounds."""
    command = [sys.executable, "-m", "llmctl", "generate", str(path), "-p", "The list", "--max-tokens", "1"]
    best = float("inf")
    for _ in range(options.rounds):
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        best = min(best, time.perf_counter() - began)
    return round(best, 3)


CONTENDERS: dict[str, Callable[[Path, int], Measure]] = {
    "native": ours,
    "stock": ours,
    "transformers": transformers,
    "litgpt": litgpt,
    "llama.cpp": llama_cpp,
}


if __name__ == "__main__":
    main()
