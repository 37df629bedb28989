"""score: each record with how likely it is; in order, alone or after a prompt, errors in place."""

import json
import math

import pytest

from .readers import saved, transformers


def records(done):
    return [json.loads(line) for line in done.out.splitlines()]


def jsonl(*found):
    return "".join(json.dumps(one) + "\n" for one in found).encode()


TEXTS = ["the list of the things", "é", "a thing " * 40]


def test_a_record_has_the_figures_of_eval_ppl(call, tiny, tmp_path):
    done = call("score", tiny, "-", stdin=jsonl(*({"text": text, "id": n} for n, text in enumerate(TEXTS))))
    assert done.code == 0
    for text, record in zip(TEXTS, records(done), strict=True):
        assert list(record) == ["text", "id", "nll", "tokens", "bytes", "perplexity", "bits_per_byte"]
        (tmp_path / "one.txt").write_text(text, encoding="utf-8")
        wanted = json.loads(call("eval-ppl", tiny, "one.txt").out)
        assert record["nll"] == pytest.approx(wanted["nll_per_token"] * wanted["tokens"], rel=1e-5)
        for name in ("tokens", "bytes"):
            assert record[name] == wanted[name]
        assert record["bits_per_byte"] == pytest.approx(record["nll"] / math.log(2) / len(text.encode()))


def test_after_a_prompt_the_completion_alone_is_scored(call, tiny):
    import torch

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny).eval()
    words = transformers.AutoTokenizer.from_pretrained(tiny)
    pairs = [(prompt, text) for prompt in ("the list of", "things that") for text in (" the", " things list", " é")]
    given = jsonl(*({"prompt": prompt, "completion": text} for prompt, text in pairs))
    for options in ([], ["--batch-tokens", 1]):
        found = records(call("score", tiny, "-", "--prompt-field", "prompt", "--logprobs", *options, stdin=given))
        for (prompt, text), record in zip(pairs, found, strict=True):
            ids = torch.tensor([words(prompt + text).input_ids])
            after = len(words(prompt).input_ids)
            with torch.no_grad():
                scores = theirs(ids).logits[0, after - 1 : -1].log_softmax(-1)
            wanted = scores.gather(1, ids[0, after:, None])[:, 0]
            assert [one["logprob"] for one in record["logprobs"]] == pytest.approx(wanted.tolist(), abs=1e-5)
            assert record["nll"] == pytest.approx(-float(wanted.sum()), rel=1e-5)
            assert (record["tokens"], record["bytes"]) == (len(wanted), len(text.encode()))
            assert record["perplexity"] == pytest.approx(math.exp(record["nll"] / record["tokens"]))


def test_a_long_completion_is_scored_in_windows_each_token_once(call, tiny):
    given = jsonl({"prompt": "the list", "completion": " of things" * 60})
    (record,) = records(call("score", tiny, "-", "--prompt-field", "prompt", "--logprobs", stdin=given))
    assert record["tokens"] == len(record["logprobs"]) > 64
    spelled = "".join(one["token"] for one in record["logprobs"]).replace("Ġ", " ")
    assert spelled == " of things" * 60


def test_bad_records_are_answered_in_place(call, tiny):
    lines = b'{"text": "the list", "id": 1}\nnot json\n{"text": 3}\n{"body": "x"}\n{"text": ""}\n{"text": "of"}\n'
    done = call("score", tiny, "-", stdin=lines)
    found = records(done)
    assert done.code == 3 and "4 of 6 texts were not answered" in done.err
    assert ["error" in one for one in found] == [False, True, True, True, True, False]
    done = call("score", tiny, "-", "--prompt-field", "prompt", stdin=jsonl({"completion": "a"}, {"prompt": "a"}))
    assert done.code == 3 and ["error" in one for one in records(done)] == [True, True]


def test_an_encoder_scores_what_follows_a_prompt_from_both_sides(call, tmp_path):
    path = tmp_path / "bert"
    saved(transformers.BertForMaskedLM, path)
    whole = {"text": "the cat sat on the mat"}
    (alone,) = records(call("score", path, "-", "--logprobs", stdin=jsonl(whole)))
    part = {"prompt": "the cat sat", "completion": " on the mat"}
    (after,) = records(call("score", path, "-", "--prompt-field", "prompt", "--logprobs", stdin=jsonl(part)))
    assert after["tokens"] == 3 and after["logprobs"] == [
        {"token": one["token"], "logprob": pytest.approx(one["logprob"], abs=1e-5)} for one in alone["logprobs"][3:]
    ]


def test_typed_texts_are_scored_and_what_cannot_be_is_said(call, tiny, tmp_path):
    (one, other) = records(call("score", tiny, "-p", "the list", "-p", "list the"))
    assert one["schema"] == "llmctl/score/1" and one["nll"] != other["nll"]
    assert call("score", tiny, "-p", "a", "--prompt-field", "prompt").code == 2
    assert call("score", tiny, "missing.jsonl").code == 1
    assert call("score", tiny, "-p", "a", "--window", 1).code == 2
    (tmp_path / "empty.jsonl").touch()
    assert call("score", tiny, "empty.jsonl").code == 1
