"""What `finetune` trains: a checkpoint, or an adapter beside it, on examples, and on old text among them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from llmctl.core.adapt.head import rehead
from llmctl.core.adapt.inject import adapt
from llmctl.core.adapt.stored import save_adapter
from llmctl.core.checkpoint.directory import Checkpoint, name_inputs, save_checkpoint, write_config
from llmctl.core.compress.frozen import freeze
from llmctl.core.data.batch import Batch, Build, TrainingOrder
from llmctl.core.data.old import Replay, probe, rows_of
from llmctl.core.data.packing import ExampleOrder, in_order
from llmctl.core.device import DTYPES, Place
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.answers import answers_loss
from llmctl.core.train.lessons import Lessons
from llmctl.core.train.loop import Objective
from llmctl.core.train.objectives import labels_loss, tags_loss, tokens_loss
from llmctl.core.train.optim import optimizers
from llmctl.core.train.run import Probe, Run
from llmctl.core.train.wrap import compile_layers, recompute
from llmctl.spec.adapt import AdaptConfig
from llmctl.spec.adapted import SHAPE
from llmctl.spec.files import write_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.sets import Task
from llmctl.spec.train import Watch
from llmctl.spec.tune import TuneConfig
from llmctl.spec.tune_plan import TunePlan

OLD_ROW = 512  # tokens of a row of old text, or the model's context where that is less

OBJECTIVES: dict[Task, Objective] = {
    "lm": answers_loss,
    "seq2seq": answers_loss,
    "classify": labels_loss,
    "tag": tags_loss,
}


def prepare(
    directory: Path,
    start: Path,
    config: ModelConfig,
    lessons: Lessons,
    method: AdaptConfig,
    plan: TunePlan,
    tune: TuneConfig,
    watch: Watch,
    place: Place,
    write_also: Callable[[Path], None],
    generation: dict,
    seed: int,
) -> Run:
    """A run ready to go, or to go on from what an interrupted one left in `directory`.

    Args:
        directory: where it is made; it exists.
        start: the checkpoint to begin with.
        config: its shape, with the heads that the task needs.
        lessons: the data.
        method: what is trained.
        plan: the sizes of the run.
        tune: options of the loop, its learning rate settled.
        watch: options of evaluation and records.
        place: device and precision; what is trained is float32 whatever the precision.
        write_also: writes the tokenizer's files into what is made.
        generation: contents of its generation_config.json.
        seed: of fresh weights and of the order of the data.

    Raises:
        UserError: a pattern that is nothing's name; a tokenizer without what hides old text from an encoder.
    """
    checkpoint = Checkpoint.open(start)
    model, method, stored = _model(checkpoint, config, method, place, seed)
    freeze(model, method, DTYPES["bf16"] if place.dtype == torch.bfloat16 else torch.float32)
    adapt(model, method, seed, checkpoint.tokenizer())
    model.train()
    made = optimizers(model, tune, method.lora_plus)
    if tune.recompute:
        recompute(model)
    if tune.compile:
        compile_layers(model)

    def write(to: Path) -> None:
        if method.makes_adapter:
            save_adapter(to, model, method, start, lessons.task)
            if config.labels:
                write_config(to, config, stored, SHAPE)
            if generation:
                write_json(to / "generation_config.json", generation)
        else:
            save_checkpoint(to, model, config, stored, generation=generation)
        write_also(to)
        name_inputs(to, config)

    order = ExampleOrder(lessons.mixture, tune.batch_size, lessons.packed, config.opens)
    measured = partial(
        in_order, micro_tokens=plan.micro_tokens, pack=lessons.packed, start=config.opens, limit=watch.eval_tokens
    )
    objective, words = OBJECTIVES[lessons.task], lessons.task in ("lm", "seq2seq")
    probes = {name: Probe(partial(measured, examples), objective, words) for name, examples in lessons.retained.items()}
    block, build = min(config.context - method.places, OLD_ROW), None
    if lessons.old or lessons.replayed:
        build = rows_of(config, checkpoint.tokenizer(), seed, method.places > 0)
        for name, source in lessons.old.items():
            rows = probe(source, build, block, plan.micro_tokens, watch.eval_tokens)
            probes[name] = Probe(rows, tokens_loss, True)
    return Run(
        directory=directory,
        model=model,
        optimizers=made,
        config=tune,
        objective=objective,
        place=place,
        steps=plan.steps,
        batches=_batches(order, plan, _replay(lessons, plan, build, block, seed)),
        heldout=partial(measured, lessons.heldout) if len(lessons.heldout) else None,
        bytes_per_token=None,
        eval_every=watch.every(plan.steps),
        save_every=watch.save_every,
        write=write,
        flops_per_token=plan.flops_per_token,
        seed=seed,
        labelled=not words,
        probes=probes,
    )


def _model(
    checkpoint: Checkpoint, config: ModelConfig, method: AdaptConfig, place: Place, seed: int
) -> tuple[Transformer, AdaptConfig, torch.dtype]:
    """The model under the heads of the task, what of it is trained, fresh heads included, and the files' dtype."""
    whole = not method.makes_adapter
    model = checkpoint.model(place.device, None, writable=whole)
    stored = model.embed.tokens.weight.dtype
    if whole:
        model = model.float()
    if model.config != config:
        model, fresh = rehead(model, config, seed)
        if method.train or method.method != "full":
            method = replace(method, train=(*method.train, *fresh))
    return model, method, stored


def _replay(lessons: Lessons, plan: TunePlan, build: Build | None, block: int, seed: int) -> Replay | None:
    """Rows of old text, as many as make their share of the tokens of a step."""
    if lessons.replayed is None or build is None:
        return None
    source, share = lessons.replayed
    rows = plan.batch_size * plan.mean * share / (1 - share) / block
    return Replay(TrainingOrder(source, block, 1, seed, build), rows)


def _batches(order: ExampleOrder, plan: TunePlan, replay: Replay | None) -> Callable[[int], Iterator[Batch]]:
    def batches(step: int) -> Iterator[Batch]:
        yield from order.batches(step, plan.micro_tokens)
        if replay is not None:
            yield from replay.batches(step, plan.micro_tokens)

    return batches
