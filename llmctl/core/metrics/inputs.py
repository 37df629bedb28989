"""Inputs of foreign metrics: examples from text files or JSON lines, in the types that a metric wants."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any, NamedTuple

import datasets

from llmctl.core.data.pairs import field, read_lines
from llmctl.errors import Exit, UserError
from llmctl.spec.pairs import REFERENCES, Pairing, check_inputs

PREDICTIONS = ("completion", "prediction", "predictions", "label")  # the first of these that a record has
TYPES = {"int": int, "uint": int, "float": float}  # of Python, by how a type of Arrow begins


class Row(NamedTuple):
    """What a metric is given for one example: a value for each of its inputs, and where the example stands."""

    where: str
    values: dict[str, Any]


def read_rows(
    predictions: str, references: Sequence[str], pairing: Pairing, fields: dict[str, str], forms: list[dict[str, Any]]
) -> Iterator[Row]:
    """The examples of some files, one at a time, as a metric takes them.

    A line of text is made the type that the metric wants: a number, or where it wants a list, what stands between
    spaces; several files of references are a list. JSON records hold each input in a field: that of the input's name,
    unless `fields` or the options of pairs name another.

    Raises:
        UserError: with file and line: files that differ in length (MISMATCH), a field that is missing, a value of
            another type than the metric wants.
    """
    check_inputs(predictions, tuple(references))
    paths, nested, count = [predictions, *references], _nested(forms), 0
    with ExitStack() as stack:
        streams = [stack.enter_context(closing(read_lines(path, pairing.format))) for path in paths]
        for count, lines in enumerate(_beside(streams, paths), start=1):  # noqa: B007 - told at the end
            places = [f"{'stdin' if path == '-' else path}:{at}" for path, (at, _) in zip(paths, lines, strict=True)]
            values: dict[str, Any] = {}
            for name in forms[0]:
                kinds = [_inner(form[name], nested and name == "references") for form in forms]
                found = [
                    _value(name, kinds, held, pairing, fields, place)
                    for place, (_, held) in _sources(name, list(zip(places, lines, strict=True)))
                ]
                listed = len(found) > 1 or (nested and name == "references")
                values[name] = [one for value in found for one in _several(value)] if listed else found[0]
            form = next((form for form in forms if _unfit(values, form) is None), None)
            if form is None:
                wrong = _unfit(values, forms[0])
                hint = "The metric takes " + ", or ".join(_told(one) for one in forms) + "."
                raise UserError(f"{places[0]}: {wrong} is {values[wrong]!r:.60}, of another type than wanted.", hint)
            yield Row(places[0], values)
    if not count:
        raise UserError(
            f"{'stdin' if predictions == '-' else predictions} holds no prediction.", "One a line is wanted."
        )


def _beside(streams: list[Iterator[Any]], paths: list[str]) -> Iterator[list[Any]]:
    """The lines of files side by side, as long as the first goes on."""
    number = 0
    while True:
        lines = [next(stream, None) for stream in streams]
        if all(line is None for line in lines):
            return
        if None in lines:
            there = next(i for i, line in enumerate(lines) if line is not None)
            raise UserError(
                f"{paths[lines.index(None)]} ends after {number} lines, but {paths[there]}:{lines[there][0]} follows.",
                "Predictions and references go line by line: give as many of each.",
                Exit.MISMATCH,
            )
        yield lines
        number += 1


def _sources(name: str, lines: list[Any]) -> list[Any]:
    """The lines that hold an input: references have files of their own, if any; all else stands with predictions."""
    return lines[1:] if name == "references" and len(lines) > 1 else lines[:1]


def _nested(forms: list[dict[str, Any]]) -> bool:
    """Whether references are a list where predictions are none: several of them for each."""
    listed = [
        any(isinstance(form.get(name), datasets.List) for form in forms) for name in ("predictions", "references")
    ]
    return listed == [False, True]


def _inner(kind: Any, nested: bool) -> Any:
    return kind.feature if nested and isinstance(kind, datasets.List) else kind


def _value(name: str, kinds: list[Any], held: Any, pairing: Pairing, fields: dict[str, str], place: str) -> Any:
    """An input out of a line of text, or out of a record."""
    if isinstance(held, str):
        if name not in ("predictions", "references"):
            hint = f"Give JSON lines with a field {name!r}, or name one with --field {name}=FIELD."
            raise UserError(f"{place}: the metric wants {name}, too, which a line of text cannot hold.", hint)
        for kind in kinds:
            with suppress(ValueError):
                return _typed(held, kind)
        raise UserError(f"{place}: {held!r:.60} is no {_told({name: kinds[0]}).removeprefix(name + ': ')}.")
    known = {
        "predictions": (pairing.pred_field,) if pairing.pred_field else PREDICTIONS,
        "references": pairing.ref_field or (*REFERENCES, "label"),
    }
    if name == "references" and len(pairing.ref_field) > 1:
        return [text for one in pairing.ref_field for text in _several(_held(held, (one,), name, place))]
    fallback = (name, name.removesuffix("s"))
    return _held(held, (fields[name],) if name in fields else known.get(name, fallback), name, place)


def _held(record: dict[str, object], names: Sequence[str], name: str, place: str) -> Any:
    for one in names:
        if (found := field(record, one)) is not None:
            return found
    there = ", ".join(map(repr, record)) or "none"
    raise UserError(f"{place} has no field {names[0]!r}, only {there}.", f"Name one with --field {name}=FIELD.")


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _typed(text: str, kind: Any) -> Any:
    """A text as a value of a type of Arrow.

    Raises:
        ValueError: it is none.
    """
    if isinstance(kind, datasets.List):
        return [_typed(word, kind.feature) for word in text.split()]
    if kind.dtype == "bool":
        return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)
    python = next((made for begin, made in TYPES.items() if kind.dtype.startswith(begin)), str)
    return python(text)


def _unfit(values: dict[str, Any], form: dict[str, Any]) -> str | None:
    """The first input that is of another type than a form has it."""
    return next((name for name, value in values.items() if not _fits(value, form[name])), None)


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, datasets.List):
        return isinstance(value, list) and all(_fits(one, kind.feature) for one in value)
    if isinstance(kind, datasets.Value):
        if kind.dtype == "bool":
            return isinstance(value, bool)
        python = next((made for begin, made in TYPES.items() if kind.dtype.startswith(begin)), str)
        return isinstance(value, (int, float) if python is float else python) and not isinstance(value, bool)
    return True  # a structure of the metric's own, which Arrow checks


def _told(form: dict[str, Any]) -> str:
    """The types of inputs, for people."""

    def one(kind: Any) -> str:
        return f"list of {one(kind.feature)}" if isinstance(kind, datasets.List) else getattr(kind, "dtype", str(kind))

    return ", ".join(f"{name}: {one(kind)}" for name, kind in form.items())
