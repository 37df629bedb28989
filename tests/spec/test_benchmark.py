"""Benchmark: options of tasks check themselves."""

import pytest

from llmctl.errors import UserError
from llmctl.spec.benchmark import METRICS, USUAL, Asking, Task


@pytest.mark.parametrize(
    "options, wrong",
    [
        ({"shots": -1}, "--shots is -1"),
        ({"limit": 0}, "--limit is 0"),
        ({"metrics": ("bleu",), "kind": "choice"}, "--metrics bleu is none of acc, acc_norm"),
        ({"metrics": ("nothing",)}, "--metrics nothing is none of"),
        ({"extract": "("}, "no regular expression"),
        ({"choice": ("yes",)}, "--choice is given once"),
        ({"map": ("prompt",)}, "wanted OURS=THEIRS"),
        ({"system": "Be brief."}, "--system wants a --chat-template"),
    ],
)
def test_a_value_that_cannot_be_is_refused(options, wrong):
    with pytest.raises(UserError, match=wrong.replace("(", r"\(")):
        Asking(**options)


def test_escapes_become_characters_and_the_order_is_that_of_the_choice():
    task = Task(file="a.jsonl", name="a", separator="\\n--\\n", stop=("\\n\\n",), choose="similar")
    assert (task.separator, task.stop, task.order) == ("\n--\n", ("\n\n",), "similar")


def test_what_is_usual_is_among_what_there_is():
    assert all(set(USUAL[kind]) <= set(METRICS[kind]) for kind in METRICS)
