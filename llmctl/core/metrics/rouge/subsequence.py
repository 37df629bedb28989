"""Longest common subsequences of words: their length, their union over sentences, and with weights for runs.

A row of the table of lengths is one of Python's whole numbers, a bit a column, so that a row costs a few additions
however long it is. A set bit says that the length does not grow at that column.
"""

from collections.abc import Hashable, Iterable, Sequence
from itertools import accumulate

Token = Hashable


def common(one: Sequence[Token], other: Sequence[Token]) -> int:
    """The length of the longest common subsequence.

    Source: Hyyrö, "Bit-parallel LCS-length computation revisited", AWOCA 2004, section 4: V' = (V + (V & M)) | (V -
    (V & M)). Bits above the columns are left to grow, which costs less than cutting them off.
    """
    if len(one) > len(other):
        one, other = other, one
    columns = _columns(other)
    every = row = (1 << len(other)) - 1
    for token in one:
        if token in columns:
            same = row & columns[token]
            row = (row + same) | (row - same)
    return len(other) - (row & every).bit_count()


def union(sentence: Sequence[Token], others: "Sentences") -> list[Token]:
    """The words of a sentence that are in its longest common subsequence with one of several others at least.

    Among several longest ones it is the one that rouge_score takes: from the ends back, a match wherever there is one,
    else a word less of the other sentence if nothing is lost by that alone (t[i][j-1] > t[i-1][j]), else of this one.

    All other sentences are one row, an empty column after each that takes up what an addition carries. The columns
    where row i is one more than row i-1 are, as numbers, their difference. From such a column one goes left to the
    next match (there is one before the difference ends) and takes it; from any other without a match, up.

    Returns:
        the words from last to first.
    """
    every = row = others.every
    rows: list[tuple[Token, int, int]] = []  # word, columns that match, columns that match or have one more
    for token, matches in zip(sentence, map(others.columns.get, sentence), strict=True):
        if matches:
            same = row & matches
            grown = (row + same) | (row - same)
            rows.append((token, matches, matches | (grown - row)))
            row = grown & every
    at = others.lasts  # of each other sentence the column where one stands, one bit
    found = []
    for token, matches, open_ in reversed(rows):
        taken = at & open_
        if taken:
            found.append(token)
            moved = taken & matches
            aside = taken ^ moved
            while aside:
                one = aside & -aside
                moved |= 1 << ((matches & (one - 1)).bit_length() - 1)
                aside ^= one
            at = (at ^ taken) | (moved >> 1)  # one that leaves its sentence stands in a gap, where nothing matches
    return found


class Sentences:
    """Sentences as one row for `union`: an empty column after each."""

    def __init__(self, sentences: Iterable[Sequence[Token]]):
        columns: dict[Token, int] = {}
        lasts, bit = 0, 1
        for sentence in sentences:
            for token in sentence:
                columns[token] = columns.get(token, 0) | bit
                bit <<= 1
            if sentence:
                lasts |= bit >> 1
                bit <<= 1
        self.columns, self.lasts = columns, lasts
        self.every = (bit - 1) ^ (lasts << 1)


def weighted(one: Sequence[Token], other: Sequence[Token], power: float) -> float:
    """The weighted common subsequence: a run of k words in both counts k ** power.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004, section 4 (WLCS): a match adds to what
    was before both words, even where not taking it would be worth more.
    """
    gain = [(k + 1) ** power - k**power for k in range(min(len(one), len(other)) + 1)]
    places: dict[Token, list[int]] = {}
    for column, token in enumerate(other, start=1):
        places.setdefault(token, []).append(column)
    above, runs = [0.0] * (len(other) + 1), [0] * (len(other) + 1)
    for token in one:
        matched = places.get(token)
        if matched is None:
            above, runs = list(accumulate(above, max)), [0] * (len(other) + 1)
            continue
        here, best = above.copy(), 0.0
        lengths = [0] * (len(other) + 1)
        for column in matched:
            lengths[column] = runs[column - 1] + 1
            here[column] = above[column - 1] + gain[runs[column - 1]]
        for column, value in enumerate(here):
            if lengths[column] or value > best:
                best = value
            else:
                here[column] = best
        above, runs = here, lengths
    return above[-1]


def _columns(tokens: Sequence[Token]) -> dict[Token, int]:
    """For each token the columns where it stands, a bit each."""
    columns: dict[Token, int] = {}
    bit = 1
    for token in tokens:
        columns[token] = columns.get(token, 0) | bit
        bit <<= 1
    return columns
