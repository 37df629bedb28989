"""eval-compare: whether one of two systems is better than the other by more than chance."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl import __version__
from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, expand
from llmctl.spec.benchmark import Task
from llmctl.spec.compare import Comparing
from llmctl.spec.files import jsonable, write_file
from llmctl.spec.suite import read_suite

if TYPE_CHECKING:
    from llmctl.core.compare.differences import Difference

PICTURES = (".png", ".svg", ".pdf")
CHECKPOINTS = ("config.json", "adapter_config.json")


@expand
def eval_compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Results or --samples of one system, or a checkpoint.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Those of the other, on the same examples; - for stdin.")],
    comparing: Comparing,
    compute: Compute,
    shown: Shown,
    task: Annotated[
        tuple[str, ...],
        typer.Option(metavar="FILE", help="Checkpoints: records as eval-task takes them, or SUITE.toml; repeatable."),
    ] = (),
    data: Annotated[
        tuple[str, ...],
        typer.Option(metavar="TEXT", help="Checkpoints: text as eval-ppl takes it, scored by document; repeatable."),
    ] = (),
    samples: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a JSON record for each example, with what B gains in it.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the differences: .png, .svg or .pdf.")
    ] = None,
    force: Annotated[bool, "Replace the picture and the file of samples that are there."] = False,
    batch_size: Annotated[int, "Checkpoints: texts written at a time."] = 16,
    batch_tokens: Annotated[int, "Checkpoints: tokens in one pass of the model where it scores."] = 8192,
) -> None:
    """Compare two systems that were judged on the same examples: differences, and whether chance explains them.

    A and B are JSON lines that an eval command or lm-eval wrote with --samples, results of lm-eval with their samples
    beside them, or a directory of those. Examples are paired by their doc_id. Each figure has the interval of its
    difference, drawn at the right of the table, and p, the chance of one as large if there were none: raised by Holm's
    method for all that is compared. Results without samples are compared by their standard errors, which finds less.

    A and B may be two checkpoints, which are asked here: the records of --task, and the documents of --data.
    """
    wrong = {
        "stdin can be read once, but - stands for A and for B": a == b == "-",
        f"--plot is {plot}; wanted a name in {', '.join(PICTURES)}": plot is not None and plot.suffix not in PICTURES,
        "--batch-size and --batch-tokens are 1 or more": batch_size < 1 or batch_tokens < 1,
        "stdin can be read once, but there are two models": "-" in (*task, *data),
    }
    if any(wrong.values()):
        raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)
    for path in (*(one for one in (a, b) if one != "-"), *task, *(one for one in data if not one.startswith("hf:"))):
        if not Path(path).exists():
            raise UserError(f"{path} does not exist.", "Check the path; A or B may be - for stdin.")
    for out in (samples, plot):
        if out is not None and out.exists() and not force:
            raise UserError(f"{out} exists.", "Use --force to replace it, or another name.")
    models = _are_models(a, b, bool(task or data))
    tasks = _tasks(task)

    from llmctl.console import Console
    from llmctl.core.compare.differences import differences, paired
    from llmctl.core.compare.examples import read_side

    console = Console(shown)
    if models:
        from llmctl.core.benchmark.subject import Subject
        from llmctl.core.compare.models import asked

        def load(path: str) -> Subject:
            return Subject.open(path, compute.device, compute.dtype, compute.threads, batch_tokens, batch_size)

        sides = []
        for path in (a, b):
            with console.progress(None, "records", path) as progress:
                progress.update(0)
                sides.append(asked(path, tasks, data, progress.update, load))
    else:
        sides = [read_side(path) for path in (a, b)]
    found, notes = differences(*sides, comparing)
    if samples is not None:
        with write_file(samples, force) as file:
            file.writelines(json.dumps(jsonable(record)).encode() + b"\n" for record in paired(*sides, comparing))
    for note in notes:
        console.warn(note)
    if plot is not None:
        from llmctl.core.compare.picture import draw

        with write_file(plot, force) as file:
            draw(found, (a, b), comparing.ci, file, plot.suffix[1:])
    rows = [_row(one, comparing.ci) for one in found]
    report = {"a": a, "b": b, "figures": rows, "signature": _signature(comparing)}
    console.report(report, None if shown.json else _table(console, found, (a, b), comparing.ci))
    worse = [one.name for one in found if one.verdict(comparing.ci) == "worse"]
    comparing.check({one.name: one.gain for one in found}, worse)


def _are_models(a: str, b: str, asking: bool) -> bool:
    """Whether A and B are checkpoints.

    Raises:
        UserError: one of them alone is, or nothing says what to ask them, or there is something to ask but no model.
    """
    found = [any((Path(path) / name).is_file() for name in CHECKPOINTS) for path in (a, b)]
    if any(found) != all(found):
        model, other = (a, b) if found[0] else (b, a)
        problem = f"{model} is a checkpoint, but {other} is not."
        raise UserError(problem, f"Ask it first: llmctl eval-task {model} ... --samples FILE", Exit.USAGE)
    if all(found) and not asking:
        problem = "A and B are checkpoints, and nothing is asked of them."
        raise UserError(problem, "Add --task FILE or --data TEXT.", Exit.USAGE)
    if asking and not all(found):
        raise UserError("--task and --data are for two checkpoints.", "Leave them out.", Exit.USAGE)
    return all(found)


def _tasks(files: tuple[str, ...]) -> list[Task]:
    """The tasks in files, each a task of its own or a suite."""
    found: list[Task] = []
    for file in files:
        if file.endswith(".toml"):
            found += [entry.task for entry in read_suite(Path(file)).entries]
        else:
            found.append(Task(file=file, name=Path(file).name.partition(".")[0] or file))
    names = [task.name for task in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"Two tasks are called {twice}.", "Name each file once.", Exit.USAGE)
    return found


def _row(one: "Difference", level: float) -> dict[str, Any]:
    """A difference in the report; what is not known is null."""
    made = {
        "task": one.task,
        "figure": one.figure,
        "a": one.a,
        "b": one.b,
        "difference": one.difference,
        "low": one.low,
        "high": one.high,
        "p": one.p,
        "p_holm": one.p_holm,
        "verdict": one.verdict(level) or "same",
        "higher_is_better": one.more,
        "test": one.test,
        "examples": one.examples,
        "wins": one.wins,
        "losses": one.losses,
    }
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in made.items()}


def _signature(comparing: Comparing) -> str:
    told = {
        "test": comparing.test,
        "replicates": comparing.replicates,
        "interval": f"percentile-{comparing.ci:g}",
        "adjusted": "holm",
        "seed": comparing.seed,
        "version": f"llmctl-{__version__}",
    }
    return "|".join(f"{name}:{value}" for name, value in told.items())


def _table(console: Any, found: "list[Difference]", names: tuple[str, str], level: float) -> Any:
    """The differences for people, with their intervals as lines of characters."""
    from llmctl.core.compare.picture import strips

    rows = [
        (one.name, one.a, one.b, f"{one.difference:+.4g}", _chance(one), one.verdict(level), strip)
        for one, strip in zip(found, strips(found), strict=True)
    ]
    title = f"A: {names[0]}\nB: {names[1]}"
    return console.table(title, ("", "A", "B", "B - A", "p", "B is", f"{level:.0%} interval"), rows)


def _chance(one: "Difference") -> str:
    if math.isnan(one.p_holm):
        return ""
    return "< 0.0001" if one.p_holm < 0.0001 else f"{one.p_holm:.4f}"
