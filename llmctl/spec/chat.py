"""Chat: the file of a conversation, and settings that may change between its turns."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from llmctl.errors import UserError
from llmctl.spec.files import jsonable, write_file
from llmctl.spec.sample import Sampling

SCHEMA = "llmctl/chat/1"
HEARD = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")  # as generation_config.json says
UNSET = ("none", "default")  # words for a setting that is absent


@dataclass(frozen=True)
class Talking(Sampling):
    """Choice of tokens.

    Raises:
        UserError: a value out of range.
    """

    temperature: Annotated[
        float | None,
        "0 takes the likeliest token, 1 samples from the model as it is. Default: as generation_config.json says, "
        "else 0, or 1 with --top-k, --top-p, --min-p, --typical-p, --epsilon-cutoff, --eta-cutoff.",
    ] = None
    max_tokens: Annotated[int, "End an answer after this many tokens."] = 1024
    # Of no use where one text comes after another.
    n: int = field(init=False, default=1)
    best_of: int = field(init=False, default=0)
    logprobs: int | None = field(init=False, default=None)
    explain: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_left_open", self.temperature is None)
        super().__post_init__()

    def after(self, said: dict[str, Any]) -> "Talking":
        """With what generation_config.json says of sampling, where nobody has said anything else.

        It is heard only if it asks for sampling (do_sample) and no temperature was given.

        Raises:
            UserError: it says what cannot be.
        """
        if not self._left_open or said.get("do_sample") is not True:
            return self
        free = [name for name in HEARD if name == "temperature" or getattr(self, name) == getattr(Sampling, name)]
        made = {name: said[name] for name in free if type(said.get(name)) in (int, float)}
        try:
            return dataclasses.replace(self, **{"temperature": 1.0, **made})
        except UserError as error:
            told = f"generation_config.json: {error.problem}"
            raise UserError(told, "Mend it, or say yourself how tokens are chosen: --temperature 1") from error


def read_talk(path: Path) -> list[dict[str, Any]]:
    """The messages of a conversation: those of an object's `messages`, or a list of them.

    Raises:
        UserError: the file cannot be read, or holds no conversation.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; wanted a conversation.", "Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a conversation in JSON: {error}.", WANTED) from error
    messages = found.get("messages") if isinstance(found, dict) else found
    if not isinstance(messages, list):
        raise UserError(f"{path} holds no messages.", WANTED)
    for number, one in enumerate(messages):
        said = one if isinstance(one, dict) else {}
        if not (isinstance(said.get("role"), str) and isinstance(said.get("content"), str)):
            raise UserError(f"{path}: message {number + 1} has no role or no content that is a text.", WANTED)
    return messages


def write_talk(path: Path, messages: Sequence[dict[str, Any]], force: bool = False) -> None:
    """Write a conversation, whole or not at all: one line, so that it is also a record to finetune on.

    Raises:
        UserError: `path` exists and `force` is not set, or it cannot be written there.
    """
    record = {"schema": SCHEMA, "messages": list(messages)}
    text = (json.dumps(jsonable(record), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    try:
        with write_file(path, force) as file:
            file.write(text)
    except (OSError, ValueError) as error:  # no such directory; a name too long, or with a null in it
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be written: {why}.", "Name a file in a directory that there is.") from error


def changed(sampling: Sampling, name: str, text: str) -> Sampling:
    """Settings of which one is as someone typed it.

    Raises:
        UserError: there is no such setting, or it cannot be that.
    """
    name = name.strip("-").replace("-", "_")
    kinds = {one.name: one.type for one in settings(sampling)}
    if name not in kinds:
        raise UserError(f"There is no setting {name!r}.", f"There are {', '.join(sorted(kinds))}.")
    return dataclasses.replace(sampling, **{name: _value(name, text.strip(), kinds[name])})


def settings(sampling: Sampling) -> list["dataclasses.Field[Any]"]:
    """The settings that are numbers."""
    return [field for field in dataclasses.fields(sampling) if field.init and _kinds(field.type) & {int, float}]


def _kinds(kind: Any) -> set[Any]:
    """The types that an annotation names: those of Annotated[int | None, "text"] are int and None's."""
    bare = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return set(get_args(bare)) or {bare}


def _value(name: str, text: str, kind: Any) -> Any:
    kinds = _kinds(kind)
    if type(None) in kinds and text in UNSET:
        return None
    try:
        return (float if float in kinds else int)(text)
    except ValueError:
        wanted = "a number" if float in kinds else "a whole number"
        raise UserError(f"{name} is {text!r}; wanted {wanted}.", f"/set {name} 1") from None


WANTED = 'Wanted {"messages": [{"role": "user", "content": "..."}, ...]}, as /save writes it.'
