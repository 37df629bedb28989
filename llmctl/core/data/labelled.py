"""labelled: texts and words with labels: which labels there are, and records as the examples of a classifier."""

import ast
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import orjson
import tokenizers

from llmctl.core.data.batch import IGNORE
from llmctl.core.data.examples import Example, Label
from llmctl.core.infer.encode import Encoder
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.classifier import Labelling
from llmctl.spec.model import ModelConfig, Problem
from llmctl.spec.sets import LABELS, TAGS, Truncate

TEXT = ("text", "sentence")  # fields of which one is what has a label
PAIR = "text_pair"
QUANTITY = "value"  # the name of what a regression gives

Record = Mapping[str, Any]


class Labels(NamedTuple):
    """The labels of a classifier, in the order of its scores, and what these mean."""

    names: tuple[str, ...]
    problem: Problem


def labels_in(
    records: Iterable[Record],
    task: Labelling,
    problem: Problem | None = None,
    known: ModelConfig | None = None,
    places: Sequence[str] = (),
) -> Labels:
    """The labels of records: those of a head that is there, else all that occur, sorted.

    Numbers are in the order of numbers; of tags O is first, then by kind. Texts with lists of labels are multi_label;
    with fractions, regression; else single_label. Numbers in text, as CSV has them, are taken for what they say.

    Args:
        problem: what labels of texts are, where that is settled.
        known: a model with a head for the task, whose labels it must be.
        places: where each record is from, to say so.

    Raises:
        UserError: records without labels; labels of several kinds, or that the head does not know; a single one.
    """
    values = []
    for number, record in enumerate(records, start=1):
        try:
            values.append(_value(record, task))
        except ValueError as error:
            hint = (
                f"Name the field with --map {(TAGS if task == 'tag' else LABELS)[0]}=THEIRS, or leave such records out."
            )
            where = places[number - 1] if places else f"Record {number}"
            raise UserError(f"{where} {error}.", hint, Exit.MISMATCH) from error
    if not values:
        raise UserError("There are no records, so no labels.")
    fixed = None if known is None or not known.labels else labels_of(known, task)
    if fixed is not None and problem not in (None, fixed.problem):
        raise UserError(f"The model's head is for {fixed.problem}, not {problem}.", "Use a model without it.")
    if task == "tag":
        problem, names = "single_label", _tag_names(values)
    else:
        problem = (fixed and fixed.problem) or problem or _problem(values)
        names = _quantity_names(values) if problem == "regression" else _names(values)
    if fixed is not None:
        wrong = sorted({str(reason) for value in values if isinstance(reason := _number(value, fixed), str)})
        if wrong:
            more = f", and {len(wrong) - 1} more are unknown" if len(wrong) > 1 else ""
            hint = f"It knows {', '.join(fixed.names[:9])}. Leave these records out, or use a model without a head."
            raise UserError(f"The model's head does not fit: a record {wrong[0]}{more}.", hint, Exit.MISMATCH)
        return fixed
    if len(names) < 2 and problem == "single_label":
        raise UserError(f"All records have the label {', '.join(names) or 'of nothing'}: there is nothing to learn.")
    if not names:
        raise UserError("No record has a label in its list.")
    return Labels(names, problem)


class Labelled(NamedTuple):
    """A record as an example.

    Attributes:
        example: for a model with the head; it has no tokens where the text has none.
        length: tokens that it had before it was cut.
        lost: words of it that are not asked for: no token stands for them, or they were cut off.
    """

    example: Example
    length: int
    lost: int = 0


class Labeller:
    """Makes examples of records with labels, read as `classify` reads them.

    A word's tag is asked of its first token. Words given as a list are joined with spaces, so that every tokenizer
    reads them as it reads a text.

    Args:
        config: of the model, which has the head.
        limit: tokens of an example beyond which `truncate` applies; None: none.
        truncate: left, right: cut there; else nothing is cut, and the caller sees the length.
    """

    def __init__(
        self, tokenizer: Tokenizer, config: ModelConfig, limit: int | None = None, truncate: Truncate = "error"
    ):
        self.labels = labels_of(config, "tag" if config.classifier == "token" else "classify")
        self.config, self.limit = config, limit
        self.encoder = Encoder(tokenizer, config)
        self.cutter = None
        if limit is not None and truncate in ("left", "right"):
            self.cutter = Encoder(tokenizer, config)
            marks = self.cutter.backend.num_special_tokens_to_add(True)
            if limit <= marks:
                problem = f"{limit} tokens leave no room for a text: special tokens alone take {marks}."
                raise UserError(problem, code=Exit.USAGE)
            self.cutter.backend.enable_truncation(limit, direction=truncate)

    def __call__(self, records: Sequence[Record]) -> list[Labelled | str]:
        """The example of each record, or why there is none.

        Raises:
            UserError: half a surrogate pair, or ids that the model does not know.
        """
        texts = [self._text(record) for record in records]
        good = [text for text in texts if not isinstance(text, _Wrong)]
        read = iter(self.encoder([text.given for text in good]))
        return [
            text.reason if isinstance(text, _Wrong) else self._labelled(text, next(read).encoding) for text in texts
        ]

    def _text(self, record: Record) -> "_Text | _Wrong":
        if self.config.classifier == "token":
            return _words(record, self.labels)
        name = next((name for name in TEXT if name in record), TEXT[0])
        for one in (name, PAIR):
            if not isinstance(record.get(one, None if one == name else ""), str):
                return _Wrong(f"has no string {one!r}")
        number = target_of(record, self.labels)
        if isinstance(number, str):
            return _Wrong(number)
        return _Text((record[name], record[PAIR]) if PAIR in record else record[name], number)

    def _labelled(self, text: "_Text", encoding: tokenizers.Encoding) -> Labelled:
        length = len(encoding)
        if self.cutter is not None and length > (self.limit or 0):
            encoding = self.cutter([text.given])[0].encoding
        ids = np.array(encoding.ids, np.int32)
        kinds = np.array(encoding.type_ids, np.uint8)
        types = kinds if self.config.token_types > 1 and kinds.any() else None
        label, lost = text.label, 0
        if text.ends is not None:
            label = first_tokens(encoding, text.ends, text.label)
            lost = len(text.ends) - int((label != IGNORE).sum())
        return Labelled(Example(ids, np.zeros(len(ids), bool), None, label, types), length, lost)


class _Text(NamedTuple):
    """What the tokenizer reads, and the label of it all, or of words that end at those characters."""

    given: str | tuple[str, str]
    label: Any
    ends: list[int] | None = None


class _Wrong(NamedTuple):
    reason: str


def _words(record: Record, labels: Labels) -> _Text | _Wrong:
    """Words joined with spaces."""
    words = _listed(record.get("tokens"))
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        return _Wrong("has no list of strings 'tokens'")
    try:
        tags = _value(record, "tag")
    except ValueError as error:
        return _Wrong(str(error))
    if len(tags) != len(words):
        return _Wrong(f"has {len(words)} tokens and {len(tags)} tags")
    numbers = _number(tags, labels)
    if isinstance(numbers, str):
        return _Wrong(numbers)
    ends = [end - 1 for end in accumulate(len(word) + 1 for word in words)]
    return _Text(" ".join(words), numbers, ends)


def first_tokens(encoding: tokenizers.Encoding, ends: list[int], tags: np.ndarray) -> np.ndarray:
    """(N,) int64: the tag of each word at the first token that stands for it, IGNORE elsewhere.

    A token stands for the word that it begins in, or that follows the space it begins with: byte-level tokens and
    those of sentencepiece may begin with the space before a word, or be nothing else.
    """
    placed, before = np.full(len(encoding), IGNORE, np.int64), -1
    for place, (start, _) in enumerate(encoding.offsets):
        if encoding.special_tokens_mask[place] or encoding.sequence_ids[place] != 0:
            continue
        word = bisect_right(ends, start)
        if before < word < len(ends):
            placed[place], before = tags[word], word
    return placed


def _value(record: Record, task: Labelling) -> Any:
    """What a record says: a label or a list of them; of words, a list of tags.

    Raises:
        ValueError: why it says nothing.
    """
    fields = TAGS if task == "tag" else LABELS
    value = next((record[name] for name in fields if record.get(name) is not None), None)
    if value is None:
        raise ValueError(f"has none of {', '.join(map(repr, fields))}")
    value = _listed(value.tolist() if isinstance(value, np.ndarray) else value)
    several = isinstance(value, (list, tuple))
    if task == "tag" and not several:
        raise ValueError("has tags that are no list")
    for one in value if several else [value]:
        if not isinstance(one, (str, int, float)):
            raise ValueError(f"has a label of type {type(one).__name__}")
        if isinstance(one, float) and not math.isfinite(one):
            raise ValueError(f"has the label {one}, which is no number")
    return list(value) if several else value


def _listed(value: Any) -> Any:
    """A list that a table holds as text, as JSON or Python write it; all else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        for read in (orjson.loads, ast.literal_eval):
            try:
                return read(value.strip())
            except (ValueError, SyntaxError):
                continue
    return value


def _problem(values: list[Any]) -> Problem:
    if any(isinstance(value, list) for value in values):
        quantities = all(isinstance(value, list) and value and all(map(_fraction, value)) for value in values)
        return "regression" if quantities else "multi_label"
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return "regression" if any(isinstance(value, float) for value in values) else "single_label"
    if all(isinstance(value, str) and _read(value) is not None for value in values):
        return "single_label" if all(value.strip().lstrip("+-").isdecimal() for value in values) else "regression"
    return "single_label"


def _fraction(value: object) -> bool:
    return isinstance(value, float)


def _names(values: list[Any]) -> tuple[str, ...]:
    """All that occur, numbers in their order."""
    found = {_name(one) for value in values for one in (value if isinstance(value, list) else [value])}
    numbers = all(name.isdecimal() for name in found)
    return tuple(sorted(found, key=int if numbers else None))


def _tag_names(values: list[list[Any]]) -> tuple[str, ...]:
    found = _names(values)
    if all(name.isdecimal() for name in found):
        return found
    return tuple(sorted(found, key=lambda tag: (tag != "O", tag[2:] if tag[1:2] == "-" else tag, tag)))


def _quantity_names(values: list[Any]) -> tuple[str, ...]:
    counts = {len(value) if isinstance(value, list) else 0 for value in values}
    if len(counts) > 1:
        raise UserError(f"Records have lists of {', '.join(map(str, sorted(counts)))} quantities (0: no list).")
    (count,) = counts
    return tuple(f"{QUANTITY}_{i}" for i in range(count)) if count else (QUANTITY,)


def target_of(record: Record, labels: Labels) -> Label | str:
    """What the label of a text is as a target (see `Example.label`), or why it is none."""
    try:
        return _number(_value(record, "classify"), labels)
    except ValueError as error:
        return str(error)


def labels_of(config: ModelConfig, task: Labelling) -> Labels:
    """The labels of a model's head. A single score, as rankers have it, is a quantity, as transformers trains it.

    Raises:
        UserError: the model has no such head.
    """
    if config.classifier != ("token" if task == "tag" else "sequence"):
        raise UserError(f"The model has no head for the task {task}.", code=Exit.MISMATCH)
    alone = task == "classify" and len(config.labels) == 1 and config.problem == "single_label"
    return Labels(config.labels, "regression" if alone else config.problem)


def _number(value: Any, labels: Labels) -> Label | str:
    """What a label is as a target (see `Example.label`), or why it is none."""
    count = len(labels.names)
    if labels.problem == "regression":
        numbers = [_read(one) for one in (value if isinstance(value, list) else [value])]
        if None in numbers or len(numbers) != count:
            return f"has the label {value!r}, wanted {'a number' if count == 1 else f'{count} numbers'}"
        return float(numbers[0]) if count == 1 else np.array(numbers, np.float32)
    if labels.problem == "multi_label":
        return _several(value if isinstance(value, list) else [value], labels)
    if isinstance(value, list):
        numbers = [_index(one, labels.names) for one in value]
        wrong = [one for one, number in zip(value, numbers, strict=True) if number is None]
        return f"has the tag {wrong[0]!r}, which the head does not know" if wrong else np.array(numbers, np.int64)
    number = _index(value, labels.names)
    return f"has the label {value!r}, which the head does not know" if number is None else number


def _several(value: list[Any], labels: Labels) -> np.ndarray | str:
    """(L,) float32: 1 for the labels that are named; a list of a share for each of them is that."""
    if len(value) == len(labels.names) and all(map(_fraction, value)):
        shares = np.array(value, np.float32)
        return shares if ((shares >= 0) & (shares <= 1)).all() else f"has the labels {value!r}, wanted shares of 1"
    target = np.zeros(len(labels.names), np.float32)
    for one in value:
        number = _index(one, labels.names)
        if number is None:
            return f"has the label {one!r}, which the head does not know"
        target[number] = 1
    return target


def _index(value: Any, names: tuple[str, ...]) -> int | None:
    """The number of a label: that of its name, or the number itself where no label is called so."""
    name = _name(value)
    if name in names:
        return names.index(name)
    return int(name) if name.isdecimal() and int(name) < len(names) else None


def _name(value: Any) -> str:
    """What a label is called: text as it is, numbers and booleans as JSON writes them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(value: Any) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
