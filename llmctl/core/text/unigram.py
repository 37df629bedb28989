"""Training of a Unigram language model: which pieces, and how likely; the same words give the same pieces."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

LONGEST = 16  # characters of a piece
CUT = 32  # characters: longer words are cut, for training only
MOST_WORDS = 100_000  # distinct ones, the most frequent
SEEDS = 16  # pieces to begin with, as a multiple of those wanted
SHRINK = 0.75  # of the pieces stay at each pruning
SPARE = 1.1  # pruning ends at this multiple of those wanted; the likeliest are taken
STEPS = 2  # of expectation and maximisation between prunings
LEAST = 0.5  # expected count below which a piece goes


class Spans(NamedTuple):
    """Strings of one length with the numbers of their substrings.

    Attributes:
        rows: (N,) what the strings are: counts of words, or numbers of pieces.
        ids: (N, L, K) int32: of the substring that begins at l and has k + 1 characters.
    """

    rows: np.ndarray
    ids: np.ndarray


def train_unigram(counts: Mapping[str, int], size: int, required: Iterable[str]) -> list[tuple[str, float]]:
    """Pieces with their log probabilities (nats), likeliest first.

    Args:
        counts: how often each word occurs; pieces do not span words.
        size: pieces wanted; every character of the words and of `required` is one, even if these are more.
        required: characters that are pieces whether they occur or not.

    Source: Kudo, "Subword Regularization", arXiv:1804.10959, section 3.2, with sentencepiece's Bayesian step of
    maximisation. Unlike sentencepiece, pruning takes a piece's expected count, not that of best segmentations.
    """
    words = _cut(counts)
    index: dict[str, int] = {}  # every substring of a word, in the order of first sight
    spans = _spans(words, list(words.values()), index)
    for character in required:
        index.setdefault(character, len(index))
    pieces = list(index)
    lengths = np.array([len(piece) for piece in pieces])
    frequency = np.zeros(len(pieces))
    for span in spans:
        weights = np.broadcast_to(span.rows[:, None, None], span.ids.shape)
        inside = span.ids >= 0
        frequency += np.bincount(span.ids[inside], weights[inside], len(pieces))
    single = lengths == 1
    alive = _best(frequency * lengths, (frequency >= 2) & ~single, SEEDS * size) | single
    scores = np.where(alive, np.log(np.maximum(frequency * lengths, 1)), -np.inf)
    scores -= np.log(np.exp(scores - scores.max()).sum()) + scores.max()
    seeds = np.flatnonzero(alive & ~single)
    alternatives = _spans([pieces[i] for i in seeds], seeds.tolist(), index)
    wanted = max(0, size - int(single.sum()))
    while True:
        for _ in range(STEPS):
            expected = _expected(spans, scores)
            alive &= (expected >= LEAST) | single
            scores = _maximised(expected, alive)
        many = int((alive & ~single).sum())
        if many <= wanted * SPARE:
            break
        places = np.flatnonzero(alive & ~single)
        loss = np.zeros(len(pieces))
        loss[places] = expected[places] * (scores[places] - _without(alternatives, scores)[places])
        alive = _best(loss, alive & ~single, max(int(wanted * SPARE), int(many * SHRINK))) | single
        scores = np.where(alive, scores, -np.inf)
    final = _best(scores, alive & ~single, wanted) | single
    return sorted(((pieces[i], round(float(scores[i]), 6)) for i in np.flatnonzero(final)), key=lambda p: (-p[1], p[0]))


def _cut(counts: Mapping[str, int]) -> dict[str, int]:
    """The most frequent words, long ones cut, in order of spelling."""
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:MOST_WORDS]
    parts: dict[str, int] = defaultdict(int)
    for word in frequent:
        for start in range(0, len(word), CUT):
            parts[word[start : start + CUT]] += counts[word]
    return dict(sorted(parts.items()))


def _spans(strings: Iterable[str], rows: list[int], index: dict[str, int]) -> list[Spans]:
    """The strings grouped by length; substrings that are new to the index enter it."""
    by_length: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for row, string in zip(rows, strings, strict=True):
        by_length[len(string)].append((row, string))
    found = []
    for length, group in sorted(by_length.items()):
        ids = np.full((len(group), length, min(length, LONGEST)), -1, np.int32)
        for number, (_, string) in enumerate(group):
            for start in range(length):
                stops = range(start + 1, min(length, start + LONGEST) + 1)
                ids[number, start, : len(stops)] = [index.setdefault(string[start:stop], len(index)) for stop in stops]
        found.append(Spans(np.array([row for row, _ in group]), ids))
    return found


def _best(values: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """A mask of the `count` largest values among some; ties go to what was seen first."""
    places = np.flatnonzero(among)
    mask = np.zeros(len(values), bool)
    mask[places[np.argsort(-values[places], kind="stable")[:count]]] = True
    return mask


def _expected(spans: list[Spans], scores: np.ndarray) -> np.ndarray:
    """How often each piece occurs, expected over all segmentations of the words (forward and backward sums)."""
    total = np.zeros(len(scores))
    extended = np.append(scores, -np.inf)  # number -1 is no piece
    for rows, ids in spans:
        edges = extended[ids]  # (N, L, K)
        forward = _forward(edges, np.logaddexp.reduce)
        backward = _forward(_reversed(edges), np.logaddexp.reduce)[:, ::-1]
        for start in range(edges.shape[1]):
            stop = start + 1 + np.arange(min(edges.shape[2], edges.shape[1] - start))
            path = forward[:, start, None] + edges[:, start, : len(stop)] + backward[:, stop] - forward[:, -1:]
            weights = np.exp(path) * rows[:, None]
            np.add.at(total, ids[:, start, : len(stop)], weights)
    return total


def _forward(edges: np.ndarray, join: np.ufunc) -> np.ndarray:
    """(N, L + 1): the joined score of all ways to reach each place; edges is (N, L, K)."""
    count, length, longest = edges.shape
    reached = np.full((count, length + 1), -np.inf)
    reached[:, 0] = 0
    for stop in range(1, length + 1):
        starts = np.arange(max(0, stop - longest), stop)
        reached[:, stop] = join(reached[:, starts] + edges[:, starts, stop - starts - 1], axis=1)
    return reached


def _reversed(edges: np.ndarray) -> np.ndarray:
    """The same edges read from the right: one from l of length k begins at L - l - k."""
    turned = np.full_like(edges, -np.inf)
    length, longest = edges.shape[1:]
    for size in range(1, longest + 1):
        turned[:, : length - size + 1, size - 1] = edges[:, : length - size + 1, size - 1][:, ::-1]
    return turned


def _maximised(expected: np.ndarray, alive: np.ndarray) -> np.ndarray:
    counts = np.maximum(expected, LEAST)
    return np.where(alive, _digamma(counts) - _digamma(np.array([counts[alive].sum()])), -np.inf)


def _without(spans: list[Spans], scores: np.ndarray) -> np.ndarray:
    """The score of the best way to write each piece in smaller ones."""
    found = np.full(len(scores), -np.inf)
    extended = np.append(scores, -np.inf)
    for rows, ids in spans:
        edges = extended[ids]
        edges[:, 0, -1] = -np.inf
        found[rows] = _forward(edges, np.maximum.reduce)[:, -1]
    return found


def _digamma(values: np.ndarray) -> np.ndarray:
    """Source: Abramowitz and Stegun, 6.3.5 and 6.3.18."""
    shift = np.zeros_like(values)
    for _ in range(7):
        small = values < 7
        shift = np.where(small, shift - 1 / values, shift)
        values = np.where(small, values + 1, values)
    inverse = 1 / values**2
    series = inverse * (1 / 12 - inverse * (1 / 120 - inverse * (1 / 252 - inverse * (1 / 240 - inverse / 132))))
    return shift + np.log(values) - 0.5 / values - series
