"""Reading of ids, to turn back into text: JSON lines, numbers in lines, or a directory of tokens."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import orjson

from llmctl.core.data.shards import Split, check_ids
from llmctl.core.text.tokenizer import Tokenizer

CHUNK = 1 << 20  # tokens that are read from shards at a time, more for a longer document


class Row(NamedTuple):
    """One line of ids.

    Attributes:
        ids: [] when there is an error.
        record: the JSON object that held them, {} for a bare list, None for numbers in a line.
        error: why there are none.
    """

    ids: list[int]
    record: dict | None = None
    error: str | None = None


def read_ids(lines: Iterable[bytes], field: str, tokenizer: Tokenizer) -> Iterator[Row]:
    """Each line that is not blank, as ids of the tokenizer: {"ids": [1, 2]}, [1, 2] or 1 2.

    A line that does not read so, or has an id that the tokenizer does not know, gives a row with an error.
    """
    for number, line in enumerate(lines, 1):
        if not line.isspace():
            yield _checked(_row(line, field), number, tokenizer)


def documents_of(split: Split, vocab: int) -> Iterator[list[int]]:
    """The ids of each document of a split, in order, its eos included.

    Raises:
        UserError: an id that a vocabulary of so many has not.
    """
    ends = split.document_ends
    start, first = 0, 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, np.uint64(start + CHUNK), side="right")))
        stop = int(ends[last - 1])
        ids = split.read(start, stop - start)
        check_ids(ids, vocab, split.directory)
        borders = (ends[first : last - 1] - np.uint64(start)).astype(np.int64)
        yield from (part.tolist() for part in np.split(ids, borders))
        start, first = stop, last


def _row(line: bytes, field: str) -> Row:
    """The ids of a line as they stand there, of whatever type."""
    if line.lstrip()[:1] in (b"{", b"["):
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return Row([], {}, f"is not JSON: {error}")
        if isinstance(value, list):
            return Row(value, {})
        if not isinstance(value.get(field), list):
            return Row([], value, f"has no list {field!r}")
        return Row(value[field], value)
    try:
        return Row([int(word) for word in line.split()])
    except ValueError:
        return Row([], None, "is not a line of ids")


def _checked(row: Row, number: int, tokenizer: Tokenizer) -> Row:
    error = row.error
    if error is None:
        odd = next((id for id in row.ids if type(id) is not int), None)
        strange = next((id for id in row.ids if odd is None and not 0 <= id < tokenizer.size), None)
        if odd is not None:
            error = f"has {odd!r}, which is not an id"
        elif strange is not None:
            error = f"has id {strange}, but the tokenizer has {tokenizer.size} (0 to {tokenizer.size - 1})"
    return row if error is None else Row([], row.record, f"line {number} {error}")
