"""Speed of a fine-tuning step against PEFT and transformers' Trainer, on the same checkpoint and examples.

    python recipes/bench/finetuning.py [--rounds 5] [--steps 4] [--family llama|gpt2] [--method lora|full|qlora ...]

Each contender is a process of its own, and they take turns as in pretraining.py. The model is random, the examples are
summaries of Python's documentation, the loss is of the answers alone, AdamW is fused, gradients are clipped, and the
arithmetic is autocast to bf16 on both sides. llmctl packs its rows; the Trainer pads (`peft`), pads batches of like
lengths (`peft-grouped`) or has one long row of all (`peft-packed`), whichever is fastest being what llmctl is compared
with. Tokens are those of the examples: padding is none. Prints one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pretraining import WARM, race, serve

SHAPE = {"vocab": 8192, "width": 512, "layers": 8, "heads": 8, "kv_heads": 8, "context": 512}
METHODS = ("lora", "full", "qlora")
LAYOUTS = ("llmctl", "llmctl-padded", "peft", "peft-grouped", "peft-packed")
ROWS = 16  # examples of a step
RANK = 8
LR = 1e-4
TARGETS = {"llama": r".*self_attn\.(q|k|v|o)_proj", "gpt2": r".*attn\.(c_attn|c_proj)"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps a round")
    parser.add_argument("--family", choices=[*TARGETS], default="llama")
    parser.add_argument("--method", choices=METHODS, nargs="+", default=[*METHODS])
    parser.add_argument("--layout", choices=LAYOUTS, nargs="+", default=[*LAYOUTS], help="the contenders")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--width", type=int, default=SHAPE["width"])
    parser.add_argument("--layers", type=int, default=SHAPE["layers"])
    parser.add_argument("--tokens", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options)
    with tempfile.TemporaryDirectory() as scratch:
        options.tokens = made(Path(scratch), options)
        found = {method: compared(method, options) for method in options.method}
    shape = SHAPE | {"width": options.width, "layers": options.layers, "family": options.family, "rank": RANK}
    print(json.dumps(found | {"shape": shape | {"examples": ROWS, "dtype": options.dtype}}, indent=2))


def compared(method: str, options: argparse.Namespace) -> dict[str, object]:
    """The race of one method, and llmctl's speed as a multiple of that of the fastest other."""
    names = [f"{method}:{layout}" for layout in options.layout]
    raced = race(__file__, names, options, ["--dtype", options.dtype, "--family", options.family])
    raced = {name: {key.partition(":")[2]: one for key, one in by.items()} for name, by in raced.items()}
    speed = raced["tokens_per_second"]
    best = max((name for name in speed if name.startswith("peft")), key=lambda name: speed[name])
    pairs = zip(raced["rounds"]["llmctl"], raced["rounds"][best], strict=True)
    raced["ratio"] = round(speed["llmctl"] / speed[best], 3)
    raced["ratio_of_rounds"] = round(statistics.median(ours / theirs for ours, theirs in pairs), 3)
    return raced | {"fastest_other": best}


def made(scratch: Path, options: argparse.Namespace) -> Path:
    """A directory with `base`, a random checkpoint, and `examples.jsonl`: the ids of summaries that fit its context."""
    import torch

    from llmctl.core.checkpoint.directory import save_checkpoint
    from llmctl.core.model.init import initialise
    from llmctl.core.model.transformer import Transformer
    from llmctl.core.text.tokenizer import Tokenizer
    from llmctl.spec.presets import shape

    llmctl = [sys.executable, "-m", "llmctl"]
    for corpus, name in (("docs", "docs"), ("summaries", "summaries")):
        with open(scratch / f"{name}.jsonl", "wb") as file:
            subprocess.run([*llmctl, "corpus", corpus], stdout=file, check=True)
    command = [*llmctl, "train-tokenizer", scratch / "docs.jsonl", "--vocab-size", str(SHAPE["vocab"])]
    subprocess.run([*command, "-o", scratch / "tokenizer"], stdout=subprocess.DEVNULL, check=True)
    tokenizer = Tokenizer.open(scratch / "tokenizer")
    with open(scratch / "summaries.jsonl") as file, open(scratch / "examples.jsonl", "w") as out:
        for line in file:
            record = json.loads(line)
            asked = tokenizer.encode(record["prompt"] + "\n")
            ids = [*asked, *tokenizer.encode(record["completion"]), tokenizer.eos]
            if len(ids) <= SHAPE["context"]:
                out.write(json.dumps({"ids": ids, "asked": len(asked)}) + "\n")
    sizes = {name: value for name, value in SHAPE.items() if name != "vocab"}
    sizes |= {"width": options.width, "layers": options.layers}
    config = shape("5m", SHAPE["vocab"], options.family, sizes)
    model = initialise(Transformer(config, "cpu", torch.float32), 0)
    (scratch / "base").mkdir()
    save_checkpoint(scratch / "base", model, config, tokenizer_from=scratch / "tokenizer")
    return scratch


def work(options: argparse.Namespace) -> None:
    """Take steps as this contender."""
    options.method, _, layout = options.worker.partition(":")
    if layout.startswith("llmctl"):
        serve(ours(options, packed=layout == "llmctl"), options.steps)
    else:
        theirs(options, layout)


def ours(options: argparse.Namespace, packed: bool) -> Callable[[], tuple[int, float]]:
    """A step of `finetune`: the tokens of its examples, and its loss."""
    import numpy as np

    from llmctl.core.adapt.inject import adapt
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.compress.frozen import freeze
    from llmctl.core.data.examples import Example, Examples
    from llmctl.core.data.mixture import Mixture
    from llmctl.core.data.packing import ExampleOrder
    from llmctl.core.device import pick
    from llmctl.core.train.answers import answers_loss
    from llmctl.core.train.loop import train
    from llmctl.core.train.optim import optimizers
    from llmctl.spec.adapt import AdaptConfig
    from llmctl.spec.tune import TuneConfig

    rows = [(np.array(row["ids"]), np.arange(len(row["ids"])) >= row["asked"]) for row in examples(options)]
    order = ExampleOrder(Mixture([Examples.of("lm", [Example(*row) for row in rows])], [1.0], 0), ROWS, packed)
    place, method = pick("cpu", options.dtype), AdaptConfig(method=options.method, rank=RANK)
    model = Checkpoint.open(options.tokens / "base").model(writable=options.method == "full")
    freeze(model, method, place.dtype)
    adapt(model, method, 0)
    model.train()
    tune = TuneConfig(lr=LR, schedule="constant", warmup=0)
    made = optimizers(model, tune)
    micro = ROWS * SHAPE["context"]
    steps = train(model, lambda n: order.batches(n, micro), answers_loss, tune, made, place, 10**6)

    def step() -> tuple[int, float]:
        taken = next(steps)
        return sum(len(one.ids) for one in order.examples(taken.number)), taken.loss

    return step


def examples(options: argparse.Namespace) -> list[dict]:
    """What both sides learn from: ids, and how many of them are asked."""
    with open(options.tokens / "examples.jsonl") as file:
        return [json.loads(line) for line in file]


def theirs(options: argparse.Namespace, layout: str) -> None:
    """The Trainer on transformers' model, or PEFT's of it, which takes its turns between two of its own steps."""
    import torch
    from datasets import Dataset
    from transformers import (
        DataCollatorForSeq2Seq,
        DataCollatorWithFlattening,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    set_seed(0)
    model, counts, losses = peer(options), [], []
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.tokens / "base")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    pad = DataCollatorForSeq2Seq(tokenizer, padding=True)
    collate = DataCollatorWithFlattening() if layout == "peft-packed" else pad

    def counted(rows: list[dict]) -> dict:
        counts.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    class Heard(Trainer):
        """Keeps the losses."""

        def compute_loss(self, *given, **named):
            found = super().compute_loss(*given, **named)
            losses.append((found[0] if isinstance(found, tuple) else found).detach())
            return found

    class Turns(TrainerCallback):
        """Stops after each turn, until the next one is asked for."""

        def on_step_end(self, args, state, control, **rest):
            done = state.global_step - WARM
            if done < 0 or done % options.steps:
                return
            if not done:
                print("ready", flush=True)
            else:
                seconds = time.perf_counter() - self.start
                tokens = sum(counts[state.global_step - options.steps : state.global_step])
                loss = torch.stack(losses[-options.steps :]).mean().item()
                print(json.dumps([seconds, tokens, loss]), flush=True)
            control.should_training_stop = not sys.stdin.readline()
            self.start = time.perf_counter()

    settings = TrainingArguments(
        output_dir=options.tokens / "unused",
        per_device_train_batch_size=ROWS,
        max_steps=10**6,
        learning_rate=LR,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        bf16=options.dtype == "bf16",
        use_cpu=True,
        train_sampling_strategy="group_by_length" if layout == "peft-grouped" else "random",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = examples(options)
    made = [
        {
            "input_ids": row["ids"],
            "labels": [-100] * row["asked"] + row["ids"][row["asked"] :],
            "length": len(row["ids"]),
        }
        for row in rows
    ]
    data = Dataset.from_list(made)
    Heard(model=model, args=settings, train_dataset=data, data_collator=counted, callbacks=[Turns()]).train()


def peer(options: argparse.Namespace):
    """transformers' model of the checkpoint, with PEFT's adapter unless all of it is trained."""
    import torch
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    kind = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    if options.method != "qlora":  # what is frozen may be held in the type of the arithmetic, as llmctl does
        held = torch.float32 if options.method == "full" else kind
        model = AutoModelForCausalLM.from_pretrained(options.tokens / "base", dtype=held)
    else:
        held = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=kind
        )
        where = {"quantization_config": held, "device_map": "cpu", "dtype": torch.float32}
        model = AutoModelForCausalLM.from_pretrained(options.tokens / "base", **where)
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model.config.use_cache = False
    if options.method == "full":
        return model
    targets = TARGETS[options.family]
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, task_type="CAUSAL_LM"))


if __name__ == "__main__":
    main()
