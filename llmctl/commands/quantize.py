"""quantize: a checkpoint with its weights in few bits, or in another type."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, Written, expand, invocation, model_path
from llmctl.spec.calibration import Calibration, Rounding
from llmctl.spec.idle import changed, check_idle
from llmctl.spec.judging import Judging
from llmctl.spec.layout import Output
from llmctl.spec.memory import gib
from llmctl.spec.qat import Tuning
from llmctl.spec.quant import QuantConfig
from llmctl.spec.quant_plan import QuantPlan
from llmctl.spec.train import check_seed

if TYPE_CHECKING:
    from llmctl.console import Console
    from llmctl.core.device import Place


@expand
def quantize(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    written: Written,
    quant: QuantConfig,
    seen: Calibration,
    rounding: Rounding,
    tuning: Tuning,
    judging: Judging,
    compute: Compute,
    shown: Shown,
    data: Annotated[
        str | None, typer.Argument(help="Text that --method qat trains on, or a directory of tokens.", metavar="DATA")
    ] = None,
    seed: Annotated[int, "Of the order of DATA."] = 0,
) -> None:
    """Store the matrices of a checkpoint in few bits, or all of it in another type.

    rtn and hqq look at nothing but the weights, one matrix in memory at a time; gptq, awq and smoothquant also at what
    they are multiplied with, on --calibration; qat trains on DATA, and is interrupted and resumed as finetune is.
    OUT opens here and in transformers; embeddings, norms, biases and the head stay as they are.
    """
    check_seed(seed)
    source = model_path(model)
    _check_texts(quant, seen, data)
    _check_idle(quant, seen, rounding, tuning, judging, seed)
    plan = QuantPlan.of(source, quant)
    texts = [text for text in (data, seen.calibration, judging.eval) if text is not None]
    inputs, trains = [source, *texts], quant.method == "qat"
    need = plan.bytes + 24 * trains * plan.facts()["parameters"]  # and a state and the one before, with two moments
    output = Output.plan(written.out, invocation(), inputs, written.force, resumable=trains, need=need)
    from llmctl.console import Console

    console = Console(shown)
    if written.dry_run:
        facts = plan.facts() | {"path": str(written.out), "up_to_date": output.up_to_date}
        facts["layers"] = [one.record(None) for one in plan.matrices.values()]
        _warn(plan, console)
        console.report(facts, None if shown.json else console.table(f"{written.out}", ("", ""), _lines(facts)))
        return
    if output.up_to_date:
        judging.check(output.metrics.get("ratios", {}))
    else:
        _warn(plan, console)
        with ThreadPoolExecutor(1) as beside:  # digests are made while torch loads
            digests = beside.submit(lambda: output.inputs)
            from llmctl.core.device import pick
            from llmctl.judged import judged, show

            digests.result()
        with output as partial:
            place = pick(compute.device, compute.dtype, compute.threads)
            output.device = str(place.device)
            more, layers = _made(plan, partial, seen, rounding, tuning, data, compute, seed, place, console)
            figures = judged(source, partial, judging, place)
            output.metrics = {**plan.facts(), **more, **figures, "layers": layers}
            show(figures, [_row(one) for one in layers], console, f"{quant.scheme} by {quant.method}")
            console.show(console.table("bytes by group", ("", "before", "after", "bits/weight"), _groups(plan)))
    console.made(written.out, output.metrics, output.seconds, output.up_to_date)


def _check_texts(quant: QuantConfig, seen: Calibration, data: str | None) -> None:
    """Whether the method has the text that it needs, and no other.

    Raises:
        UserError: it has not.
    """
    cast = quant.grid is None
    if quant.calibrated and not cast and seen.calibration is None:
        raise UserError(
            f"--method {quant.method} looks at what matrices are multiplied with.",
            "Pass --calibration TEXT, or use --method rtn or hqq, which need none.",
            Exit.USAGE,
        )
    if seen.calibration is not None and not quant.calibrated:
        raise UserError(
            f"--method {quant.method} looks at no text, so --calibration says nothing.", "Leave it out.", Exit.USAGE
        )
    if quant.method == "qat" and data is None:
        raise UserError("--method qat trains on text.", "llmctl quantize MODEL DATA --method qat ...", Exit.USAGE)
    if data is not None and quant.method != "qat":
        raise UserError(
            f"--method {quant.method} trains on nothing, so {data} says nothing.",
            "Text to look at is --calibration TEXT, text to measure on --eval TEXT.",
            Exit.USAGE,
        )


def _check_idle(
    quant: QuantConfig, seen: Calibration, rounding: Rounding, tuning: Tuning, judging: Judging, seed: int
) -> None:
    """Whether something looks at every option that was given.

    Raises:
        UserError: nothing does.
    """
    flags = [] if quant.method == "qat" else [*changed(tuning), *(["--seed"] if seed else [])]
    if not quant.calibrated:
        flags += changed(seen, ("calibration",))
    check_idle([*flags, *changed(rounding, rounding.used(quant.method))], f"beside --method {quant.method}")
    if judging.eval is None:
        silent = ("eval", "fail_under", *(("speed_tokens",) if not judging.speed_tokens else ()))
        check_idle(changed(judging, silent), "without --eval TEXT")


def _made(
    plan: QuantPlan,
    partial: Path,
    seen: Calibration,
    rounding: Rounding,
    tuning: Tuning,
    data: str | None,
    compute: Compute,
    seed: int,
    place: "Place",
    console: "Console",
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write the checkpoint; returns what there is to say of training, and a record of each matrix."""
    from llmctl.core.compress.quant import run

    total = sum(part["bytes_before"] for part in plan.groups.values())
    if plan.cast:
        with console.progress(total, "bytes", "cast") as progress:
            run.cast(plan, partial, progress.update)
        return {}, []
    if plan.quant.method == "qat":
        from llmctl.core.compress.quant.qat import records, tuned
        from llmctl.follow import follow

        going = tuned(partial, plan, data, tuning, place, seed)
        return follow(going, console), records(going.model, plan)
    if plan.quant.calibrated:
        with console.progress(len(plan.matrices), "matrices", plan.quant.method) as progress:
            dtype = place.dtype if compute.dtype == "fp32" else None
            return {}, run.with_data(plan, partial, seen, rounding, place.device, dtype, progress.update)
    total, start = sum(one.before for one in plan.matrices.values()), time.monotonic()
    with console.progress(total, "bytes", plan.quant.method) as progress:
        threads = run.workers(compute.threads, place.device)
        layers = run.stream(plan, partial, threads, place.device, progress.update)
    read = sum(part["bytes_before"] for part in plan.groups.values())
    return {"bytes_per_second": round(read / (time.monotonic() - start))}, layers


def _warn(plan: QuantPlan, console: "Console") -> None:
    for note in plan.notes:
        console.warn(note)


def _lines(facts: dict[str, Any]) -> list[tuple[str, object]]:
    """The plan for people."""
    lines = [
        (name.replace("_", " "), gib(value) if "bytes" in name else value)
        for name, value in facts.items()
        if not isinstance(value, (dict, list))
    ]
    return lines + [
        (f"bytes of {name}", f"{gib(part['bytes_before'])} to {gib(part['bytes'])}")
        for name, part in facts["groups"].items()
    ]


def _row(record: dict[str, Any]) -> dict[str, object]:
    """A matrix in the table for people, which fits a terminal."""
    names = {"name": "matrix", "bits_per_weight": "bits", "relative_error": "error"}
    return {
        **{text: record[name] for name, text in names.items()},
        "before": record["bytes_before"],
        "after": record["bytes"],
    }


def _groups(plan: QuantPlan) -> list[tuple[object, ...]]:
    facts = plan.facts()
    parts = {**facts["groups"], "total": facts}
    return [(name, part["bytes_before"], part["bytes"], part["bits_per_weight"]) for name, part in parts.items()]
