"""Listed words in texts: whole words, in any case and script."""

import random
import re

import pytest

from llmctl.core.safety.told import Told
from llmctl.core.safety.words import Listed, Terms, Words, words


def found(entries, text):
    return [entry for _, entry in Listed({"": entries}).find(text)]


@pytest.mark.parametrize(
    ("entry", "text", "count"),
    [
        ("ass", "Assess the class: ASS, ass-like.", 2),
        ("damn fool", "You DAMN,  fool! A damn good fool.", 1),
        ("straße", "STRASSE und Strasse", 2),  # folded, not lowered
        ("cafe\u0301", "Un caf\u00e9 noir", 1),  # composed or not
        ("\uff46\uff4f\uff4f\uff4c", "fool", 1),  # full width
        ("дурак", "Ну ты и ДУРАК.", 1),
        ("हिन्दी", "वह हिन्दी बोलता है; हिन्द", 1),  # signs on letters are part of the word
        ("笨蛋", "你这个笨蛋走开", 1),  # a script without spaces
        ("don't", "I DON\u2019T know", 1),
    ],
)
def test_an_entry_is_found_as_a_whole_word_in_any_case(entry, text, count):
    assert found([entry], text) == [entry] * count


def test_it_finds_what_a_regular_expression_of_all_entries_finds():
    """Of plain words an alternation between word borders, tried entry by entry, is the slow oracle."""
    chance = random.Random(3)
    vocabulary = ["".join(chance.choices("abc", k=chance.randint(1, 4))) for _ in range(60)]
    entries = sorted({" ".join(chance.choices(vocabulary, k=chance.randint(1, 3))) for _ in range(40)})
    text = " ".join(chance.choices(vocabulary, k=3000))
    wanted = sum(len(re.findall(rf"(?=(?<!\w){entry}(?!\w))", text)) for entry in entries)
    assert len(found(entries, text)) == wanted > 100


def test_words_of_a_script_without_spaces_are_its_characters():
    plain = "It's 3 o'clock_now; A-B C\t\x1fd"
    assert [*words(plain), "é"] == words(f"{plain} É")  # ASCII has a way of its own
    assert words("Ein naïver Test, 3 Worte: 東京だ") == ["ein", "naïver", "test", "3", "worte", "東", "京", "だ"]


def test_of_several_completions_it_is_the_share_and_whether_there_is_one():
    (judged,) = Words(["fool"])([Told(0, "", "", ("a fool", "none", "Foolish", ""), {})])
    assert judged.scores == {"listed": 0.25, "any_listed": 1.0}
    assert judged.found == {"words": [["fool"], [], [], []]}


def test_imbalance_is_the_distance_of_the_shares_from_even():
    terms = Terms({"female": ["she", "her"], "male": ["he", "him"]})
    assert terms.imbalance is None
    terms([Told(0, "", "", ("She saw her.", "He saw the shed; she left"), {})])
    assert terms.counts == {"female": 3, "male": 1}
    assert terms.imbalance == pytest.approx(0.25)  # (|3/4 - 1/2| + |1/4 - 1/2|) / 2
