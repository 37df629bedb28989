"""lora-merge: adapters into the weights of their base."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Shown, Written, expand, invocation, model_path
from llmctl.spec.contents import manifest_of
from llmctl.spec.edits import Given
from llmctl.spec.layout import Output
from llmctl.spec.manifest import Input, recorded
from llmctl.spec.memory import gib
from llmctl.spec.merge_plan import MergePlan, Precision
from llmctl.spec.peft import base_of

SPARSE = 0.1  # share of zeros from which a base is said to be sparse
Stored = Literal["auto", "fp32", "bf16", "fp16"]


@expand
def lora_merge(
    adapter: Annotated[
        list[str],
        typer.Argument(
            help="Adapter directories; A:0.5 makes half the change that A makes; - for a path on stdin.",
            metavar="ADAPTER",
        ),
    ],
    written: Written,
    shown: Shown,
    base: Annotated[
        Path | None, typer.Option(help="Checkpoint to merge into; default: the one that the adapters name.")
    ] = None,
    dtype: Annotated[Stored, "Type of the merged weights; auto: each as the base has it."] = "auto",
    base_precision: Annotated[
        Precision,
        "stored: weights of the base count as its files have them; nf4, nf4-dq: matrices of the layers as they are in "
        "4 bits (scales quantized, too), beside which QLoRA trains.",
    ] = "stored",
    check: Annotated[
        bool, "Compare the logits of base and adapter with those of the merged model; needs memory for both."
    ] = False,
    threads: Annotated[
        int,
        typer.Option(
            min=0, help="CPU threads; 0: one for each core. Memory and disk are the limit: more than one seldom helps."
        ),
    ] = 1,
) -> None:
    """Merge adapters into their base: a checkpoint that needs no adapter.

    LoRA, rsLoRA, DoRA and IA3 adapters, llmctl's or PEFT's, with biases, embeddings and heads that were trained beside
    them. Several add up: W + sum of weight (f(W) - W), f being what an adapter makes of a weight W; so do DoRA's.
    Sums are in fp32, cast once. One tensor is in memory at a time, whatever the model.

    The base must be the one that the adapter was trained on, as its llmctl.json has its digest (else exit code 4); one
    that --base names may be another of the same shape, with a warning. Weights must be plain floats: merge into the
    checkpoint that a quantized one was made from, with --base-precision as the adapter knew it.
    """
    given = _given(adapter)
    if check and (len(given) > 1 or given[0].weight != 1):
        raise UserError(
            "--check compares with one adapter as it is, not with several or a weighted one.",
            "Leave --check out, or merge one adapter without a weight.",
            Exit.USAGE,
        )
    bases = {path.resolve(): path for path in (base_of(one.path, base) for one in given)}
    if len(bases) > 1:
        raise UserError(
            f"The adapters name different bases: {', '.join(map(str, bases.values()))}.",
            "Say which to merge into: --base MODEL.",
            Exit.MISMATCH,
        )
    place = next(iter(bases.values()))
    plan = MergePlan.of(place, given, None if dtype == "auto" else dtype, base_precision)
    invocation().options.update(base=str(place), adapter=[str(one.path) for one in given])
    invocation().options["weights"] = [one.weight for one in given]
    inputs = [place, *(one.path for one in given)]
    output = Output.plan(written.out, invocation(), inputs, written.force, need=plan.bytes)
    from llmctl.console import Console

    console = Console(shown)
    if not output.up_to_date:
        _check_identity(output.inputs[0], given, explicit=base is not None, warn=console.warn)
        for note in (*plan.notes, *_unlike(given, base_precision)):
            console.warn(note)
    if written.dry_run:
        facts = plan.facts() | {"base": str(place), "path": str(written.out), "up_to_date": output.up_to_date}
        rows = [(name.replace("_", " "), gib(value) if "bytes" in name else value) for name, value in facts.items()]
        console.report(facts, None if shown.json else console.table(str(written.out), ("", ""), rows))
        return
    if not output.up_to_date:
        with output as partial:
            from llmctl.core.adapt.merge import merge
            from llmctl.core.checkpoint.carry import carry
            from llmctl.core.checkpoint.stream import threaded

            with threaded(threads), console.progress(plan.bytes, "bytes", "merge") as progress:
                seen = merge(plan, partial, progress.update)
            carry(partial, plan.json, [*(one.path for one in given), place])
            output.device, output.metrics = "cpu", plan.facts() | asdict(seen)
            _say(output.metrics, console)
            if check:
                output.metrics["check"] = _compared(plan, partial, console)
    elif check:
        output.metrics["check"] = _compared(plan, written.out, console)
    console.made(written.out, output.metrics, output.seconds, output.up_to_date)


def _given(adapters: list[str]) -> list[Given]:
    """The adapters as typed; a path from stdin in place of -."""
    given = [Given.parse(text) for text in adapters]
    if sum(str(one.path) == "-" for one in given) > 1:
        raise UserError("stdin can be read once, but - is named more than once.", code=Exit.USAGE)
    return [replace(one, path=model_path(one.path)) for one in given]


def _check_identity(found: Input, given: list[Given], explicit: bool, warn: Callable[[str], None]) -> None:
    """Whether the base is what each adapter was trained on, as far as its llmctl.json tells."""
    for one in given:
        inputs = recorded(manifest_of(one.path)[0] or {})
        if not inputs or inputs[0].sha256 is None or found.sha256 in [known.sha256 for known in inputs]:
            continue
        problem = f"{one.path} was trained on a checkpoint whose files are not those of {found.path}"
        if not explicit:
            raise UserError(
                f"{problem} (sha256 {inputs[0].sha256[:12]}, not {str(found.sha256)[:12]}).",
                f"It may have been made anew since. To merge into it all the same: --base {found.path}",
                Exit.MISMATCH,
            )
        warn(f"{problem}.")


def _unlike(given: list[Given], precision: Precision) -> list[str]:
    """Which adapters were trained beside weights that were held in another precision, in words."""
    notes = []
    for one in given:
        options = (manifest_of(one.path)[0] or {}).get("options") or {}
        method, held = options.get("method"), options.get("base_dtype")
        packed = held == "nf4" or (method == "qlora" and held in ("auto", None))
        wanted = ("nf4" if options.get("double_quant") is False else "nf4-dq") if packed else "stored"
        if method is not None and wanted != precision:
            notes.append(
                f"{one.path} was trained beside weights that were {'held in 4 bits' if packed else 'not packed'}; "
                f"--base-precision {wanted} merges into the same."
            )
    return notes


def _say(metrics: dict[str, Any], console: Any) -> None:
    """What was done, in a line; and whether a sparse base has become dense."""
    elements = max(1, metrics["elements"])
    before, after = metrics["zeros_before"] / elements, metrics["zeros_after"] / elements
    if before >= SPARSE and after < 0.9 * before:
        console.warn(
            f"the base is sparse and the merged model is not: of the merged weights {before:.1%} were zero, "
            f"{after:.1%} are. Prune it again, or use the adapter beside its base."
        )
    extra = "".join(f", {metrics[key]} {key}" for key in ("added", "dropped") if metrics[key])
    console.say(
        f"{metrics['merged']} of {metrics['tensors']} tensors merged{extra}; no weight changed by more than "
        f"{metrics['largest']:.3g}."
    )


def _compared(plan: MergePlan, merged: Path, console: Any) -> dict[str, float]:
    """How the scores of base and adapter compare with those of the merged model.

    Raises:
        UserError: they differ by more than rounding explains.
    """
    from llmctl.core.adapt.compare import compare

    found = compare(plan, merged)
    told = "; ".join(
        f"{name} difference {found[f'{name}_difference']:.3g}, where rounding explains {found[f'{name}_allowed']:.3g}"
        for name in ("max", "mean")
    )
    if not all(found[f"{name}_difference"] <= found[f"{name}_allowed"] for name in ("max", "mean")):  # NaN is neither
        raise UserError(
            f"--check: the merged model is not base and adapter. Logits: {told}.",
            "Check that the files were not changed meanwhile; else report this.",
        )
    console.say(f"check: logits up to {found['largest_logit']:.3g}; {told}.")
    return found
