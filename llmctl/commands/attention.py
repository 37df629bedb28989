"""attention: what each token of a text looks at, as a heat map in the terminal, a picture, or JSON."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, expand, model_path
from llmctl.spec.files import jsonable, write_file
from llmctl.spec.model import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from llmctl.core.decode.look import Look

Stack = Literal["encoder", "decoder"]
FILES = (".png", ".svg", ".pdf", ".json")
LEVELS = ".:-=+*%#@"  # of a weight, from just above 0 to the largest of its map; a space is no weight at all
COLORS = (238, 60, 61, 67, 73, 79, 119, 190, 226)
LABEL, HEADER, GAP = 14, 8, 2  # columns of a row's label; rows of the columns' labels; columns between maps
LARGE, SMALL = (64, 1000), (24, 32)  # rows and columns of a map that is alone, and of one of several
Line = list[tuple[str, int | None]]  # runs of characters, each with the level that colors it


@expand
def attention(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    compute: Compute,
    shown: Shown,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The text that the model reads.")],
    target: Annotated[str | None, "What an encoder-decoder's decoder has written so far."] = None,
    layer: Annotated[str, "Layers: numbers from 0 with commas between, all, or last."] = "last",
    head: Annotated[str, "Heads: numbers from 0 with commas between, or all."] = "all",
    stack: Annotated[Stack | None, "Of an encoder-decoder; default: decoder if there is a --target."] = None,
    cross: Annotated[bool, "Attention to the encoder's tokens, in place of that to the decoder's own."] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File: .png, .svg, .pdf or .json.")] = None,
    force: Annotated[bool, "Replace the file that is there."] = False,
    width: Annotated[int, "Columns; 0: those of the terminal."] = 0,
) -> None:
    """Show what each token of a text looks at: the weights of attention.

    A row is a token, a column what it looks at; the heavier the character, the greater the weight. Where a text has
    more tokens than there is room, neighbours share a cell. --json and .json have the exact numbers: `weights`,
    `scores` before the mask and `masked` after it (null: not seen), each by layer, head, row and column.
    """
    if out is not None and out.suffix not in FILES:
        raise UserError(f"-o is {out}; wanted a name in {', '.join(FILES)}.", code=Exit.USAGE)
    path = model_path(model)

    from llmctl.console import Console
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.decode.look import look, read
    from llmctl.core.device import DTYPES, pick

    console = Console(shown)
    checkpoint = Checkpoint.open(path)
    config = checkpoint.config
    side = _side(config, stack, cross, target is not None)
    layers = _numbers("--layer", layer, config.stacks[side], f"layers of the {side}")
    heads = _numbers("--head", head, config.heads, "heads of a layer")
    text, written = read(checkpoint.tokenizer(), config, prompt, target)
    place = pick(compute.device, compute.dtype, compute.threads)
    loaded = checkpoint.model(place.device, DTYPES.get(compute.dtype))
    found = look(loaded, text, written, side, cross, layers, heads)
    if out is not None:
        _write(found, out, force)
        console.out(f"{out}\n")
    elif shown.json:
        console.report(_report(found))
    else:
        console.out(_text(found, width or shutil.get_terminal_size().columns, console.colors))


def _side(config: ModelConfig, stack: Stack | None, cross: bool, target: bool) -> Stack:
    """Which stack is meant.

    Raises:
        UserError: the model has none such, or the decoder would have nothing to read.
    """
    both = config.kind == "encoder-decoder"
    if not both and (stack not in (None, config.kind) or cross or target):
        flag = "--target" if target else "--cross" if cross else f"--stack {stack}"
        raise UserError(
            f"{flag} is for encoder-decoders; this model is of kind {config.kind}.", f"Leave {flag} out.", Exit.USAGE
        )
    if not both:
        return config.kind  # type: ignore[return-value]
    side: Stack = stack or ("decoder" if target or cross else "encoder")
    if cross and side == "encoder":
        raise UserError("--cross is of the decoder, but --stack is encoder.", "Leave one out.", Exit.USAGE)
    if side == "decoder" and not target:
        hint = 'Add --target "what it has written so far", or look at --stack encoder.'
        raise UserError("The decoder has nothing to read: there is no --target.", hint, Exit.USAGE)
    return side


def _numbers(flag: str, given: str, count: int, what: str) -> list[int]:
    """The numbers that an option names, ascending.

    Raises:
        UserError: one that is no number, or out of range.
    """
    words = [word.strip() for word in given.split(",")]
    if words == ["all"]:
        return list(range(count))
    if words == ["last"] and flag == "--layer":
        return [count - 1]
    wrong = [word for word in words if not (word.isascii() and word.isdigit() and int(word) < count)]
    if wrong:
        problem = f"{flag} is {given!r}; there is no {', '.join(wrong) or 'number'} among the {count} {what}."
        raise UserError(problem, f"They are numbered 0 to {count - 1}; {flag} all takes all.", Exit.USAGE)
    return sorted({int(word) for word in words})


def _report(found: "Look") -> dict[str, Any]:
    """Everything, as JSON."""

    def numbers(x: "Tensor") -> Any:
        return _plain(x.double().round(decimals=7).tolist())

    return {
        "schema": "llmctl/attention/1",
        "stack": found.side,
        "cross": found.cross,
        "tokens": found.queries.tokens,
        "texts": found.queries.texts,
        "ids": found.queries.ids,
        "keys": {"tokens": found.keys.tokens, "texts": found.keys.texts, "ids": found.keys.ids},
        "layers": found.layers,
        "heads": found.heads,
        "scores": numbers(found.scores),
        "masked": numbers(found.masked),
        "weights": numbers(found.weights),
    }


def _plain(value: Any) -> Any:
    """Lists of numbers with None for -inf, which JSON does not have."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if value == float("-inf") else value


def _text(found: "Look", columns: int, colors: bool) -> str:
    """The maps of all layers and heads in characters."""
    rows = [_label(text) for text in found.queries.texts]
    keys = [_label(text) for text in found.keys.texts]
    single = len(found.heads) == 1
    lines: list[Line] = []
    for layer, weights in zip(found.layers, found.weights, strict=True):
        kind = "cross-attention" if found.cross else "attention"
        lines.append([(f"{found.side} layer {layer}, {kind}", None)])
        draw = _large if single else _small
        lines += [*draw(weights, found.heads, rows, keys, columns), []]
    if found.cross and not single:
        lines.append([(f"columns: {' '.join(keys)}", None)])
    plain = "".join("".join(text for text, _ in line).rstrip() + "\n" for line in lines).rstrip("\n") + "\n"
    return _colored(lines) if colors else plain


def _large(weights: "Tensor", heads: list[int], rows: list[str], keys: list[str], columns: int) -> list[Line]:
    """One head, with the names of the columns above it."""
    from rich.cells import cell_len, set_cell_size

    from llmctl.core.model.look import pooled

    beside = min(LABEL, max(map(cell_len, rows)) + 1)
    room = max(1, columns - beside - 1)
    wide = 2 if 2 * len(keys) <= room else 1
    down, across = bucket(len(rows), LARGE[0]), bucket(len(keys), min(room // wide, LARGE[1]))
    cells = pooled(weights[0], down, across)
    names = keys[::across]
    deep = min(HEADER, max(map(len, names)))
    upright = [name[:deep].rjust(deep) for name in names]
    header = [" " * (beside + 1) + "".join(set_cell_size(name[i], wide) for name in upright) for i in range(deep)]
    drawn = zip(rows[::down], _cells(cells, wide), strict=True)
    body = [[(set_cell_size(label, beside) + " ", None), *line] for label, line in drawn]
    title = f"head {heads[0]}, {_largest(cells)}{_sharing(down, across)}"
    return [[(title, None)], *([(line, None)] for line in header), *body]


def _small(weights: "Tensor", heads: list[int], rows: list[str], keys: list[str], columns: int) -> list[Line]:
    """A small map a head, as many beside each other as fit."""
    from rich.cells import cell_len, set_cell_size

    from llmctl.core.model.look import pooled

    beside = min(LABEL, max(map(cell_len, rows)) + 1)
    room = max(1, columns - beside - 1)
    down, across = bucket(len(rows), SMALL[0]), bucket(len(keys), min(room, SMALL[1]))
    cells = pooled(weights, down, across)  # (n, T', S')
    titles = [f"{head}: {_largest(one)}" for head, one in zip(heads, cells, strict=True)]
    wide = max(cells.shape[-1], *map(len, titles))
    abreast = max(1, (room + GAP) // (wide + GAP))  # maps in a band
    lines: list[Line] = [[(f"heads{_sharing(down, across)}", None)]]
    for start in range(0, len(heads), abreast):
        band = slice(start, start + abreast)
        lines.append([(" " * (beside + 1) + "".join(title.ljust(wide + GAP) for title in titles[band]), None)])
        maps = [_cells(one, 1) for one in cells[band]]
        for row, label in enumerate(rows[::down]):
            line: Line = [(set_cell_size(label, beside) + " ", None)]
            for drawn in maps:
                line += [*drawn[row], (" " * (wide - cells.shape[-1] + GAP), None)]
            lines.append(line)
    return lines


def bucket(tokens: int, room: int) -> int:
    """How many neighbouring tokens share a cell, so that all fit into `room` cells."""
    return max(1, -(-tokens // max(1, room)))


def _sharing(down: int, across: int) -> str:
    return "" if down == across == 1 else f", a cell is {down} x {across} tokens"


def _largest(cells: "Tensor") -> str:
    return f"{LEVELS[-1]} is {float(cells.abs().max()):.2g}"


def _cells(cells: "Tensor", wide: int) -> list[Line]:
    """A map (T, S) as lines of characters: by the share of each weight in the largest."""
    shares = (cells.abs() / cells.abs().max().clamp(min=1e-30) * len(LEVELS)).ceil().int().tolist()
    return [[(LEVELS[n - 1] * wide, n - 1) if n else (" " * wide, None) for n in row] for row in shares]


def _label(text: str) -> str:
    """A token's text as one word that moves no cursor."""
    shown = text.replace("\n", "↵").replace("\t", "⇥").strip(" ") or "␣"
    return "".join(one if one.isprintable() else "�" for one in shown)


def _colored(lines: list[Line]) -> str:
    """The lines with the codes that color them in this terminal."""
    import io

    from rich.console import Console as Rich
    from rich.text import Text

    file = io.StringIO()
    rich = Rich(file=file, force_terminal=True, width=10_000, highlight=False, legacy_windows=False)
    for line in lines:
        text = Text(no_wrap=True)
        for run, level in line:
            text.append(run, f"color({COLORS[level]})" if level is not None else None)
        rich.print(text, soft_wrap=True)
    return file.getvalue()


def _write(found: "Look", out: Path, force: bool) -> None:
    """The numbers or the picture.

    Raises:
        UserError: matplotlib is not installed, or the file is there.
    """
    if out.suffix == ".json":
        with write_file(out, force) as file:
            file.write(json.dumps(jsonable(_report(found)), ensure_ascii=False).encode() + b"\n")
        return
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("A picture needs the package matplotlib.", "pip install 'llmctl[plot]'") from error
    maps = [(layer, head) for layer in range(len(found.layers)) for head in range(len(found.heads))]
    across = min(len(found.heads), 6)
    down = len(found.layers) * -(-len(found.heads) // across)
    large = len(maps) == 1
    figure = Figure(figsize=(7, 6) if large else (2 * across + 1, 2 * down + 0.5), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    image = None
    for layer, head in maps:
        row = layer * (down // len(found.layers)) + head // across
        axes = grid[row][head % across]
        axes.set_axis_on()
        image = axes.imshow(found.weights[layer, head].numpy(), vmin=0, vmax=1, aspect="auto", cmap="viridis")
        axes.set_title(f"layer {found.layers[layer]}, head {found.heads[head]}", fontsize=10 if large else 7)
        named = len(found.keys.ids) <= (64 if large else 16) and len(found.queries.ids) <= (64 if large else 16)
        for axis, labels in ((axes.xaxis, found.keys.texts), (axes.yaxis, found.queries.texts)):
            names = [_label(text).replace("$", r"\$") for text in labels] if named else []
            axis.set_ticks(range(len(names)), names, fontsize=7 if large else 5)
        axes.tick_params(axis="x", rotation=90)
    figure.colorbar(image, ax=grid.ravel().tolist(), shrink=0.6, label="weight")
    with write_file(out, force) as file:
        figure.savefig(file, format=out.suffix[1:], dpi=150)
