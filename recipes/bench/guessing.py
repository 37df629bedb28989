"""Speculative decoding against plain decoding: what guesses bring, by how many of them are right and what they cost.

    python recipes/bench/guessing.py [MODEL FILE] [--draft-model DIR] [--shape 135m] [--shares 0,0.5,0.7,0.9,1]
                                     [--tokens 128] [--rounds 5] [--threads 2] [--dtype bf16] [--stock] [--quick]

With a MODEL, and prompts a line in FILE, the ways of `llmctl generate` take turns with plain greedy decoding: lookup,
half of its layers, and --draft-model. Without, a random model of that shape is given guesses of which each is right
with a given probability, at no cost: what remains is the price of checking them, and the bound of all drafters.
`passes` is the time of one pass over so many tokens of one text, in passes over one. Prints one JSON object: of each
way tokens/s, `speedup` (the median of the rounds' quotients with plain), the share of right guesses, tokens a pass, and
`same`: of the texts, the share that came out as without guesses; where arithmetic rounds, a few may not.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.decode.batch import Desk, Wish
from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.prompt import prompt_ids
from llmctl.core.decode.ready import ready
from llmctl.core.decode.rows import rows_of
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.speculate.desk import GuessingDesk
from llmctl.core.decode.speculate.draft import Draft, Guess
from llmctl.core.decode.speculate.source import Source, sample_of, source_of
from llmctl.core.device import DTYPES, pick
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.spec.drafting import Drafting
from llmctl.spec.model import ModelConfig
from llmctl.spec.sample import Sampling

SHAPES = {
    "135m": {"vocab": 49152, "width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "ff": 1536, "context": 2048},
    "1.1b": {"vocab": 32000, "width": 2048, "layers": 22, "heads": 32, "kv_heads": 4, "ff": 5632, "context": 2048},
    "tiny": {"vocab": 512, "width": 128, "layers": 4, "heads": 4, "kv_heads": 2, "ff": 256, "context": 256},
}
SIZES = (2, 4, 8, 16)  # tokens of a pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--draft-model", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--shares", default="0,0.5,0.7,0.9,1", help="of right guesses, with commas between")
    parser.add_argument("--tokens", type=int, default=128, help="that each text gets")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--stock", action="store_true", help="torch's kernels, not the native step")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.shape, options.rounds, options.tokens, options.shares = "tiny", 1, 24, "0,1"
    pick("cpu", options.dtype, options.threads)
    model, prompts, ways = told(options) if options.model else made(options)
    report = {
        "passes": passes(model, prompts[0], options.rounds),
        "ways": raced(model, prompts, ways, options),
        "model": str(options.model or options.shape),
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(report, indent=2))


def told(options: argparse.Namespace) -> tuple[Transformer, list[list[int]], dict[str, Source]]:
    """A model of the user's, prompts of a file, and the ways to guess."""
    checkpoint, dtype = Checkpoint.open(options.model), DTYPES[options.dtype]
    tokenizer, model = checkpoint.tokenizer(), checkpoint.model(dtype=dtype)
    lines = options.file.read_text(encoding="utf-8").splitlines()
    prompts = [prompt_ids(tokenizer, line, model.config) for line in lines if line]
    ready(model, options.stock)
    ways = {"lookup": source_of(Drafting(lookup=True), model)}
    ways["half the layers"] = source_of(Drafting(skip_layers=("auto",)), model, sample=sample_of(tokenizer, lines[0]))
    if options.draft_model:
        draft = Checkpoint.open(options.draft_model).model(dtype=dtype)
        ready(draft, options.stock)
        ways["draft model"] = source_of(Drafting(draft_model=options.draft_model), model, draft)
    return model, prompts, ways


def made(options: argparse.Namespace) -> tuple[Transformer, list[list[int]], dict[str, Source]]:
    """A random model, a prompt, and guesses that are right so often."""
    model = initialise(Transformer(ModelConfig(**SHAPES[options.shape]), dtype=DTYPES[options.dtype]), 0).eval()
    ready(model, options.stock)
    prompts = [list(range(100, 132))]
    texts = [ids for ids, _ in [written(Desk(model, 1), prompt, options.tokens) for prompt in prompts]]
    shares = [float(share) for share in options.shares.split(",")]
    return model, prompts, {f"{share:g} right": Source(knowing(prompts, texts, share), 0.0) for share in shares}


def knowing(prompts: list[list[int]], texts: list[list[int]], share: float) -> Callable:
    """A drafter that knows the texts, and says each token with this probability, else the next one."""
    whole = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]

    class Knowing:
        own = None

        def __init__(self, rows: object):
            self.chance = random.Random(0)

        def add(self, prompts: Sequence[Sequence[int]]) -> None:
            pass

        def keep(self, places: Sequence[int]) -> None:
            pass

        def guess(self, drafts: Sequence[Draft]) -> list[Guess]:
            return [Guess(self.after(draft), []) for draft in drafts]

        def after(self, draft: Draft) -> list[int]:
            text = next((one for one in whole if one[: len(draft.text)] == list(draft.text)), [])
            known = text[len(draft.text) : len(draft.text) + draft.count]
            return [token if self.chance.random() < share else token + 1 for token in known]

    return Knowing


def raced(model: Transformer, prompts: list[list[int]], ways: dict[str, Source], options: argparse.Namespace) -> dict:
    """Every way beside plain decoding, in turns."""
    speeds: dict[str, list[float]] = {name: [] for name in ("plain", *ways)}
    fared: dict[str, list] = {name: [] for name in ways}
    texts: dict[str, list[list[int]]] = {}
    for number in range(options.rounds + 1):  # the first warms up
        for name in list(speeds)[:: 1 if number % 2 else -1]:
            desk = Desk(model, 1) if name == "plain" else GuessingDesk(model, ways[name], 1)
            found = [written(desk, prompt, options.tokens) for prompt in prompts]
            texts[name] = [ids for ids, _ in found]
            if number or options.quick:
                speeds[name].append(sum(len(ids) for ids, _ in found) / sum(seconds for _, seconds in found))
            if name != "plain":
                fared[name] = [desk.tally.share, desk.tally.a_pass]
    report = {"plain": {"tokens_per_second": round(statistics.median(speeds["plain"]), 2)}}
    for name in ways:
        quotients = [one / plain for one, plain in zip(speeds[name], speeds["plain"], strict=True)]
        report[name] = {
            "tokens_per_second": round(statistics.median(speeds[name]), 2),
            "speedup": round(statistics.median(quotients), 3),
            "right": round(fared[name][0], 3),
            "tokens_a_pass": round(fared[name][1], 3),
            "same": sum(a == b for a, b in zip(texts[name], texts["plain"], strict=True)) / len(prompts),
        }
    return report


def written(desk: Desk, prompt: list[int], tokens: int) -> tuple[list[int], float]:
    """What a desk writes greedily after a prompt, and how long that took after its reading."""
    chooser = Chooser(Sampling(max_tokens=tokens), Rules(), desk.model.config.vocab, None, frozenset())
    desk.ask(Wish(prompt, chooser, 0, tokens))
    ids = [event.picked.id for event in desk.step()]
    began = time.perf_counter()
    while desk.busy:
        ids += [event.picked.id for event in desk.step()]
    return ids, time.perf_counter() - began


def passes(model: Transformer, prompt: list[int], rounds: int) -> dict[str, float]:
    """The time of a pass over so many tokens after a prompt, in passes over one; the least of each."""
    rows = rows_of(model)
    rows.add([prompt])
    least: dict[int, float] = {}
    for _ in range(4 * rounds):
        for size in (1, *SIZES):
            began = time.perf_counter()
            rows.read([list(range(1, size + 1))])
            seconds = time.perf_counter() - began
            rows.cut([len(prompt)])
            least[size] = min(seconds, least.get(size, seconds))
    return {str(size): round(least[size] / least[1], 3) for size in SIZES}


if __name__ == "__main__":
    main()
