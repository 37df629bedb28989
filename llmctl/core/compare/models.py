"""Models: what a checkpoint scores on each record of tasks and each document of texts, as examples to compare."""

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from llmctl.core.benchmark.outcome import Outcome
from llmctl.core.benchmark.run import run
from llmctl.core.benchmark.subject import Subject
from llmctl.core.compare.examples import Examples, Side
from llmctl.core.metrics.methods import framing_for, method_for
from llmctl.core.metrics.passages import passages
from llmctl.core.metrics.perplexity import measured
from llmctl.errors import UserError
from llmctl.spec.benchmark import Task
from llmctl.spec.data import Reading
from llmctl.spec.scoring import Scoring

CHECKPOINT = ("config.json", "adapter_config.json")


def is_checkpoint(path: str) -> bool:
    """Whether a model is there, or an adapter."""
    return any((Path(path) / name).is_file() for name in CHECKPOINT)


def asked(
    path: str, tasks: Sequence[Task], texts: Sequence[str], told: Callable[[int], None], load: Callable[[str], Subject]
) -> Side:
    """What a model makes of tasks and texts; it is let go of afterwards.

    Args:
        texts: scored document by document, each a task of its own, as eval-ppl does by default.
        told: hears how many records and documents are done.
        load: opens the model.

    Raises:
        UserError: as of `run` and `measured`, or there is no text in a file.
    """
    subject, side, before = load(path), Side(path), 0
    for task in tasks:
        outcome = run(subject, task, None, lambda done, before=before: told(before + done))
        before += len(outcome.samples)
        side.tasks[task.name] = _of_outcome(outcome, task.file)
        side.better[task.name] = {name: figure.higher_is_better for name, figure in outcome.figures.items()}
    for text in texts:
        name = Path(text).name.partition(".")[0] or text
        name = text if name in side.tasks else name
        side.tasks[name] = _of_text(subject, text, lambda done, before=before: told(before + done))
        before += len(side.tasks[name].ids)
    return side


def _of_outcome(outcome: Outcome, where: str) -> Examples:
    """A task's records with their scores, and what figures of all together are made of."""
    examples = Examples(where, together=dict(outcome.together))
    for sample in outcome.samples:
        examples.add(sample.number, sample.number + 1, hash(str(sample.target)), sample.scores)
    return examples


def _of_text(subject: Subject, text: str, told: Callable[[int], None]) -> Examples:
    """A text's documents with their nll (nats), tokens, bytes and words."""
    framing = framing_for(subject.tokenizer, subject.config, Scoring())
    method = method_for(subject.model, subject.tokenizer, Scoring(batch_tokens=subject.batch_tokens), None, 0)
    names = ("nll", "tokens", "bytes", "words") if method.whole else ("nll", "tokens")
    examples = Examples(text, scores={name: array("d") for name in names})
    for step in measured(method, passages(text, Reading(), "heldout", framing), subject.batch_tokens):
        for one in step.done:
            if one.sum.tokens:
                examples.add(one.number, 0, 0, {name: float(getattr(one.sum, name)) for name in names})
        told(len(examples.ids))
    if not examples.ids:
        raise UserError(f"{text} has no text to score.", "It is empty, or its documents have one token each.")
    return examples
