"""merge: whole checkpoints of one shape into one."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llmctl.flags import Shown, Written, expand, invocation, model_path
from llmctl.spec.combine import CombineConfig, CombinePlan
from llmctl.spec.layout import Output
from llmctl.spec.memory import gib

Stored = Literal["auto", "fp32", "bf16", "fp16"]


@expand
def merge(
    models: Annotated[
        list[Path],
        typer.Argument(help="Checkpoint directories of one shape; - for a path on stdin.", metavar="MODEL"),
    ],
    written: Written,
    how: CombineConfig,
    shown: Shown,
    base: Annotated[
        Path | None, typer.Option(help="Checkpoint that the models were trained from; linear and slerp need none.")
    ] = None,
    dtype: Annotated[Stored, "Type of the merged weights; auto: each as the first model has it."] = "auto",
    threads: Annotated[
        int,
        typer.Option(
            min=0, help="CPU threads; 0: one for each core. Memory and disk are the limit: more than one seldom helps."
        ),
    ] = 1,
) -> None:
    """Merge checkpoints that were trained from the same one, without training.

    Config, tokenizer and chat template are the first model's. Names, shards and prefixes of the files may differ;
    shapes may not. Sums are in fp32 or better, cast once; one tensor of each model is in memory at a time.
    """
    models = [model_path(path) for path in models]
    base = None if base is None else model_path(base)
    plan = CombinePlan.of(models, base, how, None if dtype == "auto" else dtype)
    invocation().options["models"] = [str(path) for path in models]
    output = Output.plan(written.out, invocation(), plan.places, written.force, need=plan.bytes)
    from llmctl.console import Console

    console = Console(shown)
    if not output.up_to_date:
        for note in plan.notes:
            console.warn(note)
    if written.dry_run:
        facts = plan.facts() | {"method": how.method, "path": str(written.out), "up_to_date": output.up_to_date}
        rows = [(name.replace("_", " "), gib(value) if "bytes" in name else value) for name, value in facts.items()]
        console.report(facts, None if shown.json else console.table(str(written.out), ("", ""), rows))
        return
    if not output.up_to_date:
        with output as partial:
            from llmctl.core.adapt.combine import combine
            from llmctl.core.checkpoint.carry import carry
            from llmctl.core.checkpoint.stream import threaded

            with threaded(threads), console.progress(plan.bytes, "bytes", "merge") as progress:
                combine(plan, partial, progress.update)
            carry(partial, plan.json, plan.places)
            output.device, output.metrics = "cpu", plan.facts()
    console.made(written.out, output.metrics, output.seconds, output.up_to_date)
