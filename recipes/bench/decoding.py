"""Decoding and prefill of a model in few bits beside the same in 16 bits, and beside transformers.

    python recipes/bench/decoding.py [--schemes int8,int4,w8a8] [--rounds 5] [--threads 2] [--peer] [--quick]

The shape of TinyLlama (1.1B), random weights, batch 1, greedy. Contenders live in one process and take turns, so that a
busy machine slows all alike. Prints one JSON object: of each contender the tokens/s of decoding (from the median time
between tokens) and of reading a prompt, and bytes of its weights as they are held; medians over rounds. `ratios` are
medians of each round's quotient by the fastest 16-bit contender of that round, transformers among them with --peer.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch

from llmctl.core.compress.quant.grid import Codes, quantise
from llmctl.core.compress.quant.linear import BytesLinear, held
from llmctl.core.decode.generate import generate
from llmctl.core.device import DTYPES, pick
from llmctl.core.model.layers import Linear
from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig
from llmctl.spec.quant import GRIDS
from llmctl.spec.sample import Sampling

SHAPE = {"vocab": 32000, "width": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "ff": 5632, "context": 2048}
TINY = {"vocab": 512, "width": 256, "layers": 2, "heads": 8, "kv_heads": 4, "ff": 512, "context": 256}
PROMPT = 16  # tokens before those that are decoded

Write = Callable[[int, int], Iterator[object]]  # of tokens to read and tokens to write: one item a token written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schemes", default="int8,int4,w8a8", help="with commas between")
    parser.add_argument("--dtype", choices=["bf16", "fp16"], default="bf16", help="of what is not quantized")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decoded", type=int, default=24, help="tokens decoded in a round")
    parser.add_argument("--read", type=int, default=256, help="tokens of the prompt whose reading is timed")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--peer", action="store_true", help="transformers, too")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.decoded, options.read = 1, 4, 32
    pick("cpu", options.dtype, options.threads)
    config = ModelConfig(**(TINY if options.quick else SHAPE), tie=False)
    whole = {f"llmctl {name}": of_ours(ours(config, DTYPES[name])) for name in ("bf16", "fp16")}
    if options.peer:
        whole |= {f"transformers {name}": theirs(config, DTYPES[name]) for name in ("bf16", "fp16")}
    schemes = options.schemes.split(",")
    few = {name: of_ours(ours(config, DTYPES[options.dtype], name)) for name in schemes}
    contenders = whole | few
    speeds = {name: {"decode": [], "read": []} for name in contenders}
    for write, _ in contenders.values():  # what is made once is not timed
        decoded(write, 2)
    for number in range(options.rounds):
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            speeds[name]["decode"].append(decoded(contenders[name][0], options.decoded))
            speeds[name]["read"].append(prompted(contenders[name][0], options.read))
    report = {
        name: {
            "decode_tokens_per_second": round(statistics.median(found["decode"]), 2),
            "prefill_tokens_per_second": round(statistics.median(found["read"]), 1),
            "weight_bytes": contenders[name][1],
        }
        for name, found in speeds.items()
    }
    best = {
        kind: [max(found) for found in zip(*(speeds[name][kind] for name in whole), strict=True)]
        for kind in ("decode", "read")
    }
    ratios = {
        name: {
            kind: round(statistics.median(own / top for own, top in zip(speeds[name][kind], tops, strict=True)), 3)
            for kind, tops in best.items()
        }
        for name in schemes
    }
    print(json.dumps({"contenders": report, "ratios": ratios, "threads": torch.get_num_threads()}, indent=2))


@torch.no_grad()
def ours(config: ModelConfig, dtype: torch.dtype, scheme: str | None = None) -> Transformer:
    """A model of random weights, its layers in few bits if a scheme is named; layers share values, not memory."""
    model = Transformer(config, "meta", dtype)
    made: dict[tuple[int, ...], torch.Tensor] = {}
    codes: dict[tuple[int, ...], Codes] = {}

    def weight(shape: torch.Size) -> torch.Tensor:
        if shape not in made:
            drawn = torch.randn(shape, generator=torch.Generator().manual_seed(len(made))) * 0.02
            made[shape] = torch.ones(shape, dtype=dtype) if len(shape) == 1 else drawn.to(dtype)
        return made[shape]

    for path, module in list(model.named_modules()):
        owner, _, name = path.rpartition(".")
        if scheme and isinstance(module, Linear) and ".layers." in path:
            shape = module.weight.shape
            if shape not in codes:
                codes[shape] = quantise(weight(shape), GRIDS[scheme], dtype)
            own = Codes(*(None if part is None else part.clone() for part in codes[shape]))
            setattr(model.get_submodule(owner), name, held(module, own, GRIDS[scheme], dtype))
        else:
            for key, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, key, torch.nn.Parameter(weight(parameter.shape).clone()))
    return model.eval()


def of_ours(model: Transformer) -> tuple[Write, int]:
    """A way to write with it, and the bytes of its weights."""

    def write(read: int, count: int) -> Iterator[object]:
        yield from generate(model, [list(range(3, 3 + read))], Sampling(max_tokens=count, temperature=0), [0])

    opaque = [module.matrix for module in model.modules() if isinstance(module, BytesLinear)]
    return write, sum(one.nbytes for one in [*model.parameters(), *model.buffers(), *opaque])


def theirs(config: ModelConfig, dtype: torch.dtype) -> tuple[Write, int]:
    """The same for transformers' Llama of that shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": config.width, "intermediate_size": config.ff, "num_hidden_layers": config.layers}
    heads = {"num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads}
    told = LlamaConfig(vocab_size=config.vocab, **shape, **heads, dtype=dtype)
    model = LlamaForCausalLM._from_config(told, dtype=dtype).eval()

    @torch.inference_mode()
    def write(read: int, count: int) -> Iterator[object]:
        out = model(torch.arange(3, 3 + read)[None], use_cache=True, logits_to_keep=1)
        for number in range(count):
            token = out.logits[:, -1].argmax(-1)
            yield token.item()
            if number + 1 < count:
                out = model(token[:, None], past_key_values=out.past_key_values, use_cache=True)

    return write, sum(parameter.nbytes for parameter in model.parameters())


def decoded(write: Write, count: int) -> float:
    """Tokens a second, one after another."""
    times = [time.perf_counter() for _ in write(PROMPT, count + 1)]
    return 1 / statistics.median(later - earlier for earlier, later in pairwise(times))


def prompted(write: Write, read: int) -> float:
    """Tokens a second of a prompt."""
    start = time.perf_counter()
    next(iter(write(read, 1)))
    return read / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
