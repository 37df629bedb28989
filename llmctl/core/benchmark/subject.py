"""Subject: a model as tasks see it, loaded once for many of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.decode.generate import Completion
from llmctl.core.decode.prompt import check_known, special_stops, start_id, stop_ids, text_ids
from llmctl.core.decode.ready import ready
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import stream_key
from llmctl.core.decode.writer import Manner, writer
from llmctl.core.device import DTYPES, Place, pick
from llmctl.core.infer.classify import classify
from llmctl.core.infer.encode import Row
from llmctl.core.metrics.likelihood import Asked, Scored, continuation, likelihoods, reach
from llmctl.core.metrics.passages import Passage
from llmctl.core.metrics.perplexity import measured
from llmctl.core.metrics.pseudo import Pseudo
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.families import read_config_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.sample import Sampling
from llmctl.spec.scoring import Scoring
from llmctl.spec.search import Search
from llmctl.spec.sizes import parameters
from llmctl.spec.tasks import suited

POOL = 16  # batches of texts that are read ahead and sorted by length, so that little is padded
TOKENS = 1 << 15  # of one such batch, padding included, where it has more than one row


@dataclass
class Subject:
    """A model as tasks see it.

    Attributes:
        path: of its checkpoint, or of an adapter.
        said: generation_config.json, or where there is none, config.json.
        dtype: of its numbers: "float32".
        batch_tokens: tokens that pass through it at once, where it reads.
        rows: texts that it writes, or labels, at a time.
        read, written: tokens so far.
        bytes: of its weights, as they were loaded.
    """

    path: Path
    model: Transformer
    tokenizer: Tokenizer
    place: Place
    said: dict[str, Any]
    dtype: str
    batch_tokens: int = 8192
    rows: int = 16
    read: int = 0
    written: int = 0
    bytes: int = 0
    slower: str = field(default="", init=False)
    _ready: bool = field(default=False, init=False)

    @classmethod
    def open(
        cls,
        path: Path | str,
        device: str = "auto",
        dtype: str = "auto",
        threads: int = 0,
        batch_tokens: int = 8192,
        rows: int = 16,
    ) -> "Subject":
        """Load a checkpoint, or an adapter with its base.

        Raises:
            UserError: it cannot be loaded.
        """
        checkpoint = Checkpoint.open(path)
        place = pick(device, dtype, threads)
        said = checkpoint.generation or read_config_json(Path(path))
        tokenizer = checkpoint.tokenizer()
        model = checkpoint.model(place.device, DTYPES.get(dtype))
        numbers = str(next(model.parameters()).dtype).removeprefix("torch.")
        size = sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers()))
        return cls(Path(path), model, tokenizer, place, said, numbers, batch_tokens, rows, bytes=size)

    @property
    def parameters(self) -> int:
        """Numbers that the model below any adapter has learned; it holds others once it is made ready to write."""
        return parameters(self.config)

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        return self.model.config

    @property
    def context(self) -> int | None:
        """Tokens that it reads at most; None: any number."""
        return reach(self.model)

    def after(self, context: str, text: str, special: bool) -> Asked:
        """A text after a context, to be scored; `special`: special tokens typed in them are parsed.

        Raises:
            UserError: the text is empty, longer than the context, or there is nothing that it could stand after.
        """
        if self.config.kind != "encoder":
            made = continuation(self.tokenizer, context, text, self.config, special)
            if self.context is not None and made.scored > self.context:
                raise UserError(
                    f"{made.scored} tokens are to be scored, but the model's context holds {self.context}.",
                    "Shorten the text, or leave the record out.",
                    Exit.MISMATCH,
                )
            return made
        bare = context.rstrip()
        ids = self.tokenizer.encode(context + text, special)
        return Asked(ids, max(1, len(ids) - len(self.tokenizer.encode(bare, special))))

    def cuts(self, asked: Asked) -> bool:
        """Whether what is asked is longer than the context, so that its beginning is left out."""
        return self.config.kind != "encoder" and self.context is not None and len(asked.ids) - 1 > self.context

    def likelihoods(self, asked: Iterable[Asked]) -> Iterator[Scored]:
        """How likely given tokens are, in their order; to an encoder, by their pseudo-log-likelihood, each hidden with
        the rest of its word.

        Raises:
            UserError: the model does not score tokens.
        """
        suited("eval-ppl", self.config, self.path)

        def counted() -> Iterator[Asked]:
            for one in asked:
                self.read += len(one.ids) + len(one.encoder)
                yield one

        if self.config.kind != "encoder":
            return likelihoods(self.model, counted(), self.batch_tokens)
        method = Pseudo(self.model, self.tokenizer, *Scoring().sizes(self.config), "word-l2r")
        passages = (Passage(list(one.ids), 0, one.scored) for one in counted())
        steps = measured(method, passages, self.batch_tokens)
        return (Scored(one.sum.nll, one.sum.tokens, False) for step in steps for one in step.done)

    def room(self, wanted: int) -> int:
        """Tokens of an answer, no more than wanted: with its prompt it is within the context, of which it takes half
        at most."""
        if self.config.kind == "encoder-decoder" or self.context is None:
            return wanted
        return max(1, min(wanted, self.context // 2))

    def prompt(self, text: str, special: bool, answer: int) -> tuple[list[int], bool]:
        """The ids of a prompt that an answer is to follow, and whether its beginning was left out to make room.

        Args:
            special: parse special tokens in it.
            answer: tokens of the answer, as `room` allows.

        Raises:
            UserError: it is empty, and nothing begins a text.
        """
        ids = text_ids(self.tokenizer, text, self.config, special)
        start = start_id(self.tokenizer, self.config)
        if not ids and start is not None:
            ids = [start]
        if not ids:
            raise UserError("the prompt is empty, and this model has no token that begins a text.")
        check_known(ids, self.config)
        if self.context is None:
            return ids, False
        source = self.config.kind == "encoder-decoder"
        kept = self.config.context - self.model.virtual_tokens("encoder") if source else self.context - answer
        return ids[-kept:], len(ids) > kept

    def write(
        self,
        prompts: Iterable[Sequence[int]],
        sampling: Sampling,
        stops: Sequence[str],
        seed: int,
        ends: Sequence[int] = (),
    ) -> Iterator[Completion]:
        """What the model writes after each prompt, in their order, several at a time.

        Args:
            stops: texts that end an answer.
            seed: of the random choices; each answer has a stream of its own.
            ends: tokens that end one, besides those of the checkpoint.

        Raises:
            UserError: the model does not write.
        """
        suited("generate", self.config, self.path)
        if not self._ready:
            self.slower, self._ready = ready(self.model), True
        eos = stop_ids(self.tokenizer, self.config, self.said) | special_stops(self.tokenizer, stops) | {*ends}
        rules, (search, sampling) = Rules.of(self.said, self.config), Search().settled(sampling, self.said, False)
        scribe = writer(self.model, self.tokenizer, Manner(sampling, rules, search, 1, eos, stops, rows=self.rows))
        source, more, asked, given = iter(prompts), True, 0, 0
        done: dict[int, Completion] = {}
        while more or given < asked:
            while more and scribe.unfinished < self.rows:
                ids = next(source, None)
                more = ids is not None
                if ids is not None:
                    scribe.ask(asked, ids, stream_key(seed, asked, 0))
                    asked, self.read = asked + 1, self.read + len(ids)
            for name, _, completion, _ in scribe.step() if scribe.unfinished else ():
                if completion is not None:
                    done[name] = completion
                    self.written += completion.tokens
            while given in done:
                yield done.pop(given)
                given += 1

    def labels(self, rows: Iterable[Row]) -> Iterator[Tensor]:
        """What the model's head makes of texts, as `classify` of core/infer gives it, in their order.

        Raises:
            UserError: the model has no such head.
        """
        suited("classify", self.config, self.path)
        source = iter(rows)
        while pool := list(islice(source, POOL * self.rows)):
            order = sorted(range(len(pool)), key=lambda number: len(pool[number]))
            found: dict[int, Tensor] = {}
            while order:
                count = max(1, min(self.rows, TOKENS // max(1, len(pool[order[-1]]))))
                now, order = order[-count:], order[:-count]
                found.update(zip(now, classify(self.model, [pool[number] for number in now]), strict=True))
            self.read += sum(map(len, pool))
            yield from (found[number] for number in range(len(pool)))


Told = Callable[[int], None]  # hears how many records are done
