"""eval-compare: figures by hand, pairs by their numbers, whatever does not fit refused by its line; two checkpoints."""

import json
import math
import random

import pytest


def records(count=200, gain=0.0, seed=0, **more):
    chance = random.Random(seed)
    return [
        {"doc_id": i, "reference": f"answer {i}", "scores": {"acc": float(chance.random() < 0.5 + gain)}, **more}
        for i in range(count)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


@pytest.fixture
def pair(tmp_path):
    """Two systems, the second much better."""
    return write(tmp_path / "a.jsonl", records()), write(tmp_path / "b.jsonl", records(gain=0.3, seed=1))


def figures(done, code=0):
    assert done.code == code, done.err
    return {one["figure"]: one for one in json.loads(done.out)["figures"]}


def test_differences_tests_and_intervals(call, pair):
    for test in ("randomisation", "bootstrap", "mcnemar"):
        done = call("eval-compare", *pair, "--test", test)
        (acc,) = figures(done).values()
        assert acc["difference"] == pytest.approx((acc["wins"] - acc["losses"]) / 200)
        assert acc["low"] < acc["difference"] < acc["high"] and acc["p"] < 0.001 and acc["verdict"] == "better"
        assert json.loads(done.out)["signature"].startswith(f"test:{test}|replicates:10000|interval:percentile-0.95|")
    same = figures(call("eval-compare", pair[0], pair[0]))["acc"]
    assert (same["difference"], same["p"], same["verdict"]) == (0, 1, "same")


def test_thresholds_are_of_what_b_gains(call, pair):
    assert call("eval-compare", *pair, "--fail-under", "0.05", "--fail-worse").code == 0
    done = call("eval-compare", *pair[::-1], "--fail-under", "acc=-0.05")
    assert done.code == 6 and "acc gains -0." in done.err and figures(done, 6)
    assert "worse by more than chance" in call("eval-compare", *pair[::-1], "--fail-worse").err
    (lower,) = figures(call("eval-compare", *pair[::-1], "--lower", "acc", "--fail-worse")).values()
    assert lower["verdict"] == "better"


def test_examples_are_paired_by_number_whatever_their_order(call, pair, tmp_path):
    shuffled = (tmp_path / pair[1]).read_text().splitlines(keepends=True)
    random.Random(3).shuffle(shuffled)
    (tmp_path / "c.jsonl").write_text("".join(shuffled))
    assert figures(call("eval-compare", pair[0], "c.jsonl")) == figures(call("eval-compare", *pair))
    assert figures(call("eval-compare", pair[0], "-", stdin="".join(shuffled).encode())) == figures(
        call("eval-compare", *pair)
    )


def test_what_does_not_fit_is_refused_by_its_line(call, pair, tmp_path):
    b = records(gain=0.3, seed=1)
    for rows, code, told in (
        (b[:150], 4, "a.jsonl:151 is example 150, which x.jsonl does not have (200 examples and 150)"),
        ([*b, {**b[0], "doc_id": 200}], 4, "x.jsonl:201 is example 200, which a.jsonl does not have"),
        ([*b, b[7]], 4, "x.jsonl:201 is example 7 once more"),
        ([*b[:9], {**b[9], "reference": "another"}, *b[10:]], 4, "a.jsonl:10 and x.jsonl:10 are both example 9"),
        ([*b[:9], {"doc_id": 9}, *b[10:]], 1, "x.jsonl:10 has no scores"),
        ([*b[:9], {"doc_id": 9, "scores": {"acc": "1"}}, *b[10:]], 1, "x.jsonl:10: its score acc is '1'"),
        ([*b[:9], {"doc_id": [9], "scores": {"acc": 1}}, *b[10:]], 1, "x.jsonl:10 has doc_id [9]"),
        ([*b[:9], 5, *b[10:]], 1, "x.jsonl:10 is not a JSON object"),
        ([{**one, "scores": {"f1": 1}} for one in b], 4, "no figure in common"),
        ([], 1, "x.jsonl holds no example"),
    ):
        done = call("eval-compare", pair[0], write(tmp_path / "x.jsonl", rows))
        assert (done.code, done.out) == (code, "") and told in done.err, done.err
    (tmp_path / "x.jsonl").write_text("{\n")
    assert "x.jsonl:1 is not JSON" in call("eval-compare", pair[0], "x.jsonl").err


def test_a_figure_that_some_examples_lack_is_left_out_aloud(call, pair, tmp_path):
    b = [{**one, "scores": one["scores"] | ({"f1": 1} if one["doc_id"] else {})} for one in records(seed=1)]
    done = call("eval-compare", write(tmp_path / "x.jsonl", b), "x.jsonl")
    assert set(figures(done)) == {"acc"} and "1 of 200 examples have no f1: left out" in done.err


def test_perplexities_are_compared_by_the_sums_of_their_documents(call, tmp_path):
    chance, rows = random.Random(0), {"a": [], "b": []}
    for i in range(60):
        tokens, words = chance.randint(5, 90), chance.randint(3, 50)
        for name, rate in (("a", 3.0), ("b", 2.8)):
            nll = tokens * (rate + chance.random() / 10)
            scores = {"nll": nll, "perplexity": math.exp(nll / tokens), "tokens": tokens, "bytes": 4 * tokens}
            rows[name].append({"doc_id": i, "scores": scores | {"words": words}})
    found = figures(call("eval-compare", *(write(tmp_path / f"{name}.jsonl", rows[name]) for name in rows)))
    assert list(found) == ["nll_per_token", "nll_per_word", "bits_per_byte"]
    sums = {name: [sum(one["scores"][part] for one in rows[name]) for part in ("nll", "bytes")] for name in rows}
    assert found["bits_per_byte"]["b"] == pytest.approx(sums["b"][0] / sums["b"][1] / math.log(2))
    assert all(one["verdict"] == "better" and one["difference"] < 0 and one["wins"] == 60 for one in found.values())
    (asked,) = figures(call("eval-compare", "a.jsonl", "b.jsonl", "--metric", "nll/bytes")).values()
    assert asked["figure"] == "nll/bytes" and asked["a"] == pytest.approx(sums["a"][0] / sums["a"][1])


def test_results_and_samples_as_lm_eval_leaves_them(call, tmp_path):
    for name, gain, seed in (("a", 0, 0), ("b", 0.3, 1)):
        place = tmp_path / name / "model"
        place.mkdir(parents=True)
        rows = [
            {"doc_id": one["doc_id"], "target": "x", "filter": filter_, "metrics": ["acc", "bleu"],
             "bleu": [["r"], "p"], "acc": bool(one["scores"]["acc"])}
            for one in records(gain=gain, seed=seed)
            for filter_ in ("none", "strict")
        ]  # fmt: skip
        write(place / "samples_arc_easy_2026-01-02T03-04-05.678.jsonl", rows)
        write(place / "samples_other_2025-01-02T03-04-05.678.jsonl", rows)  # of another run
        results = {"arc_easy": {"alias": "x", "acc,none": 0.5 + gain, "acc_stderr,none": 0.05, "bleu,none": 20 + gain}}
        text = json.dumps({"results": results, "higher_is_better": {"arc_easy": {"acc": True, "bleu": True}}})
        (place / "results_2026-01-02T03-04-05.678.json").write_text(text)
        (tmp_path / f"{name}.json").write_text(text.replace("20.3", "NaN"))
    done = call("eval-compare", "a", "b")
    found = [(one["task"], one["figure"], one["test"]) for one in json.loads(done.out)["figures"]]
    assert found == [
        ("arc_easy", "acc", "randomisation"),
        ("arc_easy,strict", "acc", "randomisation"),
        ("arc_easy", "bleu", "errors"),
    ]
    (alone,) = figures(call("eval-compare", "a.json", "b.json")).values()  # without samples: by their errors
    assert (alone["test"], alone["examples"], alone["verdict"]) == ("errors", 0, "better")
    assert alone["p"] == pytest.approx(math.erfc(0.3 / math.hypot(0.05, 0.05) / math.sqrt(2)))


def test_holm_raises_what_is_one_of_many(call, tmp_path):
    rows = {"a": records(), "b": records(gain=0.1, seed=1)}
    chance = random.Random(9)
    for name in rows:
        for one in rows[name]:
            one["scores"] |= {f"noise{i}": chance.random() for i in range(4)}
    found = figures(call("eval-compare", *(write(tmp_path / f"{name}.jsonl", rows[name]) for name in rows)))
    least = min(found.values(), key=lambda one: one["p"])
    assert least["p_holm"] == pytest.approx(min(1, 5 * least["p"]))


def test_samples_and_a_picture(call, pair, tmp_path):
    done = call("eval-compare", *pair, "--samples", "d.jsonl", "--plot", "d.png")
    assert done.code == 0 and (tmp_path / "d.png").read_bytes()[:4] == b"\x89PNG"
    made = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert sum(one["scores"]["acc"] for one in made) / 200 == pytest.approx(figures(done)["acc"]["difference"])
    for out in (["--samples", "d.jsonl"], ["--plot", "d.png"]):
        assert "exists" in call("eval-compare", *pair, *out).err
    assert call("eval-compare", *pair, "--plot", "d.gif").code == 2


def test_two_checkpoints_are_asked_the_same(call, tiny, tmp_path):
    rows = [{"prompt": "the", "choices": ["list", "of the"], "answer": i % 2} for i in range(6)]
    write(tmp_path / "asked.jsonl", rows)
    write(tmp_path / "told.jsonl", [{"prompt": "the", "reference": "list of"} for _ in range(3)])
    write(tmp_path / "docs.jsonl", [{"text": "the list of things " * (1 + i)} for i in range(4)])
    (tmp_path / "suite.toml").write_text(
        '[[task]]\nfile = "asked.jsonl"\n[[task]]\nfile = "told.jsonl"\nmetrics = ["chrf", "f1"]\nmax_tokens = 4\n'
    )
    found = json.loads(call("eval-compare", tiny, tiny, "--task", "suite.toml", "--data", "docs.jsonl").out)["figures"]
    assert [(one["task"], one["figure"]) for one in found] == [
        ("asked", "acc"), ("asked", "acc_norm"), ("told", "chrf"), ("told", "f1"),
        ("docs", "nll_per_token"), ("docs", "nll_per_word"), ("docs", "bits_per_byte"),
    ]  # fmt: skip
    assert all(one["difference"] == 0 and one["p"] == 1 for one in found)
    told = json.loads(call("eval-task", tiny, "suite.toml").out)["results"]["told"]
    assert next(one["a"] for one in found if one["figure"] == "chrf") == pytest.approx(told["chrf,none"])
    text = json.loads(call("eval-ppl", tiny, "docs.jsonl").out)
    assert next(one["a"] for one in found if one["figure"] == "nll_per_token") == pytest.approx(text["nll_per_token"])


def test_models_and_files_are_not_mixed_up(call, tiny, pair):
    for options, code, told in (
        ([tiny, pair[0]], 2, "is a checkpoint, but a.jsonl is not"),
        ([tiny, tiny], 2, "nothing is asked of them"),
        ([*pair, "--data", pair[0]], 2, "are for two checkpoints"),
        (["-", "-"], 2, "read once"),
        ([pair[0], "missing.jsonl"], 1, "missing.jsonl does not exist"),
    ):
        done = call("eval-compare", *options)
        assert (done.code, done.out) == (code, "") and told in done.err
