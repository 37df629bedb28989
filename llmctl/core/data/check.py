"""Check of a token directory: sizes, the ends of documents, every id, and the tokenizer that made them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from llmctl.core.data.shards import Tokens
from llmctl.errors import UserError
from llmctl.spec.tokens import SPLITS
from llmctl.spec.whole import Problem

PIECE = 1 << 22  # ids looked at at once


def check_tokens(directory: Path, note: Callable[[str], None], read: Callable[[int], None]) -> Iterator[Problem]:
    """What does not fit in a directory of tokens.

    Args:
        note: told what could not be checked.
        read: told the bytes of ids that have been read.
    """
    try:
        tokens = Tokens.open(directory)
    except UserError as error:
        yield Problem.of(directory, error, "tokens")
        return
    for name, split in tokens.splits.items():
        if name not in SPLITS:
            note(f"{directory} has a split {name!r}, which llmctl does not use.")
        for shard in split.shards:
            yield from _check_shard(tokens, shard, read)
    yield from _check_tokenizer(tokens)


def _check_shard(tokens: Tokens, shard: dict, read: Callable[[int], None]) -> Iterator[Problem]:
    path = tokens.path / shard["file"]
    count = shard["tokens"]
    if not count:
        return
    ids = np.memmap(path, tokens.dtype, "r")
    over, first = 0, None
    for start in range(0, count, PIECE):
        piece = ids[start : start + PIECE]
        wrong = np.flatnonzero(piece >= tokens.vocab)
        if len(wrong) and first is None:
            first = start + int(wrong[0])
        over += len(wrong)
        read(piece.nbytes)
    if first is not None:
        text = f"{over:,} ids are not in the vocabulary of {tokens.vocab}; the first is {ids[first]}, token {first}."
        yield Problem(str(path), text, "vocabulary")
    ends = np.fromfile(f"{path}.index", "<u8")
    last = int(ends[-1]) if len(ends) else 0
    if last != count:
        yield Problem(f"{path}.index", f"its last document ends at token {last}, but there are {count}.", "tokens")
    if len(ends) and (ends[0] == 0 or np.any(ends[1:] <= ends[:-1])):
        where = 0 if ends[0] == 0 else 1 + int(np.argmax(ends[1:] <= ends[:-1]))
        yield Problem(f"{path}.index", f"document {where} ends where it begins, or before.", "tokens")
    inside = ends[(ends > 0) & (ends <= count)]
    unended = inside[ids[inside - np.uint64(1)] != tokens.eos]
    if len(unended):
        text = (
            f"{len(unended):,} documents do not end with {tokens.eos}, the eos; the first ends at token {unended[0]}."
        )
        yield Problem(str(path), text, "tokens")


def _check_tokenizer(tokens: Tokens) -> Iterator[Problem]:
    try:
        tokenizer = tokens.tokenizer()
    except UserError as error:
        yield Problem.of(tokens.path, error, "vocabulary")
        return
    if tokenizer.sha256 != tokens.tokenizer_sha256:
        text = "the tokenizer is another than the one that made the tokens (tokenizer_sha256 in tokens.json)."
        yield Problem(str(tokens.path), text, "vocabulary")
    if tokenizer.size != tokens.vocab:
        text = f"the tokenizer has {tokenizer.size} ids, but tokens.json says {tokens.vocab}."
        yield Problem(str(tokens.path), text, "vocabulary")
