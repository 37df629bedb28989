"""run: a task put to a model, and what came of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from llmctl.core.benchmark.choose import choose
from llmctl.core.benchmark.figures import Answered, figures
from llmctl.core.benchmark.foretell import foretell
from llmctl.core.benchmark.label import classify, tag
from llmctl.core.benchmark.outcome import Outcome
from llmctl.core.benchmark.records import Record, Records, field_of, kind_of, read_records
from llmctl.core.benchmark.subject import Subject, Told
from llmctl.core.benchmark.wording import placed
from llmctl.core.benchmark.write import write
from llmctl.errors import UserError
from llmctl.spec.benchmark import USUAL, Kind, Task

Ask = Callable[[Subject, Task, Sequence[str], Records, Records, Told], Answered]


def run(subject: Subject, task: Task, records: Sequence[Record] | None = None, told: Told | None = None) -> Outcome:
    """Put a task to a model.

    Args:
        records: in place of the file's, each for the one at its place, such as the same ones with typing errors; None:
            the file's own. Examples come from the file as it is.
        told: hears how many records are done.

    Raises:
        UserError: a record that is not as the task needs it, named with its file and line; a model that cannot do
            this kind of task; a figure that the task does not have.
    """
    whole = read_records(task.file)
    count = len(whole) if task.limit is None else min(task.limit, len(whole))
    if records is not None and len(records) != count:
        raise ValueError(f"{len(records)} records in place of {count}")
    asked = Records(list(whole.records[:count] if records is None else records), whole.places[:count])
    own = whole if task.own or not task.shots else read_records(str(task.examples))
    kind = kind_of(task, whole[0])
    for record, place in zip(asked, asked.places, strict=True) if task.group is not None else ():
        with placed(place):
            field_of(record, str(task.group))  # it is there
    with placed(f"{task.name}, a task of kind {kind}"):
        task = replace(task, kind=kind)
    names = task.metrics or USUAL[kind]
    read, written, began = subject.read, subject.written, time.perf_counter()
    answered = asker(subject, kind)(subject, task, names, asked, own, told or (lambda done: None))
    made = figures(names, answered.samples, answered.together, task.seed)
    missing = [name for name in task.metrics if name not in made]
    if missing or not made:
        wanted = ", ".join(missing or names)
        raise UserError(f"{task.name}: there is no {wanted} of this task.", f"There are {', '.join(made) or 'none'}.")
    return Outcome(
        task,
        kind,
        made,
        answered.samples,
        time.perf_counter() - began,
        subject.read - read,
        subject.written - written,
        len(whole),
        answered.choices,
        answered.few,
        answered.together,
    )


def asker(subject: Subject, kind: Kind) -> Ask:
    """What puts a task of a kind to a model: a label is asked of its head, or where it has none, as a choice."""
    if kind == "classify" and subject.config.classifier == "none":
        return choose
    return ASK[kind]


ASK: dict[Kind, Ask] = {"choice": choose, "generate": write, "foretell": foretell, "classify": classify, "tag": tag}
