"""eval-task: reports, samples, limits and refusals as a user meets them."""

import json
from hashlib import sha256

import pytest

ROWS = [
    {"prompt": "the list of", "choices": ["things", "the"], "answer": 0},
    {"prompt": "that the thing", "choices": ["list", "lists the list"], "answer": 1},
    {"prompt": "list", "choices": ["of the things", "a thing"], "answer": 1},
]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "which.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_a_report_has_the_keys_of_lm_eval_and_samples_too(call, tiny, rows, tmp_path):
    done = call("eval-task", tiny, rows, "--samples", "samples.jsonl", "--limit", 2, "--ci", 0.9, "--threads", 1)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    results = found["results"]["which"]
    assert results["alias"] == "which" and results["sample_len"] == 2
    assert {"acc,none", "acc_stderr,none", "acc_norm,none", "acc_low,none", "acc_high,none"} <= results.keys()
    assert found["n-samples"]["which"] == {"original": 3, "effective": 2}
    assert found["n-shot"] == {"which": 0} and found["higher_is_better"]["which"] == {"acc": True, "acc_norm": True}
    assert found["configs"]["which"]["output_type"] == "multiple_choice"
    assert found["schema"] == "llmctl/eval-task/1"
    assert found["signature"].startswith("kind:choice|records:2|data:")
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [one["doc_id"] for one in samples] == [0, 1]
    first = samples[0]
    assert first["doc"] == ROWS[0] and first["target"] == 0 and first["acc"] == first["scores"]["acc"]
    assert first["arguments"]["gen_args_1"] == {"arg_0": "the list of", "arg_1": " the"}
    assert len(first["resps"]) == 2 and sum(first["chances"]) == pytest.approx(1)
    assert first["doc_hash"] == sha256(json.dumps(ROWS[0], indent=2).encode()).hexdigest()  # as lm-eval's
    assert sum(one["scores"]["acc"] for one in samples) / 2 == results["acc,none"]
    assert call("eval-task", tiny, rows, "--samples", "samples.jsonl").code == 1  # it is there


def test_records_come_through_a_pipe(call, tiny, rows):
    piped = call("eval-task", tiny, "-", "--json", stdin=rows.read_bytes())
    named = call("eval-task", tiny, rows, "--json")
    assert (
        json.loads(piped.out)["results"]["stdin"]["acc,none"] == json.loads(named.out)["results"]["which"]["acc,none"]
    )


def test_a_figure_below_its_limit_is_exit_code_6_after_the_report(call, tiny, rows):
    for limit in ("1.1", "acc=1.1", "which.acc=1.1"):
        done = call("eval-task", tiny, rows, "--fail-under", limit)
        assert done.code == 6 and json.loads(done.out)["results"] and "under 1.1" in done.err
    assert call("eval-task", tiny, rows, "--fail-under", "acc=0", "--fail-over", "acc=1").code == 0
    assert call("eval-task", tiny, rows, "--fail-under", "bleu=1").code == 2


def test_an_adapter_is_asked_as_its_base_with_it(call, tiny, rows, tmp_path):
    text = tmp_path / "more.jsonl"
    text.write_text("".join(json.dumps({"prompt": f"list {i}", "completion": " a thing"}) + "\n" for i in range(8)))
    how = ["--method", "lora", "--rank", 4, "--steps", 3, "--lr", 0.05, "--split", 1, "-o", "adapter"]
    assert call("finetune", tiny, text, *how).code == 0
    assert call("lora-merge", "adapter", "-o", "merged").code == 0
    one, other = (json.loads(call("eval-task", name, rows, "--samples", f"{name}.jsonl").out)
                  for name in ("adapter", "merged"))  # fmt: skip
    assert one["results"] == other["results"]
    own, same = ([json.loads(line)["chances"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
                 for name in ("adapter", "merged"))  # fmt: skip
    assert own == [pytest.approx(row, rel=1e-3) for row in same]


@pytest.mark.parametrize(
    "text, code, wrong",
    [
        ("", 1, "holds no record"),
        ('{"prompt": "a"', 1, "bad.jsonl: line 1 is not JSON"),
        ('[1]', 1, "bad.jsonl: line 1 is a JSON list"),
        ('{"prompt": "a", "choices": ["b", "c"], "answer": 0}\n\n{"prompt": "a"}', 1, "bad.jsonl:3: "),
        ('{"words": "a"}', 1, "does not tell what kind of task"),
        ('{"text": "a", "label": "b"}', 1, "nothing to learn"),
        ('{"tokens": ["a"], "tags": ["O"]}', 4, "no head"),
    ],
)  # fmt: skip
def test_bad_records_stop_the_command_with_nothing_on_stdout(call, tiny, tmp_path, text, code, wrong):
    (tmp_path / "bad.jsonl").write_text(text, encoding="utf-8")
    done = call("eval-task", tiny, "bad.jsonl", "--samples", "samples.jsonl")
    assert (done.code, done.out) == (code, "") and wrong in done.err
    assert not (tmp_path / "samples.jsonl").exists()


def test_options_that_do_not_go_together_are_a_usage_error(call, tiny, rows):
    for wrong in (["--ci", 2], ["--batch-size", 0], ["--system", "a"], ["--metrics", "bleu"], ["--kind", "other"]):
        done = call("eval-task", tiny, rows, *wrong)
        assert (done.code, done.out) == (2, ""), wrong
    assert call("eval-task", tiny, rows, rows).code == 2
    assert call("eval-task", tiny, "-", "-").code == 2


def test_a_single_record_has_no_interval(call, tiny, tmp_path):
    (tmp_path / "one.jsonl").write_text('{"prompt": "a", "choices": ["b", "c"], "answer": 0}\n', encoding="utf-8")
    done = call("eval-task", tiny, "one.jsonl", "--ci", 0.9)
    assert done.code == 0 and "acc_low,none" not in json.loads(done.out)["results"]["one"]
