"""Replies: what completions look like in OpenAI's JSON, whole or in parts of a stream."""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from llmctl.core.decode.choose import Picked
from llmctl.core.serve.calls import CallFilter, calls_of
from llmctl.core.serve.engine import Piece
from llmctl.core.serve.schema import Ask
from llmctl.core.serve.spelling import Spelling

LOWEST = -9999.0  # what OpenAI says of a token without any probability; JSON has no -inf

Json = dict[str, Any]


@dataclass
class Whole:
    """One completion, put together from its pieces."""

    text: str = ""
    picked: list[Picked] = field(default_factory=list)
    tokens: int = 0
    finish: str = "length"

    def add(self, piece: Piece) -> None:
        """Take in what has become final."""
        self.text += piece.text
        self.picked += piece.picked
        self.tokens = piece.tokens
        self.finish = piece.finish or self.finish

    @property
    def likelihood(self) -> float:
        """The mean log-probability of its tokens, in nats."""
        told = [one.logprob for one in self.picked if one.logprob is not None]
        return sum(told) / max(1, len(told))


class Replies:
    """The answers to one request.

    Args:
        model: its name.
        prompts: the ids of each prompt.
        texts: the prompts as text, where answers begin with them.
        calls: whether the text may hold calls of functions in the model's own way.

    Attributes:
        scored: the tokens of each prompt with their log-probabilities, where answers begin with them.
    """

    def __init__(
        self,
        ask: Ask,
        model: str,
        prompts: Sequence[Sequence[int]],
        texts: Sequence[str],
        spelling: Spelling,
        calls: bool = False,
    ):
        self.ask, self.prompts, self.texts, self.spelling, self.calls = ask, prompts, texts, spelling, calls
        self.prompt_tokens = sum(map(len, prompts))
        self.wholes = [Whole() for _ in range(len(prompts) * ask.samples)]
        self.scored: list[list[Picked]] = [[] for _ in prompts]
        self._filters: dict[int, CallFilter] = {}
        self._offsets: dict[int, int] = {}  # characters of the tokens of each completion that a stream has got
        kind = "chat.completion" if ask.chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if ask.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def add(self, piece: Piece) -> None:
        """Take in what has become final."""
        self.wholes[piece.index].add(piece)

    @property
    def tokens(self) -> int:
        """Tokens that were written, those of completions that are not told too."""
        return sum(whole.tokens for whole in self.wholes)

    @property
    def usage(self) -> Json:
        """The numbers of tokens."""
        made = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens}
        return {**made, "total_tokens": self.prompt_tokens + self.tokens}

    def whole(self) -> Json:
        """The answer, once every completion has ended."""
        chosen = []
        for start in range(0, len(self.wholes), self.ask.samples):
            group = self.wholes[start : start + self.ask.samples]
            if len(group) > self.ask.n:
                group = sorted(group, key=lambda one: -one.likelihood)
            chosen += group[: self.ask.n]
        choice = self._chat_choice if self.ask.chat else self._text_choice
        return {**self._head, "choices": [choice(*one) for one in enumerate(chosen)], "usage": self.usage}

    def opening(self) -> Iterator[Json]:
        """What a stream begins with."""
        for index in range(len(self.wholes)):
            if self.ask.chat:
                yield self._chunk(index, {"delta": {"role": "assistant", "content": "", **self._call_head(index)}})
            elif self.ask.echo:
                told = self._logprobs(self.scored[index // self.ask.samples], 0)
                yield self._chunk(index, {"text": self._echo(index), "logprobs": told})

    def chunks(self, piece: Piece) -> Iterator[Json]:
        """What a stream gets of a piece."""
        index = piece.index
        self.add(piece)
        told = {"logprobs": None}
        if piece.picked and self.ask.top is not None:
            at = self._offsets.setdefault(index, self._offset(index // self.ask.samples))
            told = {"logprobs": self._logprobs(piece.picked, at)}
            self._offsets[index] = at + sum(len(self.spelling.text(one.id)) for one in piece.picked)
        if not self.ask.chat:
            if piece.text or piece.finish or told["logprobs"]:
                yield self._chunk(index, {"text": piece.text, **told}, piece.finish)
            return
        finish, deltas = piece.finish, []
        if self.ask.form.function is not None:
            deltas = self._call_deltas(piece)
            finish = "tool_calls" if finish == "stop" else finish
        elif self.calls:
            filter = self._filters.setdefault(index, CallFilter())
            text, calls = filter.push(piece.text, bool(finish))
            deltas = [{"content": text}] if text else []
            deltas += [{"tool_calls": [{"index": at, **call}]} for at, call in calls]
            finish = "tool_calls" if finish == "stop" and filter.count else finish
        elif piece.text:
            deltas = [{"content": piece.text}]
        if not deltas and told["logprobs"]:
            deltas = [{}]
        for delta in deltas:
            yield self._chunk(index, {"delta": delta, **told})
            told = {"logprobs": None}
        if finish:
            yield self._chunk(index, {"delta": {}, "logprobs": None}, finish)

    def closing(self) -> Iterator[Json]:
        """What a stream ends with."""
        if self.ask.usage:
            yield {**self._stream_head(), "choices": [], "usage": self.usage}

    def _chunk(self, index: int, what: Json, finish: str | None = None) -> Json:
        choice = {"index": index, "logprobs": None, **what, "finish_reason": finish}
        return {**self._stream_head(), "choices": [choice], **({"usage": None} if self.ask.usage else {})}

    def _stream_head(self) -> Json:
        return {**self._head, "object": "chat.completion.chunk"} if self.ask.chat else self._head

    def _echo(self, index: int) -> str:
        return self.texts[index // self.ask.samples] if self.ask.echo else ""

    def _text_choice(self, index: int, whole: Whole) -> Json:
        number = index // self.ask.n
        echo, told = self.texts[number] if self.ask.echo else "", None
        if self.ask.top is not None:
            told = self._logprobs([*self.scored[number], *whole.picked], 0 if self.scored[number] else len(echo))
        return {"index": index, "text": echo + whole.text, "logprobs": told, "finish_reason": whole.finish}

    def _chat_choice(self, index: int, whole: Whole) -> Json:
        message: Json = {"role": "assistant", "content": whole.text, "refusal": None}
        finish, calls = whole.finish, None
        if self.ask.form.function is not None:
            calls = [_call(self.ask.form.function, whole.text)]
            message["content"] = None
        elif self.calls:
            message["content"], calls = calls_of(whole.text)
        if calls:
            message["tool_calls"] = calls
            finish = "tool_calls" if finish == "stop" else finish
        told = None if self.ask.top is None else self._logprobs(whole.picked, 0)
        return {"index": index, "message": message, "logprobs": told, "finish_reason": finish}

    def _call_head(self, index: int) -> Json:
        """The call that a stream begins with, where it is known which function is called."""
        if not self.ask.form.function:
            return {}
        call = _call(self.ask.form.function, "")
        return {"content": None, "tool_calls": [{"index": 0, **call}]}

    def _call_deltas(self, piece: Piece) -> list[Json]:
        """What a piece adds to a call that had to be made; which one it is, only the whole text tells."""
        if self.ask.form.function:
            arguments = {"index": 0, "function": {"arguments": piece.text}}
            return [{"tool_calls": [arguments]}] if piece.text else []
        if not piece.finish:
            return []
        return [{"tool_calls": [{"index": 0, **_call("", self.wholes[piece.index].text)}]}]

    def _logprobs(self, picked: Sequence[Picked], offset: int) -> Json | None:
        """The log-probabilities of tokens.

        Args:
            offset: characters before the first of them.
        """
        if self.ask.top is None:
            return None
        if self.ask.chat:
            made = [{**self._scored(one.id, one.logprob), "top_logprobs": self._tops(one)} for one in picked]
            return {"content": made, "refusal": None}
        offsets, texts = [], [self.spelling.text(one.id) for one in picked]
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        numbers = [None if one.logprob is None else _number(one.logprob) for one in picked]
        tops = [self._by_text(one) for one in picked]
        return {"tokens": texts, "token_logprobs": numbers, "top_logprobs": tops, "text_offset": offsets}

    def _by_text(self, one: Picked) -> Json | None:
        """The likeliest tokens; of those with the same text the likeliest, and of the first of a prompt none."""
        if one.logprob is None:
            return None
        return {self.spelling.text(id): _number(value) for id, value in reversed(one.top)}

    def _offset(self, number: int) -> int:
        """Characters before a completion of that prompt."""
        if not self.ask.echo:
            return 0
        scored = self.scored[number]
        return sum(len(self.spelling.text(one.id)) for one in scored) if scored else len(self.texts[number])

    def _tops(self, one: Picked) -> list[Json]:
        return [self._scored(id, value) for id, value in one.top[: self.ask.top]]

    def _scored(self, id: int, logprob: float | None) -> Json:
        spelled = self.spelling.bytes(id)
        return {"token": self.spelling.text(id), "logprob": _number(logprob or 0.0), "bytes": list(spelled)}


def vectors(model: str, found: Sequence[Any], tokens: int) -> Json:
    """The answer to a request for embeddings.

    Args:
        found: of each input, a list of numbers or base64.
    """
    data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(found)]
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _call(function: str, text: str) -> Json:
    """A call of a function: `text` is its arguments, or where the name is "", an object of name and arguments."""
    if not function and text:
        try:
            made = orjson.loads(text)
            function, text = made["name"], orjson.dumps(made["arguments"]).decode()
        except (orjson.JSONDecodeError, KeyError):  # cut short by the limit of tokens
            function = ""
    id = f"call_{secrets.token_hex(12)}"
    return {"id": id, "type": "function", "function": {"name": function, "arguments": text}}


def _number(logprob: float) -> float:
    return max(LOWEST, logprob)
