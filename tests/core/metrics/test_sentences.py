"""Sentences by their signs."""

import pytest

from llmctl.core.metrics.sentences import sentences


@pytest.mark.parametrize(
    "pieces",
    [
        ["It rains.", "Does it?", "It does!", "Well... yes."],
        ["Dr. Smith met J. R. Jones of the U.S. Army.", "See Fig. 3, e.g. there, and No. 5 of Jan. 7."],
        ["The answer is no.", "Then we left at 3.50 p.m.", "So do I.", "\"Why?\" she said."],
        ["(It was late.)", "He slept."],
        ["¿Qué?", "«Oui.»", "Mais non !", "Été."],
        ["One line", "another line", "a third"],
        ["यह है।", "वह है।"],
    ],
)  # fmt: skip
def test_a_text_falls_into_its_sentences(pieces):
    between = "\n" if pieces[0] == "One line" else " "
    assert sentences(between.join(pieces)) == pieces


def test_scripts_without_spaces_and_lines_end_sentences_and_none_is_empty():
    assert sentences("今天很好。我们去吧！「好。」他说") == ["今天很好。", "我们去吧！", "「好。」", "他说"]
    assert sentences("  A b.\r\n\n\nc d  \n") == ["A b.", "c d"] and sentences(" \n ") == []
