"""ROUGE and stems, beside rouge_score and the Porter stemmer of nltk that it uses."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmctl.core.metrics.rouge.score import Rouge, rouge
from llmctl.core.metrics.rouge.stem import STEP_2, STEP_3, stem

scorers = pytest.importorskip("rouge_score.rouge_scorer", reason="the oracle")
porter = pytest.importorskip("nltk.stem.porter", reason="the oracle")

KINDS = ("rouge1", "rouge2", "rouge3", "rouge9", "rougeL", "rougeLsum")
PIECES = [
    *("the", "cat", "running", "ponies", "a1ing", "12", "été", "日本", "İ", "\u212a", "-", "_", "\t", "\x1c", "\x85"),
    *("\n", "\n\n", "\r\n", "don't", "\ud7ff", "\U0001f600", "ﬁ", "oed", "sses"),
]


def texts(drawn: random.Random) -> str:
    """A text of few words that come again, so that longest subsequences have many equals; often with line breaks."""
    few = PIECES[: drawn.choice([2, 4, len(PIECES)])] + ["\n"] * drawn.choice([0, 1])
    return drawn.choice([" ", "", "\n"]).join(drawn.choices(few, k=drawn.choice([0, 1, 2, 6, 25, 70])))


@pytest.mark.parametrize("stemmed", [False, True])
def test_every_kind_equals_rouge_score_on_odd_texts_and_several_references(stemmed):
    drawn = random.Random(0)
    theirs, ours = scorers.RougeScorer(KINDS, use_stemmer=stemmed), Rouge(KINDS, stemmed)
    for _ in range(300):
        said, wanted = texts(drawn), [texts(drawn) for _ in range(drawn.choice([1, 1, 3]))]
        one, other = theirs.score_multi(wanted, said), ours.score(said, wanted)
        for kind in KINDS:
            assert tuple(other[kind]) == pytest.approx(tuple(one[kind]), abs=1e-12), (kind, said, wanted)


def test_means_over_pairs_are_those_of_the_scores_of_rouge_score():
    drawn = random.Random(1)
    pairs = [(texts(drawn), texts(drawn)) for _ in range(20)]
    scorer = scorers.RougeScorer(KINDS)
    theirs = [scorer.score(wanted, said) for said, wanted in pairs]
    ours = rouge([said for said, _ in pairs], [wanted for _, wanted in pairs], KINDS)
    for kind in KINDS:
        mean = [sum(one[kind][part] for one in theirs) / len(theirs) for part in range(3)]
        assert tuple(ours[kind]) == pytest.approx(mean, abs=1e-9)


def test_stems_are_those_of_nltk_on_the_words_of_a_library_and_on_made_ones():
    found = set()
    for path in sorted(Path(random.__file__).parent.glob("*.py"))[:80]:
        found |= set(re.findall("[a-z0-9]+", path.read_text(encoding="utf-8", errors="ignore").lower()))
    drawn = random.Random(2)
    suffixes = [suffix for suffix, _ in (*STEP_2, *STEP_3)] + [
        "ing",
        "ed",
        "eed",
        "ied",
        "ies",
        "s",
        "y",
        "e",
        "ll",
        "logi",
    ]
    for _ in range(20_000):
        begin = "".join(drawn.choices("aeiouybcdlstxwz9", k=drawn.randint(0, 6)))
        found.add(begin + drawn.choice(suffixes) + drawn.choice(["", drawn.choice(suffixes)]))
    theirs = porter.PorterStemmer()
    assert len(found) > 20_000 and {word: stem(word) for word in found} == {word: theirs.stem(word) for word in found}


def test_neither_oracle_is_loaded_by_the_product():
    modules = {"nltk", "torch", "rouge_score"}
    code = f"import sys, llmctl.core.metrics.rouge.pairs; sys.exit(bool({modules} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
