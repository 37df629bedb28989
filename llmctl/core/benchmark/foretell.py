"""Foretelling: how likely the right text is after a prompt, and whether a model would write just that."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from llmctl.core.benchmark.figures import Answered, Sums
from llmctl.core.benchmark.outcome import Sample
from llmctl.core.benchmark.records import Records, references_of
from llmctl.core.benchmark.subject import Subject, Told
from llmctl.core.benchmark.wording import Examples, Question, Wording, placed
from llmctl.core.metrics.likelihood import Asked
from llmctl.spec.benchmark import Task


def foretell(
    subject: Subject, task: Task, names: Sequence[str], records: Records, own: Records, told: Told
) -> Answered:
    """Score the first right text of each record after its prompt; arguments as of `choose`.

    acc is the share of texts of which each token is the likeliest where it stands; perplexity the exponential of the
    mean nats of a text; bits_per_byte their sum over the texts' UTF-8.

    Source: acc and perplexity as LAMBADA is scored: Paperno et al., arXiv:1606.06031; Radford et al., "Language Models
    are Unsupervised Multitask Learners", 2019, section 3.3; so does the harness of Gao et al.
    """
    wording, samples = Wording(task, subject.tokenizer), []

    def answered(question: Question) -> str:
        return _completion(question, wording)

    examples = Examples(wording, own, answered, task.own)

    def asked() -> Iterator[Asked]:
        for number, record in enumerate(records):
            with placed(records.places[number]):
                question = wording.question(record)
                targets = references_of(question.fields, question.completion)
                prompt = wording.prompt(question.prompt, examples.of(number, question.prompt))
                pair = (prompt, _completion(question, wording))
                made = subject.after(*pair, wording.chat is not None)
            cut = subject.cuts(made)
            samples.append(Sample(number, record, prompt, targets[0], targets=targets, asked=(pair,), cut=cut))
            yield made

    for number, found in enumerate(subject.likelihoods(asked())):
        samples[number].replies = ((-found.nll, found.greedy),)
        samples[number].scores = {"acc": float(found.greedy), "nll": found.nll}
        told(number + 1)
    nats = np.array([sample.scores["nll"] for sample in samples])
    sizes = np.array([len(sample.asked[0][1].encode()) for sample in samples], np.float64)
    every = {
        "perplexity": Sums(np.stack([nats, np.ones_like(nats)], axis=1), _perplexity),
        "bits_per_byte": Sums(np.stack([nats, sizes], axis=1), _bits),
    }
    return Answered(samples, {name: sums for name, sums in every.items() if name in names}, few=examples.few)


def _completion(question: Question, wording: Wording) -> str:
    """The right text as it stands after the prompt."""
    if question.completion is not None:
        return question.completion
    return f"{wording.delimiter}{references_of(question.fields, None)[0]}"


def _perplexity(sums: Sequence[float]) -> float:
    return math.exp(min(700.0, sums[0] / sums[1]))


def _bits(sums: Sequence[float]) -> float:
    return sums[0] / sums[1] / math.log(2)
