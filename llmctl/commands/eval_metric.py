"""eval-metric: any metric of the `evaluate` library, from a file."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from llmctl.errors import UserError
from llmctl.flags import Shown, expand
from llmctl.spec.files import write_file
from llmctl.spec.foreign import Foreign
from llmctl.spec.limits import check_limits, parse_limits
from llmctl.spec.pairs import Pairing, check_inputs


@expand
def eval_metric(
    metric: Annotated[
        str,
        typer.Argument(
            help="Path of a metric's module (its code runs), or a name of ours: bleu, chrf, exact_match, perplexity, "
            "rouge, ter, token_f1; hf:NAME fetches one from the hub."
        ),
    ],
    predictions: Annotated[str, typer.Argument(help="What was said, a line or a JSON record each; - for stdin.")],
    pairing: Pairing,
    foreign: Foreign,
    shown: Shown,
    references: Annotated[
        tuple[str, ...],
        typer.Argument(help="Files of references, one for each line; none: the records of PREDICTIONS hold them."),
    ] = (),
    samples: Annotated[
        Path | None, "Also write what the metric says of each example, where it does, a JSON line each, to this file."
    ] = None,
    force: Annotated[bool, "Replace the file of --samples that is there."] = False,
    fail_under: Annotated[
        tuple[str, ...],
        "End with exit code 6 if a figure is under a number: f1=0.8; a number alone is about the first; repeatable.",
    ] = (),
    fail_over: Annotated[tuple[str, ...], "The same, above a number, for figures where less is better."] = (),
) -> None:
    """Report what a metric of the evaluate library says of predictions and references.

    Texts are read line by line, or from JSON lines, and made what the metric takes: texts, numbers, lists of words
    (a line of tags is split at spaces), several references. Nothing is fetched unless the name begins with hf:.
    """
    under, over = parse_limits("--fail-under", fail_under, ""), parse_limits("--fail-over", fail_over, "")
    from contextlib import ExitStack, redirect_stdout

    from llmctl.console import Console
    from llmctl.core.metrics.named import module_of

    module_of(metric)
    check_inputs(predictions, references)

    console = Console(shown)
    with redirect_stdout(sys.stderr):  # a module may print, but stdout is data
        from llmctl.core.metrics.foreign import run

        with console.progress(None, "examples", "reading") as progress:
            found = run(metric, predictions, references, pairing, foreign, progress.update)
    each = found.each if samples is not None else {}
    if samples is not None and not each:
        raise UserError(f"{metric} says nothing of single examples, as --samples wants.", "Leave --samples out.")
    with ExitStack() as stack:
        file = None if samples is None else stack.enter_context(write_file(samples, force))
        if file is not None:
            import orjson

            for number in range(found.count):
                scores = {name: values[number] for name, values in each.items()}
                file.write(orjson.dumps({"doc_id": number, "scores": scores}) + b"\n")
    figures = {name: value for name, value in found.result.items() if name not in each}
    report = {"metric": found.name, **figures, "pairs": found.count, "seconds": found.seconds}
    report.setdefault("signature", found.signature)
    rows = [(name.replace("_", " "), value) for name, value in report.items()]
    console.report(report, None if shown.json else console.table(metric, ("", ""), rows))
    numbers = {name: float(value) for name, value in figures.items() if isinstance(value, (int, float))}
    first = next(iter(numbers), "")
    check_limits(numbers, *({name or first: limit for name, limit in limits.items()} for limits in (under, over)))
