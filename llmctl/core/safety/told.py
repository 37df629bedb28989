"""Told: texts that a model wrote, with the prompts that they answer, as `generate` records them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from llmctl.core.data.requests import no_text, read_objects
from llmctl.errors import UserError

PROMPTS = ("prompt", "text")  # where a record's prompt is looked for when no field is named
COMPLETIONS = ("completion", "completions")  # likewise its texts


class Told(NamedTuple):
    """What a model wrote after one prompt.

    Attributes:
        number: of the record, from 0.
        where: file and line: "out.jsonl:12".
        prompt: "" where the record has none.
        texts: its completions, one at least.
        record: as it came.
    """

    number: int
    where: str
    prompt: str
    texts: tuple[str, ...]
    record: dict[str, object]


class Judged(NamedTuple):
    """What a judge says of one prompt's completions.

    Attributes:
        scores: name of the figure to its value for this prompt; one that it says nothing of is absent.
        found: what the scores are about, for a person: JSON-able, by name.
    """

    scores: dict[str, float]
    found: dict[str, object]


class Judge(Protocol):
    """Judges texts for one thing."""

    def __call__(self, told: Sequence[Told]) -> list[Judged]:
        """What it says of each."""


def read_told(path: str, completions: str | None = None, prompts: str | None = None) -> Iterator[Told]:
    """The records of a file of JSON lines, or of stdin for "-", one at a time.

    Args:
        completions: field that holds a text or a list of texts; None: `completion`, or else `completions`.
        prompts: field that holds the prompt, which must then be there; None: `prompt`, or else `text`, if there.

    Raises:
        UserError: with file and line: no JSON object, no text, or the error with which `generate` answered; the file
            cannot be read, or holds no record.
    """
    name, number = "stdin" if path == "-" else path, -1
    for number, (at, record, error) in enumerate(read_objects(path)):
        where = f"{name}:{at}"
        if error:
            wrong = error.removeprefix(f"line {at} ")
            raise UserError(f"{where} {wrong}.", "JSON lines are wanted, as llmctl generate --json writes them.")
        field = completions or next((one for one in COMPLETIONS if one in record), None)
        if field is None and record.get("error"):
            hint = "Judge the others without it, or let it be answered first."
            raise UserError(f"{where}: this prompt was not answered: {record['error']}", hint)
        texts = _texts(record, field or COMPLETIONS[0], where)
        asked = prompts or next((one for one in PROMPTS if one in record and one != field), None)
        if asked is not None and (wrong := no_text(record, asked)):
            raise UserError(f"{where}: the record {wrong}.", "--prompt-field names the field of the prompt.")
        yield Told(number, where, "" if asked is None else str(record[asked]), texts, record)
    if number < 0:
        raise UserError(f"{name} holds no record.", "A JSON record a line is wanted.")


def _texts(record: dict[str, object], field: str, where: str) -> tuple[str, ...]:
    """Those of a field."""
    given = record.get(field)
    for text in given if isinstance(given, list) else [given]:
        if wrong := no_text({**record, field: text} if field in record else record, field):
            raise UserError(f"{where}: the record {wrong}.", "--completion-field names the field of the text.")
    if given == []:
        raise UserError(f"{where}: the record has an empty list {field!r}.", "One text at least is wanted.")
    return tuple(map(str, given)) if isinstance(given, list) else (str(given),)


def value_of(told: Told, field: str) -> object:
    """What a record has in a field.

    Raises:
        UserError: it has no such field.
    """
    if field not in told.record:
        known = ", ".join(map(repr, told.record))
        raise UserError(f"{told.where}: the record has no field {field!r}, only {known}.")
    return told.record[field]


def shares(name: str, hits: Sequence[float]) -> dict[str, float]:
    """Two figures of a prompt: the share of its completions that were hit, and whether any was ("any_" before it)."""
    return {name: sum(hits) / len(hits), f"any_{name}": float(any(hits))}
