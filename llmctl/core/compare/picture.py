"""Picture: differences with their intervals, a line each beside the line of no difference; in characters or drawn."""

import math
from collections.abc import Sequence
from typing import IO

from llmctl.core.compare.differences import Difference
from llmctl.errors import UserError

WIDTH = 11  # characters; odd, so that no difference has one of its own


def strips(found: Sequence[Difference], width: int = WIDTH) -> list[str]:
    """Each difference as a line of characters: its interval, o where it is, | where there is none.

    Figures of one name share a scale, of which | is the middle.
    """
    widest = {one.figure: 0.0 for one in found}
    for one in found:
        ends = [abs(end) for end in (one.low, one.high, one.difference) if math.isfinite(end)]
        widest[one.figure] = max(widest[one.figure], *ends, 0.0)
    return [_strip(one, widest[one.figure], width) for one in found]


def draw(found: Sequence[Difference], names: tuple[str, str], level: float, file: IO[bytes], format: str) -> None:
    """The same as a picture, a panel for each figure, since their units differ.

    Args:
        names: of A and B.
        level: of the intervals.
        format: "png", "svg" or "pdf".

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("A picture needs the package matplotlib.", "pip install 'llmctl[plot]'") from error
    figures = list(dict.fromkeys(one.figure for one in found))
    heights = [0.6 + 0.3 * sum(one.figure == name for one in found) for name in figures]
    figure = Figure(figsize=(8, 0.8 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(figures), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, name in zip(panels, figures, strict=True):
        rows = [one for one in found if one.figure == name][::-1]
        for place, one in enumerate(rows):
            color = {"better": "tab:green", "worse": "tab:red"}.get(one.verdict(level), "gray")
            if math.isfinite(one.low):
                panel.plot([one.low, one.high], [place, place], color=color, linewidth=2)
            panel.plot([one.difference], [place], "o", color=color)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_yticks(range(len(rows)), [one.name for one in rows])
        panel.set_ylim(-0.6, len(rows) - 0.4)
        panel.grid(axis="x", alpha=0.3)
    panels[-1].set_xlabel(f"difference, {level:.0%} intervals")
    figure.suptitle(f"{names[1]} less {names[0]}")
    figure.savefig(file, format=format, dpi=150)


def _strip(one: Difference, widest: float, width: int) -> str:
    half = width // 2

    def place(value: float) -> int:
        return half + round(value / widest * half) if widest and math.isfinite(value) else half

    cells = [" "] * width
    if math.isfinite(one.low):
        for at in range(place(one.low), place(one.high) + 1):
            cells[at] = "-"
    cells[half] = "|"
    cells[place(one.difference)] = "o"
    return "".join(cells).rstrip().replace(" ", "\u00a0")  # or the table breaks the line
