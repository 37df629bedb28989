"""Requests: the texts that a model is to work on, a line or a JSON record each, from a file or stdin."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from llmctl.core.data.streams import opened
from llmctl.spec.sample import Format

RECORD = re.compile(rb'\s*\{\s*"')  # how a line begins that holds a JSON object


@dataclass(frozen=True)
class Request:
    """One text.

    Attributes:
        number: of the record in the input, from 0; bad records count too.
        text: the prompt, or what is to be classified, embedded, filled in.
        record: the JSON object that it came in; None for plain text.
        error: why there is no text; "" when there is one.
    """

    number: int
    text: str
    record: dict[str, object] | None = None
    error: str = ""


def read_requests(path: str, format: Format, fields: tuple[str, ...]) -> Iterator[Request]:
    """The texts of a file, or of stdin for "-", one at a time; JSON records where it holds such.

    Args:
        fields: of a record; the first that is there holds the text.

    Raises:
        UserError: the file cannot be read.
    """
    with opened(path) as stream:
        if format == "auto":
            format = "jsonl" if holds_jsonl(path, stream) else "lines"
        stream = begun(stream)
        if format == "jsonl":
            yield from from_jsonl(stream, fields)
        else:
            yield from from_lines(iter([stream.read()] if format == "text" else stream), format == "text")


def read_objects(path: str) -> Iterator[tuple[int, dict[str, object], str]]:
    """The JSON objects of a file, or of stdin for "-", a line each, as `json_objects` gives them.

    Raises:
        UserError: the file cannot be read.
    """
    with opened(path) as stream:
        yield from json_objects(begun(stream))


def begun(stream: BufferedReader) -> BufferedReader:
    """The same stream, after the mark that UTF-8 may begin with."""
    if stream.peek(3).startswith(codecs.BOM_UTF8):
        stream.read(3)
    return stream


def holds_jsonl(path: str, stream: BufferedReader) -> bool:
    """Whether a file that is still at its beginning holds JSON lines, by its name or else by its first line.

    Of a line that has not arrived whole, as of a long one in a pipe, its beginning decides.
    """
    endings = Path(path.lower()).suffixes
    if any(ending in (".jsonl", ".ndjson", ".json") for ending in endings):
        return True
    first, end, _ = stream.peek(1 << 16).removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")
    if ".txt" in endings or not first.startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return not end and RECORD.match(first) is not None


def from_lines(lines: Iterable[bytes], whole: bool = False) -> Iterator[Request]:
    """A text a line, byte for byte but for the line's end; or, if `whole`, each piece with its line ends."""
    for number, line in enumerate(lines):
        text = line if whole else line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            yield Request(number, text.decode())
        except UnicodeDecodeError as error:
            yield Request(number, "", error=f"line {number + 1} is not UTF-8: byte 0x{text[error.start]:02x}")


def from_jsonl(lines: Iterable[bytes], fields: tuple[str, ...]) -> Iterator[Request]:
    """A text a JSON object, from the first of the fields that is there; blank lines are skipped."""
    for number, (at, record, error) in enumerate(json_objects(lines)):
        if not error:
            name = next((name for name in fields if name in record), fields[0])
            error = "" if (wrong := no_text(record, name)) is None else f"line {at} {wrong}"
        yield Request(number, "" if error else str(record[name]), record, error)


def json_objects(lines: Iterable[bytes]) -> Iterator[tuple[int, dict[str, object], str]]:
    """A JSON object a line: the line's number from 1, the object, and why there is none; blank lines are skipped."""
    for at, line in enumerate(lines, start=1):
        text = line.strip()
        if not text:
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            yield at, {}, f"line {at} is not JSON: {error.msg} at column {error.colno}"
            continue
        except (ValueError, RecursionError) as error:  # no UTF-8, a number too long, or too many brackets
            yield at, {}, f"line {at} is not JSON: {error}"
            continue
        if isinstance(record, dict):
            yield at, record, ""
        else:
            yield at, {}, f"line {at} is a JSON {type(record).__name__}, wanted an object"


def no_text(record: dict[str, object], name: str) -> str | None:
    """Why a field of a record holds no text, or None where it does."""
    text = record.get(name)
    if name not in record:
        return f"has no field {name!r}, only {', '.join(map(repr, record)) or 'none'}"
    if not isinstance(text, str):
        return f"has a field {name!r} that is not a string"
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return f"has a field {name!r} that holds half of a surrogate pair, which is no character"
    return None
