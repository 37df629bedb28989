"""eval-rouge: texts or records in, one report out; what does not fit is refused."""

import json

import pytest

PAIRS = [
    {"completion": "the cat sat on the mat", "reference": "a cat sat on a mat"},
    {"completion": "dogs bark", "references": ["a dog barks", "dogs bark loudly"]},
    {"completion": "", "reference": "something"},
]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return path


def test_the_report_has_the_means_of_each_kind_and_says_what_was_computed(call, pairs):
    done = call("eval-rouge", pairs, "--stem")
    found = json.loads(done.out)
    assert done.code == 0 and list(found)[:5] == ["schema", "rouge1", "rouge2", "rougeL", "rougeLsum"]
    assert found["rouge1"] == pytest.approx({"precision": (4 / 6 + 1) / 3, "recall": (4 / 6 + 2 / 3) / 3,
                                             "f1": (4 / 6 + 0.8) / 3})  # fmt: skip
    assert found["pairs"] == 3 and found["signature"].startswith("nrefs:var|case:lower|words:rouge|stem:porter|")
    piped = json.loads(call("eval-rouge", "-", "--stem", stdin=pairs.read_bytes()).out)
    assert {**piped, "seconds": 0} == {**found, "seconds": 0}


def test_text_files_with_two_references_give_intervals_on_request(call, tmp_path):
    (tmp_path / "said").write_text("a b c\nd e f\ng h i\n" * 20)
    (tmp_path / "one").write_text("a b x\nd x y\nx y z\n" * 20)
    (tmp_path / "two").write_text("a b c\nq\nr\n" * 20)
    line = ("eval-rouge", "said", "one", "two", "--kinds", "rougeL,rougeW", "--ci", "0.9")
    found = json.loads(call(*line).out)
    assert found["rougeL"]["f1"] == pytest.approx((1 + 1 / 3 + 0) / 3) and "rouge1" not in found
    assert found["rougeL"]["low"] < found["rougeL"]["f1"] < found["rougeL"]["high"]
    assert found["signature"].startswith("nrefs:2|") and "|weight:1.2|" in found["signature"]
    assert "|bs:1000|seed:12345|" in found["signature"]
    again = json.loads(call(*line).out)
    assert again["rougeL"] == found["rougeL"] != json.loads(call(*line, "--seed", "1").out)["rougeL"]


def test_samples_are_whole_records_by_number_and_replaced_only_by_force(call, pairs, tmp_path):
    assert call("eval-rouge", pairs, "--samples", "samples.jsonl").code == 0
    found = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [one["doc_id"] for one in found] == [0, 1, 2] and found[1]["scores"]["rouge2"] == pytest.approx(2 / 3)
    assert found[2]["rougeL"] == {"precision": 0, "recall": 0, "f1": 0} and found[2]["references"] == ["something"]
    before = (tmp_path / "samples.jsonl").read_bytes()
    assert "exists" in call("eval-rouge", pairs, "--samples", "samples.jsonl").err
    (tmp_path / "bad.jsonl").write_text(pairs.read_text() + "{\n")
    assert call("eval-rouge", "bad.jsonl", "--samples", "samples.jsonl", "--force").code == 1
    assert (tmp_path / "samples.jsonl").read_bytes() == before and not list(tmp_path.glob(".*partial"))


def test_a_missed_limit_ends_with_its_code_after_the_report(call, pairs):
    assert call("eval-rouge", pairs, "--fail-under", "0.4", "--fail-under", "rougeL.recall=0.1").code == 0
    missed = call("eval-rouge", pairs, "--fail-under", "rouge2=0.9")
    assert missed.code == 6 and json.loads(missed.out)["pairs"] == 3 and "rouge2 is" in missed.err


@pytest.mark.parametrize(
    "options, code, problem",
    [
        (["--kinds", "rouge1,bleu"], 2, "--kinds is bleu"),
        (["--kinds", "rougeL", "--fail-under", "rouge1=1"], 2, "NAME one of rougeL"),
        (["--ci", "95"], 2, "--ci is 95"),
        (["--resamples", "10", "--seed", "1"], 2, "--resamples, --seed say nothing without --ci"),
        (["--words", "chinese"], 2, "--words"),
        (["--weight", "0"], 2, "--weight is 0"),
        (["--pred-field", "text"], 1, "pairs.jsonl:1 has no field 'text'"),
        (["references.txt"], 4, "references.txt ends after 2 texts, but"),
        (["--format", "lines"], 1, "is plain text, which has no reference"),
    ],
)
def test_wrong_options_and_inputs_are_refused_with_what_was_wanted(call, pairs, tmp_path, options, code, problem):
    (tmp_path / "references.txt").write_text("a\nb\n")
    done = call("eval-rouge", pairs, *options)
    assert (done.code, done.out) == (code, "") and problem in done.err and "hint:" in done.err


def test_texts_without_a_letter_of_a_to_z_are_warned_of_and_score_by_unicode(call, tmp_path):
    (tmp_path / "said.txt").write_text("今天很好\nfine\n!\n")
    done = call("eval-rouge", "said.txt", "said.txt")
    assert "1 pairs score 0" in done.err and "--words unicode" in done.err
    done = call("eval-rouge", "said.txt", "said.txt", "--words", "unicode")
    assert "warning" not in done.err and json.loads(done.out)["rougeL"]["f1"] == pytest.approx(2 / 3)
