"""Passages: runs of so many tokens, drawn evenly from texts or from a directory of tokens."""

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmctl.core.data.read import Document, files_of, read_texts
from llmctl.core.data.shards import Split, Tokens, check_ids
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.data import Reading


class Passage(NamedTuple):
    """Tokens that follow each other in one document.

    Attributes:
        number: of the passage among those that were drawn, from 0.
        where: file and line, or document of a split, and the first token's place in it: "docs.jsonl:12, token 100".
        ids: as many as were asked for.
    """

    number: int
    where: str
    ids: list[int]


def passages(
    sources: Sequence[str],
    split: str,
    reading: Reading,
    tokenizer: Tokenizer,
    size: int,
    count: int,
    seed: int,
) -> Iterator[Passage]:
    """Passages of `size` tokens, in the order of the text.

    Documents are cut into passages from their first token on, and what is left over at their end is not used; of all
    those `count` are drawn, each as likely as any other, or all are taken if it is 0. Texts are read once, holding
    `count` passages; of a directory of tokens only what is drawn is read.

    Args:
        sources: what `read_texts` takes, or one directory that `tokenize` made.
        split: of a directory of tokens.

    Raises:
        UserError: nothing there, or tokens of another tokenizer.
    """
    made = [source for source in sources if (Path(source) / "tokens.json").is_file()]
    if not made:
        documents = read_texts(files_of(sources), reading)
        return of_texts(documents, tokenizer, size, count, seed)
    if len(sources) > 1:
        raise UserError(f"{made[0]} holds tokens; it is read alone.", "Name one directory of tokens, or texts.")
    tokens = Tokens.open(made[0])
    if tokens.tokenizer_sha256 != tokenizer.sha256:
        hint = "Name the text itself, or tokenize it with --tokenizer MODEL."
        raise UserError(f"{made[0]} was made with another tokenizer than the model's.", hint, Exit.MISMATCH)
    return of_split(tokens.splits[split], tokenizer, size, count, seed)


def heldout(sources: Sequence[str]) -> bool:
    """Whether these are a directory of tokens some of whose documents were held out of the training."""
    made = [source for source in sources if (Path(source) / "tokens.json").is_file()]
    return len(sources) == len(made) == 1 and Tokens.open(made[0]).splits["heldout"].documents > 0


def of_texts(
    documents: Iterable[Document], tokenizer: Tokenizer, size: int, count: int, seed: int
) -> Iterator[Passage]:
    """Passages of texts.

    Source: drawn evenly from a stream of unknown length: Vitter, "Random sampling with a reservoir", 1985, algorithm R.
    """
    found = (
        (f"{document.source}, token {start}", ids[start : start + size])
        for document in documents
        for ids in [tokenizer.encode(document.text)]
        for start in range(0, len(ids) - size + 1, size)
    )
    if not count:
        yield from (Passage(number, *one) for number, one in enumerate(found))
        return
    chance, kept = random.Random(seed), []
    for seen, (where, ids) in enumerate(found):
        place = seen if seen < count else chance.randrange(seen + 1)
        if seen < count:
            kept.append((seen, where, ids))
        elif place < count:
            kept[place] = (seen, where, ids)
    yield from (Passage(number, where, ids) for number, (_, where, ids) in enumerate(sorted(kept)))


def of_split(split: Split, tokenizer: Tokenizer, size: int, count: int, seed: int) -> Iterator[Passage]:
    """Passages of a split of tokens, without the token that ends each document."""
    ends = split.document_ends.astype(np.int64)
    starts = np.append(0, ends[:-1])[: len(ends)]
    before = np.append(0, np.cumsum((ends - starts - 1) // size))  # passages before each document
    total = int(before[-1])
    drawn = range(total) if not 0 < count < total else sorted(random.Random(seed).sample(range(total), count))
    for number, place in enumerate(drawn):
        document = int(np.searchsorted(before, place, side="right")) - 1
        first = (place - int(before[document])) * size
        ids = split.read(int(starts[document]) + first, size)
        check_ids(ids, tokenizer.size, split.directory)
        yield Passage(number, f"document {document}, token {first}", ids.tolist())
