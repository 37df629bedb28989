"""pretrain: a fresh model, or a checkpoint further, on tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, Written, expand, invocation, model_path
from llmctl.spec.families import fitted, read_config
from llmctl.spec.gradual import Gradual
from llmctl.spec.layout import Output
from llmctl.spec.memory import gib
from llmctl.spec.model import ModelConfig
from llmctl.spec.noise import NoiseConfig, Objective, made_for, suited
from llmctl.spec.plan import TrainPlan
from llmctl.spec.presets import Shape
from llmctl.spec.tokens import read_about
from llmctl.spec.train import TrainConfig, Watch, check_seed


@expand
def pretrain(
    data: Annotated[Path, typer.Argument(help="Directory that llmctl tokenize made, or - for its path on stdin.")],
    written: Written,
    shape: Shape,
    config: TrainConfig,
    noise: NoiseConfig,
    gradual: Gradual,
    watch: Watch,
    compute: Compute,
    shown: Shown,
    start: Annotated[Path | None, typer.Option("--from", help="Go on from this checkpoint, not a fresh model.")] = None,
    objective: Annotated[
        Objective | None,
        "What is learned: clm, each token from those before it; fim, also from those after it; prefix, from a "
        "beginning read both ways; mlm, hidden tokens (+nsp: and whether two texts follow each other); span, runs of "
        "tokens taken out; denoise, the text without its noise. Default: clm for a decoder, mlm for an encoder, span "
        "for an encoder-decoder.",
    ] = None,
    seed: Annotated[int, "Of the first weights, of the order of the data and of its noise."] = 0,
) -> None:
    """Train a language model on tokens, from scratch or on from a checkpoint.

    Without --preset a fresh model is 5m, with whatever dimensions are given in place of its own. OUT holds the last
    model, OUT/best the one with the lowest held-out loss, OUT/metrics.jsonl every step.

    Ctrl-C and SIGTERM save the state and end with 75. However a run ended, the same command line goes on from the
    last state saved, and ends with the same weights, bit for bit, as a run that was never interrupted.
    """
    check_seed(seed)
    data = model_path(data)
    about = read_about(data)
    model, corpus = _shape(start, shape, about), about["splits"]["train"]["tokens"]
    objective = suited(objective, model.kind)
    model = _learning(model, objective, start)
    if objective != "clm":
        from llmctl.core.data.vocabulary import Vocabulary
        from llmctl.core.text.tokenizer import Tokenizer

        vocabulary = Vocabulary.of(Tokenizer.open(data), model.vocab)
        vocabulary.need(objective)
        block, least = config.block or model.context, vocabulary.least(objective, model.kind)
        if block < least:
            raise UserError(
                f"Rows of {block} tokens ask for nothing: --objective {objective} needs {least} or more.",
                f"Use --block {least} or more.",
                Exit.USAGE,
            )
    learning = {"objective": objective, "noise": noise}
    plan = TrainPlan.of(model, config, corpus, "fp32" if compute.dtype == "fp32" else "bf16", **learning)
    gradual.check(plan.steps, start)
    inputs = [data, *([start] if start else [])]
    weights = 4 * plan.facts()["parameters"]
    need = weights + 2 * (weights + plan.memory.optimizer)  # the best model, a state and the one before it
    output = Output.plan(written.out, invocation(), inputs, written.force, resumable=True, need=need)
    from llmctl.console import Console

    console = Console(shown)
    if written.dry_run:
        facts = plan.facts() | {"objective": objective, "path": str(written.out), "up_to_date": output.up_to_date}
        console.report(facts, None if shown.json else console.table(f"{written.out}", ("", ""), _lines(facts)))
        return
    if not output.up_to_date:
        with output as partial:
            from llmctl.core.compress.prune.gradual import SPARSE, prune_gradually, zeros
            from llmctl.core.data.shards import Tokens
            from llmctl.core.device import pick
            from llmctl.core.train.pretrain import prepare
            from llmctl.core.train.track import TensorBoard
            from llmctl.follow import follow

            place = pick(compute.device, compute.dtype, compute.threads)
            if place.device.type != "cpu":
                plan = TrainPlan.of(model, config, corpus, "bf16", place.total_memory(), None, **learning)
            console.say(f"{plan}.")
            if fitted(model).model_type == "llmctl":
                console.warn("no Hugging Face family has this shape; only llmctl opens the checkpoint.")
            run = prepare(partial, Tokens.open(data), start, plan, config, watch, place, objective, noise, seed)
            if watch.tensorboard:
                run.sinks.append(TensorBoard(partial / "tensorboard"))
            if gradual.asked:
                prune_gradually(run, run.model, gradual)
            elif start is not None and zeros(run.model) > SPARSE:
                console.warn(f"{start} is sparse, and its zeros will not stay; --keep-zeros keeps them.")
            output.device = str(place.device)
            output.metrics = follow(run, console)
            if gradual.asked:
                output.metrics["sparsity"] = zeros(run.model)
                console.say(f"{output.metrics['sparsity']:.2%} of the weights of the layers' matrices are zero.")
    console.made(written.out, output.metrics, output.seconds, output.up_to_date)


def _shape(start: Path | None, shape: Shape, about: dict[str, Any]) -> ModelConfig:
    """The shape to train: the checkpoint's, or a preset's with the tokens' vocabulary."""
    if start is None:
        return replace(shape, preset=shape.preset or "5m").config(about["vocab"])
    given = [f"--{name.replace('_', '-')}" for name in shape.overrides] + ["--preset"] * (shape.preset is not None)
    if given:
        raise UserError(
            f"{', '.join(given)} cannot change the shape of the checkpoint {start}.",
            "Leave it out, or leave --from out and train a fresh model.",
            Exit.USAGE,
        )
    model = read_config(start)
    if about["vocab"] > model.vocab:
        raise UserError(
            f"The tokens have ids up to {about['vocab'] - 1}, but {start} has {model.vocab}.",
            f"llmctl tokenize ... --tokenizer {start}",
            Exit.MISMATCH,
        )
    return model


def _learning(model: ModelConfig, objective: Objective, start: Path | None) -> ModelConfig:
    """The shape that learns by an objective: a fresh one has the heads for it, a checkpoint must have them."""
    if start is None:
        return made_for(objective, model)
    lacks = [
        name
        for name, there in (("head that scores tokens", model.lm_head), ("next-sentence head", model.next_sentence))
        if not there and (name == "head that scores tokens" or objective == "mlm+nsp")
    ]
    if lacks:
        raise UserError(
            f"{start} has no {' and no '.join(lacks)}, which --objective {objective} trains.",
            "Name a checkpoint that has, or leave --from out and train a fresh model.",
            Exit.MISMATCH,
        )
    return made_for(objective, model) if model.kind == "decoder" else model


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The plan for people."""
    lines = [(name.replace("_", " "), f"{value:,}") for name, value in facts.items() if isinstance(value, int)]
    lines += [("epochs", f"{facts['epochs']:.2f}"), ("FLOP", f"{facts['flops']:.2e}")]
    return lines + [(f"memory: {name.replace('_', ' ')}", gib(size)) for name, size in facts["bytes"].items() if size]
