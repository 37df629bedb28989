"""generate with encoder-decoders: what goes into the encoder, and that the text is transformers'."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from .readers import drawn, transformers

PIECES = ["<pad>", "</s>", "<unk>", "▁", *(f"▁{one}" for one in ("the", "cat", "sat", "on", "mat")), *"abcdefghij"]
SENTINELS = [f"<extra_id_{n}>" for n in range(5)]
PROMPTS = ["the cat", "the cat sat on the mat", "on a", "abcd ef"]


def records(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A random T5 with a tokenizer of its kind: spaces as marks, </s> at the end, sentinels."""
    path = tmp_path_factory.mktemp("t5")
    backend = Tokenizer(models.Unigram([(piece, -float(len(PIECES) - n)) for n, piece in enumerate(PIECES)], unk_id=2))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=SENTINELS,
    )
    config = transformers.T5Config(
        vocab_size=len(words), d_model=32, d_ff=48, d_kv=8, num_heads=4, num_layers=2, decoder_start_token_id=0
    )
    theirs = drawn(transformers.T5ForConditionalGeneration(config))
    theirs.generation_config.eos_token_id = 1
    theirs.save_pretrained(path)
    words.save_pretrained(path)
    return path, theirs, words


def answer_of(theirs, words, prompt, **how):
    given = words(prompt, return_tensors="pt", return_token_type_ids=False)
    return words.decode(theirs.generate(**given, max_new_tokens=12, **how)[0], skip_special_tokens=True)


def test_the_text_is_that_of_transformers(call, t5):
    path, theirs, words = t5
    wanted = [answer_of(theirs, words, prompt) for prompt in PROMPTS]
    assert len(set(wanted)) > 2
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS).encode()
    for size in (1, 3):
        done = call("generate", path, "-", "--max-tokens", 12, "--batch-size", size, stdin=lines)
        assert [one["completion"] for one in records(done.out)] == wanted
    assert call("generate", path, "-p", PROMPTS[1], "--max-tokens", 12).out == wanted[1]


def test_the_source_ends_once_and_special_tokens_are_read_when_asked_for(call, t5):
    path, theirs, words = t5
    for prompt, options, count in (
        ("the cat", [], 3),
        ("the cat</s>", ["--special"], 3),
        ("the <extra_id_0> cat", ["--special"], 5),
        ("", [], 1),
    ):
        (record,) = records(call("generate", path, "-p", prompt, "--json", "--max-tokens", 12, *options).out)
        assert record["usage"]["prompt_tokens"] == count
    shown = call("generate", path, "-p", "the <extra_id_0> cat", "--special", "--max-tokens", 12).out
    given = words("the <extra_id_0> cat", return_tensors="pt", return_token_type_ids=False)
    assert shown == words.decode(theirs.generate(**given, max_new_tokens=12)[0, 1:])


def test_samples_differ_by_their_streams_and_not_by_the_batch(call, t5):
    warm = ["--temperature", 1, "--n", 3, "--max-tokens", 8, "--json"]
    runs = {call("generate", t5[0], "-p", PROMPTS[0], *warm, "--batch-size", size).out for size in (1, 2, 8)}
    assert len(runs) == 1 and len(set(records(runs.pop())[0]["completions"])) == 3


def test_what_generation_config_says_is_done(call, t5, tmp_path):
    _, theirs, words = t5
    theirs.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    said = {"decoder_start_token_id": 5, "forced_bos_token_id": 9, "eos_token_id": 1, "no_repeat_ngram_size": 2}
    (tmp_path / "generation_config.json").write_text(json.dumps({**said, "num_beams": 4}))
    other = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path)
    asked = ["generate", tmp_path, "-p", PROMPTS[0], "--max-tokens", 12]
    given = words(PROMPTS[0], return_tensors="pt", return_token_type_ids=False)
    single = words.decode(other.generate(**given, max_new_tokens=12, num_beams=1)[0, 1:], skip_special_tokens=True)
    done = call(*asked)
    assert done.out == words.decode(other.generate(**given, max_new_tokens=12)[0, 1:], skip_special_tokens=True)
    assert done.out != single and "beams" not in done.err
    assert call(*asked, "--beams", 1).out == single
    every = other.generate(**given, max_new_tokens=12, num_return_sequences=3)[:, 1:]
    (record,) = records(call(*asked, "--n", 3, "--json").out)
    assert record["completions"] == [words.decode(ids, skip_special_tokens=True) for ids in every]
    assert record["score"] == sorted(record["score"], reverse=True)
    (tmp_path / "generation_config.json").unlink()  # as before there were any
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **said}))
    assert call(*asked)[:2] == (0, single)


def test_a_source_may_be_longer_than_relative_positions_were_trained_for(call, t5):
    long = "the cat " * 300
    done = call("generate", t5[0], "-p", long, "--max-tokens", 4)
    assert done.code == 0 and "longer than the model's context of 512" in done.err
    theirs, words = t5[1:]
    given = words(long, return_tensors="pt", return_token_type_ids=False)
    assert done.out == words.decode(theirs.generate(**given, max_new_tokens=4)[0], skip_special_tokens=True)


def test_random_ids_in_a_batch_of_bart_equal_transformers(call, tmp_path):
    """Its encoder meets <s> text </s>; the tokens that BART forces come from generation_config.json."""
    shape = {"vocab_size": 30, "d_model": 32, "max_position_embeddings": 40}
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in {"layers": 2, "ffn_dim": 48}.items()}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    theirs = drawn(transformers.BartForConditionalGeneration(transformers.BartConfig(**shape, **sides, **heads)))
    theirs.generation_config.update(forced_bos_token_id=0, forced_eos_token_id=2, decoder_start_token_id=2)
    theirs.save_pretrained(tmp_path)
    letters = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxy", "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({letter: id for id, letter in enumerate(letters)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    prompts = ["abc", "thequickfox", "", "zz"]
    done = call(
        "generate", tmp_path, "-", "--format", "lines", "--max-tokens", 9, stdin="\n".join(prompts[:2]).encode()
    )
    for prompt, line in zip(prompts, done.out.splitlines(), strict=False):
        row = torch.tensor([[0, *(letters.index(one) for one in prompt), 2]])
        ids = theirs.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=9)[0].tolist()
        assert line == "".join(letters[id] for id in ids if id > 3 and letters[id] != "<mask>")
        assert ids[1] == 0 and ids[-1] == 2
