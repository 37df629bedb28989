"""Suite files: what they say, and how they are refused."""

from pathlib import Path

import pytest

from llmctl.errors import UserError
from llmctl.spec.benchmark import Asking
from llmctl.spec.suite import Aspects, read_suite

TASKS = """
shots = 2
shift = ["typos", "lower"]
train = ["tokens"]

[[task]]
file = "one.jsonl"
category = "easy"
weight = 2
threshold = 1

[[task]]
name = "two"
file = "sub/other.jsonl"
examples = "shots.jsonl"
shots = 0
shift = "upper"
"""


def written(place: Path, text: str) -> Path:
    path = place / "suite.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_stands_above_the_tasks_holds_for_those_that_do_not_say_otherwise(tmp_path):
    suite = read_suite(written(tmp_path, TASKS))
    one, two = suite.entries
    assert suite.name == "suite" and (one.task.name, two.task.name) == ("one", "two")
    assert (one.task.shots, two.task.shots) == (2, 0)
    assert (one.aspects.shift, two.aspects.shift) == (("typos", "lower"), ("upper",))
    assert (one.weight, one.category, two.weight, two.category) == (2.0, "easy", 1.0, None)
    assert one.task.threshold == 1.0 and type(one.task.threshold) is float


def test_paths_are_relative_to_the_file(tmp_path):
    one, two = read_suite(written(tmp_path, TASKS)).entries
    assert two.task.file == str(tmp_path / "sub/other.jsonl")
    assert two.task.examples == str(tmp_path / "shots.jsonl")
    assert one.aspects.train == (str(tmp_path / "tokens"),)


def test_an_option_that_is_given_holds_for_every_task(tmp_path):
    suite = read_suite(written(tmp_path, TASKS), Asking(limit=7, shots=1), Aspects(ngram=8))
    assert [(e.task.limit, e.task.shots, e.aspects.ngram) for e in suite.entries] == [(7, 1, 8), (7, 1, 8)]
    assert suite.entries[1].aspects.shift == ("upper",)
    suite = read_suite(written(tmp_path, TASKS), Asking(limit=7), Aspects(), ["shots"])
    assert [(e.task.limit, e.task.shots) for e in suite.entries] == [(None, 0), (None, 0)]  # a default that is said


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("", "has no tasks", "[[task]]"),
        ("[[taks]]\nfile = 'a'", "has no tasks", "Did you mean task?"),
        ("[[task]]\nname = 'x'", "task x has no file", "file ="),
        ("shfit = 'typos'\n[[task]]\nfile = 'a'", "shfit is no key", "Did you mean shift?"),
        ("[[task]]\nfile = 'a'\nshot = 1", "task a: shot is no key", "Did you mean shots?"),
        ("[[task]]\nfile = 'a.b'\n[[task]]\nfile = 'a.c'", "two tasks called a", "name ="),
        ("[[task]]\nfile = 'a'\nshots = -1", "task a: --shots is -1", ""),
        ("[[task]]\nfile = 'a'\nshots = 1.5", "task a: shots is 1.5, wanted a whole number", ""),
        ("[[task]]\nfile = 'a'\nshift = ['typo']", "wanted one of typos, lower", ""),
        ("[[task]]\nfile = 'a'\nweight = 0", "weight is 0.0, wanted more than 0", ""),
        ("[[task]\n", "is not TOML", "[[task]]"),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path, text, problem, hint):
    with pytest.raises(UserError) as error:
        read_suite(written(tmp_path, text))
    assert problem in error.value.problem and hint in error.value.hint
    assert "suite.toml" in error.value.problem
