"""Counts of translation metrics: a few pairs at a time, resampled in little memory."""

import random
import tracemalloc

import pytest

from llmctl.core.metrics.counting import counted
from llmctl.core.metrics.resampling import interval, resampled, share_above, shuffled
from llmctl.core.metrics.translation import Counts, bleu, chrf, ter
from llmctl.spec.translation import Bleu, Chrf, Ter

PLAIN = {Bleu: bleu, Chrf: chrf, Ter: ter}


def drawn(pairs: int, seed: int) -> list[tuple[str, list[str]]]:
    """Pairs of texts of few words, each with one to three references."""
    chance = random.Random(seed)

    def text() -> str:
        return " ".join(chance.choices("abcdefg", k=chance.randint(0, 9)))

    return [(text(), [text() for _ in range(chance.randint(1, 3))]) for _ in range(pairs)]


@pytest.mark.parametrize("options", [Bleu(), Chrf(word_order=2), Ter(), Bleu(smooth_method="add-k", max_order=2)])
def test_pairs_counted_a_few_at_a_time_score_as_all_at_once_do(options):
    pairs = drawn(60, 1)
    counts = Counts(options, keep=True)
    for start in range(0, 60, 7):
        counts.add(pairs[start : start + 7])
    assert counts.add([]) == []
    whole = PLAIN[type(options)](*zip(*pairs, strict=True), options)
    assert counts.figures() == whole and "nrefs:var" in whole.signature
    assert ("order:2" in whole.signature) == (options == Bleu(smooth_method="add-k", max_order=2))
    assert counts.rows().sum(0).tolist() == pytest.approx(counts.sums, rel=1e-6)  # float32


def test_several_processes_count_what_one_does_and_in_order():
    pairs, options = drawn(90, 4), Chrf()
    one, two, other = (Counts(options) for _ in range(3))
    wanted = one.add(pairs)
    batches = [(two if start % 2 else other, pairs[start : start + 9]) for start in range(0, 90, 9)]
    rows = [row for _, found in counted(batches, options, jobs=2) for row in found]
    assert rows == wanted and two.pairs + other.pairs == 90
    assert [x + y for x, y in zip(two.sums, other.sums, strict=True)] == one.sums


def test_texts_without_references_or_at_all_are_refused():
    for said, told in ((["a"], []), ([], []), (["a"], [[]]), (["a", "b"], ["a"])):
        with pytest.raises(ValueError, match="reference"):
            bleu(said, told)


def test_a_system_compared_with_itself_is_always_as_good():
    counts = Counts(Chrf(), keep=True)
    counts.add(drawn(30, 2))
    assert set(shuffled(counts, counts, 40, seed=1)) == {0.0}
    scores = list(resampled([counts, counts], 40, seed=1))
    assert all(one == other for one, other in scores) and len(set(map(tuple, scores))) > 1
    wide, narrow = (interval([one for one, _ in scores], level) for level in (0.95, 0.5))
    assert wide.low <= narrow.low <= narrow.high <= wide.high


def test_resampling_takes_the_memory_of_one_resample():
    counts = Counts(Bleu(), keep=True)
    counts.add(drawn(2000, 3))
    rows = counts.rows().nbytes
    tracemalloc.start()
    list(resampled([counts], 30, seed=1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * rows  # 30 resamples and their indices at once would take 36 times


def test_shuffled_differences_as_large_as_the_real_one_stay_so_with_lengths_of_thirds():
    from sacrebleu.metrics import TER
    from sacrebleu.significance import PairedTest

    for seed in range(12):
        chance = random.Random(seed)
        texts = [[" ".join(chance.choices("abcd", k=chance.randint(1, 9))) for _ in range(70)] for _ in range(3)]
        first = [chance.choice(three) for three in zip(*texts, strict=True)]
        systems = [first, [text if chance.random() < 0.9 else f"{text} b" for text in first]]  # alike, so often as far
        (_, scores) = PairedTest(list(zip("ab", systems, strict=True)), {"ter": TER()}, texts, "ar", n_samples=60)()
        base, ours = (Counts(Ter(), keep=True) for _ in systems)
        for counts, said in zip((base, ours), systems, strict=True):
            counts.add(list(zip(said, zip(*texts, strict=True), strict=True)))
        found = share_above(list(shuffled(ours, base, 60, 12345)), abs(ours.figures().score - base.figures().score))
        assert found == scores["TER"][1].p_value
