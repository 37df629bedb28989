"""Outcome: what became of a task, record by record, and its figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from llmctl.spec.benchmark import Kind, Task

if TYPE_CHECKING:
    from llmctl.core.benchmark.figures import Sums


class Figure(NamedTuple):
    """A figure of a task.

    Attributes:
        value: between 0 and 1, or as sacrebleu gives it; nan where the records say nothing about it.
        stderr: its standard error; None where there is none, as of a single record.
        higher_is_better: whether more is better.
    """

    value: float
    stderr: float | None
    higher_is_better: bool


@dataclass
class Sample:
    """What became of one record.

    Attributes:
        number: of the record in its file, from 0.
        record: its fields, as they were read.
        prompt: what the model read before the answer.
        target: the right answer; of several the first.
        said: the prediction.
        targets: all right answers.
        right: numbers of the right choices or labels.
        chances: of each choice or label; of choices they sum to 1. () where texts were written or words tagged.
        scores: figures of this record alone, by name; those of the whole task that are means are means of these.
        error: why there is no answer; "" where there is one.
        asked: what was put to the model: (prompt, continuation) for each choice, (prompt, "") for a text to write.
        replies: what the model gave to each: a log-likelihood (nats) with whether it is the greedy continuation; or a
            text as it was written.
        cut: whether the beginning of the prompt was left out, for it was longer than the model's context.
        overlap: share of the record's runs of words that training text has; None: not looked for, or too short.
    """

    number: int
    record: dict[str, Any]
    prompt: str = ""
    target: str = ""
    said: str = ""
    targets: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    chances: tuple[float, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    error: str = ""
    asked: tuple[tuple[str, str], ...] = ()
    replies: tuple[Any, ...] = ()
    cut: bool = False
    overlap: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        task: as it was asked for, its kind settled.
        kind: what it is.
        figures: by name, the main one first.
        samples: of each record, in the order of the file.
        seconds: for asking it all, the loading of the model left out.
        read: tokens that the model was given.
        written: tokens that it wrote.
        records: in the file, asked or not.
        choices: the names of choices or labels that all records share; () where they do not.
        few: records that had fewer examples before them than wanted, for there are no more.
        together: figures that are not means over the records, and what each record adds to them.
    """

    task: Task
    kind: Kind
    figures: Mapping[str, Figure]
    samples: list[Sample]
    seconds: float
    read: int
    written: int
    records: int
    choices: tuple[str, ...] = ()
    few: int = 0
    together: Mapping[str, "Sums"] = field(default_factory=dict)

    @property
    def cut(self) -> int:
        """Records whose prompts lost their beginning, for they are longer than the model's context."""
        return sum(sample.cut for sample in self.samples)

    @property
    def main(self) -> str:
        """The name of the main figure."""
        return next(iter(self.figures))

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens read and written."""
        return self.read, self.written
