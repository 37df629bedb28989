"""Linear attention against softmax attention by the length of the row: training, decoding, and what each keeps.

    python recipes/bench/attention.py [--lengths 256,1024,4096,16384] [--rounds 5] [--dtype bf16] [--packed] [--quick]

The same small model in both kinds; contenders take turns, so that a busy machine slows all alike. Prints one JSON
object, for each length: tokens/s of a training step (forward and backward, without the optimizer, whose cost is the
same), bytes that the step keeps for its backward pass, tokens/s of reading the row into a cache and of decoding one
token at a time after it, and bytes of the cache; medians over rounds. A ratio is linear over softmax.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F

from llmctl.core.device import DTYPES, pick
from llmctl.core.model.cache import cache_for
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig

SHAPE = {"vocab": 512, "width": 256, "layers": 2, "heads": 4, "kv_heads": 4, "ff": 704}
KINDS = ("softmax", "linear")
DOCUMENTS = 4  # in a packed row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="256,1024,4096,16384", help="tokens of a row, with commas between")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decoded", type=int, default=32, help="tokens decoded in a round")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--packed", action="store_true", help=f"{DOCUMENTS} documents a row in training")
    parser.add_argument("--quick", action="store_true", help="short rows, one round: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.lengths, options.rounds, options.decoded = "64,256", 1, 4
    place = pick(options.device, options.dtype)
    lengths = [int(length) for length in options.lengths.split(",")]
    print(
        json.dumps(
            {
                "lengths": {str(length): measured(length, options, place.device) for length in lengths},
                "shape": SHAPE | {"rows": options.rows, "packed": options.packed},
                "device": str(place.device),
                "dtype": options.dtype,
                "threads": torch.get_num_threads(),
            },
            indent=2,
        )
    )


def measured(length: int, options: argparse.Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    """Both kinds at one length."""
    models = {kind: made(kind, length, device) for kind in KINDS}
    readers = {kind: copy.deepcopy(model).to(DTYPES[options.dtype]).eval() for kind, model in models.items()}
    tokens = torch.randint(0, SHAPE["vocab"], (options.rows, length + 1), device=device)
    read = options.rows * length
    trained: dict[str, list[float]] = {kind: [] for kind in KINDS}
    prefilled: dict[str, list[float]] = {kind: [] for kind in KINDS}
    decoded: dict[str, list[float]] = {kind: [] for kind in KINDS}
    kept, cached = {}, {}
    for number in range(options.rounds + 1):  # the first warms up
        for kind, model in models.items():
            seconds = clocked(lambda model=model: train(model, tokens, options), device)
            if number == 0:
                kept[kind] = saved(lambda model=model: train(model, tokens, options))
            first, second, cached[kind] = decode(readers[kind], tokens, options)
            if number:
                trained[kind].append(read / seconds)
                prefilled[kind].append(read / first)
                decoded[kind].append(options.rows * options.decoded / second)
    speeds = {
        "train_tokens_per_second": trained,
        "prefill_tokens_per_second": prefilled,
        "decode_tokens_per_second": decoded,
    }
    found = {
        name: {kind: round(statistics.median(rounds[kind]), 1) for kind in KINDS} for name, rounds in speeds.items()
    }
    found |= {"train_saved_bytes": kept, "cache_bytes": cached}
    return {name: values | {"ratio": round(values["linear"] / values["softmax"], 4)} for name, values in found.items()}


def made(kind: str, length: int, device: torch.device) -> Transformer:
    config = ModelConfig(**SHAPE, context=length, attention=kind, model_type="llmctl")
    return initialise(Transformer(config, device), 0).train()


def train(model: Transformer, tokens: torch.Tensor, options: argparse.Namespace) -> None:
    """One step without its optimizer."""
    length = tokens.shape[1] - 1
    segments = None
    if options.packed:
        segments = (torch.arange(length, device=tokens.device) * DOCUMENTS // length + 1).expand(len(tokens), -1)
    with torch.autocast(tokens.device.type, torch.bfloat16) if options.dtype == "bf16" else nullcontext():
        logits = model.head(model(tokens[:, :-1], segments=segments))
    F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()).backward()
    model.zero_grad(set_to_none=True)


@torch.inference_mode()
def decode(model: Transformer, tokens: torch.Tensor, options: argparse.Namespace) -> tuple[float, float, int]:
    """Seconds of reading the row, seconds of decoding after it, and bytes of the cache at the end."""
    length, device = tokens.shape[1] - 1, tokens.device
    cache = cache_for(model.config, len(tokens), length + options.decoded, device, DTYPES[options.dtype])

    def steps() -> None:
        for _ in range(options.decoded):
            model.head(model(tokens[:, -1:], cache=cache))

    first = clocked(lambda: model(tokens[:, :-1], cache=cache), device)
    second = clocked(steps, device)
    return first, second, cache.nbytes


def saved(work: Callable[[], None]) -> int:
    """Bytes that the work keeps for its backward pass: each piece of memory once, parameters included."""
    kept: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        work()
    return sum(kept.values())


def clocked(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
