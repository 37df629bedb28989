"""eval-memorization: how much of its training text a model writes out word for word."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl import __version__
from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, expand, model_path
from llmctl.spec.data import Documents, Format, Reading
from llmctl.spec.files import jsonable, write_file
from llmctl.spec.limits import check_limits, parse_limits
from llmctl.spec.model import ModelConfig
from llmctl.spec.safety import Probe
from llmctl.spec.tasks import suited

FIGURES = ("memorized", "matched_tokens", "longest_run")
LEAKS = ("pii", "pii_recalled")


@expand
def eval_memorization(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    texts: Annotated[
        tuple[str, ...],
        typer.Argument(
            help="What it was trained on: a directory of tokens, or text, JSON lines, CSV, parquet; - stdin."
        ),
    ],
    probe: Probe,
    compute: Compute,
    shown: Shown,
    field: Annotated[str, "Field or column that holds the text, in JSON lines, CSV and parquet."] = "text",
    format: Annotated[Format, "Format of the files; auto looks at name and content."] = "auto",
    documents: Annotated[Documents, "Plain text: a document each file, or each line; auto: pieces of it."] = "auto",
    pii: Annotated[bool, "Also look for personal data and secrets in what is written that are not in the prefix."] = (
        False
    ),
    batch_size: Annotated[int, "Continuations that are written at a time."] = 32,
    samples: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write each passage, what was written and its scores, JSONL."),
    ] = None,
    force: Annotated[bool, "Replace the file of --samples that is there."] = False,
    fail_over: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="NAME=NUMBER",
            help="End with exit code 6 if a figure is above this: memorized, matched_tokens, longest_run, excess, pii, "
            "pii_recalled; a number alone is about memorized; repeatable.",
        ),
    ] = (),
) -> None:
    """Ask whether a model writes out the text that it was trained on.

    It reads --prefix tokens of a passage and goes on greedily. memorized is the share of passages where all --suffix
    tokens are the passage's own; matched_tokens how many are before the first that differs, longest_run those of the
    longest run that the passage has anywhere (means over passages). The same of a control text, which it was not
    trained on, says how much of it can be guessed; excess is memorized less that. Figures at the top of the report are
    of the longest prefix.
    """
    names = (*FIGURES, "excess", *(LEAKS if pii else ()))
    over = parse_limits("--fail-over", fail_over, "memorized", names)
    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}, wanted 1 or more.", code=Exit.USAGE)
    for source in (*texts, *probe.control):
        if source != "-" and not source.startswith("hf:") and not Path(source).exists():
            raise UserError(f"{source} does not exist.", "Check the path; - reads stdin.")
    if [*texts, *probe.control].count("-") > 1:
        raise UserError("stdin can be read once, but - stands for two texts.", code=Exit.USAGE)
    path = model_path(model)
    from llmctl.spec.families import read_config
    from llmctl.spec.peft import within

    config = within(path, read_config(path))
    suited("eval-memorization", config, path)

    from llmctl.console import Console
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.decode.prompt import stop_ids
    from llmctl.core.decode.ready import ready
    from llmctl.core.device import DTYPES, pick
    from llmctl.core.safety.memory import Memory, leaks_of, recollections
    from llmctl.core.safety.passages import heldout, passages

    console, checkpoint = Console(shown), Checkpoint.open(path)
    tokenizer = checkpoint.tokenizer()
    start = tokenizer.bos if tokenizer.begins else None
    _check(config, probe, start is not None, console)
    reading = Reading(field=field, format=format, documents=documents)
    drawn = (reading, tokenizer, probe.tokens, probe.count, probe.seed)
    parts = {"trained": passages(texts, "train", *drawn)}
    control = probe.control or (texts if heldout(texts) else ())
    if control:
        parts["control"] = passages(control, "heldout" if heldout(control) else "train", *drawn)
    elif "excess" in over:
        raise UserError("--fail-over excess wants a control text.", "Add --control TEXT.", Exit.USAGE)
    find = leaks_of(tokenizer) if pii else None
    place = pick(compute.device, compute.dtype, compute.threads)
    loaded = checkpoint.model(place.device, DTYPES.get(compute.dtype))
    ready(loaded)
    eos = stop_ids(tokenizer, config, checkpoint.generation)
    how = (probe.lengths, probe.suffix, start, eos, tokenizer.size, batch_size)
    found, began = {name: Memory(probe.lengths) for name in parts}, time.perf_counter()
    with ExitStack() as stack:
        target = None if samples is None else stack.enter_context(write_file(samples, force))
        progress = stack.enter_context(console.progress(None, "passages", "recall"))
        progress.update(0)
        for name, source in parts.items():
            for one in recollections(loaded, source, *how, find=find):
                found[name].add(one)
                if target is not None and name == "trained":
                    record = one.record(tokenizer, probe.suffix)
                    target.write((json.dumps(jsonable(record), ensure_ascii=False) + "\n").encode())
                progress.update(sum(memory.passages for memory in found.values()))
            if not found[name].passages:
                raise UserError(
                    f"The {'text' if name == 'trained' else 'control text'} has no passage of {probe.tokens} tokens.",
                    "Use a shorter --prefix or --suffix, or more text.",
                )
    report = _report(found, probe, pii)
    signature = {
        "tokenizer": tokenizer.sha256[:12],
        "prefix": "+".join(map(str, probe.lengths)),
        "suffix": probe.suffix,
        "passages": found["trained"].passages,
        "seed": probe.seed,
        "start": "none" if start is None else start,
        "decoding": "greedy",
        "dtype": str(next(loaded.parameters()).dtype).removeprefix("torch."),
        "version": f"llmctl-{__version__}",
    }
    report |= {"seconds": time.perf_counter() - began}
    report["signature"] = "|".join(f"{name}:{value}" for name, value in signature.items())
    console.report(report, None if shown.json else _table(console, str(path), report))
    check_limits({name: report[name] for name in names}, None, over)


def _check(config: ModelConfig, probe: Probe, started: bool, console: Any) -> None:
    """Refuses passages that the model cannot read; warns of those that are longer than it was made for."""
    longest = probe.tokens - 1 + started  # the last one is not read
    if longest > config.context and config.position == "learned":
        raise UserError(
            f"--prefix and --suffix are {longest} tokens to read, but the model's learned positions end at "
            f"{config.context}.",
            "Use shorter ones.",
            Exit.USAGE,
        )
    if longest > config.context:
        console.warn(f"passages of {probe.tokens} tokens are longer than the model's context of {config.context}.")


def _report(found: Mapping[str, Any], probe: Probe, pii: bool) -> dict[str, Any]:
    """The figures: of the longest prefix at the top, then of each."""
    rows = []
    for size in probe.lengths:
        row = {"prefix": size, **found["trained"].figures(size)}
        if "control" in found:
            row["control"] = found["control"].figures(size)
            row["excess"] = row["memorized"] - row["control"]["memorized"]
        rows.append(row)
    top = rows[-1]
    report: dict[str, Any] = {name: top[name] for name in (*FIGURES, *(LEAKS if pii else ()))}
    report["control_memorized"] = top["control"]["memorized"] if "control" in top else None
    report["excess"] = top.get("excess")
    report |= {"prefix": top["prefix"], "suffix": probe.suffix, "passages": found["trained"].passages}
    report["control_passages"] = found["control"].passages if "control" in found else 0
    return {**report, "prefixes": rows}


def _table(console: Any, title: str, report: Mapping[str, Any]) -> Any:
    """A row for each prefix, and one for its control."""
    names = [name for name in (*FIGURES, *LEAKS) if name in report["prefixes"][0]]
    rows: list[Sequence[object]] = []
    for row in report["prefixes"]:
        rows.append((row["prefix"], "trained", report["passages"], *(row[name] for name in names)))
        if "control" in row:
            rows.append((None, "control", report["control_passages"], *(row["control"][name] for name in names)))
    columns = ("prefix", "text", "passages", *(name.replace("_", " ") for name in names))
    return console.table(f"{title}: {report['suffix']} tokens after a prefix", columns, rows)
