"""The decoding loop: prompts in, tokens out one step at a time, with a key-value cache; and completions as text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from llmctl.core.compress.quant.quicken import quicken
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import choose, penalise
from llmctl.core.decode.text import TextStream
from llmctl.core.model.cache import cache_for
from llmctl.core.model.coded import CodedCache
from llmctl.core.model.memory import Memory
from llmctl.core.model.position import turning_point
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import UserError
from llmctl.spec.sample import Sampling

Finish = Literal["stop", "length"]
SPARE = 256  # tokens after the prompt that a cache has room for at first


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
    """

    text: str
    finish: Finish
    tokens: int


class Piece(NamedTuple):
    """Text that has just become final in one row, and the whole completion when it has ended."""

    row: int
    text: str
    completion: Completion | None


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
    """Complete a batch of prompts, giving out each row's text as it becomes final.

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
    streams = [TextStream(tokenizer, rules.start or prompt, stops, special) for prompt in prompts]
    counts = [0] * len(prompts)
    fresh = [""] * len(prompts)

    def stopped(row: int, token: int) -> bool:
        fresh[row] = streams[row].push(token)
        return streams[row].stopped

    for token in generate(model, prompts, sampling, keys, eos, tokenizer.size, stopped, rules, kv_bits):
        row, stream = token.row, streams[token.row]
        counts[row] += token.id is not None
        text, fresh[row] = fresh[row], ""
        completion = None
        if token.finish:
            text += stream.finish()
            completion = Completion(stream.text, "stop" if stream.stopped else token.finish, counts[row])
        if text or completion:
            yield Piece(row, text, completion)


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

    Prompts of unequal length are padded on the left, so that every row's next token comes at the same place. For
    an encoder they are padded on the right, and the decoder begins with `rules.start`.

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
    limits = [room(model, len(rules.start or prompt), sampling.max_tokens) for prompt in prompts]
    yield from (Token(row, None, "length") for row, limit in enumerate(limits) if limit == 0)
    rows = [row for row, limit in enumerate(limits) if limit > 0]
    if not rows:
        return
    written = [list(rules.start or prompts[row]) for row in rows]
    mine = [prompts[row] for row in rows], sampling, [keys[row] for row in rows]
    state = _State(model, *mine, known, rules.start, kv_bits)
    state.prefill(max(limits))
    step = 0
    while rows:
        scores = rules.applied(state.scores(), step, [limits[row] for row in rows], written, eos)
        ids = state.draw(scores)
        step += 1
        live = []
        for place, (row, token) in enumerate(zip(rows, ids, strict=True)):
            finish: Finish | None = None
            if token in eos or (stopped is not None and stopped(row, token)):
                finish = "stop"
            elif step == limits[row]:
                finish = "length"
            if finish is None:
                live.append(place)
                written[place].append(token)
            yield Token(row, token, finish)
        if len(live) < len(rows):
            rows, written = [rows[place] for place in live], [written[place] for place in live]
            state.keep(live)
        if rows:
            state.advance(written)


def room(model: Transformer, prompt: int, wanted: int) -> int:
    """How many tokens may follow a prompt of that many.

    A table of learned positions ends, and virtual tokens take places in it; the last token needs no place, since
    nothing is read after it. Rotary and ALiBi positions go on past the trained context, for better or worse.
    """
    if model.config.position != "learned":
        return wanted
    return max(0, min(wanted, model.config.context - model.virtual_tokens("decoder") - prompt + 1))


class _State:
    """The rows being decoded: their cache, their last logits, and what the choice of a token needs."""

    def __init__(
        self,
        model: Transformer,
        prompts: list[Sequence[int]],
        sampling: Sampling,
        keys: list[int],
        known: int | None,
        start: tuple[int, ...],
        kv_bits: int,
    ):
        quicken(model)
        self.model, self.sampling, self.start, self.kv_bits = model, sampling, start, kv_bits
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.prompts = list(dict.fromkeys(tuple(prompt) for prompt in prompts))  # each read once, however many samples
        self.places = [self.prompts.index(tuple(prompt)) for prompt in prompts]
        self.keys = torch.tensor(keys, dtype=torch.int64, device=self.device)  # (B,)
        self.steps = torch.zeros_like(self.keys)
        self.unknown: Tensor | None = None
        if known is not None and known < model.config.vocab:
            self.unknown = torch.arange(model.config.vocab, device=self.device) >= known
        self.seen: Tensor | None = None
        self.memory: Memory | None = None
        self.virtual = model.virtual_tokens("decoder")
        self.turn = turning_point(model.config)

    @torch.inference_mode()
    def prefill(self, room: int) -> None:
        """Read the prompts, and leave the logits after each one's last token."""
        model, prompts, device = self.model, self.prompts, self.device
        if model.config.kind == "encoder-decoder":
            self.memory = self._encoded()
            prompts = [self.start] * len(prompts)
        self.most = self.virtual + max(len(prompt) for prompt in prompts) + room
        tokens, places = self._read(prompts, torch.zeros(len(prompts), dtype=torch.int64, device=device))
        if self.sampling.repetition_penalty != 1:
            self.seen = torch.zeros_like(self.logits, dtype=torch.bool)
            self.seen.scatter_(1, torch.where(places >= 0, tokens, tokens[:, -1:]), True)
        if len(self.places) > len(prompts):
            index = torch.tensor(self.places, device=device)
            self.cache = self.cache.select(index)
            self.logits, self.next = self.logits[index], self.next[index]
            self.seen = None if self.seen is None else self.seen[index]
            self.memory = None if self.memory is None else self.memory.select(index)

    def _read(self, rows: Sequence[Sequence[int]], fresh: Tensor) -> tuple[Tensor, Tensor]:
        """Read whole rows into a new cache, and leave the logits after each one's last token.

        Args:
            fresh: (B,) int64, how many at the end of each row are not of its prompt.

        Returns:
            The rows padded on the left, (B, T) int64, and the place of each token in its row, negative in the padding.
        """
        model, device = self.model, self.device
        longest = max(len(row) for row in rows)
        tokens = torch.tensor([[0] * (longest - len(row)) + [*row] for row in rows], device=device)  # (B, T)
        pads = torch.tensor([longest - len(row) for row in rows], device=device)  # (B,)
        places = torch.arange(longest, device=device) - pads[:, None]  # (B, T)
        segments = (places >= 0).long() if any(len(row) < longest for row in rows) else None
        self.next = longest - pads
        prefix = (places >= 0) & (places < (self.next - fresh)[:, None]) if model.config.prefix_lm else None
        capacity = min(self.most, self.virtual + longest + SPARE)
        if self.kv_bits:
            self.cache = CodedCache.allocate(model.config, len(rows), capacity, self.kv_bits, device, self.dtype)
        else:
            self.cache = cache_for(model.config, len(rows), capacity, device, self.dtype)
        known = {"segments": segments, "cache": self.cache, "prefix": prefix, "memory": self.memory}
        hidden = model(tokens, positions=places.clamp(min=0), **known)  # (B, T, D)
        self.logits = model.head(hidden[:, -1]).float()  # (B, V)
        return tokens, places

    def _encoded(self) -> Memory:
        """What the encoder makes of the prompts."""
        longest = max(len(prompt) for prompt in self.prompts)
        tokens = torch.tensor([p + (0,) * (longest - len(p)) for p in self.prompts], device=self.device)  # (B, S)
        lengths = torch.tensor([len(prompt) for prompt in self.prompts], device=self.device)
        segments = (torch.arange(longest, device=self.device) < lengths[:, None]).long()
        return self.model.encode(tokens, segments=None if bool(segments.all()) else segments)

    @torch.inference_mode()
    def scores(self) -> Tensor:
        """(B, V) float32 of each row's next token; that of ids without a token is -inf."""
        logits = self.logits
        if self.seen is not None:
            logits = penalise(logits, self.seen, self.sampling.repetition_penalty)
        return logits if self.unknown is None else logits.masked_fill(self.unknown, -torch.inf)

    @torch.inference_mode()
    def draw(self, scores: Tensor) -> list[int]:
        """Choose the next token of each row.

        Raises:
            UserError: the model's scores are not numbers.
        """
        self.tokens = choose(scores, self.sampling, self.keys, self.steps)
        ids = self.tokens.tolist()
        if min(ids) < 0:
            raise UserError(
                "The model's scores are not numbers (NaN).",
                "Try --dtype fp32; if that does not help, the checkpoint is broken, and llmctl verify may say where.",
            )
        return ids

    @torch.inference_mode()
    def keep(self, places: list[int]) -> None:
        """Leave only the rows at these places, in their order; the cache's rows move up without a second cache."""
        self.cache = self.cache.keep(places)
        index = torch.tensor(places, dtype=torch.int64, device=self.device)
        self.keys, self.steps, self.next, self.tokens = (
            x[index] for x in (self.keys, self.steps, self.next, self.tokens)
        )
        self.seen = None if self.seen is None else self.seen[index]
        self.memory = None if self.memory is None else self.memory.select(index)

    @torch.inference_mode()
    def advance(self, written: Sequence[Sequence[int]]) -> None:
        """Read the tokens just chosen, and leave the logits after them.

        Args:
            written: every token of each row, those just chosen too: where the angles of all positions change with
                the length of a row, it is read again.
        """
        if self.turn is not None and bool((self.next + self.virtual == self.turn).any()):
            self._read(written, self.steps + 1)
        else:
            self._read_on()
        if self.seen is not None:
            self.seen.scatter_(1, self.tokens[:, None], True)
        self.steps = self.steps + 1

    def _read_on(self) -> None:
        if self.cache.length == self.cache.capacity:  # few completions are as long as they may be
            self.cache = self.cache.grown(min(2 * self.cache.capacity, self.most))
        known = {"positions": self.next[:, None], "cache": self.cache, "memory": self.memory}
        hidden = self.model(self.tokens[:, None], **known)  # (B, 1, D)
        self.logits = self.model.head(hidden[:, 0]).float()  # (B, V)
        self.next = self.next + 1
