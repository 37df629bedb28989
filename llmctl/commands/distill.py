"""distill: a student learns from its teacher: what it says of tokens, what it writes, what goes on inside it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.errors import Exit, Interrupted, UserError
from llmctl.flags import Compute, Shown, Written, expand, invocation, model_path
from llmctl.spec.distill import PRESETS, DistillConfig
from llmctl.spec.distill_plan import DistillPlan
from llmctl.spec.families import fitted, read_config, read_config_json
from llmctl.spec.idle import changed, check_idle
from llmctl.spec.judging import Judging
from llmctl.spec.layout import Output
from llmctl.spec.memory import gib
from llmctl.spec.model import ModelConfig
from llmctl.spec.peft import is_adapter
from llmctl.spec.safetensors import read_tensors
from llmctl.spec.setting import ELEMENT
from llmctl.spec.sizes import parameters
from llmctl.spec.student import Student, StudentTraining, Watching
from llmctl.spec.tokens import is_tokens, read_about
from llmctl.spec.train import check_seed

if TYPE_CHECKING:
    from llmctl.console import Console
    from llmctl.core.device import Place
    from llmctl.core.text.tokenizer import Tokenizer
    from llmctl.core.train.distilled import Preparing
    from llmctl.core.train.run import Run


@expand
def distill(
    teacher: Annotated[Path, typer.Argument(help="Checkpoint directory of the teacher, or - for its path on stdin.")],
    data: Annotated[
        tuple[str, ...],
        typer.Argument(
            metavar="[STUDENT] DATA",
            help="STUDENT is a checkpoint to go on from; without one the student is made as --layers, --width ... say. "
            "DATA is text, JSON lines, CSV, parquet, or a directory of tokens; no labels are needed.",
        ),
    ],
    written: Written,
    distilling: DistillConfig,
    student: Student,
    config: StudentTraining,
    watching: Watching,
    judging: Judging,
    compute: Compute,
    shown: Shown,
    seed: Annotated[int, "Of fresh weights, of the order of the text, and of what is written."] = 0,
) -> None:
    """Teach a smaller model by a larger one: what it says of tokens, what it writes, what goes on inside it.

        llmctl distill teacher tokens --layers 4 -o student
        llmctl distill teacher student text.jsonl --preset minillm -o better

    OUT holds the last student, OUT/best the one with the lowest held-out loss, OUT/metrics.jsonl every step. Teacher
    and student share a tokenizer; rows of padding in their vocabularies may differ.

    Ctrl-C and SIGTERM save the state and end with 75; the same command line goes on from there, bit for bit.
    """
    check_seed(seed)
    teacher = model_path(teacher)
    start, text = _parted(data)
    if start is not None and student.given:
        problem = f"{', '.join(student.given)} cannot change the shape of the student {start}."
        raise UserError(problem, "Leave it out, or leave STUDENT out.", Exit.USAGE)
    if judging.eval is None and judging.speed_tokens:
        check_idle(changed(judging, ("eval", "eval_tokens", "fail_under")), "without --eval TEXT")
    old = _checked_teacher(teacher)
    shape, layers = _shape(old, start, student, distilling)
    _fit_for(old, shape, start or teacher, distilling)
    if layers and "quantization_config" in read_config_json(teacher):
        hint = "Name a STUDENT, or add --start fresh."
        raise UserError(f"{teacher} is quantized: its layers cannot be trained further.", hint, Exit.MISMATCH)
    if distilling.cache is not None and text == "-":
        problem = "--cache keeps answers to a text that can be told from others; stdin cannot."
        raise UserError(problem, "Put the text into a file.", Exit.USAGE)
    config = config.fitted(layers == {}, shape.width)
    inputs = [teacher, *([start] if start else []), text, *([judging.eval] if judging.eval else [])]
    state = 12 * parameters(shape)
    output = Output.plan(
        written.out, invocation(), inputs, written.force, resumable=True, need=2 * state + 4 * parameters(shape)
    )
    from llmctl.console import Console

    console = Console(shown)
    if output.up_to_date and not written.dry_run:
        judging.check(output.metrics.get("ratios", {}))
        console.made(written.out, output.metrics, output.seconds, output.up_to_date)
        return
    tokenizer = _tokenizer(teacher, start, text, min(old.vocab, shape.vocab))
    lesson = None
    if is_tokens(text):
        corpus = read_about(Path(text))["splits"]["train"]["tokens"]
    else:
        from llmctl.core.train.distilled import Lesson

        lesson = Lesson.of(text, tokenizer, shape, old, seed)
        corpus = lesson.train.tokens
    stored = sum(info.bytes for info in read_tensors(teacher).values())

    def planned(dtype: str, memory: int | None) -> DistillPlan:
        numbers = "fp32" if dtype == "fp32" else "bf16"
        held = stored if dtype == "fp32" else min(stored, ELEMENT["bf16"] * parameters(old))
        return DistillPlan.of(shape, old, held, distilling, config, corpus, numbers, memory)

    if written.dry_run:
        facts = planned(compute.dtype, None).facts() | {"path": str(written.out), "up_to_date": output.up_to_date}
        console.report(facts, None if shown.json else console.table(f"{written.out}", ("", ""), _lines(facts)))
        return
    with output as partial:
        from llmctl.core.device import pick
        from llmctl.core.train.distilled import Lesson, Preparing
        from llmctl.judged import judged, show

        place = pick(compute.device, compute.dtype, compute.threads)
        plan = planned(
            "fp32" if str(place.dtype) == "torch.float32" else "bf16",
            None if place.device.type == "cpu" else place.total_memory(),
        )
        console.say(f"{plan}.")
        if fitted(shape).model_type == "llmctl":
            console.warn("no Hugging Face family has this shape; only llmctl opens the checkpoint.")
        lesson = lesson or Lesson.of(text, tokenizer, shape, old, seed)
        preparing = Preparing(lesson, plan, distilling, watching.watch(judging.eval_tokens), seed)
        output.device = str(place.device)
        summary = _train(partial, teacher, start, shape, layers, preparing, config, place, output, console, seed)
        table = _begun(layers)
        figures = judged(teacher, partial, judging, place)
        show(figures, table, console, f"{written.out}")
        output.metrics = figures | summary | {"layers": table}
    console.made(written.out, output.metrics, output.seconds, output.up_to_date)


def _parted(rest: tuple[str, ...]) -> tuple[Path | None, str]:
    """STUDENT, or None, and DATA."""
    if not rest:
        raise UserError("There is no text to learn from.", "Name a text, or a directory of tokens.", Exit.USAGE)
    if len(rest) > 2:
        raise UserError(f"{len(rest)} paths after TEACHER; wanted [STUDENT] DATA.", "Quote names.", Exit.USAGE)
    data = rest[-1]
    if (Path(data) / "config.json").is_file() and not is_tokens(data):
        hint = "Name the text after it: llmctl distill TEACHER STUDENT DATA"
        raise UserError(f"{data} is a checkpoint, not text to learn from.", hint, Exit.USAGE)
    return (Path(rest[0]) if len(rest) == 2 else None), data


def _checked_teacher(path: Path) -> ModelConfig:
    if is_adapter(path):
        raise UserError(f"{path} is an adapter.", f"Merge it first: llmctl lora-merge {path} -o merged", Exit.MISMATCH)
    return read_config(path)


def _shape(
    old: ModelConfig, start: Path | None, student: Student, distilling: DistillConfig
) -> tuple[ModelConfig, dict[str, tuple[int, ...]] | None]:
    """The student's shape, and the teacher's layers that it begins with: {} for none, None where it is a checkpoint."""
    if start is not None:
        return _checked_teacher(start), None
    halved = distilling.preset == "distilbert"
    if not student.given and not halved:
        raise UserError(
            "Nothing says what the student is.",
            "Name one before DATA, or add --layers, --width or --start fresh.",
            Exit.USAGE,
        )
    return student.made(old, halved)


def _fit_for(old: ModelConfig, shape: ModelConfig, name: Path, distilling: DistillConfig) -> None:
    """Whether a teacher can teach a student.

    Raises:
        UserError: it cannot.
    """
    if old.kind != shape.kind:
        problem = f"The teacher is of kind {old.kind}, and the student {name} of kind {shape.kind}."
        raise UserError(problem, "Both read text in the same way: take a student of its kind.", Exit.MISMATCH)
    if not (old.lm_head and shape.lm_head):
        problem = f"{'The teacher' if not old.lm_head else name} has no head that scores tokens."
        raise UserError(problem, "Take a checkpoint that has, such as the one it was fine-tuned from.", Exit.MISMATCH)
    if distilling.text != "data" and old.kind == "encoder":
        raise UserError(f"--text {distilling.text}: an encoder writes no text.", "Leave it out.", Exit.MISMATCH)
    asked = distilling.everywhere and "everywhere" not in PRESETS.get(distilling.preset or "", {})
    if asked and old.kind != "encoder":
        check_idle(["--everywhere"], f"to a model of kind {old.kind}, which has no hidden tokens")
    if distilling.features:
        from llmctl.spec.distill import check_insides

        check_insides(old, shape, distilling)


def _tokenizer(teacher: Path, start: Path | None, data: str, rows: int) -> "Tokenizer":
    """That of the text: of both models, or that of a directory of tokens if it is one of theirs."""
    from llmctl.core.text.tokenizer import Tokenizer

    own = Tokenizer.open(teacher)
    if start is None:
        return own
    from llmctl.core.train.distilled import shared_tokenizer

    other = Tokenizer.open(start)
    shared = shared_tokenizer(own, other, rows)
    if is_tokens(data):
        about = read_about(Path(data))
        known = (one for one in (own, other) if one.sha256 == about["tokenizer_sha256"] and one.size <= rows)
        return next(known, shared)
    return shared


def _train(
    partial: Path,
    teacher: Path,
    start: Path | None,
    shape: ModelConfig,
    layers: dict[str, tuple[int, ...]] | None,
    preparing: "Preparing",
    config: StudentTraining,
    place: "Place",
    output: Output,
    console: "Console",
    seed: int,
) -> dict[str, float]:
    """Everything from the teacher's answers to the last step; returns the summary."""
    import torch

    from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
    from llmctl.core.train.cached import Cache
    from llmctl.core.train.distilled import WRITTEN, fill, first_student, prepare, write_all
    from llmctl.core.train.track import TensorBoard
    from llmctl.core.train.writing import Written as Writings
    from llmctl.follow import follow

    distilling, checkpoint = preparing.config, Checkpoint.open(teacher)
    held = place.dtype if place.dtype != torch.float32 else None
    model = cache = writings = None
    if distilling.cache is not None:
        digests = {given.path: given.sha256 for given in output.inputs}
        key = {
            "teacher": digests[str(teacher)],
            "text": digests[str(preparing.lesson.path)],
            "tokenizer": preparing.lesson.tokenizer.sha256,
            "block": preparing.plan.train.block,
            "temperature": distilling.temperature,
            "dtype": str(place.dtype).removeprefix("torch."),
            "seed": seed,
        }
        cache = Cache(Path(distilling.cache), key, distilling.top_k, min(checkpoint.config.vocab, shape.vocab))
    if distilling.text == "teacher":
        writings = Writings(partial / WRITTEN)
    if cache is None or preparing.lacks(cache):
        model = checkpoint.model(place.device, held).requires_grad_(False)
    if cache is not None and model is not None:
        _show(fill(preparing, cache, model, place), preparing.rows, "rows", "answers", console)
        model = None
    if writings is not None and len(writings.rows) < preparing.rows:
        _show(write_all(preparing, writings, model, place, seed), preparing.rows, "rows", "writing", console)
    if not (distilling.soft or distilling.features):
        model = None
    student = first_student(start or teacher, shape, layers, place, seed)
    of = Checkpoint.open(start or teacher)
    stored = _stored(of)

    def write_to(to: Path) -> None:
        save_checkpoint(to, student, shape, stored, tokenizer_from=of.path, generation=of.generation or None)

    run: Run = prepare(partial, model, student, preparing, config, place, write_to, seed, cache, writings)
    if preparing.watch.tensorboard:
        run.sinks.append(TensorBoard(partial / "tensorboard"))
    return follow(run, console)


def _show(done: Any, total: int, unit: str, label: str, console: "Console") -> None:
    """Follow what is made before the first step.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came; what is made stays made.
    """
    from llmctl.signals import Stop

    with Stop() as stop, console.progress(total, unit, label) as progress:
        for rows in done:
            progress.update(rows)
            if stop.asked:
                raise Interrupted(f"Interrupted after {rows} of {total} {unit}; the same command goes on there.")


def _stored(checkpoint: Any) -> Any:
    """The dtype of a checkpoint's floats."""
    return checkpoint.model().embed.tokens.weight.dtype


def _begun(layers: dict[str, tuple[int, ...]] | None) -> list[dict[str, Any]]:
    """Which layers the student began with."""
    return [
        {"stack": stack, "layer": number, "began_as": f"teacher's layer {old}"}
        for stack, taken in (layers or {}).items()
        for number, old in enumerate(taken)
    ]


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The plan for people."""
    lines = [(name.replace("_", " "), f"{value:,}") for name, value in facts.items() if isinstance(value, int)]
    lines += [("epochs", f"{facts['epochs']:.2f}"), ("FLOP", f"{facts['flops']:.2e}")]
    return lines + [(f"memory: {name.replace('_', ' ')}", gib(size)) for name, size in facts["bytes"].items() if size]
