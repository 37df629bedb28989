"""The noises: cases by hand, what was removed can be put back, and rates are as asked."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.core.data.corrupt import (
    Pair,
    choose,
    choose_places,
    denoised,
    fill_in_middle,
    hide,
    infill,
    noise_spans,
    permute_sentences,
    sentence_ends,
    take_spans,
)
from llmctl.core.text.train import train_tokenizer
from llmctl.spec.noise import NoiseConfig
from tests.core.data.made import FIRST, MASK, MID, PRE, SENTINELS, STOP, SUF, vocabulary

VOCABULARY = vocabulary()
OFF = {"text_infilling": False, "sentence_permutation": False}
quick = settings(max_examples=150, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def near(found: float, rate: float, trials: int) -> bool:
    """Within five standard deviations of a binomial share: a correct draw fails once in two million times."""
    return abs(found / trials - rate) <= 5 * (rate * (1 - rate) / trials) ** 0.5


def words(count: int, seed: int = 0) -> np.ndarray:
    """Plain tokens."""
    return draw(seed).integers(FIRST, 170, count)


def put_back(pair: Pair, sentinels: tuple[int, ...]) -> list[int]:
    """The text that a span-corrupted pair came from."""
    spans: dict[int, list[int]] = {}
    for id in pair.targets.tolist():
        if id in sentinels:
            spans[id] = []
            span = spans[id]
        else:
            span.append(id)
    return [one for id in pair.inputs.tolist() for one in spans.get(id, [id])]


# ---------------------------------------------------------------------------------------------- masks


@quick
@given(seeds, st.integers(0, 300), st.floats(0, 1))
def test_a_share_is_exact_but_for_its_rounding(seed, count, rate):
    candidates = np.arange(count) * 3 + 1
    chosen = choose(candidates, rate, draw(seed))
    assert len(set(chosen.tolist())) == len(chosen) and set(chosen) <= set(candidates)
    assert chosen.tolist() == sorted(chosen)
    assert abs(len(chosen) - rate * count) < 1


def test_rounding_is_fair_and_every_candidate_as_likely():
    generator, found = draw(), np.zeros(10)
    for _ in range(4000):
        found[choose(np.arange(10), 0.15, generator)] += 1
    assert near(found.sum(), 0.15, 40_000)
    assert all(near(one, 0.15, 4000) for one in found)


def test_masks_are_80_10_10_of_15_percent_and_never_fall_on_special_tokens():
    generator, noise = draw(1), NoiseConfig()
    asked = masked = kept = text = 0
    for _ in range(200):
        ids = np.concatenate(([1], words(300, int(generator.integers(1 << 30))), [2], [SENTINELS[0], PRE, 0]))
        places = choose_places(ids, VOCABULARY, noise, generator)
        inputs = hide(ids, places, VOCABULARY, noise, generator)
        assert not VOCABULARY.special[ids[places]].any()
        others = np.delete(np.arange(len(ids)), places)
        assert np.array_equal(inputs[others], ids[others])
        random = inputs[places][inputs[places] != MASK]
        assert not VOCABULARY.special[random].any()
        asked, text = asked + len(places), text + 300
        masked += int((inputs[places] == MASK).sum())
        kept += int((inputs[places] == ids[places]).sum())
    assert near(asked, 0.15, text)
    assert near(masked, 0.8, asked)
    assert near(kept, 0.1 + 0.1 / len(VOCABULARY.ordinary), asked)


def test_shares_of_masks_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    tokenizer = train_tokenizer(["ka lo mi nu pe"] * 20, "wordpiece", 60)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, mask_token="[MASK]")
    collate = transformers.DataCollatorForLanguageModeling(theirs, mlm_probability=0.3, seed=0)
    inputs, labels = collate.torch_mask_tokens(
        torch.full((100, 200), 7), special_tokens_mask=torch.zeros(100, 200, dtype=torch.bool)
    )
    ids = np.full(20_000, 50)
    places = choose_places(ids, VOCABULARY, NoiseConfig(mask_rate=0.3), draw())
    ours = hide(ids, places, VOCABULARY, NoiseConfig(), draw())[places]
    asked = inputs[labels != -100]
    for found, expected in (
        (len(places) / 20_000, len(asked) / 20_000),
        ((ours == MASK).mean(), (asked == tokenizer.mask).float().mean().item()),
        (((ours != MASK) & (ours != 50)).mean(), ((asked != tokenizer.mask) & (asked != 7)).float().mean().item()),
    ):
        assert found == pytest.approx(expected, abs=0.025)  # five deviations of the difference, near enough


@quick
@given(seeds, st.integers(1, 200))
def test_a_word_is_asked_for_whole_or_not_at_all(seed, count):
    ids, generator = words(count, seed), draw(seed)
    places = choose_places(ids, VOCABULARY, NoiseConfig(whole_word=True, mask_rate=0.3), generator)
    chosen = set(places.tolist())
    assert chosen
    for place in range(1, count):
        if ids[place] % 2 == 0:  # goes on with the word before
            assert (place in chosen) == (place - 1 in chosen)


def test_whole_words_hold_their_share_of_the_tokens():
    generator, asked = draw(2), 0
    for _ in range(300):
        asked += len(choose_places(words(400), VOCABULARY, NoiseConfig(whole_word=True), generator))
    assert asked / 120_000 == pytest.approx(0.15, abs=0.01)


def test_a_word_that_a_special_token_cuts_is_still_found():
    ids = np.array([1, 11, 12, 2, 14, 13, 2])
    noise = NoiseConfig(whole_word=True, mask_rate=1.0)
    assert choose_places(ids, VOCABULARY, noise, draw()).tolist() == [1, 2, 4, 5]


def test_text_without_ordinary_tokens_is_asked_for_nothing():
    for whole in (False, True):
        assert not len(choose_places(np.array([1, 2]), VOCABULARY, NoiseConfig(whole_word=whole), draw()))


# ---------------------------------------------------------------------------------------------- spans


def test_spans_of_the_paper_s_own_example():
    """Figure 2 of T5: Thank you <X> me to your party <Y> week. -> <X> for inviting <Y> last <Z>."""
    text = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week", "."]
    taken = np.array([word in ("for", "inviting", "last") for word in text])
    ids = np.arange(100, 100 + len(text))
    x, y, z = sentinels = np.array([9, 8, 7])
    inputs, targets = take_spans(ids, taken, sentinels)
    assert inputs.tolist() == [100, 101, x, 104, 105, 106, 107, y, 109, 110]
    assert targets.tolist() == [x, 102, 103, y, 108, z]


@quick
@given(seeds, st.integers(2, 600), st.floats(0.01, 0.99), st.floats(1, 20))
def test_what_spans_took_can_be_put_back(seed, length, density, mean):
    ids, noise = words(length, seed), NoiseConfig(noise_density=density, mean_span=mean)
    taken = noise_spans(length, noise, len(SENTINELS), draw(seed))
    pair = take_spans(ids, taken, np.array(SENTINELS))
    assert put_back(pair, SENTINELS) == ids.tolist()
    count = int((np.diff(taken, prepend=False) & taken).sum())
    assert [id for id in pair.inputs.tolist() if id in SENTINELS] == list(SENTINELS[:count])
    assert [id for id in pair.targets.tolist() if id in SENTINELS] == list(SENTINELS[:count])
    assert len(pair.inputs) == length - taken.sum() + count and len(pair.targets) == taken.sum() + count


@quick
@given(seeds, st.integers(2, 600))
def test_numbers_of_tokens_and_spans_are_those_of_t5(seed, length):
    """The formula of random_spans_noise_mask; the mask begins with text and ends with noise."""
    taken = noise_spans(length, NoiseConfig(), 100, draw(seed))
    tokens = min(max(int(np.round(length * 0.15)), 1), length - 1)
    assert taken.sum() == tokens
    assert (np.diff(taken, prepend=False) & taken).sum() == max(int(np.round(tokens / 3.0)), 1)
    assert not taken[0] and taken[-1]


def test_spans_are_three_long_on_average_and_of_every_length():
    lengths = []
    for seed in range(300):
        taken = noise_spans(512, NoiseConfig(), 100, draw(seed))
        edges = np.flatnonzero(np.diff(np.concatenate(([0], taken, [0]))))
        lengths += (edges[1::2] - edges[::2]).tolist()
    assert np.mean(lengths) == pytest.approx(77 / 26)  # exact: 77 tokens in 26 spans
    assert {1, 2, 3, 4, 5, 6} <= set(lengths)


def test_there_are_never_more_spans_than_sentinels():
    taken = noise_spans(600, NoiseConfig(noise_density=0.5, mean_span=1.0), 30, draw())
    assert taken.sum() == 300 and (np.diff(taken, prepend=False) & taken).sum() == 30


# ---------------------------------------------------------------------------------------------- BART's five


def test_sentences_end_at_full_stops_after_which_a_word_begins():
    ids = np.array([11, 12, STOP, 13, STOP, 14, 15, STOP])  # the second stop is followed by the rest of its word
    assert sentence_ends(ids, VOCABULARY).tolist() == [3]


@quick
@given(st.lists(st.integers(STOP, 30), max_size=60), seeds)
def test_sentences_are_moved_whole(ids, seed):
    ids = np.array(ids, np.int64)
    sentences = [tuple(part) for part in np.split(ids, sentence_ends(ids, VOCABULARY))]
    moved = permute_sentences(ids, VOCABULARY, draw(seed)).tolist()
    while moved:
        found = next(part for part in sorted(sentences, key=len, reverse=True) if tuple(moved[: len(part)]) == part)
        sentences.remove(found)
        moved = moved[len(found) :]
    assert not sentences or sentences == [()]


def test_every_order_of_sentences_is_as_likely():
    ids = np.array([11, STOP, 13, STOP, 15, STOP])
    orders = [tuple(permute_sentences(ids, VOCABULARY, draw(seed))[::2].tolist()) for seed in range(3000)]
    assert len(set(orders)) == 6
    assert all(near(orders.count(order), 1 / 6, 3000) for order in set(orders))


@quick
@given(seeds, st.integers(0, 300), st.floats(0.01, 0.99), st.floats(1, 10))
def test_what_infilling_hid_can_be_put_back(seed, count, rate, mean):
    """Ids that rise say what is missing at each mask: the rest is there, in order, and no text is longer."""
    ids = np.arange(1000, 1000 + count)
    found = infill(ids, rate, mean, MASK, draw(seed))
    kept = found[found != MASK]
    assert np.all(np.diff(kept) > 0) and len(found) <= count
    assert abs(count - len(kept) - rate * count) < 1
    here = 1000
    for before, id in zip([None, *found.tolist()], [*found.tolist(), 1000 + count], strict=True):
        if id != MASK:
            assert id == here or before == MASK  # what is missing has a mask in its place
            here = id + 1


def test_infilled_spans_are_poisson_and_some_are_empty():
    lengths = []
    for seed in range(60):
        found = infill(np.arange(1000, 3000), 0.3, 3.0, MASK, draw(seed))
        edges = np.concatenate(([999], found, [3000]))
        for place in np.flatnonzero(edges == MASK):
            if edges[place - 1] != MASK and edges[place + 1] != MASK:
                lengths.append(edges[place + 1] - edges[place - 1] - 1)
    assert np.mean(lengths) == pytest.approx(3.0, abs=0.1)
    assert near(lengths.count(0), np.exp(-3), len(lengths))
    assert near(lengths.count(3), np.exp(-3) * 4.5, len(lengths))


@quick
@given(seeds, st.integers(0, 200))
def test_deletion_leaves_the_rest_in_order_and_masks_stand_where_tokens_stood(seed, count):
    ids = np.concatenate((np.arange(FIRST, FIRST + min(count, 150)), [SENTINELS[0]]))
    deleted = denoised(ids, VOCABULARY, NoiseConfig(**OFF, token_deletion=True), draw(seed))
    assert np.all(np.isin(deleted, ids)) and deleted[-1] == SENTINELS[0]
    assert np.array_equal(ids[np.isin(ids, deleted)], deleted)
    assert abs(len(ids) - len(deleted) - 0.3 * (len(ids) - 1)) < 1
    masked = denoised(ids, VOCABULARY, NoiseConfig(**OFF, token_masking=True), draw(seed))
    assert np.array_equal(masked[masked != MASK], ids[masked != MASK]) and masked[-1] == SENTINELS[0]
    assert abs((masked == MASK).sum() - 0.3 * (len(ids) - 1)) < 1


def test_a_rotated_document_begins_anywhere_and_loses_nothing():
    ids, noise = np.arange(20, 25), NoiseConfig(**OFF, document_rotation=True)
    found = [tuple(denoised(ids, VOCABULARY, noise, draw(seed)).tolist()) for seed in range(2000)]
    rotations = {tuple(np.roll(ids, shift).tolist()) for shift in range(5)}
    assert set(found) == rotations
    assert all(near(found.count(one), 0.2, 2000) for one in rotations)


def test_noises_of_bart_compose():
    ids = words(400)
    noise = NoiseConfig(token_masking=True, token_deletion=True, document_rotation=True)
    found = denoised(ids, VOCABULARY, noise, draw())
    left = found[found != MASK]
    assert abs(len(left) - 400 * 0.7**3) < 45  # a share of what the one before left; infilling takes masks too
    assert np.all(np.isin(left, ids)) and not np.array_equal(left, ids[np.isin(ids, left)][: len(left)])


# ---------------------------------------------------------------------------------------------- fill in the middle


def unscrambled(ids: list[int]) -> tuple[str, list[int], list[int], list[int]]:
    """Which order, and the prefix, middle and suffix."""
    assert ids[0] == PRE
    after, between = ids.index(SUF), ids.index(MID)
    if after == 1:  # with an empty prefix PSM looks the same
        return "spm", [], ids[between + 1 :], ids[2:between]
    return "psm", ids[1:after], ids[between + 1 :], ids[after + 1 : between]


@quick
@given(seeds, st.integers(0, 100), st.booleans())
def test_a_text_whose_middle_was_moved_can_be_put_together(seed, count, spm):
    ids = words(count, seed)
    found = fill_in_middle(ids, (PRE, MID, SUF), float(spm), draw(seed)).tolist()
    order, prefix, middle, suffix = unscrambled(found)
    assert len(found) == count + 3
    assert order == "spm" or not spm
    assert prefix + middle + suffix == ids.tolist()  # in SPM what follows MID is prefix and middle in one


def test_places_of_the_cuts_are_uniform_and_half_is_suffix_first():
    generator, ids = draw(), np.arange(20, 24)
    found = [fill_in_middle(ids, (PRE, MID, SUF), 0.5, generator).tolist() for _ in range(3000)]
    assert near(sum(one[1] == SUF for one in found), 0.5 + 0.5 * 9 / 25, 3000)  # PSM has no prefix 9 times of 25
    middles = [unscrambled(one)[2] for one in found if one[1] != SUF]
    assert near(middles.count([]), 4 / 16, len(middles))  # 4 of the 16 pairs of cuts after the first token are equal
