"""ROUGE: Lin's own examples, subsequences beside tables written out, words of scripts that rouge_score does not see."""

import random

import pytest

from llmctl.core.metrics.rouge.score import NOTHING, Rouge, rouge
from llmctl.core.metrics.rouge.subsequence import Sentences, common, union, weighted
from llmctl.core.metrics.rouge.words import tokenizer, unicode
from llmctl.errors import UserError


def test_lins_examples_of_the_longest_subsequence_and_of_sentences():
    """Lin 2004, sections 3.1 and 3.2: S1 has the order that S2 has not; the union of two sentences has 4 of 5 words."""
    wanted = "police killed the gunman"
    assert rouge(["police kill the gunman"], [wanted], ["rougeL"])["rougeL"].f1 == 0.75
    assert rouge(["the gunman kill police"], [wanted], ["rougeL"])["rougeL"].f1 == 0.5
    assert rouge(["the gunman police killed"], [wanted], ["rougeL", "rouge2"])["rouge2"].recall == pytest.approx(2 / 3)
    found = Rouge(["rougeLsum"]).score("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5")
    assert found["rougeLsum"].recall == 0.8


def test_lins_example_of_runs_that_weigh_more():
    """Lin 2004, section 4: with a weight of 2 the sentence in one run scores 0.571, that in pieces 0.286."""
    scorer = Rouge(["rougeW", "rougeL"], weight=2)
    whole, pieces = (scorer.score(said, "a b c d e f g") for said in ("a b c d h i k", "a h b k c i d"))
    assert (round(whole["rougeW"].f1, 3), round(pieces["rougeW"].f1, 3)) == (0.571, 0.286)
    assert whole["rougeL"] == pieces["rougeL"]


def table(one, other):
    """Lengths of longest common subsequences of all beginnings."""
    found = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one, 1):
        for j, b in enumerate(other, 1):
            found[i][j] = found[i - 1][j - 1] + 1 if a == b else max(found[i - 1][j], found[i][j - 1])
    return found


def traced(one, other):
    """The places in `one` of the subsequence that rouge_score takes."""
    lengths, i, j, places = table(one, other), len(one), len(other), set()
    while i and j:
        if one[i - 1] == other[j - 1]:
            places.add(i - 1)
            i, j = i - 1, j - 1
        elif lengths[i][j - 1] > lengths[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return places


def test_rows_of_bits_find_the_lengths_and_the_very_words_of_a_table_written_out():
    drawn = random.Random(3)
    for _ in range(400):
        letters = "ab" if drawn.random() < 0.5 else "abcdef"
        one, *others = ("".join(drawn.choices(letters, k=drawn.randint(0, 12))) for _ in range(drawn.randint(2, 5)))
        assert common(one, others[0]) == table(one, others[0])[-1][-1]
        places = set().union(*(traced(one, other) for other in others))
        assert union(one, Sentences(others)) == [one[place] for place in sorted(places, reverse=True)]


def test_runs_that_weigh_more_are_those_of_a_table_written_out():
    drawn = random.Random(4)
    for _ in range(200):
        one, other = ("".join(drawn.choices("abcd", k=drawn.randint(0, 12))) for _ in range(2))
        best = [[0.0] * (len(other) + 1) for _ in range(len(one) + 1)]
        run = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
        for i, a in enumerate(one, 1):
            for j, b in enumerate(other, 1):
                if a == b:
                    k = run[i - 1][j - 1]
                    best[i][j], run[i][j] = best[i - 1][j - 1] + (k + 1) ** 1.5 - k**1.5, k + 1
                else:
                    best[i][j] = max(best[i - 1][j], best[i][j - 1])
        assert weighted(one, other, 1.5) == pytest.approx(best[-1][-1])


def test_texts_of_all_scripts_are_words_only_where_that_was_asked_for():
    for text in ("今天天气很好。", "साथ में हिन्दी", "ภาษาไทย", "Été à Zürich", "한국어"):
        assert Rouge(words="unicode").score(text, text)["rouge1"].f1 == 1
    assert Rouge().score("今天天气很好。", "今天天气很好。")["rouge1"] == NOTHING
    assert unicode("Don't pay $1,000.50: l'été, ＦＵＬＬ ﬁne a_b") == [
        "don't",
        "pay",
        "1,000.50",
        "l'été",
        "full",
        "fine",
        "a_b",
    ]
    assert unicode("東京タワーへ") == ["東", "京", "タワー", "へ"] and unicode("हिन्दी") == ["हिन्दी"]
    assert tokenizer("unicode", True)("Running Éclairs runs") == ["run", "éclairs", "run"]


def test_of_several_references_each_kind_takes_the_best_by_f1():
    found = Rouge(["rouge1", "rouge2"]).score("a b c d", ["d c b a", "a b x y z"])
    assert found["rouge1"].f1 == 1 and found["rouge2"].recall == 0.25


def test_a_text_may_stand_for_the_line_breaks_that_a_file_of_lines_cannot_hold():
    broken = Rouge(stem=True).score("a b c.\nd e f.", "e f.\nb c d.")
    assert Rouge(stem=True, line_break="<q>").score("a b c.<q>d e f.", "e f.<q>b c d.") == broken
    assert Rouge(stem=True).score("a b c.<q>d e f.", "e f.<q>b c d.") != broken


def test_nothing_to_compare_scores_nothing_and_impossible_kinds_are_refused():
    assert set(Rouge().score("", "a").values()) == set(Rouge().score("!", "\n").values()) == {NOTHING}
    assert Rouge(["rouge5"]).score("a b", "a b")["rouge5"] == NOTHING
    assert set(Rouge("rougeL").score("a b", "a b")) == {"rougeL"}
    for kinds in (["rouge0"], ["rougeX"], ["bleu"], [], "rouge"):
        with pytest.raises(UserError):
            Rouge(kinds)
    with pytest.raises(ValueError):
        rouge(["a"], [])
    with pytest.raises(ValueError):
        Rouge().score("a", [])


def test_the_signature_names_what_matters_to_the_kinds_asked_for():
    assert Rouge(["rouge1"]).signature.startswith("case:lower|words:rouge|stem:no|best:f1|version:llmctl-")
    every = Rouge(["rougeW", "rougeLsum"], True, "unicode", "split", 1.5).signature
    assert "words:unicode|stem:porter|sentences:split|weight:1.5|" in every
