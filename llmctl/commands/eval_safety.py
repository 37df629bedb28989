"""eval-safety: refusals, toxicity and leaks in texts that a model wrote."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl import __version__
from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, expand, model_path
from llmctl.spec.files import jsonable, write_file
from llmctl.spec.limits import check_limits, no_level, parse_limits
from llmctl.spec.safety import Safety
from llmctl.spec.tasks import suited

if TYPE_CHECKING:
    from llmctl.core.safety.toxicity import Toxicity

UNGROUPED = "all"  # the column of all groups together
GROUPS = 1000  # at most
RESAMPLES = 1000  # of the bootstrap
UNDEFINED = "Check --harmless, or of imbalance --terms, of which no text has one."


@expand
def eval_safety(
    file: Annotated[str, typer.Argument(help="JSON lines of prompts and completions, as generate writes them; or -.")],
    judging: Safety,
    compute: Compute,
    shown: Shown,
    completion_field: Annotated[
        str | None, "Field of a text, or of a list of texts; default: completion, or else completions."
    ] = None,
    prompt_field: Annotated[str | None, "Field of the prompt; default: prompt, or else text, if it is there."] = None,
    by: Annotated[str | None, typer.Option(metavar="FIELD", help="Also the figures of each value of this field.")] = (
        None
    ),
    ci: Annotated[
        float | None, "Also the interval that holds this share of bootstrap resamples of each mean: 0.95."
    ] = (None),
    seed: Annotated[int, "Of the resamples."] = 0,
    samples: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write each prompt's scores and what was found, as JSONL.")
    ] = None,
    force: Annotated[bool, "Replace the file of --samples that is there."] = False,
    fail_over: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="NAME=NUMBER",
            help="End with exit code 6 if a figure is above this; a number alone is about refusal; repeatable.",
        ),
    ] = (),
    fail_under: Annotated[
        tuple[str, ...],
        typer.Option(metavar="NAME=NUMBER", help="The same if it is below, such as harmful_refusal=0.9."),
    ] = (),
) -> None:
    """Judge texts that a model wrote: refusals, toxicity, personal data.

    A record is a prompt with one completion or several (generate M prompts.jsonl --n 25 --json | eval-safety -).
    Figures are means over prompts, from 0 to 1. Always: refusal (share of completions that refuse) and empty. With
    --classifier: toxicity, toxic (share), max_toxicity and any_toxic (over a prompt's completions: the expected
    maximum toxicity and the toxicity probability). With --words: listed, any_listed. With --pii: pii, any_pii. With
    --terms: imbalance, 0 where all groups are spoken of alike.
    """
    under = parse_limits("--fail-under", fail_under, "refusal", judging.names)
    over = parse_limits("--fail-over", fail_over, "refusal", judging.names)
    wrong = {**no_level(ci), f"--seed is {seed}, wanted 0 or more": seed < 0}
    if any(wrong.values()):
        raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)
    if file != "-" and not Path(file).exists():
        raise UserError(f"{file} does not exist.", "Check the path; - reads stdin.")
    path = None if judging.classifier is None else model_path(judging.classifier)
    if path is not None:
        from llmctl.spec.families import read_config
        from llmctl.spec.peft import within

        config = within(path, read_config(path))
        suited("classify", config, path)

    from llmctl.console import Console
    from llmctl.core.safety.judge import judge
    from llmctl.core.safety.lists import read_patterns, read_terms, read_words
    from llmctl.core.safety.private import Leaks, Private
    from llmctl.core.safety.refusal import PATTERNS, Refusals
    from llmctl.core.safety.tally import Tally
    from llmctl.core.safety.told import read_told, value_of
    from llmctl.core.safety.words import Terms, Words

    console = Console(shown)
    patterns = PATTERNS if judging.refusals is None else read_patterns(judging.refusals)
    words = None if judging.words is None else read_words(judging.words)
    groups = None if judging.terms is None else read_terms(judging.terms)
    terms = None if groups is None else Terms(groups)
    leaks = Leaks(Private(judging.kinds, judging.pii_from)) if judging.pii else None
    toxicity = None if path is None else _toxicity(path, judging, compute)
    judges = [Refusals(patterns, judging.harmless), None if words is None else Words(words), leaks, terms, toxicity]
    whole, parts = Tally(RESAMPLES if ci else 0, seed), {}
    with ExitStack() as stack:
        target = None if samples is None else stack.enter_context(write_file(samples, force))
        progress = stack.enter_context(console.progress(None, "prompts", "judge"))
        progress.update(0)
        told = read_told(file, completion_field, prompt_field)
        for one, judged in judge(told, [judge for judge in judges if judge is not None]):
            tallies = [whole]
            if by is not None:
                tallies.append(parts.setdefault(_named(value_of(one, by)), Tally()))
                if len(parts) > GROUPS:
                    raise UserError(f"--by {by}: there are more than {GROUPS} values.", "Name a field of few values.")
            for tally in tallies:
                tally.add(judged.scores, len(one.texts))
            if target is not None:
                told_of = {"doc_id": one.number, "scores": judged.scores, "found": judged.found}
                target.write(_line({**one.record, **told_of}))
            progress.update(whole.prompts)

    means = tuple(name for name in judging.names if name != "imbalance")
    figures = whole.figures(means) | ({} if terms is None else {"imbalance": terms.imbalance})
    report: dict[str, Any] = {**figures, "prompts": whole.prompts, "completions": whole.texts}
    report["stderr"] = whole.errors(means)
    if ci is not None:
        report["intervals"] = whole.intervals(ci)
    if leaks is not None:
        report["pii_kinds"] = {kind: leaks.kinds[kind] for kind in judging.kinds}
    if terms is not None:
        report["terms"] = terms.counts
    if by is not None:
        report["groups"] = {
            name: {**parts[name].figures(means), "prompts": parts[name].prompts} for name in sorted(parts)
        }
    asked = {
        "refusals": "own" if judging.refusals is None else _digest(patterns),
        "harmless": judging.harmless,
        "toxicity": None if path is None else f"{path.name}/{'+'.join(judging.label)}/{judging.toxic_from:g}",
        "words": None if words is None else _digest(words),
        "pii": f"{'+'.join(judging.kinds)}/{judging.pii_from:g}" if judging.pii else None,
        "terms": None if groups is None else _digest([str(sorted(groups.items()))]),
        "ci": None if ci is None else f"{ci:g}/{RESAMPLES}/{seed}",
        "version": f"llmctl-{__version__}",
    }
    report["signature"] = "|".join(f"{name}:{value}" for name, value in asked.items() if value is not None)
    console.report(report, None if shown.json else _table(console, file, report))
    if undefined := [name for name in (*under, *over) if figures[name] is None]:
        raise UserError(f"{undefined[0]} is limited, but no prompt has it.", UNDEFINED, Exit.MISMATCH)
    check_limits(figures, under, over)


def _toxicity(path: Path, judging: Safety, compute: Compute) -> "Toxicity":
    """The judge that a classifier is."""
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.device import DTYPES, pick
    from llmctl.core.infer.encode import Encoder
    from llmctl.core.safety.toxicity import Toxicity, places

    checkpoint = Checkpoint.open(path)
    places(checkpoint.config, judging.label)  # what is wrong is said before the weights are read
    encoder = Encoder(checkpoint.tokenizer(), checkpoint.config, checkpoint.config.context)
    place = pick(compute.device, compute.dtype, compute.threads)
    model = checkpoint.model(place.device, DTYPES.get(compute.dtype))
    return Toxicity(model, encoder, judging.label, judging.toxic_from)


def _table(console: Any, title: str, report: Mapping[str, Any]) -> Any:
    """Figures down; all prompts, their intervals and the groups across."""
    groups, intervals = report.get("groups", {}), report.get("intervals", {})
    figures = [name for name, value in report.items() if not isinstance(value, (dict, str))]
    counts = {f"pii {kind}": count for kind, count in report.get("pii_kinds", {}).items() if count}
    counts |= {f"terms {name}": count for name, count in report.get("terms", {}).items()}
    across = [UNGROUPED if groups else "", *(("low", "high") if intervals else ()), *groups]
    rows: list[list[object]] = []
    for name in figures:
        ends = intervals.get(name, {"low": None, "high": None}).values() if intervals else ()
        rows.append([name, report[name], *ends, *(group.get(name) for group in groups.values())])
    rows += [[name, count, *([None] * (len(across) - 1))] for name, count in counts.items()]
    rows += [] if len(across) > 1 else [["signature", report["signature"]]]
    return console.table(title, ["", *across], rows)


def _named(value: object) -> str:
    """A field's value as the name of a group."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(jsonable(record), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _digest(lines: Any) -> str:
    """Of a list that the user brought, so that figures by another are not taken for the same."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
