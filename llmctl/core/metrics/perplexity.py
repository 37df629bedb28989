"""Perplexity: how surprised a model is by texts, each scored on its own; sums that add up over documents."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from llmctl.core.decode.prompt import check_known
from llmctl.core.metrics.likelihood import passes
from llmctl.core.metrics.passages import Passage
from llmctl.core.metrics.scored import Asked, Found, Scored, pooled
from llmctl.core.model.transformer import Transformer

T = TypeVar("T")


@dataclass(frozen=True)
class Perplexity:
    """A sum over documents.

    Attributes:
        nll: -log probability of all scored tokens, nats.
        tokens: scored tokens.
        bytes: UTF-8 bytes of their text.
        words: of their text, parted by white space.
        documents: those with at least one scored token.
        windows: rows that passed through the model.
    """

    nll: float = 0.0
    tokens: int = 0
    bytes: int = 0
    words: int = 0
    documents: int = 0
    windows: int = 0

    def __add__(self, other: "Perplexity") -> "Perplexity":
        return Perplexity(*(one + two for one, two in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def nll_per_token(self) -> float:
        """Nats a token; NaN when nothing was scored."""
        return self.nll / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp of the nats a token: infinity where that overflows, NaN when nothing was scored."""
        return _exp(self.nll_per_token)

    @property
    def bits_per_token(self) -> float:
        """Bits a token; NaN when nothing was scored."""
        return self.nll_per_token / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        """Bits a byte of text, which compares models of different tokenizers; NaN when there was no text."""
        return self.nll / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def byte_perplexity(self) -> float:
        """2 to the bits a byte."""
        return 2**self.bits_per_byte if not self.bits_per_byte > 1000 else math.inf

    @property
    def word_perplexity(self) -> float:
        """exp of the nats a word, which compares models of different tokenizers too; NaN when there was no word."""
        return _exp(self.nll / self.words) if self.words else math.nan

    def figures(self, whole: bool = True) -> dict[str, float]:
        """What a report says.

        Args:
            whole: the scored tokens are the text; else bits a byte and the like would mean nothing.
        """
        of_text = ("bits_per_byte", "byte_perplexity", "word_perplexity") if whole else ()
        names = ("perplexity", "nll_per_token", "bits_per_token", *of_text, "tokens", "bytes", "words", "documents")
        return {name: getattr(self, name) for name in names}


class Method(Protocol[T]):
    """How a kind of model scores documents.

    Attributes:
        whole: whether the scored tokens are the document's text, all of it, so that bits a byte have a meaning.
        signature: what figures depend on.
    """

    whole: bool
    signature: dict[str, object]

    def parts(self, passage: Passage) -> Iterator[T]:
        """What passes through the model: together they have each scored token once."""

    def size(self, part: T) -> int:
        """Its tokens."""

    def passes(self, pool: Sequence[T], batch_tokens: int, each: bool) -> Iterator[Found]:
        """What each pass scored of a pool of parts, with their numbers in it."""


class Measured(NamedTuple):
    """A document that is done.

    Attributes:
        number: from 0.
        passage: the document.
        sum: its own.
        logprobs: of each scored token, nats, where they were asked for.
    """

    number: int
    passage: Passage
    sum: Perplexity
    logprobs: tuple[float, ...] = ()


class Step(NamedTuple):
    """After a pass of the model.

    Attributes:
        tokens: scored up to now.
        nll: of those, nats.
        done: documents that are done since the step before, in their order.
    """

    tokens: int
    nll: float
    done: list[Measured]


def measured(
    method: Method[T], passages: Iterable[Passage], batch_tokens: int = 8192, each: bool = False
) -> Iterator[Step]:
    """Score documents, the parts of many together in a pass; each is done in its order, those without a token too.

    Args:
        batch_tokens: tokens that pass through the model at once, at least one part.
        each: give the log probability of each token.

    Raises:
        UserError: ids that the model does not know, or scores that are NaN.
    """
    begun: dict[int, tuple[Passage, list[int]]] = {}  # document -> it, and the numbers of its parts
    found: dict[int, Scored] = {}
    tokens = count = wanted = 0
    nll = 0.0

    def parts() -> Iterator[T]:
        nonlocal count
        for number, passage in enumerate(passages):
            numbers: list[int] = []
            for part in method.parts(passage):
                numbers.append(count)
                count += 1
                yield part
            begun[number] = passage, numbers

    def done() -> Iterator[Measured]:
        nonlocal wanted
        while wanted in begun and all(part in found for part in begun[wanted][1]):
            passage, numbers = begun.pop(wanted)
            yield _summed(wanted, passage, [found.pop(part) for part in numbers])
            wanted += 1

    for some in pooled(parts(), method.size, lambda pool: method.passes(pool, batch_tokens, each), batch_tokens):
        found.update(some)
        tokens += sum(one.tokens for _, one in some)
        nll += sum(one.nll for _, one in some)
        yield Step(tokens, nll, list(done()))
    yield Step(tokens, nll, list(done()))


class Windows:
    """Decoders: sliding windows; or what a decoder says after what its encoder reads, whole.

    Args:
        window: tokens of context and prediction together, at least 2.
        stride: by how many tokens a window moves on, 1 to window.
    """

    whole = True

    def __init__(self, model: Transformer, window: int, stride: int):
        self.model, self.window, self.stride = model, window, stride
        self.signature: dict[str, object] = {"window": window, "stride": min(stride, window - 1)}

    def parts(self, passage: Passage) -> Iterator[Asked]:
        check_known(passage.ids, self.model.config)
        if passage.encoder:
            yield Asked(passage.ids, passage.scored, passage.encoder)
            return
        unscored = len(passage.ids) - passage.scored
        end = 1
        for one in windows(passage.ids, self.window, self.stride):
            end += one.scored
            if end > unscored:
                yield one._replace(scored=min(one.scored, end - unscored))

    def size(self, part: Asked) -> int:
        return part.size

    def passes(self, pool: Sequence[Asked], batch_tokens: int, each: bool) -> Iterator[Found]:
        return passes(self.model, pool, batch_tokens, each)


def windows(ids: Sequence[int], window: int, stride: int) -> Iterator[Asked]:
    """Cut a document into overlapping windows so that each token but the first is scored exactly once.

    Windows begin at 0, stride, 2 x stride, ...; after the first, each scores what the one before did not reach, with at
    least window - stride tokens of context. A stride of the whole window is taken as window - 1: the two
    neighbours share one token, for without it the first token of each window would have no context and go unscored.

    Source: "Perplexity of fixed-length models", Hugging Face transformers documentation.
    """
    stride = min(stride, window - 1)
    end = 1
    begin = 0
    while end < len(ids):
        stop = min(begin + window, len(ids))
        yield Asked(ids[begin:stop], stop - end)
        end = stop
        begin += stride


def _summed(number: int, passage: Passage, parts: Sequence[Scored]) -> Measured:
    tokens = sum(one.tokens for one in parts)
    nll = math.fsum(one.nll for one in parts)
    known = (passage.bytes, passage.words) if tokens else (0, 0)
    sum_ = Perplexity(nll, tokens, *known, int(tokens > 0), len(parts))
    return Measured(number, passage, sum_, tuple(one for part in parts for one in part.logprobs))


def _exp(nats: float) -> float:
    return math.inf if nats > 709 else math.exp(nats)
