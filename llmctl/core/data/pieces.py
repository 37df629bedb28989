"""Pieces: the documents that lie in a run of tokens, and where a document begins and ends in its stream."""

from typing import NamedTuple

import numpy as np

from llmctl.core.data.batch import Source


class Piece(NamedTuple):
    """A document, or as much of it as lies in a row.

    Attributes:
        ids: its tokens, without the one that ends it.
        ended: whether its end lies in the row.
    """

    ids: np.ndarray
    ended: bool


def pieces(source: Source, start: int, count: int) -> list[Piece]:
    """The documents in a run of tokens, cut at its borders; empty ones are there too."""
    ids = source.read(start, max(0, min(count, source.tokens - start)))
    ends = source.document_ends
    first, last = np.searchsorted(ends, np.array([start + 1, start + len(ids) + 1], ends.dtype))
    stops = (np.asarray(ends[first:last], np.int64) - start).tolist()
    found = [Piece(ids[a : b - 1], True) for a, b in zip([0, *stops], stops, strict=False)]
    rest = ids[stops[-1] if stops else 0 :]
    return [*found, Piece(rest, False)] if len(rest) else found


def document_of(source: Source, place: int) -> int:
    """The number of the document that holds a token, from 0; its end belongs to it."""
    ends = source.document_ends
    return int(np.searchsorted(ends, ends.dtype.type(place), side="right"))


def borders(source: Source, document: int) -> tuple[int, int]:
    """Where a document begins and ends in the stream."""
    ends = source.document_ends
    return int(ends[document - 1]) if document else 0, int(ends[document])
