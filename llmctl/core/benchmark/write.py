"""Writing: what a model writes after a prompt, against right texts."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from llmctl.core.benchmark.figures import Answered, Sums
from llmctl.core.benchmark.outcome import Sample
from llmctl.core.benchmark.records import Records, references_of
from llmctl.core.benchmark.subject import Subject, Told
from llmctl.core.benchmark.wording import Examples, Question, Wording, placed
from llmctl.core.metrics.answers import contains, exact_match, extracted, token_f1
from llmctl.core.metrics.rouge.score import Rouge
from llmctl.core.metrics.translation import Counts
from llmctl.spec.benchmark import Task
from llmctl.spec.sample import Sampling
from llmctl.spec.translation import Bleu, Chrf, Options, Ter

ANSWERS = {"exact_match": exact_match, "f1": token_f1, "contains": contains}
# Figures of all texts together, by sacrebleu with its own options.
TRANSLATION: dict[str, Options] = {"bleu": Bleu(), "chrf": Chrf(), "chrf++": Chrf(word_order=2), "ter": Ter()}


def write(subject: Subject, task: Task, names: Sequence[str], records: Records, own: Records, told: Told) -> Answered:
    """Have a model write answers; arguments as of `choose`.

    An answer ends where the model ends it, at a text of `stop`, or where none is given and there are examples, at what
    stands between those. A prompt that leaves no room for the answer loses its beginning.
    """
    wording = Wording(task, subject.tokenizer)

    def answered(question: Question) -> str:
        text = references_of(question.fields, question.completion)[0]
        return question.completion if question.completion is not None else f"{task.delimiter}{text}"

    examples, samples = Examples(wording, own, answered, task.own), []
    stops = task.stop or ((task.separator,) if task.shots and wording.chat is None else ())
    ends = () if wording.chat is None or wording.chat.turn_end is None else (wording.chat.turn_end,)
    room = subject.room(task.max_tokens)
    sampling = Sampling(temperature=task.temperature, max_tokens=room)

    def prompts() -> Iterator[list[int]]:
        for number, record in enumerate(records):
            with placed(records.places[number]):
                question = wording.question(record)
                targets = references_of(question.fields, question.completion)
                prompt = wording.prompt(question.prompt, examples.of(number, question.prompt))
                ids, cut = subject.prompt(prompt, wording.chat is not None, room)
            sample = Sample(number, record, prompt, targets[0], targets=targets, asked=((prompt, ""),), cut=cut)
            samples.append(sample)
            yield ids

    for number, completion in enumerate(subject.write(prompts(), sampling, stops, task.seed, ends)):
        samples[number].replies = (completion.text,)
        samples[number].said = extracted(completion.text, task.extract, task.take == "last")
        told(number + 1)
    return Answered(samples, compared(task, names, samples), few=examples.few)


def compared(task: Task, names: Sequence[str], samples: Sequence[Sample]) -> dict[str, Sums]:
    """Gives each sample its scores; returns the figures that are not means of them."""
    for name in ANSWERS.keys() & set(names):
        for sample in samples:
            sample.scores[name] = ANSWERS[name](sample.said, sample.targets, task.normalise)
    overlaps = [name for name in names if name.startswith("rouge")]
    if overlaps:
        _rouge(overlaps, samples)
    made = {name: _translation(name, samples) for name in names if name in TRANSLATION}
    for sample in samples:  # in the order in which they were asked for
        sample.scores = {name: sample.scores[name] for name in names}
    return made


def _rouge(names: Sequence[str], samples: Sequence[Sample]) -> None:
    rouge = Rouge(names)
    for sample in samples:
        found = rouge.score(sample.said, sample.targets)
        for name in names:
            sample.scores[name] = found[name].f1


def _translation(name: str, samples: Sequence[Sample]) -> Sums:
    counts = Counts(TRANSLATION[name], keep=True)
    rows = counts.add([(sample.said, sample.targets) for sample in samples])
    for sample, row in zip(samples, rows, strict=True):
        sample.scores[name] = counts.alone(row).score
    return Sums(counts.rows().astype(np.float64), partial(_score, counts))


def _score(counts: Counts, sums: Sequence[float]) -> float:
    return float(counts.score(np.array(sums)))
