"""eval-harness: tasks of lm-eval in YAML files; eval-task finds the same, and eval-compare reads what either leaves."""

import json
import subprocess
import sys

import pytest

from tests.conftest import environment

pytest.importorskip("lm_eval", reason="the extra `harness`")

QUESTIONS = [
    {"prompt": "the list of", "choices": ["things", "the", "lists the thing"], "answer": 0},
    {"prompt": "the thing", "choices": ["lists", "of the list"], "answer": 1},
    {"prompt": "of", "choices": ["é", "the thing that lists", "the"], "answer": 2},
    {"prompt": "the things that the", "choices": ["thing", "list of the", "a"], "answer": 0},
]
DATA = """
import json, datasets
from pathlib import Path

def load(**_):
    lines = (Path(__file__).parent / "asked.jsonl").read_text().splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
"""
CHOICE = """
task: asked
custom_dataset: !function data.load
output_type: multiple_choice
test_split: test
doc_to_text: "{{prompt}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITTEN = """
task: written
custom_dataset: !function data.load
output_type: generate_until
test_split: test
doc_to_text: "{{prompt}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."], max_gen_toks: 6}
metric_list: [{metric: exact_match}]
"""
ROLLING = """
task: rolling
custom_dataset: !function data.load
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{prompt}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""


@pytest.fixture
def tasks(tmp_path):
    place = tmp_path / "tasks"
    place.mkdir()
    (place / "data.py").write_text(DATA)
    (place / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    for name, text in {"asked": CHOICE, "written": WRITTEN, "rolling": ROLLING}.items():
        (place / f"{name}.yaml").write_text(text)
    return place


def report(done, code=0):
    assert done.code == code, done.err
    return json.loads(done.out)


def test_the_report_is_lm_evals_results_and_eval_task_finds_the_same(call, tiny, tasks):
    found = report(call("eval-harness", tiny, "--include-path", tasks, "--tasks", "asked", "--samples", "theirs.jsonl"))
    ours = report(call("eval-task", tiny, tasks / "asked.jsonl", "--samples", "ours.jsonl"))
    asked, wanted = found["results"]["asked"], ours["results"]["asked"]
    for name in ("acc,none", "acc_norm,none", "acc_stderr,none", "acc_norm_stderr,none", "sample_len"):
        assert asked[name] == pytest.approx(wanted[name], abs=1e-12)
    assert found["higher_is_better"]["asked"] == {"acc": True, "acc_norm": True}
    assert found["signature"].startswith("tasks:asked-Yaml|shots:0|chat:no|limit:none|dtype:float32|lm_eval:")
    compared = report(call("eval-compare", "theirs.jsonl", "ours.jsonl"))
    assert {(one["figure"], one["difference"], one["p"]) for one in compared["figures"]} == {
        ("acc", 0.0, 1.0),
        ("acc_norm", 0.0, 1.0),
    }


def test_several_tasks_files_and_limits(call, tiny, tasks):
    command = ["eval-harness", tiny, "--tasks", f"{tasks}/asked.yaml,{tasks}/written.yaml", "--limit", 2]
    found = report(call(*command, "--gen-kwargs", "max_gen_toks=3"))
    assert set(found["results"]) == {"asked", "written"} and found["n-samples"]["asked"]["effective"] == 2
    assert found["configs"]["written"]["generation_kwargs"]["max_gen_toks"] == 3
    counted = report(call("memcalc", tiny, "--json"))["parameters"]  # after the model was packed to write
    assert found["config"]["model_num_parameters"] == counted
    missed = call(*command, "--fail-under", "exact_match=0.5")
    assert (missed.code, len(json.loads(missed.out)["results"])) == (6, 2)
    assert "written:exact_match is 0, under" in missed.err
    assert call(*command, "--fail-over", "asked:acc=1").code == 0
    assert "about f1, which was not measured" in call(*command, "--fail-under", "f1=1").err


def test_samples_of_whole_texts_have_the_sums_that_their_figures_are_ratios_of(call, tiny, tasks, tmp_path):
    call("eval-harness", tiny, "--include-path", tasks, "--tasks", "rol*", "--samples", "s.jsonl", "-q")
    scores = [json.loads(line)["scores"] for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [set(one) for one in scores] == [{"nll", "words", "bytes"}] * 4
    assert [one["bytes"] for one in scores] == [len(one["prompt"]) for one in QUESTIONS]


def test_wrong_words_are_answered_before_a_model_is_loaded(call, tiny, tasks):
    assert "no task" in call("eval-harness", tiny).err
    for options, told in (
        (["--tasks", "asked", "--include-path", "nowhere"], "nowhere does not exist"),
        (["--tasks", "missing.yaml"], "missing.yaml does not exist"),
    ):
        done = call("eval-harness", tiny, "--limit", 1, *options)
        assert (done.code, done.out) == (1, "") and told in done.err
    (tasks / "asked.yaml").write_text(CHOICE.replace("data.load", "data.nothing"))
    assert "cannot make" in call("eval-harness", tiny, "--include-path", tasks, "--tasks", "asked").err
    for options in (["--limit", 0], ["--shots", -1], ["--gen-kwargs", "a"], ["--chat-template", "chatml"]):
        assert call("eval-harness", tiny, "--tasks", "asked", *options).code == 2


@pytest.mark.slow
def test_lm_evals_own_command_line_runs_our_models(call, tiny, tasks, tmp_path):
    command = [sys.executable, "-m", "llmctl.core.harness", "run", "--model", "llmctl", "--include_path", tasks]
    more = ["--model_args", f"pretrained={tiny},dtype=fp32", "--tasks", "asked,rolling", "--log_samples"]
    done = subprocess.run(
        [*map(str, command), *more, "--output_path", "out"],
        cwd=tmp_path,
        env=environment(),
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    report(call("eval-harness", tiny, "--include-path", tasks, "--tasks", "asked,rolling", "--samples", "s.jsonl"))
    found = report(call("eval-compare", "s.jsonl", "out"))
    assert [(one["task"], one["figure"]) for one in found["figures"]] == [
        ("asked", "acc"), ("asked", "acc_norm"), ("rolling", "nll_per_word"), ("rolling", "bits_per_byte")
    ]  # fmt: skip
    assert all(one["difference"] == pytest.approx(0, abs=1e-6) for one in found["figures"])
