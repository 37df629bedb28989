"""Labels: what a classifier's head says of texts, or of their words."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from llmctl.core.benchmark.choose import together
from llmctl.core.benchmark.figures import Answered, Sums
from llmctl.core.benchmark.outcome import Sample
from llmctl.core.benchmark.records import Record, Records
from llmctl.core.benchmark.subject import Subject, Told
from llmctl.core.benchmark.wording import Wording, placed
from llmctl.core.data.batch import IGNORE
from llmctl.core.data.labelled import PAIR, TEXT, Labels, first_tokens, labels_of, target_of
from llmctl.core.infer.encode import Encoder, Row
from llmctl.core.metrics.labels import OUTSIDE, marks_spans, multi_label, quantities, tags
from llmctl.core.metrics.schemes import reader_of
from llmctl.core.text.templates import mapped
from llmctl.errors import Exit, UserError
from llmctl.spec.benchmark import Task
from llmctl.spec.model import Problem
from llmctl.spec.sets import TAGS

SEVERAL = {"acc": "accuracy", "f1": "f1", "macro_f1": "macro_f1"}  # figures of several labels: ours to those of labels
SPANS = {"acc": "accuracy", "precision": "precision", "recall": "recall", "f1": "f1"}


def classify(
    subject: Subject, task: Task, names: Sequence[str], records: Records, own: Records, told: Told
) -> Answered:
    """Have a classifier label texts, or pairs of them; arguments as of `choose`. What is too long loses its end."""
    _no_examples(task)
    labels, wording = labels_of(subject.config, "classify"), Wording(task, subject.tokenizer)
    encoder, samples, targets = Encoder(subject.tokenizer, subject.config, subject.context), [], []

    def rows() -> Iterator[Row]:
        for number, record in enumerate(records):
            with placed(records.places[number]):
                text = _text(record, task, wording)
                target = target_of(mapped(record, task.mapping), labels)
                if isinstance(target, str):
                    raise UserError(f"the record {target}.", "Name the field: --map label=THEIRS")
                row = _row(encoder.row(*text))
            samples.append(Sample(number, record, text[0], asked=((text[0], text[1] or ""),), cut=row.cut))
            targets.append(target)
            yield row

    judge = JUDGES[labels.problem](labels, task, names)
    for number, scores in enumerate(subject.labels(rows())):
        judge.hear(samples[number], targets[number], scores)
        told(number + 1)
    return Answered(samples, judge.sums(), labels.names)


class _One:
    """Labels that exclude each other."""

    def __init__(self, labels: Labels, task: Task, names: Sequence[str]):
        self.labels, self.task, self.names = labels.names, task, names
        self.found: list[int] = []
        self.right: list[int] = []

    def hear(self, sample: Sample, target: Any, scores: Tensor) -> None:
        """Fill in a sample."""
        best, chances = int(scores.argmax()), scores.double().numpy()
        sample.right, sample.target, sample.said = (target,), self.labels[target], self.labels[best]
        sample.chances = tuple((chances / chances.sum()).tolist())
        truth = np.arange(len(self.labels)) == target
        sample.scores = {"acc": float(best == target)}
        if "brier_score" in self.names:
            sample.scores["brier_score"] = float(((np.array(sample.chances) - truth) ** 2).sum())
        sample.targets, sample.replies = (sample.target,), (tuple(chances.tolist()),)
        self.found.append(best)
        self.right.append(target)

    def sums(self) -> dict[str, Sums]:
        """Figures of all texts together."""
        return together(self.task, self.names, self.found, self.right, len(self.labels))


class _Several:
    """Labels of which several may hold, or none."""

    def __init__(self, labels: Labels, task: Task, names: Sequence[str]):
        self.labels, self.task, self.names = labels.names, task, names
        self.rows: list[NDArray[np.float64]] = []

    def hear(self, sample: Sample, target: Any, scores: Tensor) -> None:
        """Fill in a sample."""
        found, true = scores.numpy() >= self.task.threshold, np.asarray(target) >= 0.5  # (L,)
        right = bool((found == true).all())
        sample.right = tuple(np.flatnonzero(true).tolist())
        sample.targets = tuple(self.labels[index] for index in sample.right)
        sample.target = ", ".join(sample.targets)
        sample.said = ", ".join(self.labels[index] for index in np.flatnonzero(found))
        sample.chances, sample.scores = tuple(scores.tolist()), {"acc": float(right)}
        sample.replies = (sample.chances,)
        self.rows.append(np.concatenate([found & true, true, found, [right, True]]).astype(np.float64))

    def sums(self) -> dict[str, Sums]:
        """Figures of all texts together: F1 of all decisions (micro), and the mean over the labels."""
        made = partial(multi_label, labels=len(self.labels))
        return {
            ours: Sums(np.array(self.rows), partial(_named, made, theirs))
            for ours, theirs in SEVERAL.items()
            if ours in self.names and ours != "acc"
        }


class _Quantities:
    """Numbers."""

    def __init__(self, labels: Labels, task: Task, names: Sequence[str]):
        self.labels, self.names = labels.names, names
        self.found: list[NDArray[np.float64]] = []
        self.true: list[NDArray[np.float64]] = []

    def hear(self, sample: Sample, target: Any, scores: Tensor) -> None:
        """Fill in a sample."""
        found, true = scores.double().numpy(), np.atleast_1d(np.asarray(target, np.float64))  # (L,)
        sample.said, sample.target = (", ".join(f"{one:.6g}" for one in row) for row in (found, true))
        sample.targets, sample.replies = (sample.target,), (tuple(found.tolist()),)
        sample.scores = {"squared_error": float(((found - true) ** 2).mean())}
        self.found.append(found)
        self.true.append(true)

    def sums(self) -> dict[str, Sums]:
        """Pearson's and Spearman's coefficients, means over the quantities, and the root of the mean squared error.

        Ranks are those among all records, in bootstrap samples too.
        """
        found, true = np.array(self.found), np.array(self.true)  # (N, L)
        errors = np.stack([((found - true) ** 2).mean(1), np.ones(len(found))], axis=1)  # (N, 2)
        found, true = found - found.mean(0), true - true.mean(0)  # of large numbers squares leave no digits
        made = partial(quantities, outputs=len(self.labels))
        plain, ranked = _products(found, true), _products(_ranks(found), _ranks(true))
        every = {
            "pearson": Sums(plain, partial(_named, made, "pearson")),
            "spearman": Sums(ranked, partial(_named, made, "pearson")),
            "rmse": Sums(errors, _root),
        }
        return {name: sums for name, sums in every.items() if name in self.names}


JUDGES: dict[Problem, Callable[[Labels, Task, Sequence[str]], Any]] = {
    "single_label": _One,
    "multi_label": _Several,
    "regression": _Quantities,
}


def tag(subject: Subject, task: Task, names: Sequence[str], records: Records, own: Records, told: Told) -> Answered:
    """Have a classifier tag words; arguments as of `choose`.

    A word's tag is that of its first token. Words that no token stands for, or that are beyond the model's context, are
    outside of all spans.
    """
    _no_examples(task)
    labels = labels_of(subject.config, "tag").names
    encoder = Encoder(subject.tokenizer, subject.config, subject.context)
    samples: list[Sample] = []
    words: list[NDArray[np.int64]] = []  # of each row, the number of the word that a token is the first of

    def rows() -> Iterator[Row]:
        for number, record in enumerate(records):
            with placed(records.places[number]):
                given, true = _tagged(mapped(record, task.mapping), labels)
                row = _row(encoder.row(" ".join(given)))
            ends = [end - 1 for end in accumulate(len(word) + 1 for word in given)]
            words.append(first_tokens(row.encoding, ends, np.arange(len(given))))
            text = " ".join(given)
            samples.append(
                Sample(number, record, text, " ".join(true), targets=tuple(true), asked=((text, ""),), cut=row.cut)
            )
            yield row

    outside = OUTSIDE if OUTSIDE in labels else labels[0]
    read, counts = reader_of(task.scheme), []
    for number, scores in enumerate(subject.labels(rows())):
        sample, found = samples[number], scores.argmax(dim=-1).tolist()
        said = [outside] * len(sample.targets)
        for place in np.flatnonzero(words[number] != IGNORE):
            said[words[number][place]] = labels[found[place]]
        with placed(records.places[number]):
            theirs, there = read(said), read(sample.targets)
        right = sum(one == other for one, other in zip(said, sample.targets, strict=True))
        sums = [right, len(said), len(theirs & there), len(theirs), len(there)]
        own_figures = tags(sums)
        sample.said, sample.replies = " ".join(said), (tuple(said),)
        sample.scores = {name: own_figures[SPANS[name]] for name in ("acc", *names)}
        counts.append(sums)
        told(number + 1)
    marked = marks_spans([*labels, *(one for sample in samples for one in sample.targets)])
    wanted = names if marked or task.metrics else ("acc",)
    rows_of = np.array(counts, np.float64)
    return Answered(samples, {name: Sums(rows_of, partial(_named, tags, SPANS[name])) for name in wanted}, labels)


def _no_examples(task: Task) -> None:
    """Whether nothing is asked for that a head has no use for.

    Raises:
        UserError: examples, or conversations.
    """
    for option, given in (("--shots", task.shots), ("--chat-template", task.chat_template)):
        if given:
            problem = f"{task.name}: {option} is for language models, but this one has a head that labels."
            raise UserError(problem, "Leave it out; over a suite's: --shots 0.", Exit.USAGE)


def _text(record: Record, task: Task, wording: Wording) -> tuple[str, str | None]:
    """The text of a record, or two; one alone where a template makes it."""
    if task.template is not None:
        return wording.question(record).prompt, None
    fields = mapped(record, task.mapping)
    name = next((name for name in TEXT if name in fields), TEXT[0])
    for one in (name, PAIR):
        if not isinstance(fields.get(one, None if one == name else ""), str):
            raise UserError(f"the record has no string {one!r}.", f"Name the field: --map {one}=THEIRS")
    return fields[name], fields.get(PAIR)


def _row(row: Row | str) -> Row:
    if isinstance(row, str):
        raise UserError(f"{row}.")
    return row


def _tagged(fields: Record, labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a record and their tags; tags that are numbers are those of the labels."""
    words = fields.get("tokens")
    given = next((fields[name] for name in TAGS if fields.get(name) is not None), None)
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise UserError("the record has no list of strings 'tokens'.", "Name the field: --map tokens=THEIRS")
    if not isinstance(given, list) or len(given) != len(words):
        had = len(given) if isinstance(given, list) else "no list of"
        raise UserError(f"the record has {len(words)} tokens and {had} tags.", "Name the field: --map tags=THEIRS")
    named = []
    for one in given:
        number = isinstance(one, int) and not isinstance(one, bool)
        if not (isinstance(one, str) and one) and not (number and 0 <= one < len(labels)):
            raise UserError(f"the record has the tag {one!r}, which is none of the model's {len(labels)}.")
        named.append(labels[one] if number else one)
    return words, named


def _root(sums: Sequence[float]) -> float:
    return math.sqrt(sums[0] / sums[1])


def _products(found: NDArray[np.float64], true: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 6 L): of each quantity what `quantities` sums up."""
    parts = (np.ones_like(found), found, true, found * found, true * true, found * true)
    return np.stack(parts, axis=2).reshape(len(found), -1)  # (N, 6 L)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, L): the rank of each value in its column from 1; equal ones share the mean of theirs. Centred on 0."""
    ranks = np.empty_like(values)
    for column in range(values.shape[1]):
        _, place, count = np.unique(values[:, column], return_inverse=True, return_counts=True)
        ranks[:, column] = (np.cumsum(count) - (count - 1) / 2)[place]
    return ranks - (len(values) + 1) / 2


def _named(figures: Callable[[Sequence[float]], dict[str, float]], name: str, sums: Sequence[float]) -> float:
    return figures(sums)[name]
