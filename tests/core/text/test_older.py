"""Tokenizers of before tokenizer.json: the ids of a directory as it was published are those that transformers gives."""

import json

import pytest

from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import UserError

transformers = pytest.importorskip("transformers", reason="the oracle")

PIECES = [
    *("the", "cat", "sat", "##s", "un", "##believ", "##able", ",", ".", "!", "?", "'", "é", "e", "caf", "##e", "##é"),
    *("日", "本", "don", "t", "a", "b", "c", "The", "Cat", "##ing"),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "The cat sats, unbelievable!",
    "  café CAFÉ\tcafe\u0301 ",
    "日本 don't",
    "zebra the\u0000 cat\u200b sat",
    "[MASK] the [SEP]",
    "",
    "a" * 101 + " b",
]


@pytest.mark.parametrize(
    "settings",
    [
        None,
        {"do_lower_case": True, "model_max_length": 512},
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False},
    ],
)
def test_a_vocab_txt_gives_the_ids_of_berts_tokenizer(settings, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, *PIECES]) + "\n", encoding="utf-8")
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = Tokenizer.open(tmp_path)
    known = {key: value for key, value in (settings or {}).items() if key != "model_max_length"}
    theirs = transformers.BertTokenizer(vocab={t: i for i, t in enumerate([*SPECIAL, *PIECES])}, **known)
    for text in TEXTS:
        assert ours.encode(text, special=True) == theirs.encode(text, add_special_tokens=False)
        assert ours._trusting.encode(text).ids == theirs.encode(text)
        if not text:
            continue  # transformers takes an empty second text for none
        pair = ours._trusting.encode("a b", text)
        wanted = theirs("a b", text)
        assert (pair.ids, pair.type_ids) == (wanted["input_ids"], wanted["token_type_ids"])
    assert (ours.pad, ours.unk, ours.cls, ours.sep, ours.mask, ours.eos) == (0, 1, 2, 3, 4, 3)
    assert ours.decode(ours.encode("unbelievable cats")) == "unbelievable cats"


def test_the_special_tokens_of_a_vocab_txt_may_have_other_names(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["<pad>", "<unk>", "<s>", "</s>", "<mask>", "a"]))
    names = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": {"content": "</s>"}, "mask": "<mask>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({f"{role}_token": t for role, t in names.items()}))
    ours = Tokenizer.open(tmp_path)
    assert ours._trusting.encode("a <mask>").ids == [2, 5, 4, 3] and ours.mask == 4


def test_a_vocab_txt_of_something_else_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"lacks \[CLS\], \[SEP\]"):
        Tokenizer.open(tmp_path)


def test_roberta_of_vocab_and_merges_has_its_special_tokens(tmp_path):
    vocab = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "Ġ", "Ġa", "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(vocab)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ a\n")
    ours = Tokenizer.open(tmp_path)
    mask = transformers.AddedToken("<mask>", lstrip=True, special=True)  # as in roberta-base's tokenizer.json
    theirs = transformers.RobertaTokenizer({t: i for i, t in enumerate(vocab)}, [("Ġ", "a")], mask_token=mask)
    for text in ("a a b", "a <mask> b", " ab", "<s>a</s>"):
        assert ours._trusting.encode(text).ids == theirs.encode(text)
    assert ours._trusting.encode("a", "b").ids == theirs.encode("a", "b") == [0, 4, 2, 2, 5, 2]
    assert (ours.bos, ours.eos, ours.cls, ours.sep, ours.pad, ours.mask) == (0, 2, 0, 2, 1, 8)


def test_a_config_that_names_no_special_token_leaves_them_to_their_usual_names(tmp_path):
    """bert-base-uncased's tokenizer_config.json says do_lower_case and a length, and nothing else."""
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, *PIECES]))
    (tmp_path / "tokenizer.json").write_text(Tokenizer.open(tmp_path).backend.to_str())
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')
    ours = Tokenizer.open(tmp_path)
    assert (ours.pad, ours.unk, ours.cls, ours.sep, ours.mask) == (0, 1, 2, 3, 4)
