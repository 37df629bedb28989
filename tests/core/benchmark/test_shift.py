"""Shifts: what each does to a text, and what it never touches."""

import re
from typing import get_args

import pytest

from llmctl.core.benchmark.shift import CONTRACTED, EXPANDED, NEAR, shift_text, shifted
from llmctl.spec.suite import Shift

TEXT = "Tomorrow we will not see whether the keeper of 12,345 keys isn't up; he said: \u201cIt is late.\u201d\n    x"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("I am sure it is not here.", "I'm sure it's not here."),
        ("They do not know. Do not ask; you cannot.", "They don't know. Don't ask; you can't."),
        ("DO NOT ENTER", "DON'T ENTER"),
        ("Is it there? Yes, it is. And so we are", "Is it there? Yes, it is. And so we are"),  # no short form
        ("This isle is not a doe notion", "This isle isn't a doe notion"),  # words, not parts of words
    ],
)
def test_words_are_contracted_as_people_do(text, wanted):
    assert shift_text(text, "contract", "") == wanted


def test_contractions_are_undone_with_either_apostrophe():
    assert shift_text("Don't, can\u2019t, I'm, SHE'S", "expand", "") == "Do not, cannot, I am, SHE IS"
    assert all(EXPANDED[CONTRACTED[long]] == long for long in CONTRACTED if long != "can not")
    assert shift_text("\u0131t is", "contract", "") == "\u0131t is"  # a Turkish i, which is an i to a search alone


def test_typing_errors_are_few_and_leave_digits_marks_and_short_words_alone():
    long = TEXT * 30
    made = shift_text(long, "typos", "a")
    assert made != long
    assert re.findall(r"[\d\W]+", made) == re.findall(r"[\d\W]+", long)
    words = list(zip(re.findall(r"\w+", long), re.findall(r"\w+", made), strict=True))
    assert all(old == new for old, new in words if len(old) < 3 or old.isdecimal())
    changed = sum(old != new for old, new in words) / len(words)
    assert 0.05 < changed < 0.15  # 5 % of the letters but the first, of words that are mostly short
    assert all(
        near in "qwertyuiopasdfghjklzxcvbnm" and letter in NEAR[near] for letter in NEAR for near in NEAR[letter]
    )


def test_white_space_grows_within_lines_and_fillers_stand_between_words():
    assert re.sub(" +", " ", shift_text("a b c d\n    e f", "space", "1")) == "a b c d\n e f"
    assert "\n    x" in shift_text(TEXT, "space", "1")
    spoken = shift_text("one two " * 200, "filler", "1")
    assert set(spoken.split()) > {"one", "two"}
    assert spoken.split().count("one") == 200


@pytest.mark.parametrize("shift", get_args(Shift))
def test_a_shift_is_the_same_on_every_run_and_whatever_stands_beside_it(shift):
    text = TEXT * 4
    records = [{"q": text, "parts": [text, {"text": text}], "n": 3, "answer": "It is not"} for _ in range(3)]
    made = list(shifted(records, shift, ("q", "parts", "n", "none"), seed=5))
    assert made == list(shifted(iter(records), shift, ("q", "parts", "n", "none"), seed=5))
    assert made[1] == list(shifted([{}, records[1]], shift, ("q", "parts", "n"), seed=5))[1]
    assert all(one["answer"] == "It is not" and one["n"] == 3 and one["q"] != text for one in made)
    assert made[0]["parts"][1]["text"] != text
    by_chance = shift in ("typos", "space", "filler")
    assert (made[0]["q"] != made[1]["q"]) == by_chance
    assert (made != list(shifted(records, shift, ("q", "parts"), seed=6))) == by_chance
    assert records[0]["q"] == text  # what was given is left as it was
