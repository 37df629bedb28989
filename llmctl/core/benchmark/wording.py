"""Wording: records of a task as prompts, after answered examples, as plain text or as a conversation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from llmctl.core.benchmark.records import Record, Records, prompts_of
from llmctl.core.decode.rows import common
from llmctl.core.text.chat import Chat, chat_of
from llmctl.core.text.phrasings import SEPARATOR
from llmctl.core.text.shots import Pool, Shot, rendered
from llmctl.core.text.templates import Prompted, Template, mapped, open_template, prompt_of, template_for
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import UserError
from llmctl.spec.benchmark import PROMPTS, Asking
from llmctl.spec.shots import Shots


class Question(NamedTuple):
    """A record in words.

    Attributes:
        fields: of the record, ours beside its own.
        prompt: the question alone.
        completion: what the template, or the record, says after it; None where neither does.
        labels: what labels are called in the text.
        prompts: texts of which one is right before the completion; the prompt is what they all begin with.
    """

    fields: dict[str, Any]
    prompt: str
    completion: str | None
    labels: Mapping[str, str]
    prompts: tuple[str, ...] = ()


class Wording:
    """Makes questions of records and prompts of questions.

    Attributes:
        chat: the layout of conversations; None: prompts are plain text.
        delimiter: what stands between a prompt and its answer.

    Raises:
        UserError: no such template or layout.
    """

    def __init__(self, task: Asking, tokenizer: Tokenizer):
        self.task = task
        self.template = None if task.template is None else template_of_task(task.template, task.seed)
        self.chat: Chat | None = None if task.chat_template is None else chat_of(tokenizer, task.chat_template)
        self.delimiter = "" if self.chat is not None else task.delimiter
        self.shots = Shots(
            shots=task.shots,
            choose=task.choose,
            order=task.order,
            instruction=task.instruction,
            separator=task.separator,
            rationale="",
            seed=task.seed,
        )

    def question(self, record: Record) -> Question:
        """A record in words.

        Raises:
            UserError: it lacks a field that is asked for.
        """
        fields = mapped(record, self.task.mapping)
        template = template_for(fields, self.template, self.task.seed)
        if template is None and PROMPTS in fields and "prompt" not in fields:
            prompts, completion = prompts_of(fields)
            return Question(fields, prompts[0][: common(prompts)], completion, {}, tuple(prompts))
        if template is None and not any(isinstance(fields.get(name), str) for name in ("prompt", "instruction")):
            template = QUESTION if isinstance(fields.get("question"), str) else None
        said: Prompted = prompt_of(fields) if template is None else template(fields)
        return Question(fields, said.prompt, said.completion, {} if template is None else template.labels)

    def prompt(self, question: str, shots: Sequence[Shot]) -> str:
        """What the model reads of a question, after its examples."""
        if self.chat is None:
            return rendered(self.shots, shots, question)
        messages = []
        for one in shots:
            messages.append({"role": "user", "content": one.prompt})
            messages.append({"role": "assistant", "content": one.answer.strip()})
        messages.append({"role": "user", "content": question})
        if self.task.instruction:
            messages[0]["content"] = f"{self.task.instruction}{self.task.separator}{messages[0]['content']}"
        if self.task.system is not None:
            messages.insert(0, {"role": "system", "content": self.task.system})
        return self.chat.render(messages, add_generation_prompt=True)


class Examples:
    """What is shown before each question.

    Args:
        records: of the file that examples are from.
        answered: makes the answer of a question, with what stands before it; raises UserError where it has none.
        own: whether it is the file that is asked, whose records must not show their own answers.

    Raises:
        UserError: shots are wanted, and a record of the file is not an example.
    """

    def __init__(self, wording: Wording, records: Records, answered: Callable[[Question], str], own: bool):
        made = []
        for number, record in enumerate(records if wording.shots.shots else ()):
            with placed(records.places[number]):
                question = wording.question(record)
                made.append(Shot(number, question.prompt, answered(question)))
        self.pool = Pool(made, wording.shots)
        self.own = own
        self.few = 0

    def of(self, number: int, prompt: str) -> list[Shot]:
        """The examples of a question, in the order in which they are shown."""
        wanted = self.pool.shots.shots
        if not wanted:
            return []
        asked = self.pool.examples[number].prompt if self.own else prompt  # what was asked may have been changed since
        chosen = [one for one in self.pool.choose(number, asked) if one.prompt != prompt]
        self.few += len(chosen) < wanted
        return self.pool.ordered(chosen, number, asked)


@contextmanager
def placed(place: str) -> Iterator[None]:
    """Says of a UserError inside where the record is from."""
    try:
        yield
    except UserError as error:
        error.problem = f"{place}: {error.problem}"
        error.args = (error.problem,)
        raise


def template_of_task(name: str, seed: int) -> Template:
    """A template by its name or file; or Jinja itself, where it has a {{ or {%.

    Raises:
        UserError: no such template, or it has more than one completion.
    """
    if "{{" not in name and "{%" not in name:
        return open_template(name, seed)
    if name.count(SEPARATOR) > 1:
        raise UserError(f"--template has {SEPARATOR} more than once.")
    return Template(name, (name,), seed)


QUESTION = open_template("qa/1")
