"""Passages of a text: cut from the first token on, drawn evenly, the same from texts and from tokens."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from llmctl.core.safety.passages import heldout, passages
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import UserError
from llmctl.spec.data import Reading
from tests.conftest import environment

SIZE = 16


@pytest.fixture(scope="module")
def made(tmp_path_factory, corpus_file):
    """Texts and their tokens, none held out, and the tokenizer."""
    place = tmp_path_factory.mktemp("made")
    line = [sys.executable, "-m", "llmctl", "tokenize", str(corpus_file), "--vocab-size", "400", "-o", "tokens"]
    subprocess.run([*line, "--held-out", "0"], cwd=place, env=environment(), check=True, capture_output=True)
    return [str(corpus_file)], [str(place / "tokens")], Tokenizer.open(place / "tokens")


def drawn(sources, tokenizer, count, seed=0):
    return list(passages(sources, "train", Reading(), tokenizer, SIZE, count, seed))


def test_all_passages_of_texts_are_those_of_their_tokens(made):
    texts, tokens, tokenizer = made
    with open(texts[0], encoding="utf-8") as file:
        documents = [tokenizer.encode(json.loads(line)["text"]) for line in file]
    wanted = [ids[at : at + SIZE] for ids in documents for at in range(0, len(ids) - SIZE + 1, SIZE)]
    assert [one.ids for one in drawn(texts, tokenizer, 0)] == wanted
    assert [one.ids for one in drawn(tokens, tokenizer, 0)] == wanted
    assert [one.number for one in drawn(tokens, tokenizer, 0)] == list(range(len(wanted)))


def test_a_draw_is_without_repetition_in_order_and_the_seed_decides(made):
    for sources in made[:2]:
        every = [(one.where, one.ids) for one in drawn(sources, made[2], 0)]
        some = [(one.where, one.ids) for one in drawn(sources, made[2], 50)]
        assert len(some) == 50 and some == [one for one in every if one in some]
        assert some == [(one.where, one.ids) for one in drawn(sources, made[2], 50)]
        assert some != [(one.where, one.ids) for one in drawn(sources, made[2], 50, seed=1)]
        assert [(one.where, one.ids) for one in drawn(sources, made[2], 10**6)] == every


def test_each_passage_is_as_likely_as_any_other(made, tmp_path):
    (tmp_path / "few.txt").write_text("\n".join("abcdefghij"[i] * 40 for i in range(10)))
    text, reading, count, draws = [str(tmp_path / "few.txt")], Reading(documents="line"), 3, 600

    def places(count, seed=0):
        return [one.where for one in passages(text, "train", reading, made[2], SIZE, count, seed)]

    seen = Counter(place for seed in range(draws) for place in places(count, seed))
    every = places(0)
    expected = draws * count / len(every)
    assert set(seen) == set(every) and len(every) >= 10
    assert all(abs(times - expected) < 5 * expected**0.5 for times in seen.values())  # 5 standard deviations


def test_tokens_of_another_tokenizer_are_refused(made, tiny_tokenizer):
    with pytest.raises(UserError, match="another tokenizer"):
        drawn(made[1], tiny_tokenizer, 5)
    assert not heldout(made[0]) and not heldout(made[1])


@pytest.fixture
def tiny_tokenizer(tmp_path, corpus_file):
    line = [sys.executable, "-m", "llmctl", "train-tokenizer", str(corpus_file), "--vocab-size", "300", "-o", "other"]
    subprocess.run(line, cwd=tmp_path, env=environment(), check=True, capture_output=True)
    return Tokenizer.open(tmp_path / "other")
