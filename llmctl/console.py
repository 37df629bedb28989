"""Console: stderr for people, stdout for data."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from llmctl.errors import UserError
from llmctl.flags import Shown, invocation
from llmctl.spec.files import jsonable

if TYPE_CHECKING:
    import rich.table

EVERY = 30.0  # seconds between two plain lines of progress
# Control characters but newline and tab, as pictures: a text that is not ours must not steer the terminal.
PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {0x7F: 0x2421}
PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class Console:
    """What a command says, and where. rich is loaded only for a table or a bar on a terminal."""

    def __init__(self, shown: Shown):
        self.shown = shown

    def say(self, text: str) -> None:
        """One line on stderr, for people; nothing with --quiet."""
        if not self.shown.quiet and sys.stderr is not None:  # print would take stdout instead
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """ "warning: ..." on stderr; nothing with --quiet."""
        self.say(f"warning: {text}")

    def out(self, text: str, flush: bool = True) -> None:
        """Text on stdout as it is: no newline is added.

        Raises:
            UserError: stdout is closed.
        """
        if sys.stdout is None:
            raise UserError("stdout is closed, but the result goes there.", "Do not close it: leave out >&-")
        try:
            sys.stdout.write(text)
            if flush:
                sys.stdout.flush()
        except UnicodeEncodeError:  # half of a surrogate pair, from a JSON input that has "\ud800"
            sys.stdout.write(text.encode("utf-8", "replace").decode("utf-8"))
        except OSError as error:
            error.filename = "stdout"
            raise

    def jsonl(self, record: dict[str, Any]) -> None:
        """One record as one line of JSON on stdout."""
        self.out(_json(record) + "\n")

    def lines(self, texts: Iterable[str]) -> None:
        """Each text as a line on stdout."""
        for text in texts:
            self.out(f"{text}\n")

    def report(self, data: dict[str, Any], table: "rich.table.Table | str | None" = None) -> None:
        """The table for a person at a terminal; with --json, without a table, or in a pipe: one JSON object.

        Its key `schema` says of which command it is ("llmctl/memcalc/1"), unless `data` has one.
        """
        person = sys.stdout is not None and sys.stdout.isatty()
        if person and table is not None and not self.shown.json:
            self._rich(sys.stdout).print(table)
            return
        data = {"schema": f"llmctl/{invocation().command}/1", **data}
        self.out(_json(data, indent=2 if person else None) + "\n")

    def made(self, path: object, metrics: dict[str, Any], seconds: float, up_to_date: bool = False) -> None:
        """The path of a directory that was made, one line on stdout, so that the next command can take it."""
        if up_to_date:
            self.say(f"{path} is up to date.")
        if self.shown.json:
            self.report({"path": str(path), "up_to_date": up_to_date, "metrics": metrics, "seconds": seconds})
        else:
            self.out(f"{path}\n")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> "rich.table.Table":
        """A table for `report`; columns whose cells are all numbers are set to the right."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        cells = [[_cell(value) for value in row] for row in rows]
        made = Table(title=Text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        made.show_header = any(columns)
        for index, column in enumerate(columns):
            texts = [row[index] for row in cells if row[index]]
            number = bool(texts) and all(text[0].isdigit() or text[:1] in "+-." for text in texts)
            made.add_column(Text(column), justify="right" if number else "left", overflow="fold")
        for row in cells:
            made.add_row(*(Text(text) for text in row))
        return made

    def show(self, table: "rich.table.Table") -> None:
        """A table on stderr, for people, beside what stdout holds; nothing with --quiet."""
        if not self.shown.quiet and sys.stderr is not None:
            self._rich(sys.stderr).print(table)

    @contextmanager
    def progress(self, total: int | None, unit: str, label: str) -> "Iterator[Bar | Lines | Progress]":
        """Progress on stderr: a bar on a terminal, else a plain line about every 30 s and one at the end.

        `.update(done, **fields)` says how many units are done, and numbers worth showing (loss=3.21).
        """
        if self.shown.quiet:
            yield Progress()
        elif self._terminal(sys.stderr):
            with self._bar(total, unit, label) as bar:
                yield bar
        else:
            lines = Lines(total, unit, label, self.say)
            try:
                yield lines
            finally:
                lines.end()

    @contextmanager
    def _bar(self, total: int | None, unit: str, label: str) -> "Iterator[Bar]":
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            *([TimeRemainingColumn()] if total is not None else []),
            TextColumn("{task.fields[notes]}"),
        ]
        terminal = self._rich(sys.stderr)
        # stdout is data and stays what it is; rich would send it to the terminal.
        with Progress(*columns, console=terminal, refresh_per_second=4, redirect_stdout=False) as progress:
            task = progress.add_task(label, total=total, count="", rate="", notes="")
            yield Bar(total, unit, lambda done, **texts: progress.update(task, completed=done, **texts))

    @property
    def colors(self) -> bool:
        """Whether stdout is a terminal that may be written to in color."""
        return self._terminal(sys.stdout)

    def _terminal(self, stream: IO[str] | None) -> bool:
        """Whether the stream is a terminal that can move its cursor, and the user lets us."""
        environment = os.environ
        if not self.shown.color or environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
            return False
        return stream is not None and stream.isatty()

    def _rich(self, stream: IO[str]) -> Any:
        from rich.console import Console as Rich

        live = self._terminal(stream)
        # Each said outright: rich would look at GITHUB_ACTIONS, FORCE_COLOR and others of its own.
        return Rich(file=stream, force_terminal=live, no_color=not live, highlight=False, legacy_windows=False)


class Progress:
    """Progress that nobody sees; the others show what it is told."""

    def update(self, done: int, **fields: object) -> None:
        """Says how many units are done, and numbers worth showing."""


class Bar(Progress):
    """Progress as a bar, told four times a second at most."""

    def __init__(self, total: int | None, unit: str, show: Callable[..., None]):
        self.total, self.unit, self.show = total, unit, show
        self.rate = Rate()
        self.next = 0.0

    def update(self, done: int, **fields: object) -> None:
        now = time.monotonic()
        rate = self.rate.of(done)
        if now >= self.next or done == self.total:
            self.next = now + 0.25
            self.show(
                done,
                count=_count(done, self.total, self.unit),
                rate=f"{_amount(rate, self.unit)}/s",
                notes=_notes(fields),
            )


class Lines(Progress):
    """Progress as a plain line about every 30 s: people do read the logs of batch jobs."""

    def __init__(self, total: int | None, unit: str, label: str, say: Callable[[str], None]):
        self.total, self.unit, self.label, self.say = total, unit, label, say
        self.rate = Rate()
        self.last = time.monotonic()
        self.unsaid: tuple[int, dict[str, object]] | None = None

    def update(self, done: int, **fields: object) -> None:
        self.rate.of(done)
        self.unsaid = (done, fields)
        if time.monotonic() - self.last >= EVERY:
            self.end()

    def end(self) -> None:
        """Says where it stands, unless that has just been said."""
        if self.unsaid is None:
            return
        done, fields = self.unsaid
        rate = self.rate.of(done)
        parts = [f"{self.label}: {_count(done, self.total, self.unit)}", f"{_amount(rate, self.unit)}/s"]
        if self.total is not None and rate > 0 and done < self.total:
            parts.append(f"{clock((self.total - done) / rate)} left")
        self.say(", ".join([*parts, *([_notes(fields)] if fields else [])]))
        self.last, self.unsaid = time.monotonic(), None


class Rate:
    """Units per second since the first update, so that what a resumed run had done before does not count."""

    def __init__(self) -> None:
        self.opened = time.monotonic()
        self.first: tuple[float, int] | None = None

    def of(self, done: int) -> float:
        """The rate, in units a second, when `done` units are done; at the first update, since the beginning."""
        now = time.monotonic()
        if self.first is None:
            self.first = now, done
        since, before = self.first if done > self.first[1] else (self.opened, 0)
        return (done - before) / max(1e-9, now - since)


def harmless(text: str) -> str:
    """A text for a terminal, with its control characters as pictures."""
    return text.translate(PICTURES)


def clock(seconds: float) -> str:
    """A duration as people read it: 0:07, 12:30, 3:02:01."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _notes(fields: dict[str, object]) -> str:
    return ", ".join(f"{name} {_cell(value)}" for name, value in fields.items())


def _cell(value: object) -> str:
    """A cell or note as text: thousands with commas, four digits of a fraction."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _count(done: int, total: int | None, unit: str) -> str:
    """ "40/100 steps", "52.4 MB"."""
    if unit in ("B", "bytes"):
        return _amount(done, unit) if total is None else f"{_amount(done, unit)}/{_amount(total, unit)}"
    return f"{done:,} {unit}" if total is None else f"{done:,}/{total:,} {unit}"


def _amount(number: float, unit: str) -> str:
    """Three digits of it: "52.4 MB", "12.3k tokens", "176 steps"."""
    size, letter = next(((s, c) for s, c in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if number >= s), (1.0, ""))
    digits = f"{number / size:.3g}" if number < 999.5 * size else f"{number / size:.0f}"
    return f"{digits} {letter}B" if unit in ("B", "bytes") else f"{digits}{letter} {unit}"


def _json(data: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(jsonable(data), ensure_ascii=False, allow_nan=False, indent=indent)
