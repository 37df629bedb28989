"""Passages: documents as the ids that a model scores, from texts or from token directories."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from llmctl.core.data.ids import documents_of
from llmctl.core.data.read import Document, files_of, read_texts
from llmctl.core.data.shards import Split, Tokens
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.data import Reading
from llmctl.spec.model import ModelConfig


class Passage(NamedTuple):
    """A document to score.

    Attributes:
        ids: its tokens, the one that it begins after (if any) first.
        bytes: UTF-8 bytes of the text of the scored tokens.
        scored: how many of the ids are scored, the last ones.
        words: of the same text, parted by white space.
        source: file and, where it has several documents, line or row: "corpus.jsonl:12".
        record: the fields of a JSON line or a CSV row.
        encoder: what the encoder of an encoder-decoder reads, where the ids are what its decoder says after that.
    """

    ids: list[int]
    bytes: int
    scored: int
    words: int = 0
    source: str = ""
    record: dict | None = None
    encoder: Sequence[int] = ()


class Framing:
    """Makes passages of documents for a model.

    Args:
        start: of a decoder, the token that each document begins after; None: its own first token, which goes
            unscored. An encoder, or an encoder-decoder, scores all tokens; what stands around them is put there later.
    """

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, start: int | None):
        self.tokenizer, self.start, self.first_unscored = tokenizer, start, config.kind == "decoder" and start is None

    def text(self, document: Document) -> Passage:
        """A text as a passage."""
        return self._passage(self.tokenizer.encode(document.text), document.text, document.source, document.record)

    def alone(self, text: str, special: bool = False) -> Passage:
        """A text that comes from nowhere; `special`: tokens typed in it are parsed."""
        return self._passage(self.tokenizer.encode(text, special), text, "", None)

    def split(self, name: str, split: Split, eos: int) -> Iterator[Passage]:
        """The documents of a split, without the token that ends each, so that they equal their texts.

        Their text is that of the decoded ids, which is their own where the tokenizer loses nothing.
        """
        for number, ids in enumerate(documents_of(split, self.tokenizer.size)):
            own = ids[:-1] if ids[-1:] == [eos] else ids
            yield self._passage(own, self._decoded(own), f"{name}:{number + 1}", None)

    def _passage(self, ids: list[int], text: str, source: str, record: dict | None) -> Passage:
        size, words, scored = len(text.encode("utf-8", "surrogatepass")), len(text.split()), len(ids)
        if self.start is not None and ids[:1] == [self.start]:  # typed
            scored -= 1
        elif self.start is not None:
            ids = [self.start, *ids]
        elif self.first_unscored and ids:
            first = self._decoded(ids[:1])
            size, scored = size - len(first.encode()), scored - 1
            words = len(text[len(first) :].split()) if text.startswith(first) else words
        return Passage(ids, size, scored, words, source, record)

    def _decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special=False)


def passages(source: str, reading: Reading, split: str, framing: Framing) -> Iterator[Passage]:
    """The documents of a text, or of one split of a directory of tokens.

    Args:
        source: what `read_texts` takes, or a directory that `tokenize` made.
        split: of a directory of tokens.

    Raises:
        UserError: nothing there, or tokens of another tokenizer.
    """
    if not (Path(source) / "tokens.json").is_file():
        return of_texts(read_texts(files_of([source]), reading), framing)
    tokens = Tokens.open(source)
    if tokens.tokenizer_sha256 != framing.tokenizer.sha256:
        raise UserError(
            f"{source} was made with another tokenizer than the model's.",
            "Name the text itself, or tokenize it with --tokenizer MODEL.",
            Exit.MISMATCH,
        )
    if not tokens.splits[split].documents:
        raise UserError(f"{source} has no {split} documents.", "Name another --split, or tokenize with --held-out.")
    return islice(framing.split(source, tokens.splits[split], tokens.eos), reading.limit)


def of_texts(documents: Iterable[Document], framing: Framing) -> Iterator[Passage]:
    """Texts as passages, one at a time."""
    return map(framing.text, documents)
