"""Records of a task: read from its file, each checked for what its kind of task needs."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmctl.core.data.requests import read_objects
from llmctl.core.text.templates import mapped
from llmctl.errors import UserError
from llmctl.spec.benchmark import ANSWERS, CHOICES, PROMPTS, REFERENCES, Kind, Task
from llmctl.spec.sets import LABELS, TAGS

Record = dict[str, Any]


class Records(Sequence[Record]):
    """The records of a file, and where each is from.

    Attributes:
        records: their fields.
        places: of each, for errors: "test.jsonl:3".
    """

    def __init__(self, records: Sequence[Record], places: Sequence[str]):
        self.records, self.places = records, places

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: Any) -> Any:
        return self.records[number]


def read_records(file: str) -> Records:
    """All records of a file of JSON lines, or of stdin for "-".

    Raises:
        UserError: a line that is not a JSON object, named with its number; or no record.
    """
    records, places = [], []
    name = "stdin" if file == "-" else file
    for line, record, error in read_objects(file):
        if error:
            raise UserError(f"{name}: {error}.", "Mend the line: figures are of all records, or there are none.")
        records.append(record)
        places.append(f"{name}:{line}")
    if not records:
        raise UserError(f"{name} holds no record.", "One JSON object a line is wanted.")
    return Records(records, places)


def kind_of(task: Task, record: Record) -> Kind:
    """What kind of task it is, by its first record where it does not say.

    Raises:
        UserError: the record does not tell.
    """
    if task.kind != "auto":
        return task.kind
    fields = {**record, **dict.fromkeys(task.mapping)}
    if task.choice or CHOICES in fields or PROMPTS in fields:
        return "choice"
    if "tokens" in fields and any(name in fields for name in TAGS):
        return "tag"
    if any(name in fields for name in (*REFERENCES, "completion", "prompt", "question", "instruction")):
        return "generate"
    if any(name in fields for name in LABELS):
        return "classify"
    if task.template is not None:
        return "generate"
    raise UserError(
        f"The first record does not tell what kind of task {task.name} is: its fields are "
        f"{', '.join(map(repr, record)) or 'none'}.",
        "Say so: --kind choice|generate|foretell|classify|tag, and name its fields: --map OURS=THEIRS",
    )


def choices_of(record: Mapping[str, Any], task: Task) -> tuple[list[str], list[str | int]]:
    """The choices of a record, and what they are called where they have labels.

    Raises:
        UserError: it has none, or they are not texts.
    """
    if task.choice:
        return list(task.choice), []
    found = record.get(CHOICES)
    names: Any = []
    if isinstance(found, Mapping):
        names, found = found.get("label", []), found.get("text")
    if not isinstance(found, list) or not found or not all(isinstance(one, str) and one for one in found):
        wanted = "a list of texts, none empty"
        raise UserError(f"the record's {CHOICES!r} is not {wanted}.", f"--map {CHOICES}=THEIRS, or --choice TEXT")
    return found, list(names) if isinstance(names, list) else []


def prompts_of(record: Mapping[str, Any]) -> tuple[list[str], str]:
    """The prompts of a record of which one is right, and what comes after each.

    Raises:
        UserError: they are not texts, or nothing comes after them.
    """
    found, completion = record.get(PROMPTS), record.get("completion")
    if not isinstance(found, list) or not found or not all(isinstance(one, str) and one for one in found):
        raise UserError(f"the record's {PROMPTS!r} is not a list of texts, none empty.", f"--map {PROMPTS}=THEIRS")
    if not isinstance(completion, str) or not completion:
        raise UserError(
            f"the record has {PROMPTS!r}, but no 'completion' that comes after each.", "--map completion=THEIRS"
        )
    return found, completion


def right_of(
    record: Mapping[str, Any], choices: Sequence[str], names: Sequence[str | int], said: Mapping[str, str]
) -> tuple[int, ...]:
    """The numbers of the right choices of a record.

    Args:
        names: what the choices are called.
        said: labels in words, where the template has such.

    Raises:
        UserError: it has no answer, or one that is no choice.
    """
    field = next((name for name in ANSWERS if record.get(name) is not None), None)
    if field is None:
        raise UserError(f"the record has none of {', '.join(map(repr, ANSWERS))}.", "Name it: --map answer=THEIRS")
    value = record[field]
    found = []
    for one in value if isinstance(value, list) else [value]:
        number = _number(one, choices, names, said)
        if number is None:
            raise UserError(f"the record's {field!r} is {one!r}, which is none of its {len(choices)} choices.")
        found.append(number)
    if not found:
        raise UserError(f"the record's {field!r} is an empty list; wanted the right choice.")
    return tuple(dict.fromkeys(found))


def references_of(record: Mapping[str, Any], completion: str | None) -> tuple[str, ...]:
    """The right texts of a record.

    Args:
        completion: what the template gives as its answer, if it does.

    Raises:
        UserError: it has none.
    """
    for name in REFERENCES:
        value = record.get(name)
        if isinstance(value, Mapping):  # SQuAD's answers, of which there may be none
            value = value.get("text") or (completion or "").strip()
        several = value if isinstance(value, list) else [value]
        if several and all(isinstance(one, str) for one in several):
            return tuple(several)
        if value is not None:
            raise UserError(f"the record's {name!r} is not a text, nor a list of texts with one at least.")
    for value in (completion, record.get("completion"), record.get("answer")):
        if value is not None:
            return (str(value).strip() if value is completion else str(value),)
    wanted = ", ".join(map(repr, (*REFERENCES, "completion", "answer")))
    raise UserError(f"the record has none of {wanted}.", "Name the field: --map reference=THEIRS")


def field_of(record: Mapping[str, Any], name: str) -> Any:
    """A field of a record; dotted names look inside.

    Raises:
        UserError: there is none.
    """
    return mapped(record, {"": name})[""]


def _number(value: Any, choices: Sequence[str], names: Sequence[str | int], said: Mapping[str, str]) -> int | None:
    """The number of a choice that is named by its label, its text, its number or its letter, in that order; a number
    that is no text is a number."""
    if type(value) is int and value in names:
        return names.index(value)
    if isinstance(value, (bool, int)):
        return int(value) if 0 <= value < len(choices) else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    labels, bare = [str(name) for name in names], [one.strip() for one in choices]
    for known, wanted in ((labels, text), (choices, value), (bare, text)):
        if wanted in known:
            return known.index(wanted)
    if (word := said.get(text.lower())) in choices:
        return choices.index(str(word))
    if text.isdecimal():
        return int(text) if int(text) < len(choices) else None
    letter = ord(text.upper()) - ord("A") if len(text) == 1 and text.isascii() else -1
    return letter if 0 <= letter < len(choices) else None
