"""generate with guesses: the same text on stdout, how they fared on stderr and in records."""

import json
import shutil

import pytest

WAYS = (("--lookup",), ("--skip-layers", "1", "--draft-tokens", "3"), ("--draft-model", "itself"))


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_guesses_change_nothing_on_stdout_and_are_told_on_stderr(call, tiny, way):
    way = [str(tiny) if word == "itself" else word for word in way]
    for options in ((), ("--temperature", 0.8, "--top-p", 0.9, "--seed", 3)):
        asked = ("generate", tiny, "-p", "the list of the", "--max-tokens", 40, "--dtype", "fp32", *options)
        plain, guessed = call(*asked), call(*asked, *way)
        assert guessed.code == plain.code == 0 and guessed.out == plain.out
        assert "right" not in plain.err
        assert "guesses were right" in guessed.err or "No token was guessed" in guessed.err
    assert call(*asked, *way, "-q").err == ""


def test_records_say_how_many_tokens_were_guessed_and_kept(call, tiny, tmp_path):
    file = tmp_path / "in.jsonl"
    records = [{"id": number, "prompt": "the list " * (1 + number % 3)} for number in range(9)]
    file.write_text("".join(json.dumps(record) + "\n" for record in [*records[:4], {"prompt": 3}, *records[4:]]))
    asked = ("generate", tiny, file, "--max-tokens", 20, "--dtype", "fp32", "--batch-size", 4)
    plain, guessed = call(*asked), call(*asked, "--draft-model", tiny, "--draft-tokens", 3)
    assert plain.code == guessed.code == 3
    read = [[json.loads(line) for line in one.out.splitlines()] for one in (plain, guessed)]
    for one, other in zip(*read, strict=True):
        if "error" in one:
            assert "error" in other
            continue
        assert one["completion"] == other["completion"] and one["finish_reason"] == other["finish_reason"]
        assert "drafted" not in one["usage"]
        usage = other["usage"]
        assert usage["completion_tokens"] == one["usage"]["completion_tokens"]
        assert 0 < usage["drafted"] == usage["accepted"] < usage["completion_tokens"]


def test_a_draft_model_that_does_not_fit_is_refused_before_anything_is_read(call, tiny, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text.replace("<|turn|>", "<|tern|>"), encoding="utf-8")
    (other / "model.safetensors").unlink()
    found = call("generate", tiny, "-p", "a", "--draft-model", other)
    assert found.code == 4 and found.out == ""
    assert "has other tokens than the model: 1 differ" in found.err and "--lookup" in found.err
    assert call("generate", tiny, "-p", "a", "--skip-layers", "2").code == 4
    assert call("generate", tiny, "-p", "a", "--lookup", "--beams", "2").code == 2
    assert call("generate", tiny, "-p", "a", "--draft-tokens", "2").code == 2


def test_a_form_that_is_complete_at_the_limit_is_complete(call, tiny):
    """Where guesses were made it was said to be cut off: the limit was looked at first."""
    pytest.importorskip("llguidance", reason="the extra guide")
    asked = ("generate", tiny, "-p", "the", "--regex", "[a-z]{8}", "--json")
    plain = json.loads(call(*asked).out)
    for way in ((), ("--skip-layers", "1", "--draft-tokens", "3")):
        done = call(*asked, *way, "--max-tokens", plain["usage"]["completion_tokens"])
        record = json.loads(done.out)
        assert (record["completion"], record["finish_reason"]) == (plain["completion"], "stop")
        assert "cut off" not in done.err
