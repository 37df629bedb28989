"""Inputs of foreign metrics: examples from text files or JSON lines, in the types that a metric wants."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any, NamedTuple

import datasets

from llmctl.core.data.pairs import field, plain_text, read_lines, shown
from llmctl.errors import Exit, UserError
from llmctl.spec.pairs import REFERENCES, Pairing, check_inputs

Form = dict[str, Any]  # the type of each input of a metric, as `datasets` has types
PREDICTIONS = ("completion", "prediction", "predictions", "label")  # the first of these that a record has
TYPES = {"int": int, "uint": int, "float": float}  # of Python, by how a type of Arrow begins
TRUTH = {"true": True, "1": True, "false": False, "0": False}


class Row(NamedTuple):
    """What a metric is given for one example: a value for each of its inputs, and where the example stands."""

    where: str
    values: dict[str, Any]


def read_rows(
    predictions: str, references: Sequence[str], pairing: Pairing, fields: dict[str, str], forms: list[Form]
) -> Iterator[Row]:
    """The examples of some files, one at a time, as a metric takes them.

    Args:
        forms: of the metric's inputs, any one of which will do.

    Raises:
        UserError: with file and line: files that differ in length (MISMATCH), an input that is missing, a value of
            another type than the metric wants; or there is no example.
    """
    check_inputs(predictions, tuple(references))
    inputs, paths, count = Inputs(forms, pairing, fields), [predictions, *references], 0
    if references and "references" not in forms[0]:
        raise UserError(f"The metric takes {', '.join(forms[0])}, and no references.", code=Exit.USAGE)
    with ExitStack() as stack:
        streams = [stack.enter_context(closing(read_lines(path, pairing.format))) for path in paths]
        for lines in _beside(streams, paths):
            count += 1
            yield inputs.row([(f"{shown(path)}:{at}", held) for path, (at, held) in zip(paths, lines, strict=True)])
    if not count:
        raise UserError(f"{shown(predictions)} holds no prediction.", "One a line is wanted.")


class Inputs:
    """How lines become what a metric takes.

    A line of text is made the type that the metric wants: a number, or where it wants a list, what stands between
    spaces; several files of references are a list. JSON records hold each input in a field: that of the input's name,
    unless `fields` or the options of pairs name another.
    """

    def __init__(self, forms: list[Form], pairing: Pairing, fields: dict[str, str]):
        self.forms, self.fields = forms, fields
        self.main = "predictions" if "predictions" in forms[0] else next(iter(forms[0]))  # what a line of text is
        listed = [
            any(isinstance(form.get(name), datasets.List) for form in forms) for name in (self.main, "references")
        ]
        self.several = listed == [False, True]  # references to a prediction
        self.pairing = pairing
        self.names = {
            "predictions": (pairing.pred_field,) if pairing.pred_field else PREDICTIONS,
            "references": (*REFERENCES, "label"),
        }

    def row(self, lines: list[tuple[str, Any]]) -> Row:
        """One example.

        Args:
            lines: of the predictions, and of each file of references: where it stands, and its text or record.

        Raises:
            UserError: it is no such example.
        """
        values = {}
        for name in self.forms[0]:
            apart = name == "references" and len(lines) > 1
            found = [self._value(name, held, place, apart) for place, held in (lines[1:] if apart else lines[:1])]
            listed = len(found) > 1 or (self.several and name == "references")
            values[name] = [one for value in found for one in _several(value)] if listed else found[0]
        place = lines[0][0]
        if all(_unfit(values, form) for form in self.forms):
            wrong = _unfit(values, self.forms[0])
            hint = f"The metric takes {', or '.join(_told(form) for form in self.forms)}."
            raise UserError(f"{place}: {wrong} is {values[wrong]!r:.60}, of another type than wanted.", hint)
        return Row(place, values)

    def _value(self, name: str, held: Any, place: str, apart: bool) -> Any:
        """An input out of a line of text, or out of a record."""
        if isinstance(held, dict):
            return self._held(name, held, place)
        if name != self.main and not apart:
            beside = (
                "Name a file of references after it, or give JSON lines" if name == "references" else "Give JSON lines"
            )
            raise UserError(f"{place} is plain text, but the metric wants {name}, too.", f"{beside} that hold both.")
        plain_text(held, *self._named(name), place)
        kinds = [form[name] for form in self.forms]
        if self.several and name == "references":
            kinds = [kind.feature if isinstance(kind, datasets.List) else kind for kind in kinds]
        for kind in kinds:
            with suppress(ValueError):
                return _typed(held, kind)
        raise UserError(f"{place}: {held!r:.60} is no {_type(kinds[0])}.")

    def _named(self, name: str) -> tuple[str | None, str]:
        """The field of records that was named for an input, if any, and the flag that does so."""
        if name in self.fields:
            return self.fields[name], "--field"
        if name == "predictions":
            return self.pairing.pred_field, "--pred-field"
        return (next(iter(self.pairing.ref_field), None) if name == "references" else None), "--ref-field"

    def _held(self, name: str, record: dict[str, object], place: str) -> Any:
        """An input out of a record: the first field there is of those that may hold it, or all that were named."""
        if name in self.fields:
            names: Sequence[str] = (self.fields[name],)
        elif name == "references" and self.pairing.ref_field:
            found = [self._found(name, (one,), record, place) for one in self.pairing.ref_field]
            return found[0] if len(found) == 1 else [one for value in found for one in _several(value)]
        else:
            names = self.names.get(name, (name, name.removesuffix("s")))
        return self._found(name, names, record, place)

    def _found(self, name: str, names: Sequence[str], record: dict[str, object], place: str) -> Any:
        for one in names:
            if (found := field(record, one)) is not None:
                return found
        there = ", ".join(map(repr, record)) or "none"
        raise UserError(f"{place} has no field {names[0]!r}, only {there}.", f"Name one with --field {name}=FIELD.")


def _beside(streams: list[Iterator[Any]], paths: list[str]) -> Iterator[list[Any]]:
    """The lines of files side by side."""
    number = 0
    while True:
        lines = [next(stream, None) for stream in streams]
        if all(line is None for line in lines):
            return
        if None in lines:
            ended, there = lines.index(None), next(i for i, line in enumerate(lines) if line is not None)
            more = f"{shown(paths[there])}:{lines[there][0]}"
            raise UserError(
                f"{shown(paths[ended])} ends after {number} lines, but {more} follows.",
                "Predictions and references go line by line: give as many of each.",
                Exit.MISMATCH,
            )
        yield lines
        number += 1


def _typed(text: str, kind: Any) -> Any:
    """A text as a value of a type of Arrow.

    Raises:
        ValueError: it is none.
    """
    if isinstance(kind, datasets.List):
        return [_typed(word, kind.feature) for word in text.split()]
    if _type(kind) == "bool":
        return TRUTH.get(text.strip().lower(), text)
    return _python(kind)(text)


def _unfit(values: dict[str, Any], form: Form) -> str | None:
    """The first input that is of another type than a form has it."""
    return next((name for name, value in values.items() if not _fits(value, form[name])), None)


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, datasets.List):
        return isinstance(value, list) and all(_fits(one, kind.feature) for one in value)
    if not isinstance(kind, datasets.Value):
        return True  # a structure of the metric's own, which Arrow checks
    if kind.dtype == "bool" or isinstance(value, bool):
        return kind.dtype == "bool" and isinstance(value, bool)
    python = _python(kind)
    return isinstance(value, (int, float) if python is float else python)


def _python(kind: Any) -> type:
    """The type of Python that holds a type of Arrow."""
    return next((made for begin, made in TYPES.items() if _type(kind).startswith(begin)), str)


def _type(kind: Any) -> str:
    """A type's name."""
    return f"list of {_type(kind.feature)}" if isinstance(kind, datasets.List) else getattr(kind, "dtype", str(kind))


def _told(form: Form) -> str:
    return ", ".join(f"{name}: {_type(kind)}" for name, kind in form.items())


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
