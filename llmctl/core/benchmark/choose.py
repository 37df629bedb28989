"""Choices: the likeliest of some texts after a prompt; also labels of texts, by the likelihood of their words."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice

import numpy as np

from llmctl.core.benchmark.figures import Answered, Sums
from llmctl.core.benchmark.outcome import Sample
from llmctl.core.benchmark.records import Records, choices_of, right_of
from llmctl.core.benchmark.subject import Subject, Told
from llmctl.core.benchmark.wording import Examples, Question, Wording, placed
from llmctl.core.data.labelled import labels_in
from llmctl.core.metrics.labels import single_label
from llmctl.core.metrics.likelihood import Asked, Scored
from llmctl.errors import Exit, UserError
from llmctl.spec.benchmark import Task

TOGETHER = {"f1": "f1", "macro_f1": "macro_f1", "mcc": "matthews"}  # figures of all records: ours to those of labels


def choose(subject: Subject, task: Task, names: Sequence[str], records: Records, own: Records, told: Told) -> Answered:
    """Put choices to a model.

    The prediction is the choice that is likeliest after the prompt (acc); the one that is likeliest for its length in
    characters (acc_norm) or bytes (acc_bytes); or whose likelihood the prompt has raised most (acc_mutual_info). Of
    several prompts it is the one that makes the completion likeliest.

    Args:
        names: of the figures.
        own: the records of the file that examples are from.

    Source: the definitions, and where a prompt ends and a choice begins, are those of the harness of Gao et al., "A
    framework for few-shot language model evaluation"; mutual information: Holtzman et al., arXiv:2104.08315.
    """
    wording = Wording(task, subject.tokenizer)
    asks_labels = task.kind == "classify" and not task.choice
    shared, called = _labels(wording, own, records) if asks_labels else (task.choice, ())
    alone, special = "acc_mutual_info" in names, wording.chat is not None

    def answered(question: Question) -> str:
        choices, right = _read(task, shared, called, question)
        if question.prompts:
            return f"{choices[right[0]][len(question.prompt) :]}{task.delimiter}{question.completion}"
        return f"{task.delimiter}{choices[right[0]]}"

    examples = Examples(wording, own, answered, task.own)
    put: list[tuple[Sample, list[str], list[str]]] = []  # with the choices, and what of each is scored

    def asked() -> Iterator[Asked]:
        for number, record in enumerate(records):
            with placed(records.places[number]):
                question = wording.question(record)
                choices, right = _read(task, shared, called, question)
                prompt = wording.prompt(question.prompt, examples.of(number, question.prompt))
                texts = [f"{wording.delimiter}{choice}" for choice in choices]
                pairs = [(prompt, text) for text in texts]
                if question.prompts:
                    rests, text = [one[len(question.prompt) :] for one in choices], question.completion
                    pairs = [(f"{prompt}{rest}", f"{task.delimiter}{text}") for rest in rests]
                pairs += [("", text) for _, text in pairs if alone]
                made = [subject.after(*pair, special) for pair in pairs]
            cut = any(map(subject.cuts, made))
            targets = tuple(choices[index] for index in right)
            sample = Sample(number, record, prompt, targets[0], targets=targets, right=right, cut=cut)
            sample.asked = tuple(pairs[: len(choices)])
            put.append((sample, choices, [question.completion] * len(choices) if question.prompts else choices))
            yield from made

    found = subject.likelihoods(asked())
    samples: list[Sample] = []
    for first in found:
        sample, choices, texts = put[len(samples)]
        scored = [first, *islice(found, len(choices) * (2 if alone else 1) - 1)]
        samples.append(_scored(sample, choices, texts, scored, names))
        told(len(samples))
    common = tuple(shared) or _common([choices for _, choices, _ in put])
    count = len(common) or max(len(choices) for _, choices, _ in put)
    best = [int(np.argmax(sample.chances)) for sample in samples]
    sums = together(task, names, best, [sample.right[0] for sample in samples], count)
    return Answered(samples, sums, common, examples.few)


def _scored(
    sample: Sample, choices: Sequence[str], texts: Sequence[str], scored: Sequence[Scored], names: Sequence[str]
) -> Sample:
    """A sample with the prediction and its scores, by the likelihood of the texts that stand for the choices."""
    after = np.array([-one.nll for one in scored[: len(choices)]])
    lengths = np.array([len(text) for text in texts], np.float64)
    sizes = np.array([len(text.encode()) for text in texts], np.float64)
    raised = after - np.array([-one.nll for one in scored[len(choices) :]]) if len(scored) > len(choices) else after
    chances = np.exp(after - after.max())
    chances /= chances.sum()
    best = int(after.argmax())
    truth = np.arange(len(choices)) == sample.right[0]
    scores = {
        "acc": float(best in sample.right),
        "acc_norm": float(int((after / lengths).argmax()) in sample.right),
        "acc_bytes": float(int((after / sizes).argmax()) in sample.right),
        "acc_mutual_info": float(int(raised.argmax()) in sample.right),
        "brier_score": float(((chances - truth) ** 2).sum()),
    }
    sample.said, sample.chances = choices[best], tuple(chances.tolist())
    sample.scores = {name: scores[name] for name in ("acc", *names) if name in scores}
    sample.replies = tuple((-one.nll, one.greedy) for one in scored[: len(choices)])
    return sample


def together(
    task: Task, names: Sequence[str], found: Sequence[int], right: Sequence[int], labels: int
) -> dict[str, Sums]:
    """Figures of labels that are found and labels that are right, of all records together.

    Args:
        names: of the figures; those that are not of this kind are passed over.
        labels: how many there are.

    Raises:
        UserError: F1 of more than two labels.
    """
    if "f1" in task.metrics and labels != 2:
        raise UserError(
            f"--metrics f1 is about the second of two choices, but there are {labels}.",
            "Use macro_f1.",
            Exit.MISMATCH,
        )
    one = np.eye(labels)
    said, true = one[list(found)], one[list(right)]  # (N, L)
    rows = np.concatenate([said * true, true, said], axis=1)
    return {
        name: Sums(rows, partial(_figure, labels=labels, name=theirs))
        for name, theirs in TOGETHER.items()
        if name in names and (name != "f1" or labels == 2)
    }


def _figure(sums: Sequence[float], labels: int, name: str) -> float:
    return single_label(sums, labels)[name]


def _read(
    task: Task, shared: Sequence[str], called: Sequence[str | int], question: Question
) -> tuple[list[str], tuple[int, ...]]:
    """The choices of a record, those that are `shared` and `called` so where there are any, and which are right."""
    if question.prompts:
        return list(question.prompts), right_of(question.fields, question.prompts, [], {})
    choices, names = (list(shared), called) if shared else choices_of(question.fields, task)
    return choices, right_of(question.fields, choices, names, question.labels)


def _labels(wording: Wording, *files: Records) -> tuple[tuple[str, ...], tuple[str | int, ...]]:
    """All labels of the records, in words and as they are: numbers are numbers."""
    questions, places = [], [place for records in files for place in records.places]
    for place, record in zip(places, chain(*files), strict=True):
        with placed(place):
            questions.append(wording.question(record))
    names = labels_in([one.fields for one in questions], "classify", "single_label", None, places).names
    said: Mapping[str, str] = questions[0].labels
    known = tuple(int(name) if name.removeprefix("-").isdecimal() else name for name in names)
    return tuple(said.get(name.lower(), name) for name in names), known


def _common(choices: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The choices where all records have the same; else ()."""
    return tuple(choices[0]) if all(one == choices[0] for one in choices) else ()
