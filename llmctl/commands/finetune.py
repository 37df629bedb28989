"""finetune: a checkpoint learns a task: all of it, some of it, or an adapter beside it."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, Written, expand, invocation, model_path
from llmctl.spec.adapt import AdaptConfig
from llmctl.spec.families import fitted, read_config
from llmctl.spec.gradual import Gradual
from llmctl.spec.layout import Output
from llmctl.spec.memory import gib
from llmctl.spec.model import ModelConfig, Problem
from llmctl.spec.peft import is_adapter
from llmctl.spec.safetensors import main_dtype, read_tensors
from llmctl.spec.sets import Sets, Task, Weighted
from llmctl.spec.sizes import parameters
from llmctl.spec.train import Watch, check_seed
from llmctl.spec.tune import Keeping, TuneConfig
from llmctl.spec.tune_plan import TunePlan

if TYPE_CHECKING:
    from llmctl.console import Console
    from llmctl.core.data.written import Layout
    from llmctl.core.text.tokenizer import Tokenizer
    from llmctl.core.train.lessons import Lessons


@expand
def finetune(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    data: Annotated[
        tuple[str, ...],
        typer.Argument(help="Files of records: JSON lines, CSV or parquet; FILE:2 is drawn twice as often as FILE:1."),
    ],
    written: Written,
    adapt: AdaptConfig,
    tune: TuneConfig,
    sets: Sets,
    keeping: Keeping,
    gradual: Gradual,
    watch: Watch,
    compute: Compute,
    shown: Shown,
    task: Annotated[
        Task | None,
        "lm: a decoder goes on with prompts; seq2seq: an encoder-decoder answers them; classify: texts get labels; "
        "tag: words do. Default: what the records are about.",
    ] = None,
    problem: Annotated[
        Problem | None,
        "classify: labels that exclude each other, several at a time, or numbers. Default: what the records look like.",
    ] = None,
    seed: Annotated[int, "Of fresh weights, of the order of the data and of how it is phrased."] = 0,
) -> None:
    """Teach a checkpoint a task: all of its weights, some of them, or an adapter beside them.

    With --method full, bitfit or last-n OUT is a checkpoint; else it is an adapter that PEFT loads, which generate,
    eval-ppl, classify and embed take as they take a checkpoint, and lora-merge merges. OUT/best is the one with the
    lowest held-out loss, OUT/metrics.jsonl has every step.

    Ctrl-C and SIGTERM save the state and end with 75; the same command line goes on from there, bit for bit.
    """
    check_seed(seed)
    start = model_path(model)
    if not data:
        raise UserError("There are no records to learn from.", "Name a FILE of them, or - for stdin.", Exit.USAGE)
    if is_adapter(start):
        raise UserError(
            f"{start} is an adapter.", f"Merge it first: llmctl lora-merge {start} -o merged", Exit.MISMATCH
        )
    if [file.path for file in map(Weighted.parse, data)].count("-") + (sets.eval, *keeping.retain_task).count("-") > 1:
        raise UserError("stdin can be read once, but - is named more than once.", code=Exit.USAGE)
    files, config = [Weighted.parse(one) for one in data], read_config(start)
    size, whole = 4 * parameters(config), not adapt.makes_adapter
    output = Output.plan(
        written.out,
        invocation(),
        [start, *_inputs(files, sets, keeping)],
        written.force,
        resumable=True,
        need=7 * size if whole else 0,  # the best, and a state and the one before it, with two moments each
    )
    from llmctl.console import Console

    console = Console(shown)
    if output.up_to_date and not written.dry_run:
        console.made(written.out, output.metrics, output.seconds, output.up_to_date)
        return
    from llmctl.core.text.tokenizer import Tokenizer
    from llmctl.core.train.lessons import gather

    tokenizer, tune = Tokenizer.open(start), tune.fitted(adapt.method)
    room = replace(config, context=max(1, config.context - adapt.places))
    alone = adapt.places > 0  # what stands before a row is for one text
    lessons, shape, layout = gather(files, sets, keeping, room, tokenizer, task, problem, not alone, seed)
    config = replace(shape, context=config.context)
    longest, source, mean, asked = lessons.sizes
    stored = "fp32" if main_dtype(read_tensors(start).values()) in ("F32", "F64") else "bf16"

    def planned(dtype: str, memory: int | None) -> TunePlan:
        return TunePlan.of(
            config, adapt, tune, lessons.mixture.epoch, longest, mean, asked, lessons.packed,
            "fp32" if dtype == "fp32" else "bf16", memory, source, stored=stored,
            **({} if memory is None else {"most_tokens": None}),
        )  # fmt: skip

    if written.dry_run:
        gradual.check(planned(compute.dtype, None).steps, start, whole)
        facts = planned(compute.dtype, None).facts() | lessons.counts
        facts |= {"task": lessons.task, "path": str(written.out), "up_to_date": output.up_to_date}
        console.report(facts, None if shown.json else console.table(f"{written.out}", ("", ""), _lines(facts)))
        return
    with output as partial:
        from llmctl.core.compress.prune.gradual import SPARSE, prune_gradually, zeros
        from llmctl.core.device import pick
        from llmctl.core.train.finetune import prepare
        from llmctl.core.train.track import TensorBoard
        from llmctl.follow import follow

        place = pick(compute.device, compute.dtype, compute.threads, sparing=adapt.nf4)
        plan = planned(
            "fp32" if str(place.dtype) == "torch.float32" else "bf16",
            None if place.device.type == "cpu" else place.total_memory(),
        )
        gradual.check(plan.steps, start, whole)
        _say(console, plan, lessons, layout, tokenizer)
        if whole and fitted(config).model_type == "llmctl":
            console.warn("no Hugging Face family has this shape; only llmctl opens the checkpoint.")
        saver = _Saver(tokenizer, layout, start)
        run = prepare(
            partial, start, config, lessons, adapt, plan, tune, watch, place, saver.write, saver.generation(), seed
        )
        if watch.tensorboard:
            run.sinks.append(TensorBoard(partial / "tensorboard"))
        if gradual.asked:
            prune_gradually(run, run.model, gradual)
        elif whole and zeros(run.model) > SPARSE:
            console.warn(f"{start} is sparse, and its zeros will not stay; --keep-zeros keeps them.")
        output.device = str(place.device)
        facts = {"task": lessons.task, "trained_parameters": plan.trained, "parameters": plan.total}
        output.metrics = facts | lessons.counts | follow(run, console)
        if gradual.asked:
            output.metrics["sparsity"] = zeros(run.model)
            console.say(f"{output.metrics['sparsity']:.2%} of the weights of the layers' matrices are zero.")
    console.made(written.out, output.metrics, output.seconds, output.up_to_date)


def _inputs(files: list[Weighted], sets: Sets, keeping: Keeping) -> list[str]:
    """Every file that the result depends on."""
    named = [file.path for file in files] + [sets.eval, *keeping.retain, *keeping.retain_task]
    if keeping.mix_pretrain is not None:
        named.append(keeping.replayed[0])
    templates = [name for name in (sets.template, sets.chat_template) if name is not None and os.path.isfile(name)]
    return [name for name in named if name is not None] + templates


class _Saver:
    """What lies beside the weights: the tokenizer's files, with the chat template that was learned, and its ends."""

    def __init__(self, tokenizer: "Tokenizer", layout: "Layout | None", start: Path):
        self.tokenizer, self.start = tokenizer, start
        self.saved = None if layout is None else layout.saved()

    def generation(self) -> dict[str, Any]:
        """Contents of generation_config.json: the checkpoint's, which stops at the ends of answers, too."""
        from llmctl.core.checkpoint.directory import Checkpoint

        checkpoint = Checkpoint.open(self.start)
        said = checkpoint.generation
        if self.saved is None:
            return said
        listed = said.get("eos_token_id", list(checkpoint.config.eos))
        known = listed if isinstance(listed, list) else [listed]
        return said | {"eos_token_id": list(dict.fromkeys([*(id for id in known if id is not None), *self.saved.eos]))}

    def write(self, to: Path) -> None:
        """Write the tokenizer's files."""
        from llmctl.spec.layout import write_json

        self.tokenizer.save(to)
        if self.saved is not None:
            (to / "chat_template.jinja").write_text(self.saved.template, encoding="utf-8")
            write_json(to / "tokenizer_config.json", self.saved.config)


def _say(
    console: "Console", plan: TunePlan, lessons: "Lessons", layout: "Layout | None", tokenizer: "Tokenizer"
) -> None:
    """What will be trained, on what, and how an example looks."""
    from llmctl.core.data.prepare import shown

    counts = lessons.counts
    console.say(f"{plan}.")
    unit = {"classify": "texts", "tag": "words"}.get(lessons.task, "tokens")
    share = f" ({counts['trained_tokens'] / max(1, counts['tokens']):.1%} of {counts['tokens']:,})"
    laid = "".join(f", {name.replace('_', ' ')} {value}" for name, value in (layout.facts if layout else {}).items())
    console.say(
        f"task {lessons.task}{laid}{_labels(plan.model)}: {counts['examples']:,} examples "
        f"({counts['heldout_examples']:,} more held out), "
        f"trained on {counts['trained_tokens']:,} {unit}{share if unit == 'tokens' else ''}."
    )
    if counts["over"]:
        console.warn(
            f"{counts['over']:,} examples are too long: {counts['truncated']:,} cut, {counts['dropped']:,} dropped."
        )
    out = lessons.heldout.counts
    if out["over"]:
        console.warn(f"{out['over']:,} held-out ones, too: {out['truncated']:,} cut, {out['dropped']:,} dropped.")
    for note in dict.fromkeys(note for part in lessons.mixture.parts for note in part.notes):
        console.warn(note)
    if layout is not None:
        runs = shown(lessons.mixture[0], tokenizer)
        console.say("an example, what is trained in brackets: " + _brief(runs))


def _labels(config: ModelConfig) -> str:
    """What labels there are, as they were found in the records."""
    if not config.labels:
        return ""
    if config.problem == "regression":
        return f", {len(config.labels)} number{'s' if len(config.labels) > 1 else ''} (regression)"
    more = f" and {len(config.labels) - 9} more" if len(config.labels) > 9 else ""
    several = ", any of" if config.problem == "multi_label" else ", one of"
    return f"{several} {len(config.labels)} labels ({', '.join(config.labels[:9])}{more})"


def _brief(runs: list[tuple[str, bool]]) -> str:
    """Runs of an example on one line, long ones without their middle."""

    def cut(text: str) -> str:
        return text if len(text) <= 120 else f"{text[:60]} ... {text[-50:]}"

    return repr("".join(f"[{cut(text)}]" if trained else cut(text) for text, trained in runs))


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The plan for people."""
    lines = [(name.replace("_", " "), f"{value:,}") for name, value in facts.items() if type(value) is int]
    lines += [("epochs", f"{facts['epochs']:.2f}"), ("FLOP", f"{facts['flops']:.2e}"), ("task", facts["task"])]
    return lines + [(f"memory: {name.replace('_', ' ')}", gib(size)) for name, size in facts["bytes"].items() if size]
