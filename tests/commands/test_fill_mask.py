"""fill-mask: what transformers' pipeline gives, for one mask or several, record by record."""

import json

import pytest

from .readers import WORDS, saved, tokenizer, transformers


def records(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    return path, saved(transformers.BertForMaskedLM, path)


def test_fills_are_those_of_transformers(call, bert):
    path, theirs = bert
    texts = ["the [MASK] sat on the mat.", "[MASK] in [MASK], cats", "new york " * 10 + "[MASK]"]
    pipe = transformers.pipeline("fill-mask", model=theirs, tokenizer=tokenizer(), top_k=4)
    lines = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts))
    done = call("fill-mask", path, "-", "--top-k", 4, stdin=lines.encode())
    assert done.code == 0
    for text, record in zip(texts, records(done.out), strict=True):
        wanted = pipe(text)
        wanted = wanted if isinstance(wanted[0], list) else [wanted]
        assert list(record) == ["id", "text", "fills"]
        assert [[one["id"] for one in fills] for fills in record["fills"]] == [[o["token"] for o in f] for f in wanted]
        for ours, others in zip(record["fills"], wanted, strict=True):
            for one, other in zip(ours, others, strict=True):
                assert one["score"] == pytest.approx(other["score"], abs=1e-6)  # fp32 of another order of sums
                assert one["token"] == other["token_str"]


def test_a_record_without_a_mask_is_answered_in_place(call, bert):
    lines = b'{"text": "the [MASK]"}\n{"text": "the cat", "id": 7}\nnot json\n{"prompt": "[MASK]"}\n{"text": 3}\n'
    lines += json.dumps({"text": "the " * 60 + "[MASK]"}).encode()
    done = call("fill-mask", bert[0], "-", stdin=lines)
    found = records(done.out)
    assert done.code == 3 and "4 of 6 texts were not answered" in done.err
    assert ["error" in one for one in found] == [False, True, True, False, True, True]
    assert found[1]["id"] == 7 and "no mask" in found[1]["error"] and "62 tokens" not in found[1]["error"]
    assert "63 tokens" in found[5]["error"] and "40" in found[5]["error"]
    assert len(found[0]["fills"][0]) == 5


def test_either_spelling_of_a_mask_is_the_models_own(call, bert):
    texts = ["the [MASK] sat", "the <mask> sat"]
    ours = [records(call("fill-mask", bert[0], "-p", text).out)[0] for text in texts]
    assert ours[0]["fills"] == ours[1]["fills"]
    assert [one["text"] for one in ours] == texts and ours[0]["schema"] == "llmctl/fill-mask/1"


def test_other_special_tokens_are_text_unless_asked_for(call, bert):
    text = "[SEP] [MASK]"
    plain, special = (records(call("fill-mask", bert[0], "-p", text, *how).out)[0] for how in ([], ["--special"]))
    assert plain["fills"] != special["fills"]
    theirs = transformers.pipeline("fill-mask", model=bert[1], tokenizer=tokenizer())(text)
    assert [one["id"] for one in special["fills"][0]] == [one["token"] for one in theirs]


def test_a_bert_as_it_was_first_published_has_only_its_vocabulary(call, bert, tmp_path):
    path, theirs = bert
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    ours = [call("fill-mask", where, "-p", "The CAFÉ [MASK]").out for where in (tmp_path, path)]
    assert ours[0] == ours[1] != ""


def test_a_batch_gives_each_text_what_it_gets_alone(call, bert):
    lines = "".join(f"{'the ' * n}[MASK]{' cat' * (n % 3)}\n" for n in range(9)).encode()
    one, many = (records(call("fill-mask", bert[0], "-", "--batch-size", size, stdin=lines).out) for size in (1, 4))
    for a, b in zip(one, many, strict=True):
        assert a["text"] == b["text"]
        for x, y in zip(a["fills"][0], b["fills"][0], strict=True):
            assert x["score"] == pytest.approx(y["score"], abs=1e-6)


def test_roberta_types_its_mask_and_its_words_keep_their_space(call, tmp_path):
    from .readers import drawn

    vocab = ["<s>", "<pad>", "</s>", "<unk>", "a", "b", "Ġ", "Ġa", "Ġb", "<mask>"]
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.RobertaConfig(vocab_size=10, max_position_embeddings=24, pad_token_id=1, **shape)
    theirs = drawn(transformers.RobertaForMaskedLM(config))
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(vocab)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ a\nĠ b\n")
    (record,) = records(call("fill-mask", tmp_path, "-p", "a [MASK] b", "--top-k", 10).out)
    mask = transformers.AddedToken("<mask>", lstrip=True, special=True)
    merges = [("Ġ", "a"), ("Ġ", "b")]
    words = transformers.RobertaTokenizer({t: i for i, t in enumerate(vocab)}, merges, mask_token=mask)
    wanted = transformers.pipeline("fill-mask", model=theirs, tokenizer=words, top_k=10)("a <mask> b")
    assert [one["id"] for one in record["fills"][0]] == [one["token"] for one in wanted]
    assert {" a", "a", " b"} <= {one["token"] for one in record["fills"][0]}


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["-p", "a", "b"], 2, "not both"),
        ([], 2, "no text"),
        (["nowhere.txt"], 1, "does not exist"),
        (["-p", "[MASK]", "--top-k", "0"], 2, "--top-k is 0"),
        (["-p", "[MASK]", "--batch-size", "0"], 2, "--batch-size is 0"),
        (["-"], 1, "stdin holds no text"),
    ],
)
def test_what_cannot_be_done_is_said(call, bert, argv, code, words):
    done = call("fill-mask", bert[0], *argv)
    assert (done.code, done.out) == (code, "") and words in done.err and "Traceback" not in done.err


def test_models_that_fill_no_masks_are_told_what_to_do(call, tiny, tmp_path):
    done = call("fill-mask", tiny, "-p", "[MASK]")
    assert done.code == 4 and "a decoder, which knows no mask" in done.err and "llmctl generate" in done.err
    saved(transformers.BertModel, tmp_path / "headless")
    done = call("fill-mask", tmp_path / "headless", "-p", "[MASK]")
    assert done.code == 4 and "no head that scores tokens; it has a pooler" in done.err
    done = call("generate", tmp_path / "headless", "-p", "a")
    assert done.code == 4 and done.err.count("\n") == 2 and "an encoder, which" in done.err
    assert "llmctl fill-mask" in done.err and "llmctl embed" in done.err
    (tmp_path / "text.txt").write_text("the cat")
    done = call("eval-ppl", tmp_path / "headless", "text.txt")
    assert done.code == 4 and done.err.count("\n") == 2 and "no head that scores tokens" in done.err


def test_an_encoder_decoder_is_sent_to_generate(call, tmp_path):
    shape = {"vocab_size": 30, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 1}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**shape, decoder_start_token_id=0)).save_pretrained(
        tmp_path
    )
    done = call("fill-mask", tmp_path, "-p", "[MASK]")
    assert done.code == 4 and "--special" in done.err and "<extra_id_0>" in done.err


def test_a_masked_word_of_the_vocabulary_is_spelled_as_it_is(call, bert):
    (record,) = records(call("fill-mask", bert[0], "-p", "[MASK]", "--top-k", len(WORDS)).out)
    assert {one["token"] for one in record["fills"][0]} == set(WORDS)
    assert sum(one["score"] for one in record["fills"][0]) == pytest.approx(1, abs=1e-5)
