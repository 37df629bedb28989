"""Pairs: what a model said beside what it should have, from text files or JSON lines, one at a time."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

from llmctl.core.data.requests import RECORD, begun, holds_jsonl, json_objects
from llmctl.core.data.streams import opened
from llmctl.errors import Exit, UserError
from llmctl.spec.pairs import PREDICTION, REFERENCES, PairFormat, Pairing, check_inputs

Found = tuple[int, str | dict[str, object]]  # a line's number from 1, and the text or the record that it holds


class Pair(NamedTuple):
    """A prediction and its references.

    Attributes:
        number: of the pair, from 0.
        where: file and line of the prediction: "hyp.txt:12".
        references: at least one.
        record: the JSON object that held the prediction; None for plain text.
    """

    number: int
    where: str
    prediction: str
    references: tuple[str, ...]
    record: dict[str, object] | None


def read_pairs(
    predictions: str, references: Sequence[str] = (), pairing: Pairing | None = None, same: bool = False
) -> Iterator[Pair]:
    """The pairs of some files, in memory one at a time.

    A file of plain text holds a text a line, blank ones too; of JSON lines, blank lines are skipped. Each may be
    either, and compressed.

    Args:
        predictions: path; "-" for stdin.
        references: paths, each with one reference for each prediction, or (JSON lines) a list of them; none: the
            records of the predictions hold them.
        same: refuse pairs that differ in their number of references.

    Raises:
        UserError: with file and line: a file that ends before another (MISMATCH), a line that is no text or no
            record, a field that is missing or holds no text, numbers of references that differ (MISMATCH); there is
            no pair at all.
    """
    pairing = pairing or Pairing()
    check_inputs(predictions, tuple(references))
    with ExitStack() as stack:
        said, *wanted = [
            stack.enter_context(closing(read_lines(path, pairing.format))) for path in (predictions, *references)
        ]
        first, count = None, 0
        for number, (at, found) in enumerate(said):
            where = f"{shown(predictions)}:{at}"
            prediction = _prediction(found, pairing, where)
            if references:
                sides = [next(side, None) for side in wanted]
                if None in sides:
                    raise _short(references[sides.index(None)], number, where)
                told = [
                    text
                    for path, side in zip(references, sides, strict=True)
                    for text in _references(side, pairing, path)
                ]
            elif isinstance(found, str):
                hint = "Name a file of references after it, or give JSON lines that hold both."
                raise UserError(f"{where} is plain text, which has no reference.", hint)
            else:
                told = _references((at, found), pairing, predictions)
            first = first or (len(told), where)
            if same and len(told) != first[0]:
                raise UserError(
                    f"{where} has {len(told)} references, but {first[1]} has {first[0]}.",
                    "This score wants as many for each prediction.",
                    Exit.MISMATCH,
                )
            count += 1
            yield Pair(number, where, prediction, tuple(told), None if isinstance(found, str) else found)
        for path, side in zip(references, wanted, strict=True):
            if (more := next(side, None)) is not None:
                raise _short(predictions, count, f"{shown(path)}:{more[0]}")
    if not count:
        raise UserError(f"{shown(predictions)} holds no prediction.", "One a line is wanted.")


def read_lines(path: str, format: PairFormat) -> Iterator[Found]:
    """The texts or records of a file, a line each, with the line's number from 1.

    Raises:
        UserError: with file and line: it is neither.
    """
    with opened(path) as stream:
        jsonl = holds_jsonl(path, stream) if format == "auto" else format == "jsonl"
        lines = begun(stream)
        if jsonl:
            for at, record, error in json_objects(lines):
                if error:
                    wrong = error.removeprefix(f"line {at} ")
                    raise UserError(f"{shown(path)}:{at} {wrong}.", "Mend or leave out that line.")
                yield at, record
            return
        for at, line in enumerate(lines, start=1):
            if at == 1 and format == "auto" and RECORD.match(line) and ".txt" not in Path(path.lower()).suffixes:
                hint = "Mend that line; or, if the lines are texts, say --format lines."
                raise UserError(f"{shown(path)}:1 begins as a JSON record does, but is not JSON.", hint)
            try:
                yield at, line.removesuffix(b"\n").removesuffix(b"\r").decode()
            except UnicodeDecodeError as error:
                byte = f"byte 0x{line[error.start]:02x}"
                raise UserError(f"{shown(path)}:{at} is not UTF-8: {byte}.", "Convert the file with iconv.") from error


def _prediction(record: str | dict[str, object], pairing: Pairing, where: str) -> str:
    if isinstance(record, str):
        return plain_text(record, pairing.pred_field, "--pred-field", where)
    name = pairing.pred_field or PREDICTION
    found = field(record, name)
    if isinstance(found, str):
        return _whole(found, name, where)
    if found is None and record.get("error"):
        raise UserError(f"{where} has no {name}, but an error: {record['error']}", "Answer that record again.")
    hint = "--pred-field completions.0 takes the first of several." if "completions" in record else ""
    raise _no_text(record, name, found, where, "--pred-field", hint)


def _references(found: Found, pairing: Pairing, path: str) -> list[str]:
    """The references that a line holds."""
    at, record = found
    where = f"{shown(path)}:{at}"
    if isinstance(record, str):
        return [plain_text(record, next(iter(pairing.ref_field), None), "--ref-field", where)]
    names = pairing.ref_field or (next((name for name in REFERENCES if name in record), REFERENCES[0]),)
    told: list[str] = []
    for name in names:
        value = field(record, name)
        texts = value if isinstance(value, list) else [value]
        if not texts:
            raise UserError(f"{where} has a field {name!r} that is an empty list, wanted a reference.")
        if not all(isinstance(text, str) for text in texts):
            raise _no_text(record, name, value, where, "--ref-field", "")
        told += [_whole(text, name, where) for text in texts]
    return told


def field(record: dict[str, object], name: str) -> object:
    """What a record holds under a name, whole or dotted ("answer.text", "completions.0"); None where nothing is."""
    if name in record:
        return record[name]
    found: object = record
    for part in name.split("."):
        if isinstance(found, dict):
            found = found.get(part)
        elif isinstance(found, list) and part.isascii() and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def plain_text(text: str, name: str | None, flag: str, where: str) -> str:
    """A line of text as it is.

    Raises:
        UserError: its field was named.
    """
    if name is not None:
        raise UserError(f"{where} is plain text, which has no field {name!r}.", f"Leave {flag} out; or --format jsonl.")
    return text


def _whole(text: str, name: str, where: str) -> str:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{where} has a field {name!r} that holds half of a surrogate pair, which is no character.")
    return text


def _no_text(record: dict[str, object], name: str, found: object, where: str, flag: str, hint: str) -> UserError:
    if found is None and name not in record:
        there = ", ".join(map(repr, record)) or "none"
        return UserError(f"{where} has no field {name!r}, only {there}.", hint or f"Name another with {flag}.")
    return UserError(f"{where} has a field {name!r} that is not a text.", hint or f"Name another with {flag}.")


def _short(path: str, lines: int, where: str) -> UserError:
    """What is said of a file that ends before another."""
    return UserError(
        f"{shown(path)} ends after {lines} texts, but {where} follows.",
        "Predictions and references go line by line: give as many of each.",
        Exit.MISMATCH,
    )


def shown(path: str) -> str:
    """A path as errors name it."""
    return "stdin" if path == "-" else path
