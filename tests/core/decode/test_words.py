"""Words of the user as rules of a model's tokens."""

import pytest
import torch

from llmctl.core.decode.choose import Chooser
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.words import spellings, worded
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.sample import Sampling
from llmctl.spec.wording import Wording


def written(tokenizer: Tokenizer, wording: Wording, text: str, limit: int = 30) -> str:
    """What becomes of a model that wants to write this text and then end, if these words are observed."""
    wanted = [*tokenizer.encode(text), tokenizer.eos]
    eos = frozenset([tokenizer.eos])
    choice = Chooser(Sampling(), worded(Rules(), wording, tokenizer, 300), 300, tokenizer.size, eos)
    line = choice.line([5], 0, limit)
    while line.step < limit and tokenizer.eos not in line.written:
        logits = torch.zeros(1, 300)
        logits[0, wanted[min(line.step, len(wanted) - 1)]] = 9.0
        logits[0, tokenizer.encode("x")[0]] = 1.0
        choice.pick(logits, [line])
    return tokenizer.decode(line.written)


@pytest.mark.parametrize("kind", ["byte_bpe", "byte_fallback"])
def test_a_bad_word_is_not_written_with_a_space_before_it_or_without(kind, request):
    tokenizer = request.getfixturevalue(kind)
    assert written(tokenizer, Wording(), "a the list") == "a the list"
    for text in ("a the list", "the list"):
        assert "list" not in written(tokenizer, Wording(bad_word=("list",)), text)
    assert "the" in written(tokenizer, Wording(bad_word=("list",)), "a the list")


@pytest.mark.parametrize("kind", ["byte_bpe", "byte_fallback"])
def test_forced_words_follow_where_the_text_would_have_ended(kind, request):
    tokenizer = request.getfixturevalue(kind)
    text = written(tokenizer, Wording(forced_word=("list", "b")), "a the")
    assert text == "a the list b"
    assert written(tokenizer, Wording(forced_word=("list",)), "list a") == "list a"


def test_a_bias_is_of_all_spellings_of_a_text_or_of_an_id(byte_bpe):
    rules = worded(Rules(), Wording(logit_bias=("the=2", "#7=-inf", "a=b=1.5", "the=1")), byte_bpe, 300)
    runs = dict(rules.bias)
    assert {runs[run] for run in spellings(byte_bpe, "the", "")} == {3.0}
    assert runs[(7,)] == float("-inf")
    assert {runs[run] for run in spellings(byte_bpe, "a=b", "")} == {1.5}


def test_the_first_spelling_is_the_one_after_another_word(byte_bpe, byte_fallback):
    for tokenizer in (byte_bpe, byte_fallback):
        first, *rest = spellings(tokenizer, "list", "--bad-word")
        assert tokenizer.decode([*tokenizer.encode("a"), *first]) == "a list"
        assert rest and first not in rest


def test_words_that_cannot_be_are_named_all_at_once(byte_fallback):
    with pytest.raises(UserError) as caught:
        Wording(bad_word=("",), logit_bias=("x", "=1", "a=nan"), stop_id=(-1,))
    for said in ("--bad-word is empty", "'x'", "'=1'", "'a=nan'", "--stop-id is -1"):
        assert said in caught.value.problem
    with pytest.raises(UserError, match="--logit-bias names the id 300; --stop-id names the id 999"):
        worded(Rules(), Wording(logit_bias=("#300=1",), stop_id=(4, 999)), byte_fallback, 300)


def test_a_checkpoints_own_biases_are_read():
    shape = ModelConfig(vocab=20, width=8, layers=1, heads=1, ff=8, context=64)
    assert Rules.of({"sequence_bias": [[[3], 2], [[4, 5], -1.5]]}, shape).bias == (((3,), 2.0), ((4, 5), -1.5))
    for wrong in ({"3": 1}, [[3, 1.0]], [[[3], "1"]], [[[99], 1.0]]):
        with pytest.raises(UserError, match="sequence_bias"):
            Rules.of({"sequence_bias": wrong}, shape)
