"""Training speed against a bare loop on transformers' GPT-2 and, given its model.py, nanoGPT: interleaved rounds.

    python recipes/bench/pretraining.py [--nanogpt PATH/model.py] [--rounds 6] [--steps 4] [--tokens DIR]

Each contender is a process of its own with the same data, batch, learning rate and precision; they take turns, a few
steps at a time, so that a busy machine slows all alike. Prints one JSON object: tokens/s of each (median over rounds),
the ratio of llmctl to the best other, and each one's training loss over its last round.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SHAPE = {"vocab": 8192, "width": 384, "layers": 6, "heads": 6, "context": 256}
ROWS = 16
LR = 1e-3
WARM = 2  # steps before the clock counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, help="model.py of a nanoGPT checkout")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4, help="steps a round")
    parser.add_argument("--tokens", type=Path, help="token directory with a vocabulary of 8192; default: made of docs")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options)
    with tempfile.TemporaryDirectory() as scratch:
        options.tokens = options.tokens or made(Path(scratch))
        names = ["llmctl", "llmctl-llama", "transformers"] + ["nanogpt"] * bool(options.nanogpt)
        passed = ["--dtype", options.dtype, *(["--nanogpt", str(options.nanogpt)] if options.nanogpt else [])]
        raced = race(__file__, names, options, passed)
    best = max(value for name, value in raced["tokens_per_second"].items() if not name.startswith("llmctl"))
    raced["ratio"] = round(raced["tokens_per_second"]["llmctl"] / best, 3)
    print(json.dumps(raced | {"shape": SHAPE | {"rows": ROWS, "dtype": options.dtype}}, indent=2))


def race(script: str, names: list[str], options: argparse.Namespace, passed: list[str]) -> dict[str, dict]:
    """Tokens/s of each contender, the median over rounds in which they take turns, and its loss over the last.

    Args:
        script: what each runs as a process of its own, with `--worker NAME`.
        options: with rounds, steps and tokens.
        passed: further options of a worker.
    """
    workers = {name: started(script, name, options, passed) for name in names}
    rounds: dict[str, list[float]] = {name: [] for name in names}
    losses = dict.fromkeys(names, 0.0)
    for _ in range(options.rounds):
        for name, worker in workers.items():
            worker.stdin.write("go\n")
            worker.stdin.flush()
            seconds, tokens, losses[name] = json.loads(worker.stdout.readline())
            rounds[name].append(tokens / seconds)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return {
        "tokens_per_second": {name: round(statistics.median(found), 1) for name, found in rounds.items()},
        "rounds": {name: [round(value) for value in found] for name, found in rounds.items()},
        "last_loss": {name: round(value, 4) for name, value in losses.items()},
    }


def made(scratch: Path) -> Path:
    """A token directory of the Python docs with the benchmark's vocabulary."""
    llmctl = [sys.executable, "-m", "llmctl"]
    with open(scratch / "docs.jsonl", "wb") as file:
        subprocess.run([*llmctl, "corpus", "docs"], stdout=file, check=True)
    command = [*llmctl, "tokenize", scratch / "docs.jsonl", "--vocab-size", "8192", "-o", scratch / "tokens"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return scratch / "tokens"


def started(script: str, name: str, options: argparse.Namespace, passed: list[str]) -> subprocess.Popen:
    """A contender's process, its model built and its first steps taken."""
    command = [sys.executable, script, "--worker", name, "--tokens", options.tokens, "--steps", str(options.steps)]
    worker = subprocess.Popen([*command, *passed], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "ready\n", f"{name} did not start"
    return worker


def work(options: argparse.Namespace) -> None:
    """Take steps as this contender."""
    tokens = ROWS * SHAPE["context"]
    step = (ours if options.worker.startswith("llmctl") else bare)(options)
    serve(lambda: (tokens, step()), options.steps)


def serve(step: Callable[[], tuple[int, float]], steps: int) -> None:
    """Take some steps for each line on stdin, and answer with the seconds, the tokens and the mean loss."""
    for _ in range(WARM):
        step()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        taken = [step() for _ in range(steps)]
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, sum(n for n, _ in taken), sum(loss for _, loss in taken) / steps]), flush=True)


def ours(options: argparse.Namespace):
    """llmctl's loop as `pretrain` runs it."""
    import torch

    from llmctl.core.data.batch import TrainingOrder
    from llmctl.core.data.shards import Tokens
    from llmctl.core.device import pick
    from llmctl.core.model.init import initialise
    from llmctl.core.model.transformer import Transformer
    from llmctl.core.train.loop import train
    from llmctl.core.train.objectives import tokens_loss
    from llmctl.core.train.optim import optimizers
    from llmctl.spec.presets import shape
    from llmctl.spec.train import TrainConfig

    place = pick("cpu", options.dtype)
    family = "llama" if options.worker.endswith("llama") else "gpt2"
    sizes = {name: value for name, value in SHAPE.items() if name != "vocab"}
    config = shape("5m", SHAPE["vocab"], family, sizes | {"kv_heads": SHAPE["heads"]})
    model = initialise(Transformer(config, "cpu", torch.float32), 0).train()
    options_ = TrainConfig(steps=10**6, lr=LR, schedule="constant", warmup=0)
    order = TrainingOrder(Tokens.open(options.tokens).splits["train"], SHAPE["context"], ROWS, 0)
    made = optimizers(model, options_)
    steps = train(model, lambda n: order.batches(n, ROWS), tokens_loss, options_, made, place, 10**6)
    return lambda: next(steps).loss


def bare(options: argparse.Namespace):
    """The usual loop: autocast, fused AdamW, clipping, on another library's GPT-2."""
    from contextlib import nullcontext

    import torch

    torch.manual_seed(0)
    model, loss_of = (nanogpt if options.worker == "nanogpt" else transformers)(options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.from_numpy(__import__("numpy").fromfile(options.tokens / "train-00000.ds", "<u2").astype("int64"))
    generator = torch.Generator().manual_seed(0)
    block = SHAPE["context"]

    def step() -> float:
        starts = torch.randint(len(ids) - block - 1, (ROWS,), generator=generator)
        x = torch.stack([ids[s : s + block] for s in starts])
        y = torch.stack([ids[s + 1 : s + 1 + block] for s in starts])
        with torch.autocast("cpu", torch.bfloat16) if options.dtype == "bf16" else nullcontext():
            loss = loss_of(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def transformers(options: argparse.Namespace):
    """transformers' GPT2LMHeadModel."""
    import torch.nn.functional as F
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": SHAPE["width"], "n_layer": SHAPE["layers"], "n_head": SHAPE["heads"]}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=SHAPE["vocab"], n_positions=SHAPE["context"], use_cache=False, **sizes, **dropout)
    model = GPT2LMHeadModel(config).train()
    return model, lambda x, y: F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten())


def nanogpt(options: argparse.Namespace):
    """nanoGPT's GPT, from a checkout."""
    spec = importlib.util.spec_from_file_location("nanogpt", options.nanogpt)
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt"] = module
    spec.loader.exec_module(module)
    sizes = {"n_embd": SHAPE["width"], "n_layer": SHAPE["layers"], "n_head": SHAPE["heads"]}
    config = module.GPTConfig(block_size=SHAPE["context"], vocab_size=SHAPE["vocab"], dropout=0.0, bias=True, **sizes)
    sys.stdout, kept = sys.stderr, sys.stdout  # it prints
    model = module.GPT(config).train()
    sys.stdout = kept
    return model, lambda x, y: model(x, y)[1]


if __name__ == "__main__":
    main()
