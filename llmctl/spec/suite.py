"""Suite: several tasks in one TOML file, and what is asked of each beside accuracy, in the manner of HELM.

    category = "..."                   # any key of a task: what all tasks have that do not say otherwise
    shift = ["typos", "lower"]
    train = ["tokens"]

    [[task]]
    file = "sentiment.jsonl"           # as eval-task takes it; paths are relative to the suite's file
    name = "sentiment"                 # default: the file's name
    category = "classification"        # the report has a mean for each category
    weight = 2                         # in the means; default 1
    choice = ["bad", "good"]           # any option of eval-task, under its name
    group = "source"

An option given on the command line holds for every task, whatever the file says.
"""

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from llmctl.errors import Exit, UserError
from llmctl.spec.benchmark import Asking, Task
from llmctl.spec.files import read_toml

Shift = Literal["typos", "lower", "upper", "space", "contract", "expand", "filler"]
SHIFTS: tuple[str, ...] = get_args(Shift)
PATHS = ("examples", "train")  # whose values are files beside the suite's own


@dataclass(frozen=True, kw_only=True)
class Aspects:
    """Beside accuracy.

    Calibration and efficiency cost nothing and are always told; fairness where --group names a field.

    Raises:
        UserError: a value out of range.
    """

    shift: Annotated[
        tuple[str, ...],
        "Ask everything again with other spellings: typos, lower, upper, space (more of it), contract (don't), expand "
        "(do not), filler (uh). robustness is the mean of each record's worst score; repeatable.",
    ] = ()
    shift_field: Annotated[
        tuple[str, ...], "Field whose text --shift changes; default: all but those of the answer; repeatable."
    ] = ()
    train: Annotated[
        tuple[str, ...],
        "Text, JSON lines or tokens that the model was trained on: records that share a run of words with it count as "
        "contaminated; repeatable.",
    ] = ()
    ngram: Annotated[int, "Words of such a run; a shorter record counts as a whole if it has 8."] = 13

    def __post_init__(self) -> None:
        wrong = {
            **{f"--shift is {one}, wanted one of {', '.join(SHIFTS)}": one not in SHIFTS for one in self.shift},
            f"--ngram is {self.ngram}, wanted 2 or more": self.ngram < 2,
            "--shift-field wants a --shift": bool(self.shift_field) and not self.shift,
            f"--shift is {self.shift[0] if self.shift else ''} twice": len(set(self.shift)) < len(self.shift),
        }
        if any(wrong.values()):
            raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)


@dataclass(frozen=True)
class Entry:
    """One task of a suite.

    Attributes:
        weight: in the means.
        category: tasks of one category have a mean of their own; None: only that of all.

    Raises:
        UserError: records of stdin would be asked more than once.
    """

    task: Task
    aspects: Aspects
    weight: float = 1.0
    category: str | None = None

    def __post_init__(self) -> None:
        if self.task.file == "-" and self.aspects.shift:
            problem = "--shift asks the records again, but those of stdin are read once."
            raise UserError(problem, "Write them to a file first.", Exit.USAGE)
        if self.task.file == "-" and "-" in self.aspects.train:
            raise UserError("stdin can be read once, but - stands for records and for --train.", code=Exit.USAGE)


@dataclass(frozen=True)
class Suite:
    """Tasks that are run together, in order; no two have one name."""

    name: str
    entries: tuple[Entry, ...]


def one_task(task: Task, aspects: Aspects) -> Suite:
    """A suite of one task."""
    return Suite(task.name, (Entry(task, aspects),))


def read_suite(
    path: Path,
    asking: Asking | None = None,
    aspects: Aspects | None = None,
    given: Collection[str] | None = None,
) -> Suite:
    """The suite in a TOML file.

    Args:
        asking, aspects: options of the command line.
        given: names of those that were said there, which hold for every task; None: those that differ from their
            defaults.

    Raises:
        UserError: a file that cannot be read or is not TOML, a key that no task has, a value that does not read, a
            task without a file, or two with one name.
    """
    about = read_toml(path, "A task begins with the line [[task]].")
    tables = about.pop("task", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(one, dict) for one in tables):
        raise UserError(f"{path} has no tasks.", f"A task begins with the line [[task]].{_like(about)}", Exit.USAGE)
    name = _typed(about.pop("name", path.stem), str, f"{path}: name")
    over = {**_given(asking or Asking(), given), **_given(aspects or Aspects(), given)}
    entries = []
    for number, table in enumerate(tables, 1):
        place = f"{path}: task {table.get('name', table.get('file', number))}"
        entries.append(_entry(path, {**_known(about, f"{path}: "), **_known(table, f"{place}: ")}, over, place))
    names = [entry.task.name for entry in entries]
    if twice := next((one for one in names if names.count(one) > 1), None):
        raise UserError(f"{path} has two tasks called {twice}.", 'Give one another name: name = "..."', Exit.USAGE)
    return Suite(name, tuple(entries))


def _entry(path: Path, said: dict[str, Any], over: dict[str, Any], place: str) -> Entry:
    if "file" not in said:
        raise UserError(f"{place} has no file.", 'Name its records: file = "questions.jsonl"', Exit.USAGE)
    typed = {key: _typed(value, KEYS[key], f"{place}: {key}") for key, value in said.items()}
    typed["file"] = _beside(path, typed["file"])
    typed.setdefault("name", Path(typed["file"]).name.partition(".")[0])
    for key in PATHS:
        if key in typed:
            value = typed[key]
            typed[key] = tuple(_beside(path, one) for one in value) if key == "train" else _beside(path, value)
    typed |= over
    weight, category = typed.pop("weight", 1.0), typed.pop("category", None)
    if not 0 < weight < math.inf:
        raise UserError(f"{place}: weight is {weight}, wanted more than 0.", code=Exit.USAGE)
    mine = {field.name for field in fields(Aspects)}
    try:
        aspects = Aspects(**{key: value for key, value in typed.items() if key in mine})
        task = Task(**{key: value for key, value in typed.items() if key not in mine})
    except UserError as error:
        raise UserError(f"{place}: {error.problem}", error.hint, Exit.USAGE) from error
    return Entry(task, aspects, weight, category)


def _given(options: Any, given: Collection[str] | None) -> dict[str, Any]:
    """The fields of a dataclass that are named, or where nothing says which those are, differ from their defaults."""
    usual = type(options)()
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    if given is None:
        return {name: value for name, value in values.items() if value != getattr(usual, name)}
    return {name: value for name, value in values.items() if name in given}


def _beside(path: Path, value: str) -> str:
    """A path of a suite's file; one of stdin or a hub is what it is."""
    return value if value == "-" or value.startswith("hf:") else str(path.parent / value)


def _known(table: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A table with - in its keys as _, when all of them are known."""
    found = {key.replace("-", "_"): value for key, value in table.items()}
    for key in found:
        if key not in KEYS:
            raise UserError(f"{place}{key} is no key of a task.", _like({key: 0}).strip(), Exit.USAGE)
    return found


def _like(table: Mapping[str, Any]) -> str:
    """ "Did you mean ...?" about the first key that is mistyped."""
    for key in table:
        if key not in KEYS and (near := difflib.get_close_matches(key, ["task", *KEYS], n=1, cutoff=0.6)):
            return f" Did you mean {near[0]}?"
    return ""


def _typed(value: Any, kind: Any, place: str) -> Any:
    """A value of TOML as a field wants it: whole numbers are numbers, and a text is a list of one."""
    choices: tuple[Any, ...] = ()
    many = get_origin(kind) is tuple
    one = get_args(kind)[0] if many else kind
    if get_origin(one) is Literal:
        one, choices = str, get_args(one)
    items = value if many and isinstance(value, list) else [value]
    items = [float(item) if one is float and type(item) is int else item for item in items]
    if any(type(item) is not one or (choices and item not in choices) for item in items):
        wanted = f"one of {', '.join(choices)}" if choices else WANTED[one]
        raise UserError(
            f"{place} is {value!r}, wanted {wanted}{' (or a list of them)' if many else ''}.", code=Exit.USAGE
        )
    return tuple(items) if many else items[0]


def _kinds() -> dict[str, Any]:
    """The keys of a task, and the type of each."""
    found: dict[str, Any] = {"weight": float, "category": str}
    for field in (*fields(Task), *fields(Aspects)):
        kind: Any = get_args(field.type)[0] if get_origin(field.type) is Annotated else field.type
        if type(None) in get_args(kind):
            kind = next(one for one in get_args(kind) if one is not type(None))
        found[field.name] = kind
    return found


WANTED: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
KEYS = _kinds()
