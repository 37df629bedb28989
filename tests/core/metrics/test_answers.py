"""Answers: as SQuAD's evaluation scores them."""

import pytest

from llmctl.core.metrics.answers import contains, exact_match, extracted, token_f1


@pytest.mark.parametrize(
    "said, reference, match, f1",
    [
        ("The cat!", "cat", 1, 1),
        ("a  CAT\nsat.", "cat sat", 1, 1),
        ("the cat sat", "a cat lay down", 0, 2 / 5),
        ("cat cat dog", "cat", 0, 1 / 2),
        ("the", "a", 1, 1),  # neither has a word that counts
        ("the", "cat", 0, 0),
        ("état-major", "état major", 0, 0),  # punctuation goes without a space in its place
        ("theory", "ory", 0, 0),  # an article is a word
    ],
)
def test_case_punctuation_and_articles_do_not_count(said, reference, match, f1):
    assert exact_match(said, reference) == match
    assert token_f1(said, reference) == pytest.approx(f1)


def test_the_nearest_of_several_references_counts():
    assert token_f1("red cat", ("blue dog", "red dog", "red cat sat")) == pytest.approx(4 / 5)
    assert exact_match("red cat", ("blue dog", "Red cat.")) == 1
    assert contains("It was the red cat, I think", ("blue dog", "Red Cat")) == 1
    assert (contains("B", "A"), contains("A.", "A")) == (0, 1)  # to squad an article, of which nothing is left
    with pytest.raises(ValueError):
        exact_match("red cat", ())


def test_texts_are_compared_as_they_are_where_that_is_asked_for():
    assert [exact_match(" Cat", "Cat", normal) for normal in ("none", "strip", "lower", "squad")] == [0, 1, 1, 1]
    assert [exact_match("cat", "Cat", normal) for normal in ("none", "strip", "lower", "squad")] == [0, 0, 1, 1]


def test_an_answer_is_what_the_pattern_finds():
    text = "2 + 2 = 4, so #### 4. Then #### 5"
    assert extracted(text, r"#### (\d+)") == "4"
    assert extracted(text, r"#### (\d+)", last=True) == "5"
    assert extracted(text, r"\d \+ \d") == "2 + 2"
    assert extracted("(B)", r"([A-D])\)|answer ([A-D])") == "B"
    assert extracted("answer C", r"([A-D])\)|answer ([A-D])") == "C"
    assert extracted(text, "none of it") == ""
    assert extracted(text, None) == text
