"""prompt: what generate is asked, after examples of how it is answered."""

import json

import pytest

SUMS = [{"prompt": f"{n} + {n} =", "completion": f" {2 * n}", "id": n} for n in range(6)]


def lines(records) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def records(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def sums(tmp_path):
    (tmp_path / "sums.jsonl").write_bytes(lines(SUMS))
    return "sums.jsonl"


def test_a_query_keeps_its_fields_and_its_answer_becomes_the_reference(call, sums):
    query = {"prompt": "7 + 7 =", "completion": " 14", "id": [7], "reference_by": "me"}
    done = call("prompt", sums, "-", "--shots", 2, "--choose", "first", "--separator", "\\n", stdin=lines([query]))
    asked = {"id": [7], "reference_by": "me", "reference": " 14", "shots": [0, 1]}
    assert (done.code, done.err) == (0, "")
    assert records(done.out) == [asked | {"prompt": "0 + 0 = 0\n1 + 1 = 2\n7 + 7 ="}]


def test_without_queries_each_example_is_asked_after_others(call, sums):
    found = records(call("prompt", "-", "--shots", 9, "-q", stdin=lines([*SUMS, SUMS[0]])).out)
    assert [record["id"] for record in found] == [0, 1, 2, 3, 4, 5, 0]
    assert all(record["shots"].count(number) == 0 for number, record in enumerate(found))
    assert sorted(found[0]["shots"]) == sorted(found[6]["shots"]) == [1, 2, 3, 4, 5]  # nor a copy of it
    assert "5 of 7" not in call("prompt", "-", "--shots", 9, stdin=lines(SUMS)).err
    assert "6 of 6 prompts have fewer than 9 shots" in call("prompt", sums, "--shots", 9).err


def test_a_draw_does_not_depend_on_other_queries(call, sums):
    several = records(
        call("prompt", sums, "-", "--seed", 3, stdin=lines([{"prompt": f"{n} + 9 ="} for n in range(5)])).out
    )
    other = records(
        call("prompt", sums, "-", "--seed", 3, stdin=lines([{"prompt": f"{n} + 8 ="} for n in range(3)])).out
    )
    assert [record["shots"] for record in several[:3]] == [record["shots"] for record in other]
    assert len({tuple(record["shots"]) for record in several}) > 1 and "reference" not in several[0]


def test_records_are_put_in_words_as_for_finetune(call):
    taken = {"article": "Long.", "gist": "Short."}
    line = ["--template", "summarise/1", "--map", "summary=gist", "--shots", 1, "--instruction", "Sum up."]
    (first, _) = records(call("prompt", "-", *line, stdin=lines([taken, {"article": "Longer.", "gist": "Less."}])).out)
    assert first["prompt"] == "Sum up.\n\nLonger.\n\nSummary: Less.\n\nLong.\n\nSummary:"
    assert (first["reference"], first["gist"]) == ("Short.", "Short.")


def test_bad_queries_are_answered_in_place_and_bad_examples_named(call, tmp_path, sums):
    (tmp_path / "some.jsonl").write_bytes(b'{"prompt": "a", "completion": "b"}\nnot json\n[1]\n{"prompt": 3}\n')
    done = call("prompt", "some.jsonl", "--shots", 1)
    assert done.code == 3 and "3 of 4 queries" in done.err
    assert [str(record.get("error"))[:6] for record in records(done.out)] == ["None", "line 2", "line 3", "line 4"]
    done = call("prompt", "some.jsonl", sums, "--shots", 1)
    assert done.code == 3 and len(records(done.out)) == 6 and not any("error" in one for one in records(done.out))
    assert all(f"some.jsonl line {number}" in done.err for number in (2, 3, 4)) and "3 of 4 examples" in done.err


def test_tokens_are_counted_as_generate_counts_them_and_long_prompts_fitted(call, tiny, sums):
    line = ["prompt", sums, "--model", tiny, "--shots", 5, "--max-tokens", 24]
    long = call(*line)
    found = records(long.out)
    assert long.code == 0 and "6 of 6 prompts do not fit 64 tokens of context, 24 for the completion" in long.err
    generated = records(call("generate", tiny, "-", "--max-tokens", 2, "-q", stdin=long.out.encode()).out)
    assert [one["usage"]["prompt_tokens"] for one in generated] == [one["prompt_tokens"] for one in found]
    assert all(one["reference"] != one["completion"] for one in generated)
    fitted = call(*line, "--fit")
    short = records(fitted.out)
    assert all(one["prompt_tokens"] <= 40 for one in short) and "do not fit" not in fitted.err
    assert all(one["shots"] == other["shots"][: len(one["shots"])] for one, other in zip(short, found, strict=True))
    dropped = sum(len(other["shots"]) - len(one["shots"]) for one, other in zip(short, found, strict=True))
    assert dropped and f"{dropped} shots were left out of 6 of 6 prompts" in fitted.err
    too_long = call("prompt", sums, "-", "--model", tiny, "--fit", stdin=lines([{"prompt": "the " * 70}]))
    assert "1 of 1 prompts do not fit" in too_long.err and records(too_long.out)[0]["shots"] == []


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        (["-", "-"], 2, "stdin can be read once"),
        (["-", "--fit"], 2, "--fit wants a --model"),
        (["-", "--shots", "-1"], 2, "--shots is -1"),
        (["-", "--template", "sumarise"], 2, "sumarise"),
        (["-"], 1, "stdin holds no record"),
    ],
)
def test_what_cannot_be_is_refused(call, line, code, told):
    done = call("prompt", *line)
    assert done.code == code and told in done.err and done.out == ""


def test_examples_without_answers_are_no_shots_but_can_be_asked(call):
    bare = lines([{"prompt": "a"}, {"prompt": "b"}])
    refused = call("prompt", "-", stdin=bare)
    assert refused.code == 1 and "--shots 0" in refused.err
    assert [one["prompt"] for one in records(call("prompt", "-", "--shots", 0, stdin=bare).out)] == ["a", "b"]
    found = records(call("prompt", "-", "--shots", 1, stdin=bare + lines([{"prompt": "c", "completion": "d"}])).out)
    assert [one["shots"] for one in found] == [[2], [2], []]
