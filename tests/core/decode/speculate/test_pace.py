"""How many tokens are guessed: as many as pay, by the history of a text alone."""

import random

import pytest

from llmctl.core.decode.speculate.pace import PLAIN, REST, Pace, best_count, expected
from llmctl.core.decode.speculate.tally import FEW, Tally
from llmctl.spec.drafting import MOST


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_the_expected_tokens_of_a_pass_are_those_that_come(share):
    chance, count, trials = random.Random(0), 4, 20_000
    total = 0
    for _ in range(trials):
        right = 0
        while right < count and chance.random() < share:
            right += 1
        total += right + 1
    assert total / trials == pytest.approx(expected(share, count), rel=0.02)


def test_more_is_guessed_where_guesses_are_better_or_cheaper():
    assert [best_count(share, 0.2) for share in (0.1, 0.5, 0.8, 0.95)] == [0, 1, 4, 10]
    assert [best_count(0.8, cost) for cost in (0.01, 0.1, 0.5, 0.9)] == [14, 6, 2, 0]
    assert best_count(1.0, 0.5) == MOST


def test_a_pace_follows_its_guesses():
    pace = Pace(0, 0.1, 0.1)
    assert [pace.count() for _ in range(PLAIN)] == [0] * PLAIN
    first = pace.count()
    for _ in range(30):
        pace.told(4, 4)
    assert pace.count() > first
    for _ in range(30):
        pace.told(4, 0)
    counts = [pace.count() for _ in range(2 * REST + 2)]
    assert counts == ([0] * REST + [1]) * 2  # it rests, and tries again
    fixed = Pace(5, 0.1, 0.1)
    assert [fixed.count() for _ in range(PLAIN + 2)] == [0] * PLAIN + [5, 5]


def test_the_speedup_compares_passes_of_as_many_texts():
    tally = Tally()
    assert tally.speedup is None and tally.share == 0 and tally.a_pass == 0
    tally.passed(1, guessed=0, tokens=1, seconds=50.0)  # memory is cold
    tally.passed(1, guessed=0, tokens=1, seconds=1.0)
    tally.passed(1, guessed=4, tokens=5, seconds=2.0)
    assert tally.speedup is None  # too few to tell
    tally.passed(FEW, guessed=4, tokens=4, seconds=9.0)  # of so many texts nothing is known to compare with
    assert tally.speedup == 2.0 and tally.a_pass == 11 / (FEW + 3)
    tally.passed(FEW, guessed=0, tokens=FEW, seconds=3.0)
    assert tally.speedup == (6 * 1.0 + (4 + FEW) / FEW * 3.0) / (3 + 12)
