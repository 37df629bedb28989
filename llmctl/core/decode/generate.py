"""The decoding loop as others use it: prompts to tokens, and prompts to texts that grow while they are written."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llmctl.core.decode.batch import Desk, Event, Finish, Wish
from llmctl.core.decode.choose import Chooser, Picked
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.text import TextStream
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.spec.sample import Sampling


class Token(NamedTuple):
    """One token of one row. `finish` says that the row ends with it; `id` is None if it ends without another token."""

    row: int
    id: int | None
    finish: Finish | None


@dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt.

    Attributes:
        text: without the end-of-text token and without the stop string that ended it.
        finish: "stop" for an end-of-text token or a stop string, "length" for the limit of tokens or of the context.
        tokens: how many tokens the model wrote, the one that stopped it included.
        picked: those tokens with what was asked for of each; () where nothing was.
        score: of a search, by which its texts are ranked.
        drafted: tokens that were guessed ahead of the model.
        accepted: those of them that it kept.
        tree: of a search, every branch, where that was asked for.
        branch: of the last token, in it.
    """

    text: str
    finish: Finish
    tokens: int
    picked: tuple[Picked, ...] = ()
    score: float | None = None
    drafted: int = 0
    accepted: int = 0
    tree: tuple[Any, ...] = ()
    branch: int = -1

    @property
    def mean_logprob(self) -> float:
        """Nats a token, of a completion whose log-probabilities were asked for."""
        return sum(one.logprob for one in self.picked) / max(1, len(self.picked))


class Piece(NamedTuple):
    """Text that has just become final in one row, and the whole completion when it has ended."""

    row: int
    text: str
    completion: Completion | None


class Told(NamedTuple):
    """Text that has just become final of what was asked under a name, and the whole completion when it has ended.

    `last`: nothing more comes of that asking.
    """

    name: Any
    text: str
    completion: Completion | None
    last: bool


class Scribe:
    """Texts in the making, token by token: a Desk whose tokens are given out as text.

    Args:
        desk: of the model.
        tokenizer: of the model.
        chooser: how tokens are chosen.
        eos: ids that end a completion.
        stops: strings that end a completion.
        special: show special tokens.

    Attributes:
        asks: how often each prompt is asked.
    """

    def __init__(
        self,
        desk: Desk,
        tokenizer: Tokenizer,
        chooser: Chooser,
        eos: frozenset[int],
        stops: Sequence[str] = (),
        special: bool = False,
    ):
        self.desk, self.tokenizer, self.chooser, self.eos = desk, tokenizer, chooser, eos
        self.stops, self.special = stops, special
        self.asks = chooser.sampling.samples
        self._texts: dict[int, _Text] = {}

    @property
    def unfinished(self) -> int:
        """Completions that have not ended."""
        return self.desk.waiting + self.desk.running

    def ask(self, name: Any, prompt: Sequence[int], key: int) -> None:
        """Have a prompt completed; what is written is told under the name.

        Raises:
            UserError: it takes more memory than there is.
        """
        before = self.chooser.rules.start or prompt
        limit = room(self.desk.model, len(before), self.chooser.sampling.max_tokens)
        text = _Text(name, TextStream(self.tokenizer, before, self.stops, self.special), self.chooser.tells)
        wish = Wish(prompt, self.chooser, key, limit, self.eos, text.stopped)
        self.desk.ask(wish)
        self._texts[id(wish)] = text

    def step(self) -> list[Told]:
        """Go on with every text by one pass: what has become final."""
        told = []
        for event in self.desk.step():
            piece = self._texts[id(event.wish)].told(event)
            if piece.completion:
                del self._texts[id(event.wish)]
            if piece.text or piece.completion:
                told.append(piece)
        return told


class _Text:
    """One text of a Scribe."""

    def __init__(self, name: Any, stream: TextStream, tells: bool):
        self.name, self.stream, self.tells = name, stream, tells
        self.fresh, self.count = "", 0
        self.picked: list[Picked] = []

    def stopped(self, token: int) -> bool:
        self.fresh += self.stream.push(token)
        return self.stream.stopped

    def told(self, event: Event) -> Told:
        text, self.fresh = self.fresh, ""
        if event.picked is not None:
            self.count += 1
            if self.tells:
                self.picked.append(event.picked)
        if not event.finish:
            return Told(self.name, text, None, False)
        text += self.stream.finish()
        finish = "stop" if self.stream.stopped else event.finish
        guesses = {"drafted": event.wish.drafted, "accepted": event.wish.accepted}
        return Told(
            self.name, text, Completion(self.stream.text, finish, self.count, tuple(self.picked), **guesses), True
        )


def complete(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    keys: Sequence[int],
    eos: frozenset[int],
    stops: Sequence[str] = (),
    special: bool = False,
    rules: Rules | None = None,
    kv_bits: int = 0,
) -> Iterator[Piece]:
    """Complete prompts side by side, giving out each row's text as it becomes final.

    Args:
        prompts: ids of each row, none empty, none longer than the context; of an encoder-decoder, what its encoder
            reads.
        keys: `stream_key` of each row.
        eos: ids that end a completion.
        stops: strings that end a completion.
        special: show special tokens.
        rules: of the checkpoint; an encoder-decoder needs their `start`.
        kv_bits: of the keys and values that are kept, 8 or 4; 0: as they are.

    Raises:
        UserError: the model's scores are not numbers.
    """
    rules = rules or Rules()
    desk = Desk(model, max(1, len(prompts)), kv_bits, rules)
    chooser = Chooser(sampling, rules, model.config.vocab, tokenizer.size, eos, desk.rows.device)
    scribe = Scribe(desk, tokenizer, chooser, eos, stops, special)
    for row, (prompt, key) in enumerate(zip(prompts, keys, strict=True)):
        scribe.ask(row, prompt, key)
    while scribe.unfinished:
        yield from (Piece(*told[:3]) for told in scribe.step())


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    keys: Sequence[int],
    eos: frozenset[int] = frozenset(),
    known: int | None = None,
    stopped: Callable[[int, int], bool] | None = None,
    rules: Rules | None = None,
    kv_bits: int = 0,
) -> Iterator[Token]:
    """Decode a batch step by step; rows that have ended leave it.

    Args:
        prompts: ids of each row, none empty; of an encoder-decoder, what its encoder reads, which it does once.
        keys: `stream_key` of each row.
        eos: ids that end a row.
        known: only ids below this are chosen; a model's embedding may have more rows than its tokenizer has tokens.
        stopped: told (row, id) of each new token that is not in `eos`; True ends the row.
        rules: of the checkpoint; an encoder-decoder needs their `start`.
        kv_bits: as for `complete`.

    Raises:
        UserError: the model's scores are not numbers.
    """
    rules = rules or Rules()
    desk = Desk(model, max(1, len(prompts)), kv_bits, rules)
    chooser = Chooser(sampling, rules, model.config.vocab, known, eos, desk.rows.device)
    rows: dict[int, int] = {}
    for row, (prompt, key) in enumerate(zip(prompts, keys, strict=True)):
        limit = room(model, len(rules.start or prompt), sampling.max_tokens)
        heard = None if stopped is None else (lambda token, row=row: stopped(row, token))
        wish = Wish(prompt, chooser, key, limit, eos, heard)
        rows[id(wish)] = row
        desk.ask(wish)
    while desk.busy:
        for event in desk.step():
            yield Token(rows[id(event.wish)], None if event.picked is None else event.picked.id, event.finish)


def room(model: Transformer, prompt: int, wanted: int) -> int:
    """How many tokens may follow a prompt of that many.

    A table of learned positions ends, and virtual tokens take places in it; the last token needs no place, since
    nothing is read after it. Rotary and ALiBi positions go on past the trained context, for better or worse.
    """
    if model.config.position != "learned":
        return wanted
    return max(0, min(wanted, model.config.context - model.virtual_tokens("decoder") - prompt + 1))
