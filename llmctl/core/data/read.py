"""Reading of texts, one document at a time: plain text, JSON lines, CSV, parquet; from files, stdin or a hub."""

import codecs
import csv
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import orjson

from llmctl.core.data.streams import opened
from llmctl.core.data.tables import Table
from llmctl.errors import Exit, UserError
from llmctl.spec.data import Reading

WHOLE = 1 << 16  # characters: a plain text up to this size is one document
PIECE = 1 << 13  # characters: a longer one is cut at the first blank line after so many
BLOCK = 1 << 20  # bytes read at a time
BLANK = re.compile(r"\n(?:[^\S\n]*\n)+")

NAME = "Name the field that holds the text: --field NAME"
MEND = "Mend or remove it, or say how to read the file: --format text"
CELLS = "Put quotes around what holds commas, or save it as JSON lines."
REPLACE = "Convert the file with iconv, or pass --errors replace to put U+FFFD there."

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
}
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


@dataclass(frozen=True)
class _Whole(Reading):
    """How records are read.

    Attributes:
        wanted: columns that will be asked for, by their names or numbers.
    """

    wanted: tuple[str, ...] = ()


class Document(NamedTuple):
    """One text as it was read.

    Attributes:
        text: never empty, nor white space alone, unless there is an error.
        source: file and, where it has several documents, line or row: "corpus.jsonl:12".
        record: the fields of a JSON line or a CSV row, None for other formats.
        error: why a record has no text; only where `read_texts` is told to go on.
    """

    text: str
    source: str
    record: dict | None = None
    error: str | None = None


def read_texts(paths: Iterable[str], reading: Reading | None = None, go_on: bool = False) -> Iterator[Document]:
    """The documents of files in order, holding one at a time.

    Args:
        paths: files, directories (their text files, by name), "-" for stdin, "hf:NAME[:CONFIG[:SPLIT]]" for
            a data set of the Hugging Face hub or of a local directory.
        reading: how; the defaults when None.
        go_on: give a bad JSON line as a Document with an error, rather than stop there.

    Raises:
        UserError: a file that cannot be read, bytes that are not UTF-8, a record without the field.
    """
    reading = reading or Reading()
    return itertools.islice(_documents(paths, reading, go_on), reading.limit)


def read_records(
    paths: Iterable[str], reading: Reading | None = None, wanted: Iterable[str] = ()
) -> Iterator[Document]:
    """The records of files in order, without a text taken out of them; a plain text is a record with the field `text`.

    Args:
        paths: as for `read_texts`.
        reading: how; its `field` says nothing.
        wanted: columns that will be asked for; see `Table`.

    Raises:
        UserError: a file that cannot be read, or a line that is no record or has more cells than there are columns.
    """
    reading = _Whole(**{**vars(reading or Reading()), "field": "", "wanted": tuple(wanted)})
    for document in itertools.islice(_documents(paths, reading, False), reading.limit):
        yield document if document.record is not None else document._replace(record={"text": document.text})


def files_of(paths: Iterable[str]) -> list[str]:
    """The same, with directories replaced by the text files in them, sorted by path.

    Raises:
        UserError: nothing there, or a directory without text files.
    """
    found = []
    for path in paths:
        if path == "-" or path.startswith("hf:"):
            found.append(path)
        elif Path(path).is_dir():
            inside = sorted(str(p) for p in Path(path).rglob("*") if p.is_file() and _suffix(p.name) in SUFFIXES)
            if not inside:
                raise UserError(f"{path} has no text files.", f"Known endings: {' '.join(SUFFIXES)}.")
            found += inside
        elif not Path(path).exists():
            hint = f"A data set of the hub is hf:{path}." if "/" in path and "." not in path else "Check the path."
            raise UserError(f"{path} does not exist.", hint)
        else:
            found.append(path)
    return found


def _documents(paths: Iterable[str], reading: Reading, go_on: bool) -> Iterator[Document]:
    for path in files_of(paths):
        documents = _hub(path, reading) if path.startswith("hf:") else _file(path, reading, go_on)
        for document in documents:
            kept = document.text and not document.text.isspace()
            if kept or document.error is not None or (not reading.field and document.record is not None):
                yield document


def _file(path: str, reading: Reading, go_on: bool) -> Iterator[Document]:
    name = "stdin" if path == "-" else path
    with opened(path) as stream:
        kind = _format(path, stream) if reading.format == "auto" else reading.format
        yield from READERS[kind](stream, name, reading, go_on)


def _format(path: str, stream: io.BufferedReader) -> str:
    """The format of a file by its name, else by its first bytes."""
    head = stream.peek(WHOLE)
    if head.startswith(b"PAR1"):
        return "parquet"
    if path != "-" and (known := SUFFIXES.get(_suffix(path))):
        return known
    first, newline, _ = head.lstrip().partition(b"\n")
    if not first.startswith(b"{"):
        return "text"
    try:
        return "jsonl" if not newline or isinstance(orjson.loads(first), dict) else "text"
    except orjson.JSONDecodeError:
        return "text"


def _suffix(path: str) -> str:
    """The ending of a name that says its format: that before .gz."""
    name = Path(path.lower())
    return Path(name.stem).suffix if name.suffix in COMPRESSED else name.suffix


def _text(stream: io.BufferedReader, name: str, reading: Reading, go_on: bool) -> Iterator[Document]:
    """Plain text. All documents together are the file, but in line mode, which leaves out the line ends."""
    blocks = _decoded(stream, name, reading)
    if reading.documents == "file":
        yield Document("".join(blocks), name)
    elif reading.documents == "line":
        yield from (Document(line.rstrip("\r"), f"{name}:{number}") for number, line in enumerate(_lines(blocks), 1))
    else:
        yield from _pieces(blocks, name)


def _decoded(stream: io.BufferedReader, name: str, reading: Reading) -> Iterator[str]:
    """The text in blocks, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")(reading.errors)
    line = 1
    try:
        while block := stream.read(BLOCK):
            text = decoder.decode(block)
            line += text.count("\n")
            yield text
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_utf8(name, line + error.object.count(b"\n", 0, error.start), error) from error


def _lines(blocks: Iterator[str]) -> Iterator[str]:
    rest = ""
    for block in blocks:
        *whole, rest = (rest + block).split("\n")
        yield from whole
    yield rest


def _pieces(blocks: Iterator[str], name: str) -> Iterator[Document]:
    """A short text whole, a long one in pieces that do not depend on how it came in blocks."""
    text, line, long = "", 1, False
    for block in blocks:
        text += block
        start = 0
        while len(text) - start > WHOLE:
            stop = _stop(text, start)
            yield Document(text[start:stop], f"{name}:{line}")
            line += text.count("\n", start, stop)
            start, long = stop, True
        text = text[start:]
    while long and len(text) > PIECE and (stop := _stop(text, 0)) < len(text):
        yield Document(text[:stop], f"{name}:{line}")
        line += text.count("\n", 0, stop)
        text = text[stop:]
    yield Document(text, f"{name}:{line}" if long else name)


def _stop(text: str, start: int) -> int:
    """Where a piece ends: after the first blank line when it is long enough, else after a line, else anywhere."""
    if blank := BLANK.search(text, start + PIECE, start + WHOLE):
        return blank.end()
    line = text.rfind("\n", start + PIECE, start + WHOLE) + 1
    return line if line and len(text) - start > WHOLE else min(start + WHOLE, len(text))


def _not_utf8(name: str, line: int, error: UnicodeDecodeError) -> UserError:
    byte = error.object[error.start]
    return UserError(
        f"{name} line {line}: byte 0x{byte:02x} is not UTF-8.",
        REPLACE,
    )


def _jsonl(stream: io.BufferedReader, name: str, reading: Reading, go_on: bool) -> Iterator[Document]:
    """JSON lines, or one JSON array of records."""
    if stream.peek(64).lstrip().startswith(b"["):
        try:
            lines = [orjson.dumps(record) for record in orjson.loads(stream.read())]
        except orjson.JSONDecodeError as error:
            raise UserError(f"{name} is not JSON: {error}.", MEND) from error
    else:
        lines = stream
    field, lenient = reading.field, reading.errors == "replace"
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            record = orjson.loads(line.decode("utf-8", "replace") if lenient else line)
            text = record[field] if field else ""
            if text.__class__ is not str or record.__class__ is not dict:
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            record, problem, hint = _problem(line, field, error)
            if not go_on:
                raise UserError(f"{name} line {number} {problem}.", hint) from error
            yield Document("", f"{name}:{number}", record, f"line {number} {problem}")
        else:
            yield Document(text, f"{name}:{number}", record)


def _problem(line: bytes, field: str, error: Exception) -> tuple[dict | None, str, str]:
    """The record of a bad JSON line, if there is one; what is wrong with it; what to do."""
    if isinstance(error, ValueError):
        try:
            line.decode()
        except UnicodeDecodeError as bad:
            return None, f"is not UTF-8: byte 0x{line[bad.start]:02x} at offset {bad.start}", REPLACE
        return None, f"is not JSON: {error}", MEND
    record = orjson.loads(line)
    if not isinstance(record, dict):
        return None, "is not a JSON object", MEND
    if field not in record:
        return record, f"has no field {field!r}, only {', '.join(map(repr, record)) or 'none'}", NAME
    return record, f"has a field {field!r} that is not text", NAME


def _csv(stream: io.BufferedReader, name: str, reading: Reading, go_on: bool) -> Iterator[Document]:
    """CSV or TSV; see `Table`."""
    text = io.TextIOWrapper(stream, "utf-8-sig", reading.errors, newline="")
    csv.field_size_limit(2**31 - 1)
    tabs = reading.format == "tsv" or (reading.format == "auto" and _suffix(name) == ".tsv")
    whole, line = isinstance(reading, _Whole), 0
    try:
        rows = Table(text, tabs, reading.wanted if isinstance(reading, _Whole) else (reading.field,))
        line = rows.line
        if reading.field and reading.field not in rows.names:
            found = ", ".join(map(repr, rows.names)) or "none"
            raise UserError(f"{name} has no column {reading.field!r}, only {found}.", NAME)
        for row, more in rows:
            line = rows.line
            if more and whole:
                named = ", ".join(map(repr, rows.names))
                raise UserError(f"{name} line {line} has more cells than there are columns: {named}.", CELLS)
            value = row[reading.field] if reading.field else ""
            if value is None and not go_on:
                raise UserError(f"{name} line {line} ends before column {reading.field!r}.", MEND)
            problem = f"line {line} ends before column {reading.field!r}" if value is None else None
            yield Document(value or "", f"{name}:{line}", row, problem)
    except UnicodeDecodeError as error:
        raise _not_utf8(name, line + 1 + error.object.count(b"\n", 0, error.start), error) from error
    except csv.Error as error:
        raise UserError(f"{name} line {line + 1} is not CSV: {error}.", MEND) from error
    finally:
        text.detach()


def _parquet(stream: io.BufferedReader, name: str, reading: Reading, go_on: bool) -> Iterator[Document]:
    """A column of strings of a parquet file."""
    import pyarrow
    from pyarrow import parquet

    if not stream.seekable():
        raise UserError(f"{name} is parquet, which cannot be read from a pipe.", "Write it to a file first.")
    try:
        file = parquet.ParquetFile(stream)
        if reading.field and reading.field not in file.schema_arrow.names:
            found = ", ".join(map(repr, file.schema_arrow.names))
            raise UserError(f"{name} has no column {reading.field!r}, only {found}.", NAME)
        row = 0
        for batch in file.iter_batches(1000, columns=[reading.field] if reading.field else None):
            if not reading.field:
                yield from (Document("", f"{name}:{row + at}", one) for at, one in enumerate(batch.to_pylist(), 1))
                row += len(batch)
                continue
            for value in batch.column(0).to_pylist():
                row += 1
                problem = None if isinstance(value, str) else f"row {row} has a {reading.field!r} that is not text"
                if problem and not go_on:
                    raise UserError(f"{name} {problem}.", NAME)
                yield Document("" if problem else value, f"{name}:{row}", None, problem)
    except pyarrow.ArrowException as error:
        raise UserError(f"{name} is not a sound parquet file: {error}.", "Make or fetch the file again.") from error


def _hub(path: str, reading: Reading) -> Iterator[Document]:
    """The rows of one split of a data set: hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT; the split is train."""
    import datasets

    name, config, split, *rest = [*path.split(":")[1:], "", "", ""][:4]
    if not name or any(rest):
        raise UserError(
            f"{path} is not hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT.", "Mind the colons.", Exit.USAGE
        )
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(rows, 1):
            if reading.field and not isinstance(row.get(reading.field), str):
                found = ", ".join(map(repr, row))
                raise UserError(f"{path} row {number} has no text in {reading.field!r}; fields: {found}.", NAME)
            yield Document(row.get(reading.field) or "", f"{path}:{number}", None if reading.field else row)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} cannot be loaded: {error}.", "Check the name and the network.") from error


READERS: dict[str, Callable[[io.BufferedReader, str, Reading, bool], Iterator[Document]]] = {
    "text": _text,
    "jsonl": _jsonl,
    "csv": _csv,
    "tsv": _csv,
    "parquet": _parquet,
}
