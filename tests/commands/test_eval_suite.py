"""eval-task on a suite file: each aspect is what the same records say when they are asked by themselves."""

import json

import pytest

QUESTIONS = [
    ("The list of the things that the thing lists", ["the THING", "of lists", "that"], 0, "north"),
    ("A thing is not THE list. Is it the end of the", ["thing", "LIST", "that the"], 1, "south"),
    ("things, and the things that THE LIST has", ["lists", "of", "the"], 2, "north"),
    ("Do not list the thing that it is of", ["it", "is", "not"], 1, "south"),
    ("list THIS of that in the", ["list", "things", "a"], 0, "north"),
    ("The end of the thing is the thing that", ["ends", "lists", "is"], 2, "north"),
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def place(tmp_path):
    """A suite of a choice and of an answer, beside its records and some text."""
    rows = [dict(zip(("prompt", "choices", "answer", "site"), row, strict=True)) for row in QUESTIONS]
    write(tmp_path / "which.jsonl", rows)
    write(tmp_path / "lower.jsonl", [{**row, "prompt": row["prompt"].lower()} for row in rows])
    write(tmp_path / "say.jsonl", [{"prompt": row["prompt"], "reference": "the list", "site": "x"} for row in rows])
    (tmp_path / "train.txt").write_text(f"Before.\n{QUESTIONS[1][0].upper()} end.\n", encoding="utf-8")
    (tmp_path / "suite.toml").write_text(
        """
name = "things"
shift = ["lower", "contract"]
train = ["train.txt"]
ngram = 8

[[task]]
file = "which.jsonl"
group = "site"
category = "choosing"
weight = 3

[[task]]
file = "say.jsonl"
metrics = ["f1"]
max_tokens = 4
""",
        encoding="utf-8",
    )
    return tmp_path


def report(done):
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_a_suite_tells_each_aspect_and_the_means(call, tiny, place):
    done = call("eval-task", tiny, place / "suite.toml", "--samples", "samples.jsonl", "--ci", 0.9)
    found = report(done)
    alone = report(call("eval-task", tiny, place / "which.jsonl"))["results"]["which"]
    lower = report(call("eval-task", tiny, place / "lower.jsonl"))["results"]["lower"]
    aspects, results = found["aspects"]["which"], found["results"]
    assert results["which"]["acc,none"] == alone["acc,none"]
    assert aspects["robustness"]["shifts"]["lower"]["value"] == lower["acc,none"]
    assert aspects["robustness"]["worst"]["value"] <= min(alone["acc,none"], lower["acc,none"])
    assert aspects["robustness"]["changed"]["contract"] == pytest.approx(2 / 6)  # "is not", "Do not"
    groups = aspects["fairness"]["groups"]
    assert {name: group["records"] for name, group in groups.items()} == {"north": 4, "south": 2}
    assert sum(g["records"] * g["value"] for g in groups.values()) / 6 == pytest.approx(alone["acc,none"])
    assert aspects["calibration"]["accuracy"] == alone["acc,none"]
    leaked = aspects["contamination"]
    assert (leaked["n"], leaked["judged"], leaked["contaminated"]) == (8, 5, 1)
    assert "which: 1 of 5 records" in done.err and any("which: 1 of 5" in text for text in found["warnings"])
    assert "calibration" not in found["aspects"]["say"] and "fairness" not in found["aspects"]["say"]
    mean = found["suite"]["mean"]["value"]
    assert mean == pytest.approx((3 * results["which"]["acc,none"] + results["say"]["f1,none"]) / 4)
    assert found["group_subtasks"] == {"choosing": ["which"]} and found["suite"]["name"] == "things"
    assert found["efficiency"]["parameters"] == found["config"]["model_num_parameters"] > 20_000
    samples = [json.loads(line) for line in (place / "samples.jsonl").read_text().splitlines()]
    assert [one["task"] for one in samples] == ["which"] * 6 + ["say"] * 6
    first = [one["scores"] for one in samples[:6]]
    assert all(s["robustness"] == min(s["acc"], s["lower"], s["contract"]) for s in first)
    assert [one.get("overlap", 0) > 0 for one in samples[:6]] == [False, True, False, False, False, False]


def test_the_same_options_serve_a_file_of_records(call, tiny, place):
    options = ["--shift", "lower", "--shift-field", "prompt", "--group", "site", "--train", place / "train.txt"]
    found = report(call("eval-task", tiny, place / "which.jsonl", *options, "--ngram", 8))
    suite = report(call("eval-task", tiny, place / "suite.toml", "--shift", "lower"))
    for aspect in ("robustness", "fairness", "calibration", "contamination"):
        assert found["aspects"]["which"][aspect] == suite["aspects"]["which"][aspect]
    assert "shift:lower|fields:prompt" in found["aspects"]["which"]["signature"]


def test_limits_name_aspects_and_tasks(call, tiny, place):
    below = call("eval-task", tiny, place / "suite.toml", "--fail-under", "which.robustness=1.01")
    assert below.code == 6 and "which.robustness" in below.err and json.loads(below.out)["suite"]
    above = call("eval-task", tiny, place / "suite.toml", "--fail-over", "which.contaminated=0.1")
    assert above.code == 6 and "which.contaminated" in above.err
    assert call("eval-task", tiny, place / "suite.toml", "--fail-under", "0").code == 0  # the mean
    unknown = call("eval-task", tiny, place / "suite.toml", "--fail-under", "ece=0.1")
    assert unknown.code == 2 and "which.ece" in unknown.err


@pytest.mark.parametrize(
    ("options", "code", "problem"),
    [
        (["--shift", "capitals"], 2, "wanted one of typos"),
        (["--shift", "lower", "--shift", "lower"], 2, "twice"),
        (["--shift-field", "prompt"], 2, "wants a --shift"),
        (["--shift", "lower", "--shift-field", "query"], 1, "no record has the field 'query'"),
        (["--ngram", "1"], 2, "--ngram is 1"),
        (["--train", "nowhere.txt"], 1, "nowhere.txt does not exist"),
        (["--group", "place"], 1, "which.jsonl:1: the record has no field 'place'"),
    ],
)
def test_what_cannot_be_is_refused(call, tiny, place, options, code, problem):
    done = call("eval-task", tiny, place / "which.jsonl", *options)
    assert (done.code, done.out) == (code, "") and problem in done.err


def test_records_of_stdin_are_asked_once(call, tiny, place):
    lines = (place / "which.jsonl").read_bytes()
    assert report(call("eval-task", tiny, "-", "--group", "site", stdin=lines))["aspects"]["stdin"]["fairness"]
    done = call("eval-task", tiny, "-", "--shift", "lower", stdin=lines)
    assert done.code == 2 and "read once" in done.err
    done = call("eval-task", tiny, "-", "--train", "-", stdin=lines)
    assert done.code == 2 and "read once" in done.err


def test_a_task_of_a_suite_that_is_not_there_is_named(call, tiny, place):
    (place / "say.jsonl").unlink()
    done = call("eval-task", tiny, place / "suite.toml")
    assert (done.code, done.out) == (1, "") and "say.jsonl does not exist" in done.err


def test_an_option_that_is_given_holds_for_every_task_be_it_its_default(call, tiny, place):
    suite = place / "suite.toml"
    suite.write_text(f"shots = 2\n{suite.read_text(encoding='utf-8')}", encoding="utf-8")
    assert report(call("eval-task", tiny, suite))["n-shot"] == {"which": 2, "say": 2}
    assert report(call("eval-task", tiny, suite, "--shots", 0))["n-shot"] == {"which": 0, "say": 0}
