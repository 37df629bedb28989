"""A table of runs beside each other: what finetune, distill, prune and quantize measured, and ROUGE of answers.

    llmctl eval-rouge answers.jsonl --stem > rouge.json
    python recipes/compare.py 'LoRA=out/lora,rouge.json' ... [--out rows.jsonl]

NAME=RUN[,ROUGE] or NAME=,ROUGE is a row; RUN is a directory that one of them made, ROUGE a report of eval-rouge.
"""

import argparse
import json
from pathlib import Path

KINDS = ("rouge1", "rouge2", "rougeL")
SMALLER = ("bytes", "parameters", "perplexity", "kl", "tokens_per_second")
FIGURES = ("trained_parameters", *KINDS, "heldout_perplexity", "retain_perplexity", *SMALLER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", metavar="NAME=RUN[,ROUGE]")
    parser.add_argument("--before", type=Path, help="a run: rows without one have its figures from before it")
    parser.add_argument("--figures", default=",".join(FIGURES), help="the columns, those that there are")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON lines")
    options = parser.parse_args()
    rows = [row(text, options.before) for text in options.rows]
    if options.out:
        options.out.write_text("".join(json.dumps(one) + "\n" for one in rows))
    print(table(rows, options.figures.split(",")))


def row(text: str, before: Path | None) -> dict[str, object]:
    """The figures of a row."""
    name, _, rest = text.partition("=")
    run, _, report = rest.partition(",")
    made: dict[str, object] = {"model": name}
    if run or before:
        metrics = json.loads((Path(run or before) / "llmctl.json").read_text())["metrics"]
        if "after" in metrics:  # of distill, prune and quantize
            metrics = {f"{name}_before": value for name, value in metrics["before"].items()} | metrics["after"]
        suffix = "" if run else "_before"
        made |= {figure: metrics[figure + suffix] for figure in FIGURES if figure + suffix in metrics}
    if report:
        found = json.loads(Path(report).read_text())
        made |= {kind: found[kind]["f1"] for kind in KINDS}
    return made


def table(rows: list[dict[str, object]], figures: list[str]) -> str:
    """The rows under the names of their figures, in columns."""
    names = ["model", *(name for name in figures if any(name in one for one in rows))]
    cells = [[name.replace("_", " ") for name in names], *([shown(one.get(name)) for name in names] for one in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    lines = [
        "  ".join(
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def shown(value: object) -> str:
    """A figure for people: three digits of a score, two of a perplexity."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}" if value < 1 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    main()
