"""detokenize: ids back to text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Shown, expand, model_path

if TYPE_CHECKING:
    from llmctl.console import Console
    from llmctl.core.text.tokenizer import Tokenizer


@expand
def detokenize(
    file: Annotated[str, typer.Argument(help="Lines of ids, or a directory that tokenize made; - for stdin.")],
    shown: Shown,
    tokenizer: Annotated[Path | None, "Checkpoint or tokenizer; default: that of the directory of tokens."] = None,
    field: Annotated[str, "Field of a JSON record that holds the ids."] = "ids",
    split: Annotated[str, "Of a directory of tokens: train or heldout."] = "train",
    special: Annotated[bool, "Show special tokens too."] = False,
    limit: Annotated[int | None, "Write no more than so many texts."] = None,
) -> None:
    """Turn ids back into text.

    A line is {"ids": [...]}, [...] or numbers with spaces between. JSON lines, and documents of a directory, come
    back as JSON lines with `text`; lines of numbers come back as text, each with a line end.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}, wanted 1 or more.", "Leave it out to write all.", Exit.USAGE)
    directory = Path(file) if file != "-" and Path(file).is_dir() else None
    if tokenizer is None and directory is None:
        raise UserError(
            f"--tokenizer is missing: {file} does not say what its ids mean.", "Add --tokenizer DIR.", Exit.USAGE
        )
    source = directory if tokenizer is None else model_path(tokenizer)
    from llmctl.console import Console
    from llmctl.core.text.tokenizer import Tokenizer

    console, opened = Console(shown), Tokenizer.open(source)
    if directory is not None:
        _directory(console, directory, opened, split, special, limit)
    else:
        _lines(console, file, opened, field, special, limit)


def _directory(
    console: "Console", directory: Path, tokenizer: "Tokenizer", split: str, special: bool, limit: int | None
) -> None:
    from itertools import islice

    from llmctl.core.data.ids import documents_of
    from llmctl.core.data.shards import Tokens

    tokens = Tokens.open(directory)
    if split not in tokens.splits:
        raise UserError(f"--split is {split!r}, wanted {' or '.join(tokens.splits)}.", "See tokens.json.", Exit.USAGE)
    if tokens.tokenizer_sha256 != tokenizer.sha256:
        hint = "Leave --tokenizer out: the directory holds its own."
        raise UserError(f"--tokenizer is not the one that made {directory}.", hint, Exit.MISMATCH)
    for ids in islice(documents_of(tokens.splits[split], tokens.vocab), limit):
        console.jsonl({"text": tokenizer.decode(ids, skip_special=not special)})


def _lines(console: "Console", file: str, tokenizer: "Tokenizer", field: str, special: bool, limit: int | None) -> None:
    from itertools import islice

    from llmctl.core.data.ids import read_ids
    from llmctl.core.data.streams import opened

    if file != "-" and not Path(file).exists():
        raise UserError(f"{file} does not exist.", "Check the path.")
    failed = count = 0
    with opened(file) as stream:
        for row in islice(read_ids(stream, field, tokenizer), limit):
            count += 1
            failed += row.error is not None
            if row.error is not None:
                console.jsonl({**(row.record or {}), "error": row.error})
                continue
            text = tokenizer.decode(row.ids, skip_special=not special)
            if row.record is not None or console.shown.json:
                console.jsonl({**(row.record or {}), "text": text})
            else:
                console.out(f"{text}\n")
    if not count:
        raise UserError(f"{'stdin' if file == '-' else file} holds no ids.", "Each line is one text's ids.")
    if failed:
        console.warn(f"{failed} of {count} lines could not be turned into text.")
        raise typer.Exit(Exit.RECORDS)
