"""Chat: conversations as text, by the tokenizer's own template as transformers renders it, or by a built-in one."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2

from llmctl.core.text.marks import CLOSE, OPEN, Marks, marks_of
from llmctl.core.text.sandbox import compiled
from llmctl.core.text.tokenizer import USUAL, Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.sets import TrainOn

ChatName = Literal["chatml", "llama2", "llama3", "zephyr", "plain"]
Message = dict[str, Any]

FILE = "chat_template.jinja"
GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
REASONING = ("reasoning_content", "thinking", "reasoning")  # what a message's reasoning is called; the first is read
ASSISTANT = "assistant"

# Layouts of which each ends every turn of the assistant with a special token. Whoever puts a beginning-of-text token
# before texts gets it before conversations too.
CHATS: dict[ChatName, str] = {
    "chatml": """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "llama2": """{%- set found = namespace(system='') %}
{%- for message in messages %}
{%- if message['role'] == 'system' %}
{%- set found.system = '<<SYS>>\\n' + message['content'] + '\\n<</SYS>>\\n\\n' %}
{%- elif message['role'] == 'assistant' %}
{{- ' ' + message['content'] + eos_token }}
{%- else %}
{{- '[INST] ' + found.system + message['content'] + ' [/INST]' }}
{%- set found.system = '' %}
{%- endif %}
{%- endfor %}
""",
    "llama3": """{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "zephyr": """{%- for message in messages %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\\n' }}
{%- endif %}
""",
    "plain": """{%- for message in messages %}
{%- if message['role'] == 'system' %}
{{- message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'assistant' %}
{{- 'Assistant: ' + message['content'] + eos_token + '\\n' }}
{%- else %}
{{- message['role'] | capitalize + ': ' + message['content'] + '\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- 'Assistant:' }}
{%- endif %}
""",
}

# Special tokens that a layout needs besides the one that ends a text.
NEEDS: dict[ChatName, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama2": (),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "zephyr": (),
    "plain": (),
}


class Saved(NamedTuple):
    """What a checkpoint holds of a chat template, so that it is served as it was trained.

    Attributes:
        template: contents of chat_template.jinja.
        config: contents of tokenizer_config.json, which has the template too.
        eos: ids that end an answer, for generation_config.json: the tokenizer's, and what ends a turn.
    """

    template: str
    config: dict[str, Any]
    eos: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Chat:
    """A chat template and the tokenizer that it writes for.

    Attributes:
        name: of the layout: "its own", a built-in one or a file.
        source: Jinja.
        tokenizer: whose special tokens it writes.
    """

    name: str
    source: str
    tokenizer: Tokenizer

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False, **more: Any) -> str:
        """A conversation as text, exactly as transformers' apply_chat_template renders it.

        Args:
            messages: dicts of `role`, `content` and what else the template reads.
            add_generation_prompt: end with what the assistant's answer follows.
            more: `tools`, `documents`, and further names for the template.

        Raises:
            UserError: the template refuses the conversation.
        """
        return self._marks.shown(self.hidden(messages, add_generation_prompt, **more))

    def hidden(self, messages: Sequence[Message], add_generation_prompt: bool = False, **more: Any) -> str:
        """The same for `Marks.marked`: typed special tokens are hidden, and what is generated is between marks."""
        given = {"messages": [_read(message) for message in messages], "tools": None, "documents": None, **more}
        names = {**self._tokens, **self._marks.hidden(given), "add_generation_prompt": add_generation_prompt}
        try:
            return compiled(self.source, f"the chat template ({self.name})").render(names)
        except jinja2.TemplateError as error:
            raise UserError(
                f"the chat template ({self.name}) refuses the conversation: {str(error).rstrip('.')}.", HINT
            ) from error
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise UserError(f"the chat template ({self.name}) fails at the conversation: {error}.", HINT) from error

    def ids(self, messages: Sequence[Message], add_generation_prompt: bool = True, **more: Any) -> list[int]:
        """A conversation as the model reads it; special tokens that someone typed are text.

        Raises:
            UserError: the template refuses the conversation.
        """
        marked = self._marks.marked(self.hidden(messages, add_generation_prompt, **more))
        return self._marks.encode([marked.text])[0].ids.tolist()

    def answered(
        self, messages: Sequence[Message], train_on: TrainOn = "completion", given: int = 0, **more: Any
    ) -> str:
        """A conversation for `Marks.marked`, with marks around what is trained on.

        That is what the assistant says, and what ends each of its turns: where the template marks it with
        {% generation %}, as it says; else what a turn adds to the conversation so far, headed for an answer.

        Args:
            train_on: every turn of the assistant, the last one, or all of the conversation.
            given: messages at the beginning that are not trained on, whoever says them.
            more: as of `render`.

        Raises:
            UserError: the assistant says nothing, or the template does not show what it says.
        """
        turns = [at for at, one in enumerate(messages) if one.get("role") == ASSISTANT and at >= given]
        if not turns:
            raise UserError("the assistant says nothing in the conversation.", "Its messages have the role assistant.")
        full = self.hidden(messages, **more)
        if train_on == "all":
            return OPEN + full.replace(OPEN, "").replace(CLOSE, "") + CLOSE
        wanted = turns[-1:] if train_on == "last" else turns
        if GENERATION.search(self.source):
            return self._as_marked(full, messages, wanted)
        return self._as_added(full, messages, wanted, more)

    def _as_marked(self, full: str, messages: Sequence[Message], wanted: Collection[int]) -> str:
        """The runs of {% generation %}, of which each is one of the assistant's turns, in their order."""
        turns = [at for at, one in enumerate(messages) if one.get("role") == ASSISTANT]
        said = iter(turns)
        if full.count(OPEN) != len(turns):
            raise UserError(
                f"the chat template ({self.name}) marks {full.count(OPEN)} runs as generated, but the assistant has "
                f"{len(turns)} turns.",
                "Mend its {% generation %}, or pass --chat-template.",
            )
        keep = False

        def one(found: re.Match[str]) -> str:
            nonlocal keep
            if found[0] == OPEN:
                keep = next(said) in wanted
            return found[0] if keep else ""

        return re.sub(f"[{OPEN}{CLOSE}]", one, full)

    def _as_added(
        self, full: str, messages: Sequence[Message], wanted: Collection[int], more: Mapping[str, Any]
    ) -> str:
        """What each turn adds to the text before it; both texts have to begin the whole one."""
        made, at = "", 0
        for turn in wanted:
            try:
                before = self.hidden(messages[:turn], add_generation_prompt=True, **more)
                through = full if turn == len(messages) - 1 else self.hidden(messages[: turn + 1], **more)
            except UserError as error:
                raise UserError(f"{error.problem.rstrip('.')}, up to message {turn + 1}.", UNMARKED) from error
            if not (full.startswith(through) and through.startswith(before) and len(before) >= at):
                raise UserError(
                    f"the chat template ({self.name}) does not show what the assistant says: it has no "
                    f"{{% generation %}}, and it lays out message {turn + 1} in another way once others follow.",
                    UNMARKED,
                )
            made += full[at : len(before)] + OPEN + full[len(before) : len(through)] + CLOSE
            at = len(through)
        return made + full[at:]

    def saved(self) -> Saved:
        """What is to be written beside the model."""
        config = {**(self.tokenizer.config or self._tokens), "chat_template": self.source}
        named = (self.tokenizer.eos, self.turn_end)
        return Saved(self.source, config, tuple(dict.fromkeys(one for one in named if one is not None)))

    @cached_property
    def turn_end(self) -> int | None:
        """The special token that ends what the assistant says; None where there is none."""
        talk = [{"role": "user", "content": "a"}, {"role": ASSISTANT, "content": "b"}]
        try:
            marked = self._marks.marked(self.answered(talk, "last"))
        except UserError:
            return None
        return self._marks.end(marked)

    @cached_property
    def _marks(self) -> Marks:
        return marks_of(self.tokenizer)

    @cached_property
    def _tokens(self) -> dict[str, str]:
        """Special tokens by the names that templates call them."""
        return role_tokens(self.tokenizer)


HINT = "Mend the record, or pass another --chat-template."
UNMARKED = "Pass --train-on last, a --chat-template with {% generation %}, or a built-in one: --chat-template chatml"


def chat_of(tokenizer: Tokenizer, wanted: str | None = None) -> Chat:
    """A chat template: the one wanted, else the tokenizer's own, else chatml where it has its tokens, else plain.

    Args:
        wanted: the name of a built-in one, a file, or "own" for the tokenizer's.

    Raises:
        UserError: no such template, or the tokenizer lacks its special tokens.
    """
    if wanted in (None, "own"):
        own = own_template(tokenizer)
        if own is not None:
            return Chat("the tokenizer's own", own, tokenizer)
        if wanted == "own":
            raise UserError("--chat-template own: the tokenizer has no chat template.", code=Exit.MISMATCH)
        wanted = "plain" if _lacking("chatml", tokenizer) else "chatml"
    if wanted not in CHATS:
        path = Path(wanted)
        if not path.is_file():
            names = ", ".join(CHATS)
            raise UserError(f"--chat-template {wanted} is neither a file nor one of {names}.", code=Exit.USAGE)
        try:
            return Chat(wanted, path.read_text(encoding="utf-8"), tokenizer)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--chat-template {wanted} cannot be read: {error}.") from error
    lacking = _lacking(wanted, tokenizer)
    if lacking:
        raise UserError(
            f"--chat-template {wanted} needs special tokens that the tokenizer does not have: {', '.join(lacking)}.",
            "Pass --chat-template plain, which needs none, or a tokenizer trained with --special for each.",
            Exit.MISMATCH,
        )
    begin = "{{- bos_token }}\n" if tokenizer.begins else ""
    return Chat(wanted, begin + CHATS[wanted], tokenizer)


def render(messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool = False, **more: Any) -> str:
    """A conversation as text by the tokenizer's own template, or where it has none, as `chat_of` chooses one."""
    return chat_of(tokenizer).render(messages, add_generation_prompt, **more)


def own_template(tokenizer: Tokenizer) -> str | None:
    """The chat template that came with a tokenizer: that of chat_template.jinja, else of tokenizer_config.json."""
    if tokenizer.source is not None and (tokenizer.source / FILE).is_file():
        return (tokenizer.source / FILE).read_text(encoding="utf-8")
    found = tokenizer.config.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    return found if isinstance(found, str) else None


def role_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Special tokens by role: {"eos_token": "</s>", ...}, as tokenizer_config.json or their usual names say."""
    made = {}
    for role in USUAL:
        value = tokenizer.config.get(f"{role}_token")
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            made[f"{role}_token"] = value
    if made:
        return made
    ids = {role: getattr(tokenizer, role) for role in USUAL}
    return {f"{role}_token": str(tokenizer.token(id)) for role, id in ids.items() if id is not None}


def _lacking(name: str, tokenizer: Tokenizer) -> list[str]:
    """Special tokens that a built-in layout needs and the tokenizer has not."""
    known: Callable[[str], bool] = marks_of(tokenizer).ids.__contains__
    ends = known(role_tokens(tokenizer).get("eos_token", ""))
    return [token for token in NEEDS[name] if not known(token)] + ([] if ends else ["an eos_token"])


def _read(message: Message) -> Message:
    """A message as templates read it: nothing null, its reasoning under the usual name, parts of text joined."""
    made = {name: value for name, value in message.items() if value is not None}
    reasoning = next((made[name] for name in REASONING if name in made), None)
    if reasoning is not None:
        made = {"thinking": reasoning, **made, "reasoning_content": reasoning}
    parts = made.get("content")
    if isinstance(parts, list) and parts and all(isinstance(one, dict) and "text" in one for one in parts):
        made["content"] = "".join(str(one["text"]) for one in parts)
    return made
