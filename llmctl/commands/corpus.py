"""corpus: sample data that every machine has."""

from typing import Annotated

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Shown, expand
from llmctl.spec.data import Corpus, Half


@expand
def corpus(
    kind: Annotated[Corpus, typer.Argument(help="docs, source, or summaries.", metavar="docs|source|summaries")],
    shown: Shown,
    split: Annotated[Half | None, "Only this part; no function is in both. Default: all."] = None,
    limit: Annotated[int | None, "Write no more than so many records."] = None,
) -> None:
    """Write sample data as JSON lines: Python's own documentation or source code.

    docs: help topics and docstrings of the standard library, {"text", "source", "kind"}. source: its source files,
    the same fields. summaries: docstrings without their first line, and that line: {"prompt", "completion", "source"}.
    The same Python writes the same bytes each time. About 3, 11 and 1 MB.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit is {limit}, wanted 1 or more.", "Leave it out to write all.", Exit.USAGE)
    from itertools import islice

    from llmctl.console import Console
    from llmctl.core.data.corpus import documents

    console = Console(shown)
    for record in islice(documents(kind, split), limit):
        console.jsonl(record)
