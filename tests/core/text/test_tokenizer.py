"""Tokenizers of others and our own: opened, their special tokens found, saved."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from llmctl.core.text.tokenizer import SENTENCEPIECE, TOKENIZER_FILES, Tokenizer
from llmctl.errors import Exit, UserError


@pytest.fixture
def plain():
    """A byte-level tokenizer with special tokens <s>, </s> and <pad>, and no config."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>", "<pad>"])
    return backend


def written(directory, backend, **files):
    backend.save(str(directory / "tokenizer.json"))
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value))
    return Tokenizer.open(directory)


def test_special_tokens_are_read_from_the_config_as_text_or_object(tmp_path, plain):
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None}
    tokenizer = written(tmp_path, plain, tokenizer_config=config)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.unk) == (256, 257, None, None)


def test_special_tokens_are_read_from_the_map_where_the_config_is_silent(tmp_path, plain):
    tokenizer = written(tmp_path, plain, special_tokens_map={"eos_token": "</s>"}, tokenizer_config={"x": 1})
    assert (tokenizer.bos, tokenizer.eos) == (None, 257)


def test_without_any_config_usual_names_are_found(tmp_path, plain):
    tokenizer = written(tmp_path, plain)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (256, 257, 258)


def test_a_special_token_that_the_vocabulary_lacks_is_absent(tmp_path, plain):
    assert written(tmp_path, plain, tokenizer_config={"eos_token": "<nowhere>"}).eos is None


def test_a_text_of_bert_ends_with_sep(trained):
    assert trained["wordpiece"].eos == trained["wordpiece"].sep == trained["wordpiece"].id("[SEP]")


def test_size_counts_rows_and_not_tokens(tmp_path):
    backend = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "a": 300}, unk_token="<unk>"))
    assert written(tmp_path, backend).size == 301


def test_truncation_and_padding_of_the_file_do_not_apply(tmp_path, plain):
    plain.enable_truncation(4)
    plain.enable_padding(length=8)
    tokenizer = written(tmp_path, plain)
    assert len(tokenizer.encode("longer than four")) == 16
    assert len(tokenizer.encode("ab")) == 2


def test_encoding_adds_no_bos_but_says_that_the_tokenizer_would(tmp_path, plain):
    assert not written(tmp_path, plain).begins
    plain.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer = written(tmp_path, plain)
    assert tokenizer.begins
    assert tokenizer.encode("ab") == tokenizer.encode("ab", special=True)
    assert tokenizer.bos not in tokenizer.encode("ab", special=True)


def test_batches_encode_as_single_texts(trained, texts):
    for tokenizer in trained.values():
        assert tokenizer.encode_batch(texts[:9]) == [tokenizer.encode(text) for text in texts[:9]]


def test_half_a_surrogate_pair_is_a_user_error(trained):
    with pytest.raises(UserError, match="surrogate"):
        trained["bpe"].encode("a\ud800")


def test_ids_beyond_the_vocabulary_decode_to_nothing(trained):
    tokenizer = trained["bpe"]
    assert tokenizer.decode([*tokenizer.encode("ab"), 99_999]) == "ab"


def test_a_file_alone_is_opened_too(tmp_path, plain):
    tokenizer = written(tmp_path, plain, tokenizer_config={"eos_token": "<pad>"})
    assert Tokenizer.open(tmp_path / "tokenizer.json").eos == tokenizer.eos == 258


def test_a_file_of_another_name_is_saved_as_what_it_is(tmp_path, plain, trained):
    plain.save(str(tmp_path / "mine.json"))
    trained["bpe"].save(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    tokenizer = Tokenizer.open(tmp_path / "mine.json")
    tokenizer.save(out)
    assert Tokenizer.open(out).sha256 == tokenizer.sha256 != trained["bpe"].sha256
    assert Tokenizer.open(out).eos == tokenizer.eos == 257
    transformers = pytest.importorskip("transformers")
    assert transformers.AutoTokenizer.from_pretrained(out).eos_token == "</s>"


def test_saving_what_was_opened_keeps_its_files_byte_for_byte(tmp_path, plain):
    written(tmp_path, plain, tokenizer_config={"eos_token": "</s>", "odd": [1]})
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "model.safetensors").write_text("not a tokenizer's")
    out = tmp_path / "out"
    out.mkdir()
    Tokenizer.open(tmp_path).save(out)
    names = ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert all((out / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)
    assert set(names) <= set(TOKENIZER_FILES)


def test_a_tokenizer_made_in_memory_opens_as_the_same(trained, tmp_path):
    for algorithm, tokenizer in trained.items():
        directory = tmp_path / algorithm
        directory.mkdir()
        tokenizer.save(directory)
        opened = Tokenizer.open(directory)
        assert opened.sha256 == tokenizer.sha256
        assert (opened.bos, opened.eos, opened.pad, opened.unk) == (
            tokenizer.bos,
            tokenizer.eos,
            tokenizer.pad,
            tokenizer.unk,
        )


def test_the_hash_is_of_what_decides_the_ids(tmp_path, plain, trained):
    tokenizer = written(tmp_path, plain)
    parts = json.loads(plain.to_str())
    parts["decoder"] = parts["truncation"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts, indent=7))
    assert Tokenizer.open(tmp_path).sha256 == tokenizer.sha256
    plain.add_tokens(["new"])
    assert written(tmp_path, plain).sha256 != tokenizer.sha256
    assert len({t.sha256 for t in trained.values()}) == len(trained)


def test_the_first_files_of_gpt2_are_read(tmp_path, trained, texts):
    model = json.loads(trained["bpe"].backend.to_str())["model"]
    vocab = {**model["vocab"], "<|endoftext|>": len(model["vocab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    merges = [" ".join(pair) for pair in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    tokenizer = Tokenizer.open(tmp_path)
    assert tokenizer.encode_batch(texts) == trained["bpe"].encode_batch(texts)
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]
    assert tokenizer.eos == vocab["<|endoftext|>"]
    out = tmp_path / "out"
    out.mkdir()
    tokenizer.save(out)
    assert Tokenizer.open(out).encode(texts[0]) == tokenizer.encode(texts[0])


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_a_sentencepiece_model_alone_is_refused_and_beside_a_tokenizer_travels_with_it(tmp_path, trained, name):
    (tmp_path / name).write_bytes(b"\n\x0e")
    with pytest.raises(UserError, match="sentencepiece") as caught:
        Tokenizer.open(tmp_path)
    assert "save_pretrained" in caught.value.hint
    trained["bpe"].save(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    Tokenizer.open(tmp_path).save(out)
    assert (out / name).read_bytes() == b"\n\x0e"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "has no model"),
        ('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}', "is not a tokenizer"),
        ('{"model": 3}', "has no model"),
    ],
)
def test_a_broken_tokenizer_json_is_a_user_error(tmp_path, text, words):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=words):
        Tokenizer.open(tmp_path)


def test_nothing_there_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no tokenizer at") as caught:
        Tokenizer.open(tmp_path / "nowhere")
    assert caught.value.code == Exit.FAILURE
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        Tokenizer.open(tmp_path)
