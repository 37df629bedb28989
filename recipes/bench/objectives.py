"""Training speed of masked tokens and of span corruption against next tokens, and against transformers' BERT and T5.

    python recipes/bench/objectives.py [--rounds 6] [--steps 4] [--dtype bf16]

All models have the same matrices in a layer, and every token passes as many layers: 6 of the decoder (clm) or of the
encoder (mlm), or 6 of the one and 6 of the other (span), whose layers of the decoder read the source, too. Tokens are
all that a model reads, the encoder's and the decoder's, without padding; transformers is given the same batches.
Contenders take turns as in pretraining.py. Prints one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pretraining import LR, ROWS, SHAPE, race, serve

CONTENDERS = {"clm": "gpt2", "mlm": "bert", "span": "t5"}  # objective: family


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4, help="steps a round")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--tokens", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return serve(contender(options), options.steps)
    with tempfile.TemporaryDirectory() as scratch:
        options.tokens = made(Path(scratch))
        names = [*CONTENDERS, *(f"{name}-transformers" for name in CONTENDERS)]
        raced = race(__file__, names, options, ["--dtype", options.dtype])
    speed = raced["tokens_per_second"]
    raced["ratio_to_clm"] = {name: round(speed[name] / speed["clm"], 3) for name in CONTENDERS}
    raced["ratio_to_transformers"] = {
        name: round(speed[name] / speed[f"{name}-transformers"], 3) for name in CONTENDERS
    }
    print(json.dumps(raced | {"shape": SHAPE | {"rows": ROWS, "dtype": options.dtype}}, indent=2))


def made(scratch: Path) -> Path:
    """A token directory of the Python docs, by a tokenizer with the special tokens of every objective."""
    llmctl = [sys.executable, "-m", "llmctl"]
    with open(scratch / "docs.jsonl", "wb") as file:
        subprocess.run([*llmctl, "corpus", "docs"], stdout=file, check=True)
    command = [*llmctl, "tokenize", scratch / "docs.jsonl", "--vocab-size", str(SHAPE["vocab"]), "--roles", "t5"]
    command += ["--special", "<mask>", "-o", scratch / "tokens"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return scratch / "tokens"


def contender(options: argparse.Namespace) -> Callable[[], tuple[int, float]]:
    """A step of llmctl's loop, or of the usual one on transformers' model of the same config: tokens read, and loss."""
    from dataclasses import replace

    import torch

    from llmctl.core.data.batch import TrainingOrder
    from llmctl.core.data.rows import builder
    from llmctl.core.data.shards import Tokens
    from llmctl.core.data.vocabulary import Vocabulary
    from llmctl.core.device import pick
    from llmctl.core.model.init import initialise
    from llmctl.core.model.transformer import Transformer
    from llmctl.core.train.loop import train
    from llmctl.core.train.objectives import OBJECTIVES
    from llmctl.core.train.optim import optimizers
    from llmctl.spec.noise import NoiseConfig, made_for
    from llmctl.spec.presets import shape
    from llmctl.spec.train import TrainConfig

    objective, _, other = options.worker.partition("-")
    sizes = {name: value for name, value in SHAPE.items() if name != "vocab"}
    if objective == "span":
        sizes |= {"encoder_layers": SHAPE["layers"], "gated": False, "ff": 4 * SHAPE["width"], "tie": True}
    config = made_for(objective, shape("5m", SHAPE["vocab"], CONTENDERS[objective], sizes))
    tokens = Tokens.open(options.tokens)
    vocabulary = Vocabulary.of(tokens.tokenizer(), SHAPE["vocab"])
    if vocabulary.mask is None:  # --special names no role
        vocabulary = replace(vocabulary, mask=tokens.tokenizer().id("<mask>"))
    build = builder(objective, config.kind, NoiseConfig(), vocabulary, 0)
    order = TrainingOrder(tokens.splits["train"], SHAPE["context"], ROWS, 0, build)
    place = pick("cpu", options.dtype)
    if other:
        return bare(config, lambda n: next(order.batches(n, ROWS)), place)
    model = initialise(Transformer(config, "cpu", torch.float32), 0).train()
    settings = TrainConfig(steps=10**6, lr=LR, schedule="constant", warmup=0)
    made = optimizers(model, settings)
    steps = train(model, lambda n: order.batches(n, ROWS), OBJECTIVES[objective], settings, made, place, 10**6)

    def step() -> tuple[int, float]:
        taken = next(steps)
        return taken.read, taken.loss

    return step


def bare(config, batch_of, place) -> Callable[[], tuple[int, float]]:
    """The usual loop: autocast, fused AdamW, clipping, on transformers' model."""
    from itertools import count

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    from llmctl.spec.families import family_for

    kinds = {"decoder": AutoModelForCausalLM, "encoder": AutoModelForMaskedLM, "encoder-decoder": AutoModelForSeq2SeqLM}
    json_config = family_for(config).to_json(config)
    given = AutoConfig.for_model(**json_config)
    given.use_cache = False
    torch.manual_seed(0)
    model = kinds[config.kind].from_config(given).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    numbers = count(1)

    def step() -> tuple[int, float]:
        batch = batch_of(next(numbers))
        if batch.encoder is None:
            inputs = {"input_ids": batch.tokens, "attention_mask": (batch.segments != 0).long()}
        else:
            inputs = {"input_ids": batch.encoder.tokens, "attention_mask": (batch.encoder.segments != 0).long()}
            inputs |= {"decoder_input_ids": batch.tokens}
        with place.autocast():
            logits = model(**inputs).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return batch.read, loss.item()

    return step


if __name__ == "__main__":
    main()
