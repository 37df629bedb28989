"""The noises that models learn to undo: of BERT, T5 and BART, and the middle of a text moved to its end."""

from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from llmctl.core.data.vocabulary import Vocabulary
from llmctl.spec.noise import NoiseConfig


class Pair(NamedTuple):
    """What a model reads and what it is asked for: ids, int64."""

    inputs: np.ndarray
    targets: np.ndarray


def choose(candidates: np.ndarray, rate: float, generator: Generator, least: int = 0) -> np.ndarray:
    """A share of the candidates, each as likely as another: (K,) int64, rising.

    K is rate times their number, rounded up as often as its fraction says, so that its mean is exact.

    Args:
        candidates: (N,) int64, rising.
        rate: from 0 to 1.
        least: of K, where there are so many candidates.

    Source: the number is drawn as in RoBERTa, Liu et al., arXiv:1907.11692, whose masks are dynamic.
    """
    count = len(candidates)
    wanted = min(count, max(least, int(rate * count + generator.random())))
    picked = generator.choice(count, wanted, replace=False, shuffle=False) if wanted else np.zeros(0, np.int64)
    picked.sort()
    return candidates[picked]


def choose_places(ids: np.ndarray, vocabulary: Vocabulary, noise: NoiseConfig, generator: Generator) -> np.ndarray:
    """The places (K,) that masked language modelling asks for: one at least, of a text that is not all special.

    With --whole-word the share is one of words, and a chosen word is chosen whole; special tokens are never chosen.

    Source: Devlin et al., BERT, arXiv:1810.04805, section 3.1; whole words: the note of May 2019 in its repository,
    where the number of tokens is kept at most, here its mean.
    """
    ordinary = np.flatnonzero(~vocabulary.special[ids])
    if not noise.whole_word or not len(ordinary):
        return choose(ordinary, noise.mask_rate, generator, least=1)
    word = vocabulary.words(ids)[ordinary]
    word = np.cumsum(np.diff(word, prepend=word[0]) > 0)  # numbered from 0 without gaps
    chosen = choose(np.arange(word[-1] + 1), noise.mask_rate, generator, least=1)
    picked = np.zeros(word[-1] + 1, bool)
    picked[chosen] = True
    return ordinary[picked[word]]


def hide(
    ids: np.ndarray, places: np.ndarray, vocabulary: Vocabulary, noise: NoiseConfig, generator: Generator
) -> np.ndarray:
    """A copy of the ids where each of the places is masked, made random or left alone: in BERT 80, 10 and 10 %.

    A random token is any that is text, the one that stood there too.

    Source: Devlin et al., BERT, arXiv:1810.04805, section 3.1.
    """
    inputs = ids.copy()
    draw = generator.random(len(places))
    randomised = places[draw < noise.random_share]
    inputs[places[draw >= noise.random_share + noise.keep_share]] = vocabulary.mask
    inputs[randomised] = vocabulary.ordinary[generator.integers(len(vocabulary.ordinary), size=len(randomised))]
    return inputs


def noise_spans(length: int, noise: NoiseConfig, most: int, generator: Generator) -> np.ndarray:
    """(length,) bool, what is taken out: spans with something kept before each, the last at the end.

    The number of tokens taken is exact, as is that of spans; how long they are, and how far apart, is random.

    Args:
        length: of the text, 2 or more.
        most: spans, at most, for there are only so many sentinels.

    Source: Raffel et al., T5, arXiv:1910.10683, section 3.1.4, as random_spans_noise_mask of its code computes it.
    """
    taken = min(max(round(length * noise.noise_density), 1), length - 1)
    spans = min(max(round(taken / noise.mean_span), 1), taken, length - taken, most)
    lengths = np.empty(2 * spans, np.int64)
    lengths[::2] = _parts(length - taken, spans, generator)
    lengths[1::2] = _parts(taken, spans, generator)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def take_spans(ids: np.ndarray, taken: np.ndarray, sentinels: np.ndarray) -> Pair:
    """The text with a sentinel in the place of each span, and the spans, each after its sentinel.

    What is kept at the end becomes one more sentinel in the targets, as in the paper's figure 2; `noise_spans` keeps
    nothing there, so neither in the paper's code nor here do targets of training end so.

    Args:
        ids: (N,).
        taken: (N,) bool; the first is not taken.
        sentinels: ids, one a span at least, and one more if the last token is kept.

    Source: Raffel et al., T5, arXiv:1910.10683, figure 2.
    """
    begins = np.diff(taken, prepend=taken[:1]) & taken  # first of each span
    kept = np.diff(taken, prepend=not taken[0]) & ~taken  # first of each run that is kept
    inputs, targets = ids.copy(), ids.copy()
    inputs[begins] = sentinels[: int(begins.sum())]
    targets[kept] = sentinels[: int(kept.sum())]
    return Pair(inputs[~taken | begins], targets[taken | kept])


def denoised(ids: np.ndarray, vocabulary: Vocabulary, noise: NoiseConfig, generator: Generator) -> np.ndarray:
    """What a BART reads in place of a text: its five noises, those that are on, one after another.

    The order is that of the list below: sentences are moved while they are whole, and deletion and masking each take
    their share of what is left before spans become masks.

    Source: Lewis et al., BART, arXiv:1910.13461, section 2.2.
    """
    if noise.sentence_permutation:
        ids = permute_sentences(ids, vocabulary, generator)
    if noise.token_deletion:
        ids = np.delete(ids, choose(np.flatnonzero(~vocabulary.special[ids]), noise.denoise_rate, generator))
    if noise.token_masking:
        places = choose(np.flatnonzero(~vocabulary.special[ids]), noise.denoise_rate, generator)
        ids = ids.copy()
        ids[places] = vocabulary.mask
    if noise.text_infilling:
        ids = infill(ids, noise.denoise_rate, noise.mean_span, vocabulary.mask, generator)
    if noise.document_rotation and len(ids):
        ids = np.roll(ids, -int(generator.integers(len(ids))))
    return ids


def permute_sentences(ids: np.ndarray, vocabulary: Vocabulary, generator: Generator) -> np.ndarray:
    """The sentences of a text in any order; what follows the last full stop is one too.

    A sentence ends with a full stop after which a word begins, so that the point of a number is none.

    Source: Lewis et al., BART, arXiv:1910.13461, section 2.2.
    """
    stops = sentence_ends(ids, vocabulary)
    sentences = np.split(ids, stops)
    return np.concatenate([sentences[i] for i in generator.permutation(len(sentences))])


def sentence_ends(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The places, after the first and before the end, at which a sentence begins: (S,) int64, rising."""
    return np.flatnonzero(vocabulary.ends_sentence[ids[:-1]] & vocabulary.begins_word[ids[1:]]) + 1


def infill(ids: np.ndarray, rate: float, mean: float, mask: int, generator: Generator) -> np.ndarray:
    """One mask in the place of each span; an empty span is a mask between two tokens.

    Spans are Poisson until they hold their share of the tokens, the last one cut to it; they lie anywhere, no two
    in one place. The text grows no longer: of a short one, empty spans too many are left out.

    Args:
        ids: (N,).
        rate: share of the tokens in spans, exact but for rounding, which is random.
        mean: tokens of a span.

    Source: Lewis et al., BART, arXiv:1910.13461, section 2.2.
    """
    count = len(ids)
    taken = min(count, int(rate * count + generator.random()))
    lengths = np.zeros(0, np.int64)
    while lengths.sum() < taken:
        lengths = np.append(lengths, generator.poisson(mean, int(2 * taken / mean) + 4))
    whole = np.cumsum(lengths)
    spans = int(np.searchsorted(whole, taken)) + 1 if taken else 0
    lengths = lengths[:spans]
    lengths[-1:] -= whole[spans - 1 : spans] - taken
    if spans > taken:
        lengths = np.delete(lengths, np.flatnonzero(lengths == 0)[: spans - taken])
    kept, spans = count - taken, len(lengths)
    gaps = generator.choice(kept + 1, spans, replace=spans > kept + 1)  # how many kept tokens stand before each span
    gaps.sort()
    lengths = generator.permutation(lengths)
    inside = np.repeat(gaps + np.cumsum(lengths) - lengths, lengths) + _count_up(lengths)
    left = np.delete(ids, inside)
    return np.insert(left, gaps, mask)


def fill_in_middle(ids: np.ndarray, marks: tuple[int, int, int], spm_rate: float, generator: Generator) -> np.ndarray:
    """A text cut in three at two random places, the middle last: three marks more than it had.

    PSM: PRE prefix SUF suffix MID middle. SPM: PRE SUF suffix MID prefix middle, in the paper's second variant, which
    shares its marks with PSM. The paper cuts between characters; a stream of tokens is cut between tokens, so that
    what is completed had better begin and end where tokens do.

    Args:
        ids: (N,).
        marks: ids of PRE, MID, SUF.
        spm_rate: how often it is SPM.

    Source: Bavarian et al., arXiv:2207.14255, section 3.
    """
    before, between, after = marks
    first, last = sorted(generator.integers(len(ids) + 1, size=2).tolist())
    prefix, middle, suffix = ids[:first], ids[first:last], ids[last:]
    if generator.random() < spm_rate:
        return np.concatenate(([before, after], suffix, [between], prefix, middle))
    return np.concatenate(([before], prefix, [after], suffix, [between], middle))


def _parts(total: int, parts: int, generator: Generator) -> np.ndarray:
    """(parts,) int64, 1 or more each, which sum to the total: every way to cut it is as likely."""
    cuts = generator.choice(total - 1, parts - 1, replace=False, shuffle=False) + 1 if parts > 1 else []
    edges = np.concatenate(([0], np.sort(cuts), [total])).astype(np.int64)
    return np.diff(edges)


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... for each of the lengths, one after another."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
