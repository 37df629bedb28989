"""eval-bleu, eval-chrf, eval-ter against sacrebleu's own command, and what they refuse."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu

from tests.conftest import environment

SAID = (
    "the cat sat on a mat . , and dogs' été naïve 3.5 \"quoted\" It's 日本語 でした 中文文本 ; über U.S. &quot; 한국어"
)
WORDS = SAID.split()
PAIRS = 40
# Options of ours, and sacrebleu's.
CASES = {
    "bleu": ([], []),
    "bleu one": (["--tokenize", "intl", "--lowercase"], ["-tok", "intl", "-lc"]),
    "bleu two": (["--tokenize", "zh"], ["-tok", "zh"]),
    "bleu three": (["--tokenize", "char", "--smooth-method", "floor"], ["-tok", "char", "-s", "floor"]),
    "bleu four": (["--tokenize", "none", "--smooth-method", "none"], ["-tok", "none", "-s", "none"]),
    "bleu five": (
        ["--tokenize", "ja-mecab", "--smooth-method", "add-k", "--smooth-value", "0.5"],
        ["-tok", "ja-mecab", "-s", "add-k", "-sv", "0.5"],
    ),
    "bleu six": (["--tokenize", "ko-mecab", "--ci", "0.95"], ["-tok", "ko-mecab", "--confidence"]),
    "chrf": (["--ci", "0.95", "--resamples", "50"], ["--confidence", "-cin", "50"]),
    "chrf one": (
        ["--word-order", "2", "--whitespace", "--beta", "3", "--lowercase"],
        ["--chrf-word-order", "2", "--chrf-whitespace", "--chrf-beta", "3", "--chrf-lowercase"],
    ),
    "chrf two": (["--char-order", "4", "--eps-smoothing"], ["--chrf-char-order", "4", "--chrf-eps-smoothing"]),
    "ter": (["--ci", "0.95", "--resamples", "50"], ["--confidence", "-cin", "50"]),
    "ter one": (
        ["--normalized", "--asian-support", "--no-punct", "--case-sensitive"],
        ["--ter-normalized", "--ter-asian-support", "--ter-no-punct", "--ter-case-sensitive"],
    ),
}


def theirs(*argv: object, env: dict[str, str] | None = None) -> dict[str, object]:
    """What sacrebleu's command reports."""
    command = [sys.executable, "-m", "sacrebleu", *map(str, argv), "-w", "10"]
    done = subprocess.run(command, env=environment(env), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def changed(text: str, chance: random.Random) -> str:
    """The text with some words another."""
    return " ".join(chance.choice(WORDS) if chance.random() < 0.3 else word for word in text.split())


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """A directory of two systems' texts, two references of each, and JSON lines that hold one system with both."""
    path, chance = tmp_path_factory.mktemp("texts"), random.Random(3)
    first = [" ".join(chance.choices(WORDS, k=chance.randint(1, 20))) for _ in range(PAIRS)]
    columns = {"one.ref": first, "two.ref": [changed(text, chance) for text in first]}
    columns |= {name: [changed(text, chance) for text in first] for name in ("ours", "base")}
    columns["ours"][5] = ""
    columns["ours"][7] += " \t"
    for name, lines in columns.items():
        (path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for name in ("ours", "base"):
        records = [
            {"id": number, "completion": said, "references": told}
            for number, (said, *told) in enumerate(zip(columns[name], first, columns["two.ref"], strict=True))
        ]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("case", CASES)
def test_score_signature_and_interval_are_those_of_sacrebleus_own_command(case, texts, call):
    metric, (our, their) = case.split()[0], CASES[case]
    done = call(f"eval-{metric}", texts / "ours", texts / "one.ref", texts / "two.ref", *our, "-q")
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    wanted = theirs(texts / "one.ref", texts / "two.ref", "-i", texts / "ours", "-m", metric, *their)
    # ten digits are printed; resamples are summed in float32, by the same operations in the same order
    for name in ("score", "confidence_mean", "confidence_var"):
        if name in wanted:
            assert report[name] == pytest.approx(wanted[name], abs=1e-9 if name == "score" else 2e-5)
    same = {name: value for name, value in wanted.items() if isinstance(value, str) and name != "confidence"}
    assert {name: report[name] for name in same} == same


def test_records_and_several_files_say_the_same_as_the_plain_function(texts, call):
    from llmctl.core.metrics.translation import bleu

    files = call("eval-bleu", texts / "ours", texts / "one.ref", texts / "two.ref", "-q")
    records = call("eval-bleu", "-", "-q", stdin=(texts / "ours.jsonl").read_bytes())
    read = [(texts / name).read_text().split("\n")[:-1] for name in ("ours", "one.ref", "two.ref")]
    wanted = bleu(read[0], list(zip(*read[1:], strict=True)))
    for done in (files, records):
        report = json.loads(done.out)
        assert (report["score"], report["signature"]) == (wanted.score, wanted.signature)
        assert report["schema"] == "llmctl/eval-bleu/1"


@pytest.mark.parametrize("metric", ["bleu", "chrf", "ter"])
@pytest.mark.parametrize("test", ["bootstrap", "randomization"])
def test_differences_from_a_baseline_are_as_likely_as_sacrebleus_paired_tests_say(metric, test, texts, call):
    from sacrebleu.significance import PairedTest

    trials = ["--resamples", "100", "--shuffles", "100", "--test", test]
    line = ["--baseline", texts / "base.jsonl", *trials, "-q"]
    report = json.loads(call(f"eval-{metric}", texts / "ours.jsonl", *line).out)
    read = {name: (texts / name).read_text().split("\n")[:-1] for name in ("ours", "base", "one.ref", "two.ref")}
    named = {"bleu": sacrebleu.BLEU(force=True), "chrf": sacrebleu.CHRF(), "ter": sacrebleu.TER()}
    systems = [(name, [text.rstrip() for text in read[name]]) for name in ("base", "ours")]
    kind = {"bootstrap": "bs", "randomization": "ar"}[test]
    references = [read["one.ref"], read["two.ref"]]
    signatures, scores = PairedTest(systems, {metric: named[metric]}, references, kind, n_samples=100)()
    base, ours = scores[report["name"]]
    found = report["baselines"][0]
    assert report["signature"] == str(signatures[report["name"]])
    assert (report["score"], found["score"], found["p_value"]) == (ours.score, base.score, ours.p_value)
    assert found["difference"] == ours.score - base.score
    if test == "bootstrap":
        pairs = ((report, ours), (found, base))
        assert all((one["confidence_mean"], one["confidence_var"]) == (two.mean, two.ci) for one, two in pairs)


def test_tokenizers_of_sentencepiece_read_the_model_in_sacrebleus_directory_and_fetch_nothing(texts, run, tmp_path):
    import sentencepiece

    env = {"SACREBLEU": str(tmp_path)}
    line = ("eval-bleu", texts / "ours", texts / "one.ref", "--tokenize", "flores200", "-q")
    done = run(*line, env=env)
    assert (done.returncode, done.stdout) == (1, "") and str(tmp_path) in done.stderr
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "flores200sacrebleuspm").write_bytes(b"cut short")
    assert "flores200sacrebleuspm is no model of sentencepiece" in run(*line, env=env).stderr
    sentencepiece.SentencePieceTrainer.train(
        input=str(texts / "one.ref"),
        model_prefix=str(tmp_path / "made"),
        vocab_size=60,
        model_type="char",
        num_threads=1,
        minloglevel=2,
    )
    os.rename(tmp_path / "made.model", tmp_path / "models" / "flores200sacrebleuspm")
    report, wanted = (
        json.loads(run(*line, env=env).stdout),
        theirs(texts / "one.ref", "-i", texts / "ours", "-tok", "flores200", env=env),
    )
    assert report["signature"] == wanted["signature"]
    assert report["score"] == pytest.approx(wanted["score"], abs=1e-9)


def test_sentences_are_scored_one_by_one_and_records_pass_through(texts, call):
    done = call("eval-bleu", texts / "ours.jsonl", "--sentence-level", "--jobs", "2")
    found = [json.loads(line) for line in done.out.splitlines()]
    metric = sacrebleu.BLEU(effective_order=True)
    for number, record in enumerate(found):
        assert (record["id"], record["doc_id"]) == (number, number)
        wanted = metric.sentence_score(record["completion"].rstrip(), record["references"])
        assert record["score"] == record["scores"]["bleu"] == wanted.score
    assert len(found) == PAIRS and found[0]["signature"] == str(metric.get_signature())
    plain = call("eval-ter", texts / "ours", texts / "one.ref", "--sentence-level").out.splitlines()
    assert json.loads(plain[5])["score"] == 100.0  # an empty text


def test_samples_are_written_whole_or_not_at_all(texts, call, tmp_path):
    line = ("eval-chrf", texts / "ours", texts / "one.ref", "-q", "--samples", "each.jsonl")
    assert call(*line).code == 0
    found = [json.loads(text) for text in (tmp_path / "each.jsonl").read_text().splitlines()]
    assert [one["doc_id"] for one in found] == list(range(PAIRS))
    metric = sacrebleu.CHRF()
    for one in found:
        wanted = metric.sentence_score(one["prediction"].rstrip(), one["references"]).score
        assert one["scores"] == {"chrf": wanted}
    assert call(*line).code == 1 and call(*line, "--force").code == 0
    (tmp_path / "short").write_text("one line\n")
    assert call("eval-chrf", texts / "ours", "short", "--samples", "none.jsonl").code == 4
    assert sorted(os.listdir(tmp_path)) == ["each.jsonl", "short"]


def test_what_does_not_fit_is_refused_with_file_and_line_and_without_a_score(texts, call, tmp_path):
    (tmp_path / "short").write_text("a\nb\n")
    (tmp_path / "bad.jsonl").write_text('{"completion": "a", "reference": "a"}\n{"completion": "a"\n')
    (tmp_path / "some.jsonl").write_text(
        '{"completion": "a b", "references": ["a b"]}\n{"completion": "c", "references": ["c", "d"]}\n'
    )
    other = (texts / "base.jsonl").read_text().replace("the", "teh")
    (tmp_path / "other.jsonl").write_text(other)
    refused = {
        (texts / "ours", "short"): (4, "ours:3"),
        ("short", texts / "one.ref"): (4, "one.ref:3"),
        ("bad.jsonl",): (1, "bad.jsonl:2"),
        ("some.jsonl",): (4, "some.jsonl:2"),
        (texts / "ours", texts / "one.ref", "--baseline", "short"): (4, "short"),
        (texts / "ours.jsonl", "--baseline", "other.jsonl"): (4, "other.jsonl:"),
        (texts / "ours", "-", "--baseline", "short"): (2, "--baseline"),
        (texts / "ours", texts / "one.ref", "--ci", "95"): (2, "--ci"),
        (texts / "ours", texts / "one.ref", "--smooth-value", "1"): (2, "--smooth-value"),
        (texts / "ours", texts / "one.ref", "--sentence-level", "--ci", "0.9"): (2, "--sentence-level"),
        (texts / "ours", texts / "one.ref", "--fail-under", "low=1"): (2, "--fail-under"),
    }
    for argv, (code, words) in refused.items():
        done = call("eval-bleu", *argv, "-q")
        assert (done.code, done.out) == (code, "") and words in done.err, done.err
    done = call("eval-bleu", "some.jsonl", "--varying", "-q")
    assert done.code == 0 and json.loads(done.out)["nrefs"] == "var"
    alone = call("eval-bleu", "some.jsonl", "--varying", "--sentence-level").out.splitlines()
    assert [json.loads(line)["signature"][:8] for line in alone] == ["nrefs:1|", "nrefs:2|"]


def test_a_score_past_its_limit_is_exit_code_6_after_the_report(texts, call):
    files = (texts / "ours", texts / "one.ref", "-q")
    for metric, option in (("bleu", "--fail-under"), ("ter", "--fail-over")):
        score = json.loads(call(f"eval-{metric}", *files).out)["score"]
        sign = 1 if metric == "bleu" else -1
        missed = call(f"eval-{metric}", *files, option, score + sign * 0.1)
        assert missed.code == 6 and json.loads(missed.out)["score"] == score and f"{option}" in missed.err
        assert call(f"eval-{metric}", *files, option, f"score={score - sign * 0.1}").code == 0
    compared = (*files, "--baseline", texts / "base", "--resamples", "20", "--fail-under", "difference=50")
    assert call("eval-bleu", *compared).code == 6
    others = ("--baseline", texts / "base", "--baseline", texts / "one.ref", "--resamples", "20")
    found = [one["difference"] for one in json.loads(call("eval-ter", *files, *others).out)["baselines"]]
    assert min(found) < max(found)  # the worst of them counts
    assert call("eval-ter", *files, *others, "--fail-over", f"difference={sum(found) / 2}").code == 6


def test_a_baseline_may_come_from_stdin_but_references_that_are_read_twice_not_from_a_pipe(texts, call, tmp_path):
    files, wanted = (texts / "ours", texts / "one.ref"), ("--resamples", "20", "-q")
    one = call("eval-chrf", *files, "--baseline", "-", *wanted, stdin=(texts / "base").read_bytes())
    two = call("eval-chrf", *files, "--baseline", texts / "base", *wanted)
    assert json.loads(one.out)["baselines"][0]["score"] == json.loads(two.out)["baselines"][0]["score"]
    os.mkfifo(tmp_path / "pipe")
    for references in ("-", "pipe"):
        done = call("eval-chrf", texts / "ours", references, "--baseline", texts / "base", *wanted, stdin=b"")
        assert done.code == 2 and "they cannot come from a pipe" in done.err
    nowhere = call("eval-chrf", *files, "--samples", "no/where", "-q")
    assert nowhere.code == 1 and "no/where cannot be written: no is no directory" in nowhere.err
    assert "'': no such file" in call("eval-chrf", "", texts / "one.ref").err


def test_options_that_nothing_would_look_at_are_refused(texts, call):
    files = (texts / "ours", texts / "one.ref", "-q")
    for options, words in (
        (("--test", "randomization"), "--test says nothing without --ci or --baseline"),
        (("--resamples", "20"), "--resamples says nothing without --ci or --baseline"),
        (("--ci", "0.9", "--shuffles", "20"), "--shuffles says nothing without --baseline"),
    ):
        done = call("eval-chrf", *files, *options)
        assert (done.code, done.out) == (2, "") and words in done.err
    assert call("eval-chrf", *files, "--ci", "0.9", "--resamples", "20", "--seed", "3").code == 0


def test_tokenized_predictions_are_warned_of(call, tmp_path):
    (tmp_path / "said").write_text("a b .\n" * 100)
    assert "tokenized" in call("eval-bleu", "said", "said").err
    assert "tokenized" not in call("eval-bleu", "said", "said", "--tokenize", "none").err
