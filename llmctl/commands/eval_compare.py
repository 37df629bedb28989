"""eval-compare: whether one of two systems is better than the other by more than chance."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl import __version__
from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, expand
from llmctl.spec.compare import Comparing
from llmctl.spec.files import write_file

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
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the differences: .png, .svg or .pdf.")
    ] = None,
    force: Annotated[bool, "Replace the picture that is there."] = False,
) -> None:
    """Compare two systems that were judged on the same examples: differences, and whether chance explains them.

    A and B are JSON lines that an eval command or lm-eval wrote with --samples, results of lm-eval with their samples
    beside them, or a directory of those. Examples are paired by their doc_id. Each figure has the interval of its
    difference, drawn at the right of the table, and p, the chance of one as large if there were none: raised by Holm's
    method for all that is compared. Results without samples are compared by their standard errors, which finds less.
    """
    if a == b == "-":
        raise UserError("stdin can be read once, but - stands for A and for B.", code=Exit.USAGE)
    if plot is not None and plot.suffix not in PICTURES:
        raise UserError(f"--plot is {plot}; wanted a name in {', '.join(PICTURES)}.", code=Exit.USAGE)
    for path in (a, b):
        if path != "-" and not Path(path).exists():
            raise UserError(f"{path} does not exist.", "Check the path; - reads stdin.")

    from llmctl.console import Console
    from llmctl.core.compare.differences import differences
    from llmctl.core.compare.examples import read_side

    console = Console(shown)
    sides = [read_side(path) for path in (a, b)]
    found, notes = differences(*sides, comparing)
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
    return console.table(title, ("", "A", "B", "B - A", "p (Holm)", "B is", f"{level:.0%} interval"), rows)


def _chance(one: "Difference") -> str:
    if math.isnan(one.p_holm):
        return ""
    return "< 0.0001" if one.p_holm < 0.0001 else f"{one.p_holm:.4f}"
