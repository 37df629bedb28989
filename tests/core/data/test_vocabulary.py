"""What corruptions know of a tokenizer, for tokenizers of each kind."""

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from llmctl.core.data.vocabulary import FIM, Vocabulary
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.core.text.train import train_tokenizer
from llmctl.errors import Exit, UserError

TEXT = 'He said: "Go home." They don\'t go... it costs 3.14 naïve_x! '
TEXTS = [TEXT * 5] * 4


def made(algorithm: str, roles: str | None = None, special: tuple[str, ...] = ()) -> Tokenizer:
    size = {"bpe": 480, "unigram": 480, "wordpiece": 300, "word": 300}.get(algorithm)
    return train_tokenizer(TEXTS, algorithm, size, special, roles=roles)


def split(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text of each word."""
    ids = np.array(tokenizer.encode(text))
    number = Vocabulary.of(tokenizer).words(ids)
    return [tokenizer.decode(ids[number == one].tolist()) for one in range(1, number[-1] + 1)]


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "byte", "char"])
def test_words_go_with_the_space_before_them_and_punctuation_is_apart(algorithm):
    found = split(made(algorithm), TEXT.strip())
    assert "".join(found) == TEXT.strip()
    assert found[:4] == ["He", " said", ":", ' "'] or found[:5] == ["He", " said", ":", " ", '"']
    assert " They" in found and " naïve_x" in found and "Go" in found
    assert " don" in found


def test_words_of_wordpiece_are_those_of_its_own_pre_tokenizer():
    tokenizer = made("wordpiece")
    coded = tokenizer.backend.encode("unhomely gosaid don't cost 3.14 naïve!", add_special_tokens=False)
    words = Vocabulary.of(tokenizer).words(np.array(coded.ids))
    assert words.tolist() == [word + 1 for word in coded.word_ids]
    assert len(words) > words[-1]  # some have several pieces


def test_each_token_of_a_vocabulary_of_words_is_a_word():
    tokenizer = made("word")
    assert split(tokenizer, "He said") == ["He", "said"]


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "wordpiece", "word", "char", "byte"])
def test_full_stops_end_sentences_with_or_without_what_closes_them(algorithm):
    tokenizer = made(algorithm)
    vocabulary = Vocabulary.of(tokenizer)
    stops = {tokenizer.token(id) for id in np.flatnonzero(vocabulary.ends_sentence)}
    assert {".", "!"} <= stops or algorithm == "word"
    assert not stops & {"He", ":", '"', "3", ","}
    for token in ('."', "...", '."\u010a'):
        id = tokenizer.id(token)
        assert id is None or vocabulary.ends_sentence[id]


def test_special_tokens_and_rows_without_a_token_are_not_text():
    tokenizer = made("bpe", "t5")
    vocabulary = Vocabulary.of(tokenizer, tokenizer.size + 28)
    assert len(vocabulary.special) == tokenizer.size + 28
    assert set(np.flatnonzero(vocabulary.special)) == {
        *tokenizer.special_ids,
        *range(tokenizer.size, tokenizer.size + 28),
    }
    assert not set(vocabulary.ordinary) & tokenizer.special_ids
    assert len(vocabulary.ordinary) == tokenizer.size - 103


@pytest.mark.parametrize(
    ("roles", "opening", "closing"),
    [
        ("bert", "[CLS]", "[SEP]"),
        ("roberta", "<s>", "</s>"),
        ("t5", None, "</s>"),
        ("gpt", "<|endoftext|>", "<|endoftext|>"),
    ],
)
def test_a_text_is_framed_as_its_family_does(roles, opening, closing):
    tokenizer = made("bpe", roles)
    vocabulary = Vocabulary.of(tokenizer)
    assert vocabulary.opening == (None if opening is None else tokenizer.id(opening))
    assert vocabulary.closing == tokenizer.id(closing)


def test_a_beginning_that_the_tokenizer_names_but_does_not_put_before_texts_is_not_put_there():
    """Pile-T5's tokenizer is such a one: trained on `<s> text </s>`, a model would be asked with `text </s>`."""
    tokenizer = made("bpe", "roberta")
    ends = [("</s>", tokenizer.id("</s>"))]
    tokenizer.backend.post_processor = TemplateProcessing("$A </s>", "$A </s> $B </s>", ends)
    found = Vocabulary.of(Tokenizer(tokenizer.backend, tokenizer.config))
    assert (found.opening, found.closing) == (None, tokenizer.id("</s>"))


def test_sentinels_are_in_the_order_of_their_numbers():
    tokenizer = made("bpe", "t5")
    vocabulary = Vocabulary.of(tokenizer)
    assert [tokenizer.token(id) for id in vocabulary.sentinels] == [f"<extra_id_{n}>" for n in range(100)]
    assert vocabulary.sentinels[0] == tokenizer.size - 1
    assert Vocabulary.of(made("bpe")).sentinels == ()


@pytest.mark.parametrize("marks", FIM, ids=[marks[0] for marks in FIM])
def test_marks_of_the_middle_are_known_by_every_spelling(marks):
    tokenizer = train_tokenizer([], "byte", specials=marks[::-1])
    assert [tokenizer.token(id) for id in Vocabulary.of(tokenizer).fim] == list(marks)


def test_two_of_three_marks_are_none():
    assert Vocabulary.of(train_tokenizer([], "byte", specials=FIM[0][:2])).fim is None


@pytest.mark.parametrize(
    ("objective", "lacks", "option"),
    [
        ("mlm", "a mask token", "--roles bert"),
        ("mlm+nsp", "a mask token", "--roles bert"),
        ("denoise", "a mask token", "--roles roberta"),
        ("span", "sentinels", "--roles t5"),
        ("fim", "tokens for prefix, middle and suffix", "--special '<|fim_prefix|>'"),
    ],
)
def test_what_a_tokenizer_lacks_is_said_with_how_to_get_it(objective, lacks, option):
    vocabulary = Vocabulary.of(made("byte"))
    with pytest.raises(UserError, match=lacks) as caught:
        vocabulary.need(objective)
    assert f"--objective {objective} needs" in caught.value.problem
    assert "llmctl train-tokenizer TEXT -o DIR" in caught.value.hint and option in caught.value.hint
    assert caught.value.code == Exit.MISMATCH


def test_a_tokenizer_made_as_the_hint_says_is_enough():
    for objective, roles, special in (
        *(("mlm", "bert", ()), ("mlm", "roberta", ()), ("mlm+nsp", "bert", ())),
        *(
            ("denoise", "roberta", ()),
            ("span", "t5", ()),
            ("fim", None, FIM[0]),
            ("clm", None, ()),
            ("prefix", None, ()),
        ),
    ):
        Vocabulary.of(train_tokenizer([], "byte", specials=special, roles=roles)).need(objective)
