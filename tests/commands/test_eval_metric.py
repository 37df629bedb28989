"""eval-metric, and our metrics as modules of the evaluate library."""

import json
from pathlib import Path

import pytest

from llmctl.core.metrics.named import ours

TEXTUAL = ("bleu", "chrf", "exact_match", "rouge", "ter", "token_f1")
MODULES = Path(__file__).resolve().parents[2] / "llmctl" / "core" / "metrics" / "modules"
SAID = ["the cat sat on the mat", "b c", "A dog."]
TOLD = [["the cat sat on a mat", "a cat"], ["b c", "c"], ["the dog", "dog"]]
MODULE = '''
import datasets
import evaluate

class Shares(evaluate.Metric):
    """The share of words that are right."""

    def _info(self):
        words = datasets.Sequence(datasets.Value("{type}"))
        features = datasets.Features({{"predictions": words, "references": words}})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, scale=1):
        print("a module that talks")
        pairs = zip(predictions, references)
        each = [scale * sum(one == other for one, other in zip(*pair)) / len(pair[0]) for pair in pairs]
        return {{"share": sum(each) / len(each), "each": each}}
'''


@pytest.fixture(scope="module")
def evaluate():
    return pytest.importorskip("evaluate")


@pytest.fixture
def shares(tmp_path):
    path = tmp_path / "shares.py"
    path.write_text(MODULE.format(type="string"))
    return path


def test_our_metrics_load_by_path_and_combine_and_say_what_the_plain_functions_say(evaluate):
    from llmctl.core.metrics.answers import exact_match, token_f1
    from llmctl.core.metrics.rouge.score import rouge
    from llmctl.core.metrics.translation import bleu, chrf, ter

    found = evaluate.combine([evaluate.load(str(MODULES / f"{name}.py")) for name in TEXTUAL])
    assert set(ours()) == {*TEXTUAL, "perplexity"}
    for said, told in zip(SAID, TOLD, strict=True):
        found.add(prediction=said, reference=told)
    result = found.compute()
    for name, function in (("bleu", bleu), ("chrf", chrf), ("ter", ter)):
        assert result[f"{name}_score"] == function(SAID, TOLD).score
        assert result[f"{name}_signature"] == function(SAID, TOLD).signature
    assert {kind: result[kind] for kind in ("rouge1", "rougeL")} == {
        kind: score.f1 for kind, score in rouge(SAID, TOLD).items() if kind in ("rouge1", "rougeL")
    }
    pairs = list(zip(SAID, TOLD, strict=True))
    assert result["exact_match"] == sum(exact_match(*pair, "none") for pair in pairs) / 3 == 1 / 3
    assert result["f1"] == sum(token_f1(*pair) for pair in pairs) / 3


def test_a_metric_of_ours_takes_options_and_one_reference_as_text(evaluate):
    metric = evaluate.load(str(MODULES / "exact_match.py"))
    assert metric.compute(predictions=["A Dog"], references=["dog"]) == {"exact_match": 0.0}
    assert metric.compute(predictions=["A Dog"], references=["dog"], normal="squad") == {"exact_match": 1.0}
    with pytest.raises(ValueError, match="normal is 'bogus', wanted none, strip, lower, squad"):
        metric.compute(predictions=["A Dog"], references=["dog"], normal="bogus")
    one = evaluate.load(str(MODULES / "rouge.py")).compute(predictions=["a"], references=["a"], kinds="rouge1")
    assert list(one) == ["rouge1", "signature"]
    assert "smooth_method" in evaluate.load(str(MODULES / "bleu.py")).inputs_description


def test_records_and_text_files_are_read_and_the_report_says_what_was_computed(call, tmp_path):
    records = [{"completion": said, "references": told} for said, told in zip(SAID, TOLD, strict=True)]
    (tmp_path / "said.txt").write_text("".join(f"{text}\n" for text in SAID))
    for column in (0, 1):
        (tmp_path / f"told{column}.txt").write_text("".join(f"{texts[column]}\n" for texts in TOLD))
    stdin = "".join(json.dumps(record) + "\n" for record in records).encode()
    done = call("eval-metric", "bleu", "-", "--option", "tokenize=char", "-q", stdin=stdin)
    files = call("eval-metric", MODULES / "bleu.py", "said.txt", "told0.txt", "told1.txt", "--option", "tokenize=char")
    one, two = json.loads(done.out), json.loads(files.out)
    assert one["score"] == two["score"] > 0 and "tok:char" in one["signature"] and one["pairs"] == 3
    assert call("eval-metric", "token_f1", "said.txt", "told1.txt", "--fail-under", "0.99").code == 6
    report = json.loads(call("eval-metric", "token_f1", "said.txt", "told0.txt").out)
    assert report["signature"].startswith("metric:token_f1|module:") and "|version:llmctl-" in report["signature"]


def test_a_module_from_a_path_gets_what_it_takes_and_what_it_prints_is_no_data(call, shares, tmp_path):
    (tmp_path / "said").write_text("B-X O O\nO B-Y\n")
    (tmp_path / "told").write_text("B-X O O\nO O\n")
    done = call("eval-metric", shares, "said", "told", "--option", "scale=2", "--samples", "each.jsonl", "-q")
    report = json.loads(done.out)
    assert (done.code, report["share"]) == (0, 1.5) and "each" not in report and "talks" in done.err
    assert "scale:2" in report["signature"]
    each = [json.loads(line) for line in (tmp_path / "each.jsonl").read_text().splitlines()]
    assert each == [{"doc_id": 0, "scores": {"each": 2.0}}, {"doc_id": 1, "scores": {"each": 1.0}}]
    (tmp_path / "tags.jsonl").write_text('{"found": ["a", "b"], "tags": ["a", "c"]}\n')
    fields = ("--field", "predictions=found", "--field", "references=tags")
    assert json.loads(call("eval-metric", shares, "tags.jsonl", *fields, "-q").out)["share"] == 0.5


def test_lines_become_numbers_where_a_metric_takes_numbers(call, shares, tmp_path):
    shares.write_text(MODULE.format(type="int32"))
    (tmp_path / "said").write_text("1 2\n3\n")
    (tmp_path / "told").write_text("1 3\n3\n")
    assert json.loads(call("eval-metric", shares, "said", "told", "-q").out)["share"] == 0.75
    (tmp_path / "told").write_text("1 3\nthree\n")
    done = call("eval-metric", shares, "said", "told", "-q")
    assert (done.code, done.out) == (1, "") and "told:2" in done.err


def test_what_does_not_fit_is_refused_with_its_line(call, shares, tmp_path):
    (tmp_path / "said").write_text("a\nb\n")
    (tmp_path / "short").write_text("a\n")
    (tmp_path / "bad.jsonl").write_text('{"completion": "a", "reference": "a"}\n{"completion": 3, "reference": "a"}\n')
    (tmp_path / "broken.py").write_text("import evaluate\nraise ValueError('no metric')\n")
    refused = {
        ("bleu", "said", "short"): (4, "said:2"),
        ("bleu", "bad.jsonl"): (1, "bad.jsonl:2"),
        ("bleu", "said"): (1, "said:1"),
        ("bleu", "said", "said", "--option", "tokenize=none such"): (2, "tokenize"),
        ("bleu", "said", "said", "--option", "tokenize"): (2, "--option"),
        ("bleu", "said", "said", "--pred-field", "x"): (1, "said:1 is plain text, which has no field 'x'"),
        ("bleu", "said", "said", "--field", "references=x"): (1, "said:1 is plain text, which has no field 'x'"),
        ("none_such", "said", "said"): (1, "token_f1"),
        ("broken.py", "said", "said"): (1, "no metric"),
        ("bleu", "said", "said", "--samples", "each.jsonl"): (1, "--samples"),
        ("bleu", "said", "said", "--fail-under", "none=1"): (2, "none"),
    }
    for argv, (code, words) in refused.items():
        done = call("eval-metric", *argv, "-q")
        assert done.code == code and words in done.err, done
        assert not done.out or "none=1" in argv


def test_perplexity_is_that_of_eval_ppl(call, tiny, evaluate):
    texts = ["The list of the names that are defined.", "Return a new list."]
    stdin, model = "\n".join(texts).encode(), tiny
    done = call("eval-metric", "perplexity", "-", "--option", f"model_id={model}", "-q", stdin=stdin)
    report = json.loads(done.out)
    wanted = json.loads(call("eval-ppl", model, "-", "--documents", "line", "-q", stdin=stdin).out)
    assert report["perplexity"] == pytest.approx(wanted["perplexity"], rel=1e-6)  # padded beside others: rounding
    assert report["tokens"] == wanted["tokens"] and len(report["perplexities"]) == 2
