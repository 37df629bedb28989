"""embed: the vectors are transformers' hidden states, drawn together as asked; streams, files, errors."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .readers import TEXTS, drawn, saved, tokenizer, transformers


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def vectors(text):
    return torch.tensor([record["embedding"] for record in records(text)])


def lines(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def theirs_of(model, pooling, texts=TEXTS, limit=40):
    """By transformers, a text at a time."""
    rows = []
    for text in texts:
        given = tokenizer()(text, return_tensors="pt", truncation=True, max_length=limit)
        with torch.no_grad():
            hidden = model(**given).last_hidden_state[0]
        rows.append({"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling])
    return torch.stack(rows)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    return path, saved(transformers.BertModel, path)


def close(ours, wanted):
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)  # sums of fp32 in another order


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("batch", [1, 3, 32])
def test_vectors_are_those_of_transformers(call, bert, pooling, batch):
    done = call("embed", bert[0], "-", "--pooling", pooling, "--batch-size", batch, stdin=lines(TEXTS))
    assert done.code == 0
    close(vectors(done.out), theirs_of(bert[1], pooling))


def sentence(path, pooling, modules=("Transformer", "Pooling", "Normalize"), **limits):
    """Files as sentence-transformers writes them."""
    places = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense", "Normalize": "3_Normalize"}
    listed = [
        {"idx": n, "name": str(n), "path": places.get(kind, kind), "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(modules)
    ]
    (path / "modules.json").write_text(json.dumps(listed))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    (path / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": False, **limits}))


@pytest.mark.parametrize(
    ("pooling", "how"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_a_sentence_transformers_directory_says_how(call, tmp_path, pooling, how):
    model = saved(transformers.BertModel, tmp_path)
    sentence(tmp_path, pooling, max_seq_length=8)
    done = call("embed", tmp_path, "-", stdin=lines(TEXTS))
    wanted = theirs_of(model, how, limit=8)
    close(vectors(done.out), torch.nn.functional.normalize(wanted, dim=-1))
    assert "3 of 5 texts were cut to 8 tokens" in done.err
    plain = call("embed", tmp_path, "-", "--no-normalize", "--max-tokens", 40, stdin=lines(TEXTS))
    close(vectors(plain.out), theirs_of(model, how))
    assert "cut" not in plain.err


@pytest.mark.parametrize(
    ("activation", "function"), [("linear.Identity", lambda x: x), ("activation.Tanh", torch.tanh)]
)
def test_a_dense_layer_after_the_pooling_is_used(call, tmp_path, activation, function):
    model = saved(transformers.BertModel, tmp_path)
    sentence(tmp_path, {"pooling_mode_mean_tokens": True}, ("Transformer", "Pooling", "Dense", "Normalize"))
    layer = torch.nn.Linear(32, 5)
    (tmp_path / "2_Dense").mkdir()
    about = {
        "in_features": 32,
        "out_features": 5,
        "bias": True,
        "activation_function": f"torch.nn.modules.{activation}",
    }
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps(about))
    weights = {f"linear.{name}": value.detach() for name, value in layer.state_dict().items()}
    save_file(weights, tmp_path / "2_Dense" / "model.safetensors")
    wanted = function(layer(theirs_of(model, "mean"))).detach()
    close(vectors(call("embed", tmp_path, "-", stdin=lines(TEXTS)).out), torch.nn.functional.normalize(wanted, dim=-1))
    save_file({"linear.weight": weights["linear.weight"]}, tmp_path / "2_Dense" / "model.safetensors")
    done = call("embed", tmp_path, "-p", "a")
    assert done.code == 4 and "linear.bias" in done.err


@pytest.mark.parametrize(
    ("pooling", "modules", "words"),
    [
        ({"pooling_mode_max_tokens": True}, ("Transformer", "Pooling"), "pooling_mode_max_tokens"),
        (
            {"pooling_mode_mean_tokens": True},
            ("Transformer", "Pooling", "WeightedLayerPooling"),
            "WeightedLayerPooling",
        ),
    ],
)
def test_what_a_directory_asks_for_and_is_not_done_is_refused(call, tmp_path, pooling, modules, words):
    saved(transformers.BertModel, tmp_path)
    sentence(tmp_path, pooling, modules)
    done = call("embed", tmp_path, "-p", "a")
    assert done.code == 4 and words in done.err and done.out == ""


def test_a_decoder_gives_its_last_tokens_state(call, tiny):
    from llmctl.core.checkpoint.directory import Checkpoint

    checkpoint = Checkpoint.open(tiny)
    model, words = checkpoint.model(), checkpoint.tokenizer()
    texts = ["the list", "the", "things that list the things"]
    with torch.inference_mode():
        wanted = torch.stack([model(torch.tensor([words.encode(text)]))[0, -1] for text in texts])
    close(vectors(call("embed", tiny, "-", stdin=lines(texts)).out), wanted)
    empty = call("embed", tiny, "-", stdin=lines(["the", ""]))
    assert empty.code == 3 and "no tokens" in records(empty.out)[1]["error"]


@pytest.mark.parametrize("kind", ["T5ForConditionalGeneration", "T5EncoderModel"])
def test_an_encoder_decoder_gives_its_encoders_states(call, tmp_path, kind):
    shape = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2, "decoder_start_token_id": 0}
    theirs = drawn(getattr(transformers, kind)(transformers.T5Config(vocab_size=40, **shape)))
    theirs.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    done = call("embed", tmp_path, "-", stdin=lines(TEXTS))
    given = [tokenizer()(text, return_tensors="pt", return_token_type_ids=False) for text in TEXTS]
    with torch.no_grad():
        wanted = torch.stack([theirs.encoder(**one).last_hidden_state[0].mean(0) for one in given])
    close(vectors(done.out), wanted)


def test_records_come_back_in_order_with_their_fields(call, bert):
    given = (
        b'{"id": 1, "text": "the cat"}\nnot json\n{"id": 2, "prompt": "a"}\n{"id": 3}\n{"text": "b", "embedding": 0}\n'
    )
    done = call("embed", bert[0], "-", "--batch-size", 2, stdin=given)
    found = records(done.out)
    assert done.code == 3 and "2 of 5 texts were not answered" in done.err
    assert [one.get("id") for one in found] == [1, None, 2, 3, None]
    assert ["error" in one for one in found] == [False, True, False, True, False]
    assert "'embedding' already" in done.err and len(found[4]["embedding"]) == 32
    named = call("embed", bert[0], "-", "--field", "body", stdin=b'{"body": "a", "text": "b"}\n')
    close(vectors(named.out), theirs_of(bert[1], "mean", ["a"]))


def test_numbers_are_as_short_as_float32_allows(call, bert):
    text = call("embed", bert[0], "-p", "the cat").out
    numbers = text.split('"embedding": [')[1].split("]")[0].split(", ")
    assert max(map(len, numbers)) <= 14
    assert np.array(json.loads(text)["embedding"], np.float32).tolist() == np.float32(numbers).tolist()


@pytest.mark.parametrize(
    ("given", "ids", "beside"),
    [
        (b"the cat\n\nparis\n", [0, 1, 2], None),
        (b'{"id": 9, "text": "the cat"}\nbad\n{"id": 7, "text": "paris"}\n', [9, 7], None),
        (b'{"id": 9, "text": "the cat"}\n{"id": "x", "text": "paris"}\n', [0, 1], [9, "x"]),
        (b'{"id": "\xc3\xa9", "text": "the cat"}\n{"text": "paris"}\n', [0, 1], ["é", 1]),
    ],
)
def test_a_file_holds_the_vectors_and_their_ids(call, bert, tmp_path, given, ids, beside):
    (tmp_path / "in").write_bytes(given)
    form = "jsonl" if given.startswith(b"{") else "lines"
    done = call("embed", bert[0], "in", "--format", form, "-o", "v.safetensors", "--batch-size", 1)
    assert done.out == "v.safetensors\n" and done.code == (3 if b"bad" in given else 0)
    found = load_file(tmp_path / "v.safetensors")
    streamed = [
        one["embedding"] for one in records(call("embed", bert[0], "in", "--format", form).out) if "error" not in one
    ]
    close(found["vectors"], torch.tensor(streamed))
    assert found["ids"].tolist() == ids and found["ids"].dtype == torch.int64
    other = tmp_path / "v.ids.jsonl"
    assert (records(other.read_text()) if other.exists() else None) == beside
    with safe_open(tmp_path / "v.safetensors", "pt") as file:
        said = file.metadata()
    assert said["pooling"] == "mean" and said["normalized"] == "false"
    assert said["ids"] == ("ids" if beside is None else "v.ids.jsonl")


def test_an_odd_number_of_odd_vectors_is_a_sound_file(tmp_path):
    from llmctl.core.infer.vectors import vector_file

    with vector_file(tmp_path / "v.safetensors", {}) as file:
        file.add(torch.tensor([1.0, 2.0, 3.0]), 0)
    found = load_file(tmp_path / "v.safetensors")
    assert found["vectors"].tolist() == [[1, 2, 3]] and found["ids"].tolist() == [0]


def test_a_file_that_is_there_is_replaced_only_when_asked(call, bert, tmp_path):
    (tmp_path / "v.safetensors").write_text("mine")
    done = call("embed", bert[0], "-p", "a", "-o", "v.safetensors")
    assert done.code == 1 and "exists" in done.err and (tmp_path / "v.safetensors").read_text() == "mine"
    done = call("embed", bert[0], "-p", "a", "-o", "v.safetensors", "--force", "--json")
    made = json.loads(done.out)
    assert made["path"] == "v.safetensors" and made["metrics"]["vectors"] == 1 and made["metrics"]["width"] == 32


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["-p", "a", "-o", "v.npy"], 2, ".safetensors"),
        (["-p", "a", "--max-tokens", "41"], 2, "1 to 40"),
        (["-p", "a", "--max-tokens", "2"], 2, "special tokens alone"),
        (["-p", "a", "--pooling", "max"], 2, "max"),
        ([], 2, "no text"),
    ],
)
def test_what_cannot_be_done_is_said(call, bert, argv, code, words):
    done = call("embed", bert[0], *argv)
    assert (done.code, done.out) == (code, "") and words in done.err and "Traceback" not in done.err


def test_a_long_stream_is_read_no_further_than_its_answers_need(bert):
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.data.requests import Request
    from llmctl.core.infer.answer import POOL, answers
    from llmctl.core.infer.embed import embed
    from llmctl.core.infer.encode import Encoder

    checkpoint = Checkpoint.open(bert[0])
    model, encoder, read = checkpoint.model(), Encoder(checkpoint.tokenizer(), checkpoint.config), []

    def source():
        for number in range(10**9):
            read.append(number)
            yield Request(number, "the " * (number % 7))

    stream = answers(source(), lambda r: encoder.row(r.text), lambda rows: embed(model, rows, "mean", False), 2)
    numbers = [next(stream).request.number for _ in range(2 * POOL + 1)]
    assert numbers == list(range(2 * POOL + 1)) and len(read) == 4 * POOL
