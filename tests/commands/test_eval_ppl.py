"""eval-ppl: the same text gives the same numbers however it comes, and they are those of plain transformers."""

import json
import math
import random
import shutil

import numpy as np
import pytest

from llmctl.core.text.tokenizer import Tokenizer


def report(done):
    assert done.code == 0, done.err
    return json.loads(done.out)


def sentences(count, seed=0):
    chance = random.Random(seed)
    return [
        " ".join(chance.choices(["the", "list", "thing", "é", "of"], k=chance.randint(2, 30))) for _ in range(count)
    ]


@pytest.fixture
def texts(tmp_path):
    """The same documents as JSON lines and as one file each, in this order."""
    found = [*sentences(5), "the"]
    with open(tmp_path / "texts.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(found))
    for i, text in enumerate(found):
        (tmp_path / f"{i}.txt").write_text(text, encoding="utf-8")
    return found


def reference(path, documents, window, stride, start):
    """nll (nats) and tokens by the strided loop of transformers' documentation, each document on its own."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    total, tokens = 0.0, 0
    for text in documents:
        ids = torch.tensor([[*([start] if start is not None else []), *tokenizer(text).input_ids]])
        before = 0
        for begin in range(0, ids.shape[1], stride):
            end = min(begin + window, ids.shape[1])
            targets = ids[:, begin:end].clone()
            targets[:, : -(end - before)] = -100
            labels = int((targets[:, 1:] != -100).sum())
            if labels:
                with torch.no_grad():
                    total += float(model(ids[:, begin:end], labels=targets).loss) * labels
            tokens, before = tokens + labels, end
            if end == ids.shape[1]:
                break
    return total, tokens


@pytest.mark.parametrize(("window", "stride"), [(64, 32), (16, 8), (16, 3)])
def test_it_equals_transformers(call, tiny, texts, window, stride):
    pytest.importorskip("transformers")
    eos = Tokenizer.open(tiny).eos
    for start, options in ((eos, []), (None, ["--no-bos"])):
        found = report(call("eval-ppl", tiny, "texts.jsonl", "--window", window, "--stride", stride, *options))
        nll, tokens = reference(tiny, texts, window, stride, start)
        assert found["tokens"] == tokens
        assert found["nll_per_token"] == pytest.approx(nll / tokens, abs=1e-5)  # fp32 by two implementations
        assert found["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)
        first = sum(len(text.encode()) for text in texts)
        if start is None:
            tokenizer = Tokenizer.open(tiny)
            first -= sum(len(tokenizer.decode(tokenizer.encode(text)[:1]).encode()) for text in texts if text != "the")
            first -= len("the")  # its only token has nothing before it, so that document has no part
        assert found["bytes"] == first
        assert found["bits_per_byte"] == pytest.approx(nll / math.log(2) / first, rel=1e-5)
        assert found["bits_per_token"] == pytest.approx(found["nll_per_token"] / math.log(2))


def test_the_same_documents_give_the_same_numbers_in_every_form(call, tiny, texts, tmp_path):
    wanted = report(call("eval-ppl", tiny, "texts.jsonl"))
    wanted.pop("seconds")
    (tmp_path / "lines.txt").write_text("\n".join(texts), encoding="utf-8")
    stdin = (tmp_path / "texts.jsonl").read_bytes()
    forms = [
        call("eval-ppl", tiny, *(f"{i}.txt" for i in range(len(texts)))),
        call("eval-ppl", tiny, "lines.txt", "--documents", "line"),
        call("eval-ppl", tiny, "-", stdin=stdin),
        call("eval-ppl", tiny, "texts.jsonl", "--batch-tokens", 1),
    ]
    for form in forms:
        found = report(form)
        assert found["nll_per_token"] == pytest.approx(wanted["nll_per_token"], rel=1e-6)
        same = ("tokens", "bytes", "documents", "signature", "schema")
        assert {key: found[key] for key in same} == {key: wanted[key] for key in same}


def test_a_directory_of_tokens_is_scored_on_what_was_held_out(call, tiny, tmp_path):
    with open(tmp_path / "many.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in sentences(40, seed=1))
    made = call("tokenize", "many.jsonl", "--tokenizer", tiny, "--held-out", "0.3", "-o", "tokens")
    assert made.code == 0, made.err
    from llmctl.core.data.shards import Tokens
    from llmctl.spec.data import Sharding

    sharding = Sharding(held_out=0.3)
    held = [text for text in sentences(40, seed=1) if sharding.split(text.encode()) == "heldout"]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in held))
    found, wanted = report(call("eval-ppl", tiny, "tokens")), report(call("eval-ppl", tiny, "held.jsonl"))
    assert found["nll_per_token"] == pytest.approx(wanted["nll_per_token"], rel=1e-6)
    for key in ("tokens", "bytes", "documents", "signature"):
        assert found[key] == wanted[key]
    assert found["bytes"] == Tokens.open(tmp_path / "tokens").splits["heldout"].bytes
    trained = report(call("eval-ppl", tiny, "tokens", "--split", "train", "--limit", 7))
    assert trained["documents"] == 7


def test_the_signature_says_what_was_computed(call, tiny, texts):
    tokenizer = Tokenizer.open(tiny)
    found = report(call("eval-ppl", tiny, "texts.jsonl"))
    parts = dict(part.split(":", 1) for part in found["signature"].split("|"))
    assert parts["tokenizer"] == tokenizer.sha256[:12] and parts["documents"] == "6"
    assert (parts["window"], parts["stride"]) == ("64", "32") and parts["start"] == str(tokenizer.eos)
    assert parts["dtype"] == "float32" and parts["version"].startswith("llmctl-")
    other = report(call("eval-ppl", tiny, "texts.jsonl", "--no-bos", "--stride", 64, "--dtype", "bf16"))
    assert "|stride:63|start:none|" in other["signature"] and "dtype:bfloat16" in other["signature"]
    assert found["schema"] == "llmctl/eval-ppl/1"


def test_a_missed_threshold_is_reported_and_ends_with_6(call, tiny, texts):
    value = report(call("eval-ppl", tiny, "0.txt", "--fail-over", "1e9"))["perplexity"]
    done = call("eval-ppl", tiny, "0.txt", "--fail-over", value * 0.999)
    assert done.code == 6 and json.loads(done.out)["perplexity"] == value and "--fail-over" in done.err


def test_several_texts_have_a_row_each_and_their_sum_is_that_of_all(call, tiny, texts, tmp_path):
    each = [report(call("eval-ppl", tiny, f"{n}.txt")) for n in range(3)]
    found = report(call("eval-ppl", tiny, "0.txt", "1.txt", "2.txt"))
    assert [one["text"] for one in found["texts"]] == ["0.txt", "1.txt", "2.txt"]
    for one, alone in zip(found["texts"], each, strict=True):
        assert one["nll_per_token"] == pytest.approx(alone["nll_per_token"], rel=1e-6)
        assert (one["tokens"], one["bytes"], one["words"]) == (alone["tokens"], alone["bytes"], alone["words"])
    nll = sum(one["nll_per_token"] * one["tokens"] for one in each)
    assert found["nll_per_token"] == pytest.approx(nll / sum(one["tokens"] for one in each), rel=1e-6)
    words = sum(len(text.split()) for text in texts[:3])
    assert found["words"] == words and found["word_perplexity"] == pytest.approx(math.exp(nll / words), rel=1e-5)
    assert found["byte_perplexity"] == pytest.approx(2 ** found["bits_per_byte"])
    assert "texts" not in each[0] and "models" not in found


def test_several_models_score_the_same_texts(call, tiny, texts, tmp_path):
    shutil.copytree(tiny, tmp_path / "other")
    first = report(call("eval-ppl", tiny, "texts.jsonl"))
    found = report(call("eval-ppl", "other", "texts.jsonl", "0.txt", "--against", tiny, "--stride", 8))
    assert [one["model"] for one in found["models"]] == ["other", str(tiny)]
    assert found["models"][0]["nll_per_token"] == found["models"][1]["nll_per_token"] == found["nll_per_token"]
    assert [len(one["texts"]) for one in found["models"]] == [2, 2]
    assert found["models"][1]["texts"][0]["tokens"] == first["tokens"]
    for argv in (["-"], ["texts.jsonl", "--samples", "s.jsonl"]):
        done = call("eval-ppl", tiny, *argv, "--against", tiny)
        assert (done.code, done.out) == (2, "") and not (tmp_path / "s.jsonl").exists()


def test_documents_and_domains_add_up_to_the_whole(call, tiny, texts, tmp_path):
    lines = [{"text": text, "kind": ["code", "prose", None][n % 3]} for n, text in enumerate(texts)]
    (tmp_path / "kinds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = report(call("eval-ppl", tiny, "kinds.jsonl", "--by", "kind", "--samples", "s.jsonl"))
    assert list(found["domains"]) == ["code", "prose", "None"]
    samples = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [one["doc_id"] for one in samples] == list(range(6))
    assert [one["source"] for one in samples] == [f"kinds.jsonl:{n}" for n in range(1, 7)]
    for kind, sum_ in found["domains"].items():
        own = [one["scores"] for one in samples if one["domain"] == kind]
        assert sum_["documents"] == len(own) and sum_["tokens"] == sum(one["tokens"] for one in own)
        nll = sum(one["nll"] for one in own)
        assert sum_["nll_per_token"] == pytest.approx(nll / sum_["tokens"], rel=1e-6)
    assert sum(one["scores"]["nll"] for one in samples) == pytest.approx(found["nll_per_token"] * found["tokens"])
    for argv, words in ((["kinds.jsonl", "--by", "author"], "kinds.jsonl:1 has no field 'author'"),
                        (["0.txt", "--by", "kind"], "0.txt is no record"),
                        (["kinds.jsonl", "--samples", "s.jsonl"], "s.jsonl exists")):  # fmt: skip
        done = call("eval-ppl", tiny, *argv)
        assert (done.code, done.out) == (1, "") and words in done.err
    assert call("eval-ppl", tiny, "kinds.jsonl", "--samples", "s.jsonl", "--force").code == 0


def test_intervals_are_of_resampled_documents(call, tiny, tmp_path):
    lines = [json.dumps({"text": text}) + "\n" for text in sentences(30, seed=4)]
    (tmp_path / "many.jsonl").write_text("".join(lines))
    options = ["--ci", 0.9, "--samples", "s.jsonl", "--force"]
    found = report(call("eval-ppl", tiny, "many.jsonl", *options))
    assert report(call("eval-ppl", tiny, "many.jsonl", *options))["intervals"] == found["intervals"]
    rows = [json.loads(line)["scores"] for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    nll, tokens, size = (np.array([row[name] for row in rows]) for name in ("nll", "tokens", "bytes"))
    drawn = np.random.default_rng(99).integers(0, 30, (4000, 30))  # other draws: equal but for chance
    wanted = {"nll_per_token": nll[drawn].sum(1) / tokens[drawn].sum(1)}
    wanted |= {"perplexity": np.exp(wanted["nll_per_token"])}
    wanted |= {"bits_per_byte": nll[drawn].sum(1) / size[drawn].sum(1) / math.log(2)}
    for name, values in wanted.items():
        low, high = found["intervals"][name]["low"], found["intervals"][name]["high"]
        assert low < found[name] < high
        assert [low, high] == pytest.approx(np.quantile(values, [0.05, 0.95]).tolist(), abs=0.2 * (high - low))
    assert "bs:1000|draws:0" in found["signature"]
    assert call("eval-ppl", tiny, "many.jsonl", "--ci", 95).code == 2


def test_any_figure_may_have_a_limit(call, tiny, texts):
    value = report(call("eval-ppl", tiny, "0.txt"))["bits_per_byte"]
    assert call("eval-ppl", tiny, "0.txt", "--fail-over", f"bits_per_byte={value + 1}").code == 0
    done = call("eval-ppl", tiny, "0.txt", "--fail-over", "1e9", "--fail-over", f"bits_per_byte={value * 0.999}")
    assert done.code == 6 and json.loads(done.out)["bits_per_byte"] == value and "bits_per_byte is" in done.err
    assert call("eval-ppl", tiny, "0.txt", "--fail-over", "loss=1").code == 2


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["empty.txt"], 1, "no text"),
        (["missing.txt"], 1, "missing.txt does not exist"),
        (["0.txt", "--stride", "0"], 2, "--stride is 0"),
        (["0.txt", "--window", "16", "--stride", "17"], 2, "--stride is 17"),
        (["0.txt", "--window", "1"], 2, "--window is 1"),
        (["0.txt", "--masking", "word"], 2, "for encoders"),
        (["0.txt", "--undo", "span"], 2, "for encoder-decoders"),
        (["-", "-"], 2, "read once"),
        (["texts.jsonl", "--field", "body"], 1, "no field 'body'"),
        (["latin.txt"], 1, "not UTF-8"),
        (["-"], 1, "no text"),
    ],
)
def test_what_cannot_be_scored_is_said(call, tiny, texts, tmp_path, argv, code, words):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    done = call("eval-ppl", tiny, *argv)
    assert (done.code, done.out) == (code, "") and words in done.err and "Traceback" not in done.err


def test_a_tokenizer_that_does_not_fit_is_refused(call, tiny, texts, tmp_path):
    copy = tmp_path / "other"
    shutil.copytree(tiny, copy)
    config = json.loads((copy / "tokenizer.json").read_text())
    config["model"]["vocab"] = {token: i + 200 for token, i in config["model"]["vocab"].items()}
    (copy / "tokenizer.json").write_text(json.dumps(config))
    assert call("eval-ppl", copy, "texts.jsonl").code == 4
    made = call("tokenize", "texts.jsonl", "--tokenizer", tiny, "--held-out", "0.5", "-o", "tokens")
    assert made.code == 0
    done = call("eval-ppl", copy, "tokens")
    assert done.code == 4 and "another tokenizer" in done.err


def test_learned_positions_limit_the_window(call, tiny, texts, tmp_path):
    from llmctl.core.checkpoint.directory import save_checkpoint
    from llmctl.core.model.init import initialise
    from llmctl.core.model.transformer import Transformer
    from llmctl.spec.model import ModelConfig

    shape = {"norm": "layer", "activation": "gelu_tanh", "gated": False, "position": "learned"}
    biases = {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "model_type": "gpt2"}
    config = ModelConfig(vocab=300, width=32, layers=1, heads=2, ff=64, context=32, **shape, **biases)
    (tmp_path / "gpt2").mkdir()
    save_checkpoint(tmp_path / "gpt2", initialise(Transformer(config), 0), config, tokenizer_from=tiny)
    assert report(call("eval-ppl", "gpt2", "0.txt"))["tokens"] > 0
    done = call("eval-ppl", "gpt2", "0.txt", "--window", 33)
    assert done.code == 2 and "positions end at 32" in done.err
