"""Texts as a model reads them: with the tokenizer's special tokens, one text or two, cut where they are too long."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson
import tokenizers
import torch
from tokenizers import processors
from torch import Tensor

from llmctl.core.decode.prompt import check_known
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig


@dataclass(frozen=True)
class Row:
    """One text, or two, as ids.

    Attributes:
        encoding: of the tokenizers library: ids, kinds, and of each token the characters and the word it stands for.
        cut: whether the end of the text was left out.
        spaced: its tokenizer does not mark tokens that go on with a word, so that words are what spaces part.
    """

    encoding: tokenizers.Encoding
    cut: bool = False
    spaced: bool = False

    @property
    def ids(self) -> list[int]:
        """The ids that the model reads, special tokens included."""
        return self.encoding.ids

    def __len__(self) -> int:
        return len(self.encoding)


class Encoder:
    """Makes rows of texts.

    Special tokens stand where the tokenizer's own post-processor puts them; where it puts none, an encoder's texts
    are framed as in its training.

    Args:
        config: of the model.
        limit: tokens of a row, special ones included, beyond which it is cut; None: never.
        special: read special tokens that are typed in a text as such.
        only: the one special token that is read as such even so.

    Raises:
        UserError: the limit leaves no room for a text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ModelConfig,
        limit: int | None = None,
        special: bool = False,
        only: int | None = None,
    ):
        self.config = config
        parts = orjson.loads(tokenizer.backend.to_str())
        for one in parts["added_tokens"]:
            one["special"] = one["special"] and one["id"] != only
        self.backend = tokenizers.Tokenizer.from_str(orjson.dumps(parts).decode())
        self.backend.encode_special_tokens = not special
        if config.kind != "decoder" and not self.backend.num_special_tokens_to_add(False):
            self.backend.post_processor = _framing(tokenizer)
        if limit is not None:
            marks = self.backend.num_special_tokens_to_add(True)
            if limit <= marks:
                raise UserError(
                    f"--max-tokens is {limit}, but special tokens alone take {marks}.",
                    f"Use {marks + 1} or more.",
                    Exit.USAGE,
                )
            self.backend.enable_truncation(limit)

    def __call__(self, texts: Sequence[str | tuple[str, str]]) -> list[Row]:
        """A row for each text, or pair of texts.

        Raises:
            UserError: half a surrogate pair, or ids that the model does not know.
        """
        try:
            found = self.backend.encode_batch(list(texts))
        except TypeError as error:
            hint = "It was not valid UTF-8 where it came from: convert it with iconv."
            raise UserError("the text holds half a surrogate pair, so it is not UTF-8.", hint) from error
        for one in found:
            check_known(one.ids, self.config)
        spaced = not getattr(self.backend.model, "continuing_subword_prefix", None)
        return [Row(one, bool(one.overflowing), spaced) for one in found]

    def row(self, text: str, pair: str | None = None) -> Row | str:
        """The row of one text, or pair of texts; or why there is none."""
        (row,) = self([text if pair is None else (text, pair)])
        return row if len(row) else "the text has no tokens"


def _framing(tokenizer: Tokenizer) -> processors.TemplateProcessing | None:
    """BERT's template with the tokens that the tokenizer has for it."""
    before, after = ([(tokenizer.token(id), id) for id in part] for part in tokenizer.frame)
    if not before and not after:
        return None
    opening, closing = (" ".join(name for name, _ in part) for part in (before, after))
    second = " ".join(f"{name}:1" for name, _ in after)
    return processors.TemplateProcessing(
        f"{opening} $A {closing}".strip(), f"{opening} $A {closing} $B:1 {second}".strip(), [*before, *after]
    )


class Padded(NamedTuple):
    """Rows of a batch, padded on the right.

    Attributes:
        tokens: (B, T) int64.
        segments: (B, T) int64, 0 where a token is padding; None: none is.
        types: (B, T) int64, the kind of each token; None: the model has one kind, or all are of kind 0.
    """

    tokens: Tensor
    segments: Tensor | None
    types: Tensor | None

    @property
    def real(self) -> Tensor:
        """(B, T) bool, False where a token is padding."""
        return torch.ones_like(self.tokens, dtype=torch.bool) if self.segments is None else self.segments != 0

    @property
    def last(self) -> Tensor:
        """(B,) int64, the place of each row's last token."""
        return self.real.sum(dim=1) - 1


def padded(rows: Sequence[Row], config: ModelConfig, device: torch.device | str = "cpu") -> Padded:
    """A batch of rows, none empty."""
    longest = max(len(row) for row in rows)

    def batch(parts: list[list[int]]) -> Tensor:
        return torch.tensor([part + [0] * (longest - len(part)) for part in parts], device=device)

    ids = [row.ids for row in rows]
    full = all(len(one) == longest for one in ids)
    segments = None if full else batch([[1] * len(one) for one in ids])
    types = batch([row.encoding.type_ids for row in rows]) if config.token_types > 1 else None
    if types is not None and not bool(types.any()):
        types = None
    return Padded(batch(ids), segments, types)
