"""Written: a record as the text that a model is to write, with what is given and what is trained on told apart."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import orjson

from llmctl.core.text.chat import ASSISTANT, Chat, Message, Saved, chat_of, own_template, role_tokens
from llmctl.core.text.marks import CLOSE, OPEN, marks_of
from llmctl.core.text.templates import ALPACA, Prompted, Template, open_template, template_for
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.sets import Sets, Task

CONVERSATIONS = ("messages", "conversations")
_TAKEN = ("messages", "add_generation_prompt")  # what a record's chat_template_kwargs may not say
# Who speaks, as ShareGPT's `from` says it, in the words of chat templates.
ROLES = {
    "human": "user",
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bard": ASSISTANT,
    "model": ASSISTANT,
    "function_call": ASSISTANT,
    "observation": "tool",
    "function_response": "tool",
}


class Written(NamedTuple):
    """A record as text for `Marks.marked`.

    Attributes:
        text: what a decoder reads, what is trained on between marks; beside an encoder, what it is to say.
        source: what the encoder reads; None: there is no encoder.
        chat: a chat template wrote the text, so it begins and ends as that says.
    """

    text: str
    source: str | None = None
    chat: bool = False


class Layout:
    """How the records of a run become texts.

    A template given by name makes a prompt and a completion of a record's fields. Without one, a record is a
    conversation, a prompt with its completion, an instruction, or text alone, by its fields. Instructions are
    conversations for a tokenizer that has a chat template, else alpaca's. A chat template that is asked for lays out
    prompts and completions too: what is given is the user's turn, what answers it the assistant's.

    Args:
        tokenizer: of the model.
        sets: the options.
        task: "lm" or "seq2seq".
        seed: of the choice of phrasings.

    Raises:
        UserError: no such template, or the tokenizer lacks its special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, sets: Sets, task: Task, seed: int = 0):
        self.tokenizer, self.sets, self.task, self.seed = tokenizer, sets, task, seed
        self.marks = marks_of(tokenizer)
        self.template: Template | None = None if sets.template is None else open_template(sets.template, seed)
        self.talks = 0  # records that a chat template laid out
        self.joined: list[str] = []  # where a word runs from a prompt into its completion, the first few
        if task == "seq2seq" and sets.train_on == "all":
            raise UserError("--train-on all: a decoder beside an encoder says the answer alone.", code=Exit.USAGE)
        if sets.chat_template is not None:
            self.chat  # noqa: B018 - what is wrong with it is said now

    def __call__(self, fields: Mapping[str, Any]) -> Written:
        """A record as text.

        Raises:
            UserError: its fields are not known, or what they hold is not what is wanted there.
        """
        template = template_for(fields, self.template, self.seed)
        if template is not None:
            return self._answer(self._filled(template, fields), stripped=True)
        if any(name in fields for name in CONVERSATIONS) or isinstance(fields.get("prompt"), list):
            messages, given = _conversation(fields)
            return self._talk(messages, given, _more(fields))
        if "prompt" in fields:
            return self._answer(Prompted(*(self._text(fields, name) for name in ("prompt", "completion"))))
        if "instruction" in fields:
            if self.sets.chat_template is None and own_template(self.tokenizer) is None:
                return self._answer(self._filled(ALPACA, fields), stripped=True)
            values = ALPACA.values(fields)
            asked = "\n\n".join(str(values[name]) for name in ("instruction", "input") if values.get(name))
            if not isinstance(values.get("output"), str):
                raise UserError("the record has no 'output' that is text.", _name("output"))
            return self._talk(_turns(asked, values["output"]), 0)
        if "text" in fields and self.task == "lm":
            return Written(OPEN + self.marks.hidden(self._text(fields, "text")) + CLOSE)
        raise UserError(
            "the record has none of the fields that say what to write: "
            + ("'prompt', 'messages', 'instruction'" + (" or 'text'" if self.task == "lm" else ""))
            + f"; its fields are {', '.join(map(repr, fields)) or 'none'}.",
            "Name them: --map prompt=THEIRS --map completion=THEIRS (unnamed columns of CSV and TSV by number), "
            "or say how it is put into words: --template",
            Exit.MISMATCH,
        )

    @cached_property
    def chat(self) -> Chat:
        """The chat template."""
        return chat_of(self.tokenizer, self.sets.chat_template)

    @property
    def facts(self) -> dict[str, str]:
        """How records were laid out, in words."""
        made = {} if self.template is None else {"template": self.template.name}
        return made | ({"chat_template": self.chat.name} if self.talks else {})

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should hear."""
        made = []
        if self.joined:
            made.append(
                f"In {self.joined[0]!r} a word of the prompt runs into the completion: nothing is put between the two, "
                "so begin the completion with a space."
            )
        if self.sets.system is not None and not self.talks:
            made.append("--system is said in no record: none is laid out as a conversation.")
        return tuple(made)

    def saved(self) -> Saved | None:
        """What is to be written beside the model, so that it is served as it was trained; None: no conversations."""
        return self.chat.saved() if self.talks else None

    def _filled(self, template: Template, fields: Mapping[str, Any]) -> Prompted:
        """A template's text, in which special tokens typed in fields are hidden."""
        values = template.values(fields)
        return template.filled(template.chosen(values), self.marks.hidden(values), fields, role_tokens(self.tokenizer))

    def _text(self, fields: Mapping[str, Any], name: str) -> str:
        value = fields.get(name)
        if not isinstance(value, str):
            what = "is not text" if value is not None else "is not there"
            raise UserError(
                f"the record's field {name!r} {what}; its fields are {', '.join(map(repr, fields))}.", _name(name)
            )
        return value if name == "text" else self.marks.hidden(value)

    def _answer(self, said: Prompted, stripped: bool = False) -> Written:
        """A prompt, already hidden, and its completion, the one after the other or for an encoder and a decoder.

        Args:
            stripped: the space before the completion is the template's, and says nothing.
        """
        prompt, completion = said
        if completion is None:
            raise UserError("the record has no answer.", "Its fields, or the template, must give a completion.")
        if self.sets.chat_template is not None:
            return self._talk(_turns(self.marks.shown(prompt), self.marks.shown(completion).lstrip(" ")), 0)
        if self.task == "seq2seq":
            return Written(completion.lstrip(" ") if stripped else completion, prompt)
        if len(self.joined) < 3 and prompt[-1:].isalnum() and completion[:1].isalnum():
            self.joined.append(self.marks.shown(prompt[-12:] + completion[:12]))
        if self.sets.train_on == "all":
            return Written(OPEN + prompt + completion + CLOSE)
        return Written(prompt + OPEN + completion + CLOSE)

    def _talk(self, messages: list[Message], given: int, more: dict[str, Any] | None = None) -> Written:
        """A conversation, up to what the assistant says last."""
        last = max((at for at, one in enumerate(messages) if one["role"] == ASSISTANT), default=-1)
        if last < given:
            raise UserError("the assistant says nothing in the conversation.", "Its messages have the role assistant.")
        messages = messages[: last + 1]
        if self.sets.system is not None and messages[0]["role"] != "system":
            messages, given = [{"role": "system", "content": self.sets.system}, *messages], given + bool(given)
        more = more or {}
        self.talks += 1
        if self.task == "seq2seq":
            source = self.chat.hidden(messages[:-1], add_generation_prompt=True, **more)
            answer = messages[-1].get("content")
            if not isinstance(answer, str):
                raise UserError("the last message of the assistant is not text.", "Its content must be a string.")
            return Written(self.marks.hidden(answer), source, True)
        return Written(self.chat.answered(messages, self.sets.train_on, given, **more), chat=True)


def _conversation(fields: Mapping[str, Any]) -> tuple[list[Message], int]:
    """The messages of a record, and how many at the beginning are a prompt that is given."""
    name = next((name for name in CONVERSATIONS if name in fields), None)
    if name is not None:
        messages, given = _messages(fields[name], name), 0
    else:
        prompt, completion = _messages(fields["prompt"], "prompt"), fields.get("completion")
        answer = [{"role": ASSISTANT, "content": completion}] if isinstance(completion, str) else completion
        messages, given = prompt + _messages(answer, "completion"), len(prompt)
    if isinstance(system := fields.get("system"), str) and system and messages[0]["role"] != "system":
        messages, given = [{"role": "system", "content": system}, *messages], given + bool(given)
    return messages, given


def _messages(value: Any, name: str) -> list[Message]:
    """Messages with `role` and `content`; those with ShareGPT's `from` and `value` too."""
    value = _parsed(value)
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise UserError(f"the record's field {name!r} is no list of messages.", _name(name))
    made = []
    for one in value:
        if "role" not in one and "from" in one:
            one = {"role": ROLES.get(str(one["from"]), one["from"]), "content": one.get("value")}
        if not isinstance(one.get("role"), str):
            raise UserError(
                f"a message of the record's {name!r} has no 'role'.", 'Such as {"role": "user", "content": ""}'
            )
        made.append(one)
    return made


def _more(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a record tells its chat template besides messages: tools, documents, and names of the template's own."""
    names = _parsed(fields.get("chat_template_kwargs"))
    made = {name: value for name, value in names.items() if name not in _TAKEN} if isinstance(names, dict) else {}
    for name in ("tools", "documents"):
        if isinstance(found := _parsed(fields.get(name)), list) and found:
            made[name] = found
    return made


def _parsed(value: Any) -> Any:
    """A value that CSV or parquet holds as JSON text."""
    if isinstance(value, str):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def _turns(asked: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": asked}, {"role": ASSISTANT, "content": answer}]


def _name(field: str) -> str:
    return f"Name the field that holds it: --map {field}=THEIRS"
