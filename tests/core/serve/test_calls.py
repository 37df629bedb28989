"""Calls in a model's own words are found, however the text is cut into pieces."""

import json

import pytest

from llmctl.core.serve.calls import CallFilter, calls_of

CALL = '<tool_call>\n{"name": "look", "arguments": {"where": "here"}}\n</tool_call>'


def streamed(text, size):
    filter, said, calls = CallFilter(), "", []
    parts = [text[at : at + size] for at in range(0, len(text), size)] or [""]
    for at, part in enumerate(parts):
        new, found = filter.push(part, at == len(parts) - 1)
        said += new
        calls += found
    return said, calls


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "said", "count"),
    [
        ("no call <tool", "no call <tool", 0),
        ("", "", 0),
        (CALL, "", 1),
        (f"I look.\n{CALL}", "I look.", 1),
        (f"{CALL}\n{CALL}", "", 2),
        (CALL.removesuffix("</tool_call>"), "", 1),  # its end came as a special token, or not at all
        ("<tool_call>nothing</tool_call> a", "<tool_call>nothing</tool_call> a", 0),
        ('a <tool_call>{"name": 3}</tool_call>', 'a <tool_call>{"name": 3}</tool_call>', 0),
        ("a < b <tool_cal> c", "a < b <tool_cal> c", 0),
    ],
)
def test_calls_are_parted_from_text(text, said, count, size):
    found, calls = streamed(text, size)
    assert (found, len(calls)) == (said, count)
    assert [number for number, _ in calls] == list(range(count))
    for _, call in calls:
        assert call["function"]["name"] == "look" and json.loads(call["function"]["arguments"]) == {"where": "here"}


def test_a_text_that_is_all_call_has_no_content():
    assert calls_of(CALL)[0] is None and calls_of("a")[0] == "a" and calls_of("")[0] == ""
