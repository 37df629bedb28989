"""records: texts in, from -p or a file; JSON lines out, each record that came in with what was made of it."""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llmctl.console import Console, Progress
from llmctl.errors import Exit, UserError
from llmctl.flags import Source, invocation

if TYPE_CHECKING:
    from llmctl.core.data.requests import Request

FIELDS = ("text", "prompt")  # where a record's text is looked for when no field is named


def check_source(texts: Source) -> None:
    """Check that the file of texts is there, before anything heavy is loaded.

    Raises:
        UserError: it is not.
    """
    if texts.file not in (None, "-") and not Path(str(texts.file)).exists():
        raise UserError(f"{texts.file} does not exist.", "Check the path; a text itself is given with -p.")


@contextmanager
def requests(texts: Source) -> "Iterator[Iterator[Request]]":
    """The texts that a command was given, one at a time; at least one.

    Raises:
        UserError: there is none, or the file cannot be read.
    """
    from llmctl.core.data.requests import Request, read_requests

    if texts.file is None:
        yield iter([Request(number, text) for number, text in enumerate(texts.prompt)])
        return
    fields = (texts.field,) if texts.field else FIELDS
    with closing(read_requests(texts.file, texts.format, fields)) as found:
        first = next(found, None)
        if first is None:
            raise UserError(f"{'stdin' if texts.file == '-' else texts.file} holds no text.", "One a line is wanted.")
        yield chain([first], found)


def progress(console: Console, texts: Source, label: str) -> Any:
    """Progress where the answers themselves are not progress enough."""
    quiet = texts.file is None or (sys.stdout is not None and sys.stdout.isatty())
    return nullcontext(Progress()) if quiet else console.progress(None, "texts", label)


class Records:
    """Answers on their way out, counted.

    As JSON lines; or where texts were typed with -p and stdout is a terminal, as one table at the end.

    Args:
        columns: heads of the table.
    """

    def __init__(self, console: Console, texts: Source, columns: tuple[str, ...] = ()):
        terminal = sys.stdout is not None and sys.stdout.isatty()
        self.console = console
        self.columns = columns if terminal and texts.file is None and not console.shown.json else ()
        self.rows: list[tuple[object, ...]] = []
        self.count = self.failed = 0
        self.warned = False

    def add(self, request: "Request", made: dict[str, Any], rows: list[tuple[object, ...]]) -> None:
        """Write what was made of one request.

        Args:
            made: fields that the record gets.
            rows: the same for the table.
        """
        self.count += 1
        if self.columns:
            self.rows += rows
            return
        record = request.record
        if record is None:
            record = {"schema": f"llmctl/{invocation().command}/1", "text": request.text}
        elif lost := [name for name in made if name in record and not self.warned]:
            self.warned = True
            self.console.warn(f"the records have a field {lost[0]!r} already, which is replaced.")
        self.console.jsonl({**record, **made})

    def fail(self, request: "Request", error: str, shown: bool = True) -> None:
        """Answer one request with its error; `shown`: in place, among the records."""
        self.failed += 1
        if self.columns or not shown:
            self.count += 1
            self.console.warn(f"text {request.number + 1}: {error}")
        else:
            self.add(request, {"error": error}, [])

    def end(self) -> None:
        """Show the table, if there is one.

        Raises:
            typer.Exit: some requests failed.
        """
        if self.rows:
            self.console.report({}, self.console.table("", self.columns, self.rows))
        if self.failed:
            self.console.warn(f"{self.failed} of {self.count} texts were not answered.")
            raise typer.Exit(Exit.RECORDS)
