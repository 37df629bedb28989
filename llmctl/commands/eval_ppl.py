"""eval-ppl: how surprised models are by texts."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmctl import __version__
from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, expand, model_path
from llmctl.spec.data import Errors, Format, Reading
from llmctl.spec.limits import check_limits, no_level, parse_limits
from llmctl.spec.scoring import Scoring, Undone
from llmctl.spec.tasks import suited

if TYPE_CHECKING:
    from llmctl.console import Console
    from llmctl.core.metrics.perplexity import Measured, Perplexity
    from llmctl.core.metrics.survey import Place, Survey

COLUMNS = ("perplexity", "bits_per_byte", "bits_per_token", "tokens", "documents")


@expand
def eval_ppl(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    texts: Annotated[
        tuple[str, ...],
        typer.Argument(help="Text, JSON lines, CSV or parquet; a directory of tokens; - for stdin; hf:NAME."),
    ],
    compute: Compute,
    shown: Shown,
    scoring: Scoring,
    against: Annotated[tuple[Path, ...], "A further checkpoint to score the same texts with; repeatable."] = (),
    by: Annotated[str | None, "Also a row for each value of this field of the records, their domain."] = None,
    undo: Annotated[Undone | None, "Encoder-decoders: the noise to undo; default: span with sentinels."] = None,
    ci: Annotated[float | None, "Also the interval that holds this share of bootstrap resamples of documents."] = None,
    resamples: Annotated[int, "Bootstrap resamples."] = 1000,
    seed: Annotated[int, "Of noise and resamples."] = 0,
    split: Annotated[Literal["heldout", "train"], "Split of a directory of tokens."] = "heldout",
    field: Annotated[str, "Field or column that holds the text, in JSON lines, CSV and parquet."] = "text",
    format: Annotated[Format, "Format of the files; auto looks at name and content."] = "auto",
    documents: Annotated[Literal["file", "line"], "Plain text: a document each file, or each line."] = "file",
    errors: Annotated[Errors, "Bytes that are not UTF-8: stop there, or put U+FFFD in their place."] = "strict",
    limit: Annotated[int | None, "Score no more than so many documents of each text."] = None,
    samples: Annotated[Path | None, "Also write each document's figures, a JSON line each, to this file."] = None,
    force: Annotated[bool, "Replace the file of --samples that is there."] = False,
    fail_over: Annotated[
        tuple[str, ...], "End with exit code 6 if a figure is above a number: bits_per_byte=1.2; repeatable."
    ] = (),
) -> None:
    """Report the perplexity of models on texts.

    Each document is scored on its own, in overlapping windows: every token once, after at least window - stride
    tokens where there are so many. A document begins after the beginning-of-text token, or if there is none, the
    end-of-text token. Bits per byte and perplexity by word compare models of different tokenizers.

    An encoder gives pseudo-perplexity: each token is masked by itself, and foretold from both sides. An
    encoder-decoder undoes the noise of its training (T5's spans, or BART's), which is the same in every run; that is
    no likelihood of the text, and there are no bits per byte.

    Several texts give a row each, and the sums of all; several models (--against) give them all for each. The
    arithmetic is in the checkpoint's own dtype unless --dtype says otherwise.
    """
    over = parse_limits("--fail-over", fail_over, "perplexity", (*COLUMNS[:3], "nll_per_token", "word_perplexity"))
    wrong = {
        "--samples is of one model; name them one at a time": samples is not None and bool(against),
        "- is read once, but there are several models": "-" in texts and bool(against),
        "- stands for stdin, which is read once": texts.count("-") > 1,
        **no_level(ci),
        f"--resamples is {resamples}, wanted 2 to 100000": not 2 <= resamples <= 100_000,
        f"--seed is {seed}, wanted 0 or more": seed < 0,
    }
    if any(wrong.values()):
        raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)
    reading = Reading(field=field, format=format, documents=documents, errors=errors, limit=limit)
    paths = [model_path(one) for one in (model, *against)]
    from llmctl.spec.families import read_config
    from llmctl.spec.peft import within

    kinds = set()
    for path in paths:
        config = within(path, read_config(path))
        suited("eval-ppl", config, path)
        scoring.sizes(config)
        kinds.add(config.kind)
    if undo is not None and kinds != {"encoder-decoder"}:
        raise UserError(f"--undo {undo} is for encoder-decoders.", "Leave it out.", Exit.USAGE)

    from llmctl.console import Console
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.device import DTYPES, pick
    from llmctl.core.metrics.methods import framing_for, method_for
    from llmctl.core.metrics.passages import passages
    from llmctl.core.metrics.perplexity import Perplexity
    from llmctl.core.metrics.survey import Survey, survey
    from llmctl.spec.files import write_file

    console, place = Console(shown), pick(compute.device, compute.dtype, compute.threads)

    def scored_by(path: Path, file: IO[bytes] | None) -> dict[str, Any]:
        """The report of one model, which is let go of before the next."""
        checkpoint = Checkpoint.open(path)
        tokenizer = checkpoint.tokenizer()
        loaded = checkpoint.model(place.device, DTYPES.get(compute.dtype))
        framing = framing_for(tokenizer, loaded.config, scoring)
        method = method_for(loaded, tokenizer, scoring, undo, seed)
        found = [passages(text, reading, split, framing) for text in texts]
        result = Survey([Perplexity() for _ in texts], resamples=0 if ci is None else resamples, seed=seed)
        began = time.perf_counter()
        with console.progress(None, "tokens", "scoring") as progress:
            progress.update(0)
            for step, done in survey(method, found, result, by, scoring.batch_tokens):
                progress.update(step.tokens, perplexity=Perplexity(step.nll, step.tokens).perplexity)
                if file is not None:
                    file.writelines(_samples(done, texts, method.whole))
        seconds = time.perf_counter() - began
        if not result.total.tokens:
            raise UserError("There is no text to score.", "The input is empty, or its documents have one token each.")
        begin = {"start": "none" if framing.start is None else framing.start, "end": "unscored"}
        signature = {
            "tokenizer": tokenizer.sha256[:12],
            "documents": result.total.documents,
            **method.signature,
            **(begin if loaded.config.kind == "decoder" else {}),
            **({} if ci is None else {"bs": resamples, "draws": seed}),
            "dtype": str(next(loaded.parameters()).dtype).removeprefix("torch."),
            "version": f"llmctl-{__version__}",
        }
        intervals = {} if ci is None else {"intervals": result.intervals(ci, method.whole)}
        return _report(path, texts, result, method.whole, signature, seconds) | intervals

    with ExitStack() as stack:
        file = None if samples is None else stack.enter_context(write_file(samples, force))
        reports = [scored_by(path, file) for path in paths]
    report = reports[0] | ({"models": reports} if len(reports) > 1 else {})
    console.report(report, None if shown.json else _table(console, paths, texts, reports))
    check_limits({name: report[name] for name in over if report[name] is not None}, over=over)


def _report(
    path: Path, texts: tuple[str, ...], result: "Survey", whole: bool, signature: dict[str, object], seconds: float
) -> dict[str, Any]:
    """What is said of one model."""
    report = {"model": str(path)} | _figures(result.total, whole)
    if len(texts) > 1:
        report["texts"] = [{"text": text} | _figures(one, whole) for text, one in zip(texts, result.texts, strict=True)]
    if result.domains:
        report["domains"] = {name: _figures(one, whole) for name, one in result.domains.items()}
    signed = "|".join(f"{name}:{value}" for name, value in signature.items())
    return report | {"seconds": seconds, "signature": signed}


def _figures(sum_: "Perplexity", whole: bool) -> dict[str, Any]:
    """The figures of a sum; None for those that would mean nothing."""
    return sum_.figures(whole) | ({} if whole else {"bits_per_byte": None})


def _samples(done: "list[tuple[Place, Measured]]", texts: tuple[str, ...], whole: bool) -> Iterator[bytes]:
    """A JSON line for each document that had a token to score."""
    import json

    for place, one in done:
        if one.sum.tokens:
            scores = {"nll": one.sum.nll} | one.sum.figures(whole)
            scores = {name: value for name, value in scores.items() if name != "documents" and isfinite(value)}
            record = {"doc_id": one.number, "text": texts[place.text], "source": one.passage.source}
            domain = {} if place.domain is None else {"domain": place.domain}
            line = json.dumps(record | domain | {"scores": scores}, ensure_ascii=False)
            yield line.encode("utf-8", "backslashreplace") + b"\n"


def _table(console: "Console", paths: list[Path], texts: tuple[str, ...], reports: list[dict[str, Any]]) -> object:
    """A row for each model, text and domain; of one model and one text, a row for each figure."""
    if len(reports) == 1 and "texts" not in reports[0] and "domains" not in reports[0]:
        intervals = reports[0].get("intervals", {})
        rows = [
            (name.replace("_", " "), value, *intervals.get(name, {"low": "", "high": ""}).values())[
                : 4 if intervals else 2
            ]
            for name, value in reports[0].items()
            if value is not None and name != "intervals"
        ]
        if intervals:
            return console.table("", ("", "", "low", "high"), rows)
        return console.table("", ("", ""), rows)
    rows = []
    for path, report in zip(paths, reports, strict=True):
        parts = [(one["text"], one) for one in report.get("texts", [])] + list(report.get("domains", {}).items())
        for name, figures in [*parts, ("all" if parts else texts[0], report)]:
            rows.append((*((path,) if len(reports) > 1 else ()), name, *(figures[column] for column in COLUMNS)))
    heads = (*(("model",) if len(reports) > 1 else ()), "text", *(column.replace("_", " ") for column in COLUMNS))
    return console.table("" if len(reports) > 1 else str(paths[0]), heads, rows)
