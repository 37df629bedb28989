"""Talk: a conversation with a model, which reads again only what has changed since its last answer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.prompt import prompt_ids
from llmctl.core.decode.rows import BY_ROW, Rows, common, rows_of
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import stream_key
from llmctl.core.decode.text import TextStream
from llmctl.core.model.position import turning_point
from llmctl.core.model.slots import CHUNK
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.chat import ASSISTANT, Message
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.sample import Sampling

Layout = Callable[[Sequence[Message]], list[int]]  # a conversation, of which the next answer is to follow, as ids
Ending = Literal["stop", "length", "interrupted"]

USER, SYSTEM = "user", "system"
SEEN = 32  # tokens before an answer that decide how its first word is spelled
UNLIMITED = 2**31 - 1


@dataclass(frozen=True)
class Said:
    """An answer.

    Attributes:
        text: as it was given out.
        ending: "stop" for the end of its turn or a stop string, "length" for the limit of tokens or of the context,
            "interrupted" by whoever asked.
        prompt_tokens: tokens of the conversation that it answers.
        known_tokens: those of them that the model had read before.
        tokens: how many the model wrote, the one that stopped it included.
    """

    text: str
    ending: Ending
    prompt_tokens: int
    known_tokens: int
    tokens: int


class Talk:
    """A conversation. An answer is what it would be if all of the conversation were read anew.

    Args:
        model: a decoder.
        tokenizer: of the model.
        lay: the conversation as ids.
        sampling: how the tokens of answers are chosen.
        eos: ids that end an answer.
        rules: of the checkpoint.
        stops: strings that end an answer.
        seed: of the random choices; each answer has a stream of its own.
        kv_bits: of the keys and values that are kept, 8 or 4; 0: as they are.
        bare: answers are kept and given out without white space before them, which belongs to the template.

    Attributes:
        messages: all of it, the system's first, also those that the model no longer reads.
        first: how many messages after the system's are no longer read, for want of room.
        said: the last answer; None before the first.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        lay: Layout,
        sampling: Sampling,
        eos: frozenset[int],
        rules: Rules | None = None,
        stops: Sequence[str] = (),
        seed: int = 0,
        kv_bits: int = 0,
        bare: bool = True,
    ):
        self.tokenizer, self.lay, self.sampling = tokenizer, lay, sampling
        self.eos, self.rules, self.stops, self.seed, self.bare = eos, rules or Rules(), tuple(stops), seed, bare
        self.context = model.config.context - model.virtual_tokens("decoder")
        self.messages: list[Message] = []
        self.first = 0
        self.said: Said | None = None
        self._tries = 0
        self._reading = Reading(model, kv_bits)
        self._model = model

    @property
    def system(self) -> str | None:
        """What the system says; None if nothing. Set, it goes before all else."""
        return self.messages[0]["content"] if self._opening else None

    @system.setter
    def system(self, text: str | None) -> None:
        self.messages[: self._opening] = [] if text is None else [{"role": SYSTEM, "content": text}]

    @property
    def turns(self) -> int:
        """Turns of the user."""
        return sum(one["role"] == USER for one in self.messages)

    def ask(self, text: str, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Say something, and give out the answer as it grows; then it is `said` and among the messages.

        A turn that fails, or is left before its end, or is stopped before the first word, is taken back.

        Args:
            stopped: looked at before every token: True ends the answer.

        Raises:
            UserError: the turn does not fit the context, the template refuses it, or the scores are not numbers.
        """
        yield from self._answered([*self.messages, {"role": USER, "content": text}], 0, stopped)

    def retry(self, stopped: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Another answer to the last turn, in the place of the one that there is, if there is one.

        Raises:
            UserError: nothing was asked; or as for `ask`.
        """
        messages = (
            self.messages[:-1] if self.messages[-1:] and self.messages[-1]["role"] == ASSISTANT else self.messages
        )
        if not messages or messages[-1]["role"] != USER:
            raise UserError("Nothing was asked that could be answered again.", "Say something first.")
        yield from self._answered(list(messages), self._tries + 1, stopped)

    def undo(self) -> None:
        """Take back the last turn and its answer.

        Raises:
            UserError: there is none.
        """
        asked = [at for at, one in enumerate(self.messages) if one["role"] == USER]
        if not asked:
            raise UserError("There is no turn to take back.", "Say something first.")
        self.restart(self.messages[: asked[-1]])

    def restart(self, messages: Sequence[Message] = ()) -> None:
        """Go on from another conversation; without one, from the beginning."""
        self.messages = list(messages)
        self.first, self.said = 0, None

    def check(self) -> None:
        """Check that the system prompt and a turn can be laid out.

        Raises:
            UserError: the template refuses them, or the system prompt leaves no room.
        """
        check_opening(self.lay, self.messages[: self._opening], self.context)

    @property
    def _opening(self) -> int:
        """Messages of the system at the beginning."""
        return int(bool(self.messages) and self.messages[0]["role"] == SYSTEM)

    def _answered(self, messages: list[Message], tries: int, stopped: Callable[[], bool]) -> Iterator[str]:
        before, self.messages = (self.messages, self.first, self._tries), messages
        whole = False
        try:
            ids = self._fitted()
            self._tries = tries
            text = ""
            for piece in self._written(ids, stopped):
                piece = piece.lstrip() if self.bare and not text else piece
                text += piece
                if piece:
                    yield piece
            whole = bool(text) or self.said.ending != "interrupted"
            self.messages = [*messages, {"role": ASSISTANT, "content": text}]
            self.said = replace(self.said, text=text)
        finally:
            if not whole:
                self.messages, self.first, self._tries = before

    def _fitted(self) -> list[int]:
        """The ids of the conversation, without its oldest turns where an answer would have no room after all of them.

        Where turns go, a quarter of the room is made free, for what is left has to be read again.
        """
        space = self.context - min(self.sampling.max_tokens, self.context // 2)
        ids = self._ids()
        if len(ids) > space:
            while len(ids) > space * 3 // 4 and self._forget():
                ids = self._ids()
        if len(ids) > self.context:
            kept = " and the system prompt" if self._opening else ""
            raise UserError(
                f"The turn{kept} has {len(ids)} tokens; the model's context holds {self.context}.", "Shorten it."
            )
        return ids

    def _ids(self) -> list[int]:
        opening = self._opening
        return self.lay(self.messages[:opening] + self.messages[opening + self.first :])

    def _forget(self) -> bool:
        """Leave out the oldest turn that is still read, unless it is the last; whether there was one."""
        roles = [one["role"] for one in self.messages[self._opening :]]
        nearest = next((at for at in range(self.first + 1, len(roles)) if roles[at] == USER), None)
        self.first = self.first if nearest is None else nearest
        return nearest is not None

    def _written(self, ids: list[int], stopped: Callable[[], bool]) -> Iterator[str]:
        """The text of an answer as it becomes final; at the end `said` is set."""
        limit = min(self.sampling.max_tokens, self.context - len(ids) + 1)
        config, device = self._model.config, next(self._model.parameters()).device
        chooser = Chooser(self.sampling, self.rules, config.vocab, self.tokenizer.size, self.eos, device)
        line = chooser.line(ids, stream_key(self.seed, self.turns, self._tries), limit)
        stream = TextStream(self.tokenizer, ids[-SEEN:], self.stops)
        ending: Ending = "length"
        count, scores = 0, self._reading.read(ids, stopped) if limit else None
        while count < limit:
            if scores is None or stopped():
                ending = "interrupted"
                break
            token = chooser.pick(scores, [line])[0].id
            count += 1
            if token in self.eos:
                ending = "stop"
                break
            if piece := stream.push(token):
                yield piece
            if stream.stopped:
                ending = "stop"
                break
            if count < limit:
                scores = self._reading.step(token)
        if piece := stream.finish():
            yield piece
        self.said = Said(stream.text, ending, len(ids), self._reading.known, count)


class Reading:
    """One text that a model reads; of the next one, only what follows their common beginning.

    Attributes:
        known: tokens of the last text that had been read before.
    """

    def __init__(self, model: Transformer, kv_bits: int = 0):
        config = model.config
        by_row = config.rope_scaling is not None and config.rope_scaling.kind in BY_ROW
        self.model, self.kv_bits = model, kv_bits
        self.known = 0
        # What comes first may look at what follows it, or stand at other angles in a longer text.
        self._whole = config.prefix_lm or by_row or turning_point(config) is not None
        self._rows: Rows | None = None

    def read(self, ids: Sequence[int], stopped: Callable[[], bool] = lambda: False) -> Tensor | None:
        """(1, V) float32, the scores after a text that is not empty; None if it was stopped before its end."""
        rows, self._rows = self._rows, None  # what an exception leaves behind is not used
        self.known = 0 if rows is None or self._whole else self._cut(rows, ids)
        if rows is None or not self.known:
            rows = rows_of(self.model, self.kv_bits)
            at = len(ids) if self._whole else CHUNK
            scores = rows.add([ids[:at]])
        else:
            scores, at = None, self.known
        while at < len(ids) and not stopped():
            scores = rows.read([ids[at : at + CHUNK]], last=True)
            at += CHUNK
        self._rows = rows
        return scores if at >= len(ids) else None

    def step(self, token: int) -> Tensor:
        """(1, V) float32, the scores after one token more."""
        rows, self._rows = self._rows, None
        scores = rows.step([token])
        self._rows = rows
        return scores

    def _cut(self, rows: Rows, ids: Sequence[int]) -> int:
        """Leave what a new text begins with, all but its last token at most; how many tokens are left."""
        held = rows.texts[0]
        same = min(common([held, ids]), len(ids) - 1)
        if same and same < len(held):
            try:
                rows.cut([same])
            except ValueError:  # the model keeps sums, or has let go of what was out of its window
                return 0
        return same


def check_opening(lay: Layout, opening: Sequence[Message], context: int) -> None:
    """Check that a template takes what the system says, and that there is room for a turn after it.

    Raises:
        UserError: it does not, or there is none.
    """
    try:
        tokens = len(lay([*opening, {"role": USER, "content": "a"}]))
    except UserError as error:
        if not opening:
            raise
        hint = "Leave the system prompt out and say it in the first turn, or pass another --chat-template."
        raise UserError(error.problem, hint, error.code) from error
    if tokens > context:
        raise UserError(f"The system prompt takes {tokens} tokens; the model's context holds {context}.", "Shorten it.")


def continued(tokenizer: Tokenizer, config: ModelConfig) -> Layout:
    """A conversation as one text that the model goes on with, for models that know no turns.

    What the user says stands in a line of its own, which the answer continues.
    """
    endless = replace(config, context=UNLIMITED)

    def lay(messages: Sequence[Message]) -> list[int]:
        text = ""
        for one in messages:
            between = "\n" if text and one["role"] != ASSISTANT and not text.endswith("\n") else ""
            text += between + one["content"]
        return prompt_ids(tokenizer, text, endless)

    return lay
