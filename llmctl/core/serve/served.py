"""Served: a model and all that a request needs of it: its words, its rules, how choices are made."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from llmctl.core.decode.batch import Desk, Wish
from llmctl.core.decode.choose import Chooser, Picked
from llmctl.core.decode.generate import room
from llmctl.core.decode.guide import Grammar
from llmctl.core.decode.prompt import prompt_ids, special_stops
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import stream_key
from llmctl.core.decode.text import TextStream
from llmctl.core.model.transformer import Transformer
from llmctl.core.serve.engine import Part
from llmctl.core.serve.form import Form
from llmctl.core.serve.refusal import Refusal
from llmctl.core.serve.schema import Ask
from llmctl.core.serve.scoring import scored
from llmctl.core.text.chat import Chat
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.sample import Sampling

LARGEST = 2**31 - 1  # a context that nothing fills
KEPT = 64  # choosers, and grammars, that are kept for requests like those before


@dataclass(eq=False)
class Served:
    """A model that is served.

    Attributes:
        names: what requests may call it; the first is what answers call it.
        model: None where only its vectors are served.
        config: with the context that is left beside virtual tokens.
        chat: how conversations are laid out; None where it has none.
        rules: of the checkpoint.
        eos: ids that end a text.
        special: read special tokens that are typed in a prompt as such.
    """

    names: tuple[str, ...]
    model: Transformer
    tokenizer: Tokenizer
    config: ModelConfig
    chat: Chat | None = None
    rules: Rules = field(default_factory=Rules)
    eos: frozenset[int] = frozenset()
    kv_bits: int = 0
    special: bool = False
    writes: bool = True

    def __post_init__(self) -> None:
        self._grammar = lru_cache(KEPT)(self._made_grammar)
        self._chooser = lru_cache(KEPT)(self._made_chooser)
        weight = next(self.model.parameters())
        self.device: torch.device = weight.device

    def named(self, name: str | None) -> None:
        """Check that a request means this model.

        Raises:
            Refusal: it means another.
        """
        if name is not None and name not in self.names:
            listed = ", ".join(self.names)
            raise Refusal(f"There is no model {name!r} here; there is {listed}.", 404, "model", "model_not_found")

    def desk(self, rows: int, memory: int | None) -> Desk:
        """An empty desk for so many completions side by side."""
        return Desk(self.model, rows, self.kv_bits, self.rules, memory)

    def prompts(self, ask: Ask) -> list[list[int]]:
        """The ids of each prompt of a request.

        Raises:
            Refusal: one cannot be read, or leaves no room for an answer.
        """
        if not self.writes:
            raise Refusal(f"{self.names[0]} writes no text; it makes embeddings.", 404, "model", "model_not_found")
        try:
            found = [self._talk(ask)] if ask.chat else [self._prompt(one) for one in ask.prompts]
        except UserError as error:
            raise Refusal(error.problem, param="messages" if ask.chat else "prompt") from error
        for ids in found:
            self._check_room(len(ids), ask.limit, "messages" if ask.chat else "prompt")
        return found

    def parts(self, ask: Ask, prompts: Sequence[Sequence[int]]) -> list[Part]:
        """The completions that a request asks for: those of the first prompt, then of the second, and so on.

        Raises:
            Refusal: the form of the text cannot be followed, or an id is unknown.
        """
        wrong = [id for id in (*(id for id, _ in ask.bias), *ask.stop_ids) if id >= self.config.vocab]
        if wrong:
            raise Refusal(f"There is no token {wrong[0]}; ids go up to {self.config.vocab - 1}.")
        eos = self.eos | ask.stop_ids | special_stops(self.tokenizer, ask.stops)
        if ask.chat and self.chat is not None and self.chat.turn_end is not None:
            eos |= {self.chat.turn_end}
        chooser = self._chooser(ask.sampling, ask.bias, eos, replace(ask.form, free=False, function=None))
        seed = random.getrandbits(63) if ask.seed is None else ask.seed
        made = []
        for number, ids in enumerate(prompts):
            limit = self._limit(len(ids), ask.limit)
            for sample in range(ask.samples):
                key = stream_key(seed, number, sample)
                wish = Wish(prompt=ids, chooser=chooser, key=key, limit=limit, eos=eos, stopped=None)
                stream = TextStream(self.tokenizer, self.rules.start or ids, ask.stops)
                made.append(Part(len(made), wish, stream))
        return made

    def scored(self, ids: Sequence[int], top: int) -> Iterator[Callable[[], list[Picked]]]:
        """What gives the log-probabilities of a prompt's tokens, a part each.

        Raises:
            Refusal: no token of a prompt is foretold.
        """
        if self.rules.start or self.config.prefix_lm:
            raise Refusal(f"{self.names[0]} does not foretell its prompts.", param="echo")
        return scored(self.model, ids, top, self.tokenizer.size, self.kv_bits)

    def _talk(self, ask: Ask) -> list[int]:
        if self.chat is None:
            raise UserError(f"{self.names[0]} holds no conversations; /v1/completions takes a text.")
        tools = [*ask.tools] if ask.tools and (ask.form.free or ask.form.function is not None) else None
        ids = self.chat.ids(ask.messages, tools=tools)
        return self._fitting(ids or self._prompt(""))

    def _prompt(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            try:
                return prompt_ids(self.tokenizer, prompt, replace(self.config, context=LARGEST), self.special)
            except UserError as error:
                if error.code == Exit.MISMATCH:
                    raise Refusal(error.problem, 500) from error
                raise
        return self._fitting(list(prompt))

    def _fitting(self, ids: list[int]) -> list[int]:
        if max(ids) >= self.config.vocab:
            raise UserError(f"There is no token {max(ids)}; ids go up to {self.config.vocab - 1}.")
        return ids

    def _check_room(self, prompt: int, limit: int | None, param: str) -> None:
        """Check that a prompt fits the context, with the completion that is asked for."""
        context, both = self.config.context, self.config.kind == "encoder-decoder"
        wanted = (1 if limit is None else limit) * (not both)
        if prompt + wanted > context and not (both and self.config.position == "relative"):
            more = f" and {wanted} of the completion" if limit and not both else ""
            raise Refusal(
                f"The context holds {context} tokens; the prompt has {prompt}{more}.",
                param=param,
                code="context_length_exceeded",
            )

    def _limit(self, prompt: int, limit: int | None) -> int:
        """Most tokens of a completion."""
        before = len(self.rules.start) or prompt
        if limit is None:
            limit = self.config.context - before
        return room(self.model, before, limit)

    def _made_chooser(
        self, sampling: Sampling, bias: tuple[tuple[int, float], ...], eos: frozenset[int], form: Form
    ) -> Chooser:
        rules = replace(self.rules, bias=(*self.rules.bias, *(((id,), value) for id, value in bias)))
        guides = None if form == Form() else self._grammar(form, eos)
        return Chooser(sampling, rules, self.config.vocab, self.tokenizer.size, eos, self.device, guides)

    def _made_grammar(self, form: Form, eos: frozenset[int]) -> Grammar:
        try:
            if form.schema:
                return Grammar(self.tokenizer, eos, "schema", form.schema, "The schema")
            return Grammar(self.tokenizer, eos, "regex", form.regex, "The pattern")
        except UserError as error:
            said = f"{error.problem} {error.hint}".strip()
            raise Refusal(said, 501 if "not installed" in said else 400, "response_format") from error
