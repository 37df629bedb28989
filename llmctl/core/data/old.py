"""Old data: text of the kind that a model was pre-trained on, to measure what it forgets and to replay it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmctl.core.data.batch import Batch, Build, Place, Source, TrainingOrder, in_order
from llmctl.core.data.read import read_texts
from llmctl.core.data.rows import builder
from llmctl.core.data.shards import Tokens
from llmctl.core.data.vocabulary import Vocabulary
from llmctl.core.model.memory import EncoderInput
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.noise import NoiseConfig
from llmctl.spec.tokens import is_tokens

BATCH = 256  # documents that are encoded at a time


@dataclass(frozen=True, eq=False)
class Texts:
    """Encoded documents in memory; a Source.

    Attributes:
        ids: (N,) int64, documents one after another, each ended by the end-of-text token.
        document_ends: (D,) int64, where each ends.
    """

    ids: np.ndarray
    document_ends: np.ndarray

    @property
    def tokens(self) -> int:
        """How many there are."""
        return len(self.ids)

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens from `start` on."""
        return self.ids[start : start + count]


def read_old(path: str, tokenizer: Tokenizer, split: str) -> Source:
    """The texts of a file, or a split of a directory that `llmctl tokenize` made.

    Raises:
        UserError: it cannot be read, was made with another tokenizer, or holds no two tokens.
    """
    if is_tokens(path):
        tokens = Tokens.open(Path(path))
        if tokens.tokenizer_sha256 != tokenizer.sha256:
            raise UserError(
                f"{path} was made with another tokenizer than the model's.",
                "llmctl tokenize ... --tokenizer MODEL, or name the text itself.",
                Exit.MISMATCH,
            )
        source: Source = tokens.splits[split]
    else:
        source = _encoded(path, tokenizer)
    if source.tokens < 2:
        raise UserError(f"{path} holds no text{f' in its split {split}' if is_tokens(path) else ''}.", "Name another.")
    return source


def rows_of(config: ModelConfig, tokenizer: Tokenizer, seed: int, alone: bool = False) -> Build:
    """What makes rows of text as a model of that kind learns from it: each token from those before it; for an encoder
    hidden ones; beside an encoder, what was taken out.

    Args:
        seed: of what is taken out.
        alone: each row is one document, as what stands before a row wants it: later ones see those before them.

    Raises:
        UserError: the tokenizer has neither the sentinels nor the mask that the latter needs.
    """
    objective = "mlm" if config.kind == "encoder" else "clm"
    vocabulary = Vocabulary.of(tokenizer, config.vocab)
    if config.kind == "encoder-decoder":
        objective = "span" if vocabulary.sentinels else "denoise"
    build = builder(objective, config.kind, NoiseConfig(), vocabulary, seed, config.opens)
    return partial(_as_one, build) if alone else build


def probe(source: Source, build: Build, block: int, micro_tokens: int, limit: int) -> Callable[[], Iterator[Batch]]:
    """The first `limit` tokens of a source in rows of `block`, as an evaluation wants them."""
    return partial(in_order, source, block, max(1, micro_tokens // block), limit, build)


@dataclass(frozen=True, eq=False)
class Replay:
    """Rows of old text among the examples of each step; a pure function of the step.

    Attributes:
        order: of the rows; its `rows` do not count.
        rate: rows a step, a fraction too.
    """

    order: TrainingOrder
    rate: float

    def batches(self, step: int, micro_tokens: int) -> Iterator[Batch]:
        """Those of step 1, 2, ..., in batches of at most so many tokens, or of one row."""
        first, last = int((step - 1) * self.rate), int(step * self.rate)
        rows = max(1, micro_tokens // self.order.block)
        for start in range(first, last, rows):
            places = [self.order.place(number) for number in range(start, min(start + rows, last))]
            yield self.order.build(self.order.source, places, self.order.block)


def _as_one(build: Build, source: Source, places: list[Place], block: int) -> Batch:
    """Rows whose documents are one."""
    batch = build(source, places, block)
    encoder = batch.encoder
    if encoder is not None:
        encoder = EncoderInput(encoder.tokens, _counted(encoder.tokens), _one(encoder.segments))
    return batch._replace(positions=_counted(batch.tokens), segments=_one(batch.segments), encoder=encoder)


def _counted(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1]).expand_as(tokens)


def _one(segments: Tensor) -> Tensor:
    return segments.clamp(max=1)


def _encoded(path: str, tokenizer: Tokenizer) -> Texts:
    if tokenizer.eos is None:
        raise UserError(
            "The tokenizer has no end-of-text token, so documents cannot be told apart.",
            'Name one as "eos_token" in its tokenizer_config.json.',
        )
    parts: list[np.ndarray] = []
    texts: list[str] = []
    for document in read_texts([path]):
        texts.append(document.text)
        if len(texts) == BATCH:
            parts += _ids(texts, tokenizer)
            texts = []
    parts += _ids(texts, tokenizer)
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return Texts(np.concatenate([np.zeros(0, np.int64), *parts]), ends)


def _ids(texts: list[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    return [np.array([*ids, tokenizer.eos], np.int64) for ids in tokenizer.encode_batch(texts)]
