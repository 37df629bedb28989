"""generate: how tokens are chosen, as a user asks for it: words, forms, log-probabilities, explanations."""

import json
import math
import re

import pytest

WARM = ["--temperature", "1", "--max-tokens", "12"]


def record(done):
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_log_probabilities_come_with_records_and_are_the_models_own(call, tiny):
    made = record(call("generate", tiny, "-p", "the list", *WARM, "--top-k", 3, "--logprobs", 2))
    assert len(made["logprobs"]) == made["usage"]["completion_tokens"] == 12
    for one in made["logprobs"]:
        best, second = (top["logprob"] for top in one["top_logprobs"])
        assert 0 >= best >= second and one["logprob"] <= best
    unfiltered = record(call("generate", tiny, "-p", "the list", *WARM, "--top-k", 3, "--logprobs", 0, "--top-p", 1))
    assert [one["logprob"] for one in unfiltered["logprobs"]] == [one["logprob"] for one in made["logprobs"]]
    assert unfiltered["logprobs"][0]["top_logprobs"] == []


def test_of_several_the_likeliest_are_kept_the_best_first(call, tiny):
    said = ["-p", "the", *WARM, "--logprobs", 0, "--json"]
    every = record(call("generate", tiny, *said, "--n", 5))
    kept = record(call("generate", tiny, *said, "--n", 2, "--best-of", 5))
    means = [math.fsum(one["logprob"] for one in tokens) / len(tokens) for tokens in every["logprobs"]]
    order = sorted(range(5), key=lambda number: -means[number])
    assert kept["completions"] == [every["completions"][number] for number in order[:2]]
    assert kept["usage"]["completion_tokens"] == every["usage"]["completion_tokens"]


def test_a_form_is_kept_to(call, tiny, tmp_path):
    (tmp_path / "s.json").write_text('{"enum": ["cat", {"a": [true]}]}')
    made = record(
        call("generate", tiny, "-p", "the", *WARM, "--schema", tmp_path / "s.json", "--max-tokens", 40, "--json")
    )
    assert json.loads(made["completion"]) in ("cat", {"a": [True]}) and made["finish_reason"] == "stop"
    text = call("generate", tiny, "-p", "the", *WARM, "--regex", "[a-c]{2}(-[0-9]{2}){3}").out
    assert re.fullmatch("[a-c]{2}(-[0-9]{2}){3}", text)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--regex", "("], "unclosed group"),
        (["--regex", "a", "--grammar", "g"], "--regex and --grammar"),
        (["--bad-word", ""], "--bad-word is empty"),
        (["--logit-bias", "the"], "wanted TEXT=VALUE"),
        (["--stop-id", "100000"], "--stop-id names the id 100000"),
        (["--best-of", "2", "--n", "3"], "--best-of is 2, wanted 0, or --n (3) or more"),
        (["--typical-p", "0"], "--typical-p is 0"),
        (["--forced-word", "zebra", "--max-tokens", "2"], "more than --max-tokens 2"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_flag(call, tiny, options, said):
    done = call("generate", tiny, "-p", "the", *options)
    assert done.code == 2 and done.out == "" and said in done.err


def test_words_are_left_out_and_put_in(call, tiny):
    free = call("generate", tiny, "-p", "the", "--max-tokens", 12).out
    made = record(call("generate", tiny, "-p", "the", "--max-tokens", 12, "--logprobs", 0))
    first = made["logprobs"][0]["id"]
    other = record(
        call("generate", tiny, "-p", "the", "--max-tokens", 12, "--logprobs", 0, "--logit-bias", f"#{first}=-inf")
    )
    assert first not in [one["id"] for one in other["logprobs"]]
    ended = record(call("generate", tiny, "-p", "the", "--max-tokens", 12, "--stop-id", first, "--json"))
    assert ended["finish_reason"] == "stop" and ended["usage"]["completion_tokens"] == 1
    assert "list" in call("generate", tiny, "-p", "the", "--max-tokens", 12, "--forced-word", "list").out
    assert free == made["completion"]


def test_an_explanation_is_beside_the_text_and_in_the_record(call, tiny):
    said = ["-p", "the", "--max-tokens", 3, "--top-k", 4, "--temperature", 0.8]
    plain = call("generate", tiny, *said)
    shown = call("generate", tiny, *said, "--explain")
    assert shown.out == plain.out and plain.err == ""
    assert shown.err.count(": drawn") == 3 and "top k 4" in shown.err and "temperature" in shown.err
    made = record(call("generate", tiny, *said, "--explain", "--json"))
    assert [step["step"] for step in made["steps"]] == [0, 1, 2]
    for step in made["steps"]:
        names = [stage["name"] for stage in step["stages"]]
        assert names[0] == "model" and names[-2:] == ["temperature", "top_k"]
        chosen = next(one for one in step["candidates"] if one["id"] == step["chosen"]["id"])
        assert chosen["chances"][-1] > 0 and step["stages"][-1]["left"] == 4


def test_a_form_that_was_cut_off_is_said_to_be(call, tiny):
    done = call("generate", tiny, "-p", "the", "--regex", "[0-9]{9}", "--max-tokens", 4)
    assert done.code == 0 and len(done.out) == 4 and "1 of 1 texts were cut off" in done.err
