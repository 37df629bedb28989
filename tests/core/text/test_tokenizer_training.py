"""Training of tokenizers: what they promise, the traps of the library, and transformers as a reader."""

import json
import subprocess
import sys
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmctl.core.text.tokenizer import Tokenizer
from llmctl.core.text.train import TRAINERS, train_tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.data import ROLES, SENTINELS, TEMPLATES, VOCAB_SIZES, Roles, TokenizerConfig

EXACT = ("bpe", "unigram", "byte")
HARD = "Hello <|endoftext|><unk>  \n\n\t naïve <0x41> [SEP] 日本 👩‍👩‍👧 \u0301e ﷺ \x00\x7f\u2028 don't 12345"
slow_fixtures = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_every_algorithm_has_a_trainer_and_a_size():
    assert TRAINERS.keys() == VOCAB_SIZES.keys()
    assert ROLES.keys() == TEMPLATES.keys() == set(get_args(Roles))


@pytest.mark.parametrize("algorithm", EXACT)
@slow_fixtures
@given(text=st.text())
def test_a_text_comes_back_exactly(trained, algorithm, text):
    text = text.replace("\u2581", "") if algorithm == "unigram" else text  # unigram's own sign for a space
    tokenizer = trained[algorithm]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("algorithm", EXACT)
def test_hard_texts_come_back_exactly_and_typed_special_tokens_are_text(trained, algorithm):
    tokenizer = trained[algorithm]
    ids = tokenizer.encode(HARD)
    assert tokenizer.decode(ids) == HARD
    assert not tokenizer.special_ids & set(ids)


@pytest.mark.parametrize("algorithm", VOCAB_SIZES)
def test_typed_special_tokens_are_special_only_where_the_text_is_trusted(trained, algorithm):
    tokenizer = trained[algorithm]
    roles = TokenizerConfig(algorithm).roles_of
    name = roles.get("eos") or roles["sep"]
    typed = f"a {name} b"
    assert tokenizer.eos not in tokenizer.encode(typed)
    assert tokenizer.encode(typed, special=True).count(tokenizer.eos) == 1


def test_bytes_that_training_never_saw_are_not_lost():
    tokenizer = train_tokenizer(["only ascii " * 20], "bpe", 280)
    for text in ("é", "日本", "\x00\x01", "👩"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_byte_tokens_of_unigram_are_neither_special_nor_typed(trained):
    tokenizer = trained["unigram"]
    assert len(tokenizer.encode("ÿ")) == 2  # UTF-8 bytes, though the library's trainer resets byte_fallback
    assert tokenizer.decode(tokenizer.encode("Nave cafÿ")) == "Nave cafÿ"
    assert tokenizer.id("<0x41>") not in tokenizer.encode("<0x41>")
    assert tokenizer.id("<0x41>") not in tokenizer.special_ids


@pytest.mark.parametrize(("algorithm", "least"), [("bpe", 257), ("unigram", 258), ("byte", 257)])
def test_a_vocabulary_too_small_for_the_bytes_is_refused(algorithm, least):
    with pytest.raises(UserError, match=str(least)) as caught:
        TokenizerConfig(algorithm, least - 1)
    assert caught.value.code == Exit.USAGE
    TokenizerConfig(algorithm, least)


def test_a_vocabulary_too_small_for_the_characters_is_refused(texts):
    for algorithm in ("wordpiece", "unigram"):
        with pytest.raises(UserError, match="the characters and special tokens alone are"):
            train_tokenizer(texts, algorithm, 270 if algorithm == "unigram" else 40)


def test_byte_has_no_other_size():
    with pytest.raises(UserError, match="byte has 257 tokens, but --vocab-size is 512"):
        TokenizerConfig("byte", 512)


@pytest.mark.parametrize("algorithm", ("bpe", "unigram", "wordpiece", "word"))
def test_the_vocabulary_is_as_large_as_asked(texts, algorithm):
    size = {"word": 50, "wordpiece": 250}.get(algorithm, 430)
    assert train_tokenizer(texts, algorithm, size, specials=("<|im_start|>", "<|im_end|>")).size == size


def test_wordpiece_knows_unknown_words_and_long_ones(trained):
    tokenizer = trained["wordpiece"]
    assert tokenizer.encode("ﷺ") == [tokenizer.unk]
    assert tokenizer.encode("x" * 101) == [tokenizer.unk]


def test_ids_of_byte_are_the_bytes(trained):
    text = "naïve 日本\n"
    assert trained["byte"].encode(text) == list(text.encode())
    assert trained["byte"].eos == 256


def test_characters_are_in_order_of_code_point_and_rare_ones_unknown():
    tokenizer = train_tokenizer(["ccbbaa", "zaabbcc"], "char")
    assert [tokenizer.token(i) for i in range(tokenizer.size)] == ["<unk>", "a", "b", "c", "<|endoftext|>"]
    assert tokenizer.encode("abzc") == [1, 2, 0, 3]
    assert train_tokenizer(["ccbbaa", "cz"], "char", 4, min_frequency=0).id("c") == 2


@pytest.mark.parametrize("algorithm", VOCAB_SIZES)
def test_training_twice_gives_the_same_bytes_in_any_process(texts, tmp_path, algorithm):
    code = (
        "import sys, json\nfrom pathlib import Path\nfrom llmctl.core.text.train import train_tokenizer\n"
        "train_tokenizer(json.load(sys.stdin), sys.argv[1], int(sys.argv[2]) or None).save(Path(sys.argv[3]))"
    )
    size = {"bpe": 350, "wordpiece": 300, "unigram": 400, "word": 80}.get(algorithm, 0)
    files = []
    for seed in "12":
        out = tmp_path / seed
        out.mkdir()
        command = [sys.executable, "-c", code, algorithm, str(size), str(out)]
        subprocess.run(command, input=json.dumps(texts).encode(), check=True, env={"PYTHONHASHSEED": seed})
        files.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert files[0] == files[1]


@pytest.mark.parametrize("algorithm", VOCAB_SIZES)
def test_transformers_loads_it_and_encodes_the_same(trained, texts, tmp_path, algorithm):
    transformers = pytest.importorskip("transformers")
    tokenizer = trained[algorithm]
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*texts[:5], "Naïve 日本 👩 don't  \n 123", "", " x "]:
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text), skip_special_tokens=True) == tokenizer.decode(
            tokenizer.encode(text)
        )
    for role, token in TokenizerConfig(algorithm).roles_of.items():
        assert getattr(theirs, f"{role}_token") == token
    assert theirs.eos_token_id in (tokenizer.eos, None)
    assert not theirs.clean_up_tokenization_spaces
    assert theirs.model_max_length > 10**9
    again = tmp_path / "again"
    theirs.save_pretrained(again)
    assert Tokenizer.open(again).encode(texts[0]) == tokenizer.encode(texts[0])


def test_files_are_those_that_transformers_expects(trained, tmp_path):
    trained["bpe"].save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["clean_up_tokenization_spaces"] is False
    assert config["eos_token"] == "<|endoftext|>"


def test_further_special_tokens_come_last_and_are_special(texts):
    tokenizer = train_tokenizer(texts, "bpe", 300, specials=("<|im_start|>", "<|im_end|>"))
    assert [tokenizer.token(i) for i in (297, 298, 299)] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert {297, 298, 299} == tokenizer.special_ids


@pytest.mark.parametrize("special", ["", "<|endoftext|>"])
def test_an_empty_or_doubled_special_token_is_refused(special):
    with pytest.raises(UserError, match="is empty or there already"):
        TokenizerConfig(special=(special,))


@pytest.mark.parametrize(("normalize", "expected"), [("nfc", "é"), ("nfkc", "é"), ("lower", "e\u0301")])
def test_text_is_normalised_when_asked(texts, normalize, expected):
    tokenizer = train_tokenizer(texts, "bpe", 300, normalize=normalize)
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == expected
    assert train_tokenizer(texts, "wordpiece", 300, normalize="lower").decode([]) == ""


def test_words_of_llama3_split_long_numbers(texts):
    tokenizer = train_tokenizer(["123456789 " * 50, *texts], "bpe", 400, words="llama3")
    assert [tokenizer.token(i) for i in tokenizer.encode("123456789")] == ["123", "456", "789"]


def test_no_text_is_an_error():
    for algorithm in VOCAB_SIZES:
        if algorithm != "byte":
            with pytest.raises(UserError, match="no text to train on"):
                train_tokenizer([], algorithm)


@pytest.mark.parametrize("algorithm", VOCAB_SIZES)
@pytest.mark.parametrize("roles", get_args(Roles))
def test_transformers_reads_the_roles_of_every_family(texts, tmp_path, algorithm, roles):
    transformers = pytest.importorskip("transformers")
    size = {"bpe": 500, "unigram": 560, "wordpiece": 400, "word": 170}.get(algorithm)
    tokenizer = train_tokenizer(texts, algorithm, size, ("<|im_start|>",), roles=roles)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert set(theirs.all_special_ids) == tokenizer.special_ids
    for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask"):
        assert (tokenizer.eos if role == "eos" else getattr(theirs, f"{role}_token_id")) == getattr(tokenizer, role)
    ids = tokenizer.encode(texts[0])
    around = {
        "gpt": ([], []),
        "bert": ([tokenizer.cls], [tokenizer.sep]),
        "roberta": ([tokenizer.bos], [tokenizer.eos]),
        "t5": ([], [tokenizer.eos]),
    }[roles]
    assert theirs(texts[0])["input_ids"] == [*around[0], *ids, *around[1]]
    again = tmp_path / "again"
    theirs.save_pretrained(again)
    assert Tokenizer.open(again).sha256 == tokenizer.sha256


def test_ids_of_special_tokens_are_those_of_their_family(texts):
    first = {
        "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        "t5": ["<pad>", "</s>", "<unk>"],
    }
    for roles, tokens in first.items():
        tokenizer = train_tokenizer(texts, "bpe", 450, ("<sep>",), roles=roles)
        assert tokenizer.size == 450
        assert [tokenizer.token(i) for i in range(len(tokens))] == tokens
    assert [tokenizer.id(f"<extra_id_{number}>") for number in range(SENTINELS)] == [*range(449, 349, -1)]
    assert tokenizer.id("<sep>") == 349


def test_a_pair_of_texts_is_told_apart_as_bert_and_roberta_do(texts, tmp_path):
    transformers = pytest.importorskip("transformers")
    for roles, expected in (("bert", "[CLS] ka [SEP] lo [SEP]"), ("roberta", "<s> ka </s> </s> lo </s>")):
        train_tokenizer(["ka lo"] * 9, "word", None, roles=roles).save(tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert " ".join(theirs.convert_ids_to_tokens(theirs("ka", "lo")["input_ids"])) == expected


def test_bytes_with_the_roles_of_t5_have_the_ids_of_byt5():
    tokenizer = train_tokenizer([], "byte", roles="t5")
    assert tokenizer.encode("ab") == [ord("a") + 3, ord("b") + 3]
    assert tokenizer.size == 3 + 256 + SENTINELS
    assert tokenizer.decode(tokenizer.encode("naïve </s>")) == "naïve </s>"


@pytest.mark.parametrize(("roles", "hides"), [("roberta", "<mask>"), ("t5", "<extra_id_0>")])
def test_what_stands_for_a_word_takes_in_the_space_before_it(texts, roles, hides):
    tokenizer = train_tokenizer(texts, "bpe", 500, roles=roles)
    ids = tokenizer.encode(f"The {hides} of", special=True)
    assert ids == [*tokenizer.encode("The"), tokenizer.id(hides), *tokenizer.encode(" of")]


def test_a_vocabulary_too_small_for_the_sentinels_is_refused():
    with pytest.raises(UserError, match="needs at least 359"):
        TokenizerConfig("bpe", 300, roles="t5")
