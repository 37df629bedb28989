"""eval-task: benchmarks from files."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl import __version__
from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, expand, model_path
from llmctl.spec.benchmark import Asking, Task
from llmctl.spec.files import write_file
from llmctl.spec.limits import check_limits, no_level, parse_limits
from llmctl.spec.suite import Aspects, Entry, Suite, read_suite

if TYPE_CHECKING:
    from llmctl.console import Console
    from llmctl.core.benchmark.figures import Interval
    from llmctl.core.benchmark.suite import Judged, Result

MAIN = "main"  # the name of the main figure until it is known


@expand
def eval_task(
    model: Annotated[Path, typer.Argument(help="Checkpoint or adapter directory, or - for its path on stdin.")],
    files: Annotated[
        tuple[str, ...],
        typer.Argument(help="Records, a JSON object a line, a task each file; - for stdin. Or a suite: SUITE.toml."),
    ],
    asking: Asking,
    aspects: Aspects,
    compute: Compute,
    shown: Shown,
    context: typer.Context,
    ci: Annotated[float | None, "Also the interval that holds this share of bootstrap samples: 0.95."] = None,
    samples: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write what became of each record, as JSON lines.")
    ] = None,
    force: Annotated[bool, "Replace the file of --samples that is there."] = False,
    batch_size: Annotated[int, "Texts written, or labelled, at a time."] = 16,
    batch_tokens: Annotated[int, "Tokens in one pass of the model where it scores choices."] = 8192,
    fail_under: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="NAME=NUMBER",
            help="End with exit code 6 if a figure is below this, such as acc=0.5 or TASK.acc=0.5; a number alone is "
            "about the main one, of several tasks their mean; repeatable.",
        ),
    ] = (),
    fail_over: Annotated[tuple[str, ...], typer.Option(metavar="NAME=NUMBER", help="The same if it is above.")] = (),
) -> None:
    """Ask a model the records of benchmark files, and report figures with their standard errors.

    A record of a choice has `prompt`, `choices` and `answer` (the number of the right one from 0, its letter or its
    text): the model takes the choice that is likeliest after the prompt. One to be answered has `prompt` and
    `reference`, or a list `references`; one to be labelled `text` (and `text_pair`) and `label`, or `tokens` and
    `tags`. Other names: --map prompt=query; other wording: --template. A record that is not so stops the command: no
    figure is of a part of the file.

    stdout has a table on a terminal, else results as lm-evaluation-harness has them, whose figures acc and acc_norm
    are. Any other metric of what was written: --samples FILE, then eval-metric METRIC FILE FILE --pred-field prediction
    --ref-field references. A file SUITE.toml names several tasks and their options.
    """
    _check(ci, batch_size, batch_tokens)
    under = parse_limits("--fail-under", fail_under, MAIN)
    over = parse_limits("--fail-over", fail_over, MAIN)
    suite = _suite(files, asking, aspects, _given(context))
    path = model_path(model)
    for entry in suite.entries:
        for name in (entry.task.file, entry.task.examples):
            if name not in (None, "-") and not Path(str(name)).is_file():
                raise UserError(f"{name} does not exist.", "Check the path; a task is a file of JSON lines.")

    from llmctl.console import Console
    from llmctl.core.benchmark.figures import intervals
    from llmctl.core.benchmark.report import line, results, sample_record
    from llmctl.core.benchmark.run import run
    from llmctl.core.benchmark.subject import Subject
    from llmctl.core.benchmark.suite import about, figures_of, footprint, run_suite

    console = Console(shown)
    subject = Subject.open(path, compute.device, compute.dtype, compute.threads, batch_tokens, batch_size)
    with ExitStack() as stack:
        file = None if samples is None else stack.enter_context(write_file(samples, force))
        progress = stack.enter_context(console.progress(None, "records", "asking"))
        before = 0

        def told(done: int) -> None:
            progress.update(before + done)

        def ask(task: Task, records: Any) -> Any:
            nonlocal before
            outcome = run(subject, task, records, told)
            before += len(outcome.samples)
            return outcome

        progress.update(0)
        found = run_suite(suite, ask)
        outcomes = [one.outcome for one in found.judged]
        if file is not None:
            for outcome in outcomes:
                for sample in outcome.samples:
                    file.write(line(sample_record(sample, outcome)))
    between = {}
    if ci is not None:
        for one in outcomes:
            drawn = intervals(list(one.figures), one.samples, one.together, one.task.seed, ci)
            between[one.task.name] = drawn
    warnings = [*(text for one in outcomes for text in _doubts(one)), *found.warnings]
    told_ = results(subject, outcomes, between)
    signatures = told_["signatures"]
    whole = f"suite:{suite.name}|tasks:{len(outcomes)}|version:llmctl-{__version__}"
    report = {**told_, **about(found), "efficiency": footprint(subject), "warnings": warnings}
    report |= {"signature": next(iter(signatures.values())) if len(signatures) == 1 else whole}
    report |= {} if ci is None else {"level": ci}
    console.report(report, None if shown.json else _table(console, path, found, between))
    for text in warnings:
        console.warn(text)
    figures = figures_of(found)
    main = outcomes[0].main if len(outcomes) == 1 else "mean"
    check_limits(
        figures, *({main if name == MAIN else name: limit for name, limit in one.items()} for one in (under, over))
    )


def _suite(files: tuple[str, ...], asking: Asking, aspects: Aspects, given: Sequence[str]) -> Suite:
    """The tasks of files, each with the options of the command line; of a suite's own, with those that are `given`."""
    if files.count("-") > 1:
        raise UserError("stdin can be read once, but - stands for two files.", code=Exit.USAGE)
    entries: list[Entry] = []
    names = [Path(file).name.partition(".")[0] or file if file != "-" else "stdin" for file in files]
    options = {field.name: getattr(asking, field.name) for field in fields(asking)}
    title = names[0]
    for file, name in zip(files, names, strict=True):
        if file.endswith(".toml"):
            suite = read_suite(Path(file), asking, aspects, given)
            title, entries = suite.name, [*entries, *suite.entries]
        else:
            task = Task(**options, file=file, name=name if names.count(name) == 1 else file)
            entries.append(Entry(task, aspects))
    named = [entry.task.name for entry in entries]
    if twice := next((name for name in named if named.count(name) > 1), None):
        raise UserError(f"Two tasks are called {twice}.", "Name each file once.", Exit.USAGE)
    return Suite(title if len(files) == 1 else "tasks", tuple(entries))


def _given(context: typer.Context) -> list[str]:
    """The options that a flag, the environment or a file of options says, be it their default."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]


def _check(ci: float | None, batch_size: int, batch_tokens: int) -> None:
    wrong = {
        **no_level(ci),
        f"--batch-size is {batch_size}, wanted 1 or more": batch_size < 1,
        f"--batch-tokens is {batch_tokens}, wanted 1 or more": batch_tokens < 1,
    }
    if any(wrong.values()):
        raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)


def _doubts(outcome: Any) -> list[str]:
    """What a reader of a task's figures must know."""
    name, count = outcome.task.name, len(outcome.samples)
    said = {
        f"{name}: {outcome.cut} of {count} prompts are longer than the model's context and were cut.": outcome.cut,
        f"{name}: {outcome.few} of {count} prompts have fewer than {outcome.task.shots} examples: there are no "
        "more.": outcome.few,
    }
    return [text for text, times in said.items() if times]


def _table(console: "Console", path: Path, found: "Result", between: dict[str, dict[str, "Interval"]]) -> Any:
    """The figures of a task, one a line; of a suite a line each task, with its aspects."""
    if len(found.judged) > 1:
        return _suite_table(console, path, found)
    (one,) = found.judged
    rows: list[tuple[object, ...]] = []
    for name, figure in one.outcome.figures.items():
        ends = between.get(one.name, {}).get(name, ("", "") if between else ())
        rows.append((name, figure.value, _error(figure.stderr), *ends))
    rows += [(name, value, "", *("" for _ in between and (1, 2))) for name, value in _aspects(one).items()]
    columns = ("", "value", "± error", *(("low", "high") if between else ()))
    title = f"{path}: {one.name}, {one.outcome.kind}, {len(one.outcome.samples):,} records"
    return console.table(title, columns, rows)


def _suite_table(console: "Console", path: Path, found: "Result") -> Any:
    """A task a line with its aspects, then the means; three digits, so that a line fits a terminal."""
    each = {one.name: _aspects(one) for one in found.judged}
    extra = list(dict.fromkeys(name for row in each.values() for name in row))
    rows: list[tuple[object, ...]] = [
        (
            one.name,
            str(len(one.outcome.samples)),
            one.outcome.main,
            _digits(one.main.value),
            _digits(one.main.stderr),
            *(_digits(each[one.name].get(name)) for name in extra),
        )
        for one in found.judged
    ]
    means = {**found.categories, **({} if found.mean is None else {"mean": found.mean})}
    rows += [
        (name, "", "", _digits(mean.value), _digits(mean.stderr), *("" for _ in extra)) for name, mean in means.items()
    ]
    columns = ("task", "n", "figure", "value", "±", *(name.replace("_", " ") for name in extra))
    return console.table(f"{path}: {found.suite.name}", columns, rows)


def _aspects(one: "Judged") -> dict[str, float]:
    """What a table shows of a task beside its figures."""
    found = {}
    if one.calibration is not None:
        found["ECE"] = one.calibration.ece
    if one.robustness is not None:
        found["robust"] = one.robustness.worst.value
    if one.fairness is not None:
        found["worst_group"] = one.fairness.groups[one.fairness.worst].figure.value
    if one.contamination is not None:
        found["seen"] = one.contamination.share
    return {**found, "s_each": one.efficiency.seconds_per_record}


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def _error(value: float | None) -> object:
    return "" if value is None else value
