"""Passages: documents as the ids that a language model is scored on, from texts or from token directories."""

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


class Passage(NamedTuple):
    """A document to score.

    Attributes:
        ids: its tokens, the one that it begins after (if any) first; the first id is never scored.
        bytes: UTF-8 bytes of the text of ids[1:].
    """

    ids: list[int]
    bytes: int


def passages(
    sources: Sequence[str], reading: Reading, split: str, tokenizer: Tokenizer, start: int | None
) -> Iterator[Passage]:
    """The documents of texts, or of one split of a directory of tokens.

    Args:
        sources: what `read_texts` takes, or one directory that `tokenize` made.
        split: of a directory of tokens.
        start: the token that each document begins after; None: its own first token, which goes unscored.

    Raises:
        UserError: nothing there, or tokens of another tokenizer.
    """
    made = [source for source in sources if (Path(source) / "tokens.json").is_file()]
    if not made:
        return of_texts(read_texts(files_of(sources), reading), tokenizer, start)
    if len(sources) > 1:
        raise UserError(f"{made[0]} holds tokens; it is scored alone.", "Name one directory of tokens, or texts.")
    tokens = Tokens.open(made[0])
    if tokens.tokenizer_sha256 != tokenizer.sha256:
        raise UserError(
            f"{made[0]} was made with another tokenizer than the model's.",
            "Name the text itself, or tokenize it with --tokenizer MODEL.",
            Exit.MISMATCH,
        )
    if not tokens.splits[split].documents:
        raise UserError(f"{made[0]} has no {split} documents.", "Name another --split, or tokenize with --held-out.")
    return islice(of_split(tokens.splits[split], tokens.eos, tokenizer, start), reading.limit)


def of_texts(documents: Iterable[Document], tokenizer: Tokenizer, start: int | None) -> Iterator[Passage]:
    """Texts as passages, one at a time."""
    for document in documents:
        ids, size = tokenizer.encode(document.text), len(document.text.encode())
        if start is None:
            yield Passage(ids, size - _bytes(tokenizer, ids[:1]))
        else:
            yield Passage([start, *ids], size)


def of_split(split: Split, eos: int, tokenizer: Tokenizer, start: int | None) -> Iterator[Passage]:
    """The documents of a split as passages, without the token that ends each, so that they equal their texts.

    Their bytes are those of the decoded ids, which are the text's own where the tokenizer loses nothing.
    """
    for ids in documents_of(split, tokenizer.size):
        text = ids[:-1] if ids[-1:] == [eos] else ids
        if start is None:
            yield Passage(text, _bytes(tokenizer, text[1:]))
        else:
            yield Passage([start, *text], _bytes(tokenizer, text))


def _bytes(tokenizer: Tokenizer, ids: list[int]) -> int:
    return len(tokenizer.decode(ids, skip_special=False).encode())
