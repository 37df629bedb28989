"""eval-rouge: how much of their references' words texts have, and the reverse."""

import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl import __version__
from llmctl.flags import Shown, expand
from llmctl.spec.limits import check_limits, parse_limits
from llmctl.spec.pairs import Pairing, check_inputs
from llmctl.spec.rouge import Intervals, RougeConfig


@expand
def eval_rouge(
    predictions: Annotated[str, typer.Argument(help="Texts to score, a line or a JSON record each; - for stdin.")],
    pairing: Pairing,
    config: RougeConfig,
    intervals: Intervals,
    shown: Shown,
    references: Annotated[
        tuple[str, ...],
        typer.Argument(help="Files of references, one for each text; none: the records of PREDICTIONS hold them."),
    ] = (),
    samples: Annotated[Path | None, "Also write each pair with its scores, a JSON line each, to this file."] = None,
    force: Annotated[bool, "Replace the file of --samples that is there."] = False,
    fail_under: Annotated[
        tuple[str, ...],
        "End with exit code 6 if the mean F1 of the first kind is under a number (0 to 1), or a figure that is named: "
        "rougeL=0.3, rouge2.recall=0.1; repeatable.",
    ] = (),
) -> None:
    """Report ROUGE of texts against their references, as rouge_score computes it.

    Means of precision, recall and F1, 0 to 1, over all pairs. Two or more text files, a text a line, or JSON lines
    that hold both: llmctl generate MODEL test.jsonl | llmctl eval-rouge -. Of several references that of the best F1
    counts. A text a line has no line breaks for rougeLsum: JSON lines may, or say --sentences split. For scripts
    other than Latin say --words unicode.
    """
    limits = parse_limits("--fail-under", fail_under, config.kinds[0], config.figures)
    check_inputs(predictions, references)
    from llmctl.console import Console
    from llmctl.core.data.pairs import read_pairs
    from llmctl.core.metrics.rouge.pairs import Means
    from llmctl.core.metrics.rouge.score import Rouge
    from llmctl.spec.files import write_file

    console, began = Console(shown), time.perf_counter()
    rouge = Rouge(config.kinds, config.stem, config.words, config.sentences, config.weight, config.line_break)
    means = Means(rouge, 0 if intervals.ci is None else intervals.resamples, intervals.seed)
    with ExitStack() as stack:
        file = None if samples is None else stack.enter_context(write_file(samples, force))
        pairs = stack.enter_context(closing(read_pairs(predictions, references, pairing)))
        progress = stack.enter_context(console.progress(None, "pairs", "scoring"))
        progress.update(0)
        for pair, scores in means.score(pairs):
            if file is not None:
                file.write(_sample(pair, scores))
            progress.update(pair.number + 1)
    if means.wordless:
        console.warn(
            f"{means.wordless:,} pairs score 0 as their reference has no letter of a-z and no digit: --words unicode "
            "knows all scripts."
        )
    found: dict[str, Any] = means.means(intervals.ci)
    numbers = means.references
    signature = [
        f"nrefs:{min(numbers) if len(numbers) == 1 else 'var'}",
        *config.signature,
        *intervals.signature,
        f"version:llmctl-{__version__}",
    ]
    report = {**found, "pairs": means.pairs, "signature": "|".join(signature), "seconds": time.perf_counter() - began}
    report |= {} if intervals.ci is None else {"level": intervals.ci}
    columns = ("", "precision", "recall", "F1", *(() if intervals.ci is None else ("low", "high")))
    rows = [(kind, *(f"{value:.4f}" for value in scores.values())) for kind, scores in found.items()]
    title = f"{predictions}, {means.pairs:,} pairs\n{report['signature']}"
    console.report(report, None if shown.json else console.table(title, columns, rows))
    figures = {kind: scores["f1"] for kind, scores in found.items()}
    figures |= {f"{kind}.{part}": scores[part] for kind, scores in found.items() for part in ("precision", "recall")}
    check_limits(figures, under=limits)


def _sample(pair: Any, scores: dict[str, Any]) -> bytes:
    """A pair with its scores, as one line of JSON."""
    import orjson

    told = {"doc_id": pair.number, "prediction": pair.prediction, "references": pair.references}
    told |= {"scores": {kind: score.f1 for kind, score in scores.items()}}
    return orjson.dumps({**told, **{kind: score._asdict() for kind, score in scores.items()}}) + b"\n"
