"""plot: the curves of training runs, in the terminal or as a picture."""

import math
import shutil
from pathlib import Path
from typing import Annotated

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Shown, expand
from llmctl.spec.files import write_file
from llmctl.spec.metrics import Points, curve, read_metrics, smoothed

PICTURES = (".png", ".svg", ".pdf")
SYMBOLS = "·o+x*#%@"
COLORS = ("blue", "red", "green", "orange", "magenta", "cyan")
Series = dict[str, Points]


@expand
def plot(
    runs: Annotated[list[str], typer.Argument(help="Runs, finished or going on, or their metrics.jsonl; - for stdin.")],
    shown: Shown,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Picture to write: .png, .svg or .pdf.")] = None,
    force: Annotated[bool, "Replace the picture that is there."] = False,
    x: Annotated[str, "What runs along the bottom: step, tokens, seconds, or another number of the records."] = "step",
    y: Annotated[str, "Quantities to draw, with commas between."] = "loss,heldout_loss",
    log: Annotated[bool, "Draw the logarithm, base 10, of the quantities."] = False,
    smooth: Annotated[float, "Weight of the past in a moving average, 0 to 1."] = 0.0,
    width: Annotated[int, "Columns; 0: those of the terminal."] = 0,
    height: Annotated[int, "Rows in the terminal."] = 20,
) -> None:
    """Draw the curves of training runs, in the terminal or as a picture."""
    if not 0 <= smooth < 1:
        raise UserError(f"--smooth is {smooth}; wanted 0 or more, and less than 1.", code=Exit.USAGE)
    if out is not None and out.suffix not in PICTURES:
        raise UserError(f"-o is {out}; wanted a name in {', '.join(PICTURES)}.", code=Exit.USAGE)
    series = _series(runs, x, [name.strip() for name in y.split(",") if name.strip()], smooth)
    if log and any(value <= 0 for points in series.values() for _, value in points):
        raise UserError("--log: a quantity is not always above 0.", "Leave --log out.", Exit.USAGE)
    from llmctl.console import Console

    console = Console(shown)
    if out is not None:
        _picture(series, x, log, out, force)
        console.out(f"{out}\n")
    elif shown.json:
        console.report({"x": x, "series": [{"name": name, "points": found} for name, found in series.items()]})
    else:
        size = (width or shutil.get_terminal_size().columns, height)
        console.out(_text(series, x, log, size, console.colors))


def _series(runs: list[str], x: str, names: list[str], smooth: float) -> Series:
    """A curve for each run and quantity that it has; the name of the run is left out where there is one.

    Raises:
        UserError: a quantity that no run has.
    """
    made: Series = {}
    known: set[str] = set()
    for run in runs:
        records = read_metrics(run)
        known |= {name for record in records for name in record}
        for name in names:
            points = curve(records, x, name)
            if points:
                made[f"{run}: {name}" if len(runs) > 1 else name] = smoothed(points, smooth)
    if x not in known:
        raise UserError(f"--x: no run has {x}.", f"They have {', '.join(sorted(known))}.", Exit.USAGE)
    missing = [name for name in names if not any(label.endswith(name) for label in made)]
    if missing and (len(missing) == len(names) or not set(missing) <= {"loss", "heldout_loss"}):
        raise UserError(f"--y: no run has {', '.join(missing)}.", f"They have {', '.join(sorted(known))}.", Exit.USAGE)
    return made


def _text(series: Series, x: str, log: bool, size: tuple[int, int], colors: bool) -> str:
    """The curves drawn in characters, a symbol and a color each, with a legend below that does not cover them."""
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.plot_size(*size)
    figure.canvas("default")
    legend = []
    for number, (name, points) in enumerate(series.items()):
        xs = [point[0] for point in points]
        ys = [math.log10(point[1]) if log else point[1] for point in points]
        symbol = SYMBOLS[number % len(SYMBOLS)]
        figure.draw(figure.signal(xs, ys, marker=plotext.marker(symbol, COLORS[number % len(COLORS)])))
        legend.append(f"{symbol} {name}: {points[0][1]:.4g} to {points[-1][1]:.4g}")
    figure.label(x)
    drawn = figure.build().string(colorless=not colors).rstrip("\n")
    return f"{drawn}\n{'log10: ' if log else ''}{'   '.join(legend)}\n"


def _picture(series: Series, x: str, log: bool, out: Path, force: bool) -> None:
    """Write the curves as a picture; without matplotlib's interactive half.

    Raises:
        UserError: matplotlib is not installed, or the file is there.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("A picture needs the package matplotlib.", "pip install 'llmctl[plot]'") from error
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
    axes.set_xlabel(x)
    axes.set_yscale("log" if log else "linear")
    axes.grid(alpha=0.3)
    axes.legend()
    with write_file(out, force) as file:
        figure.savefig(file, format=out.suffix[1:], dpi=150)
