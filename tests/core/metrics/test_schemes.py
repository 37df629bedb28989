"""Strict schemes: the spans that seqeval finds."""

import random

import pytest
from seqeval import scheme

from llmctl.core.metrics.schemes import reader_of, strict_spans
from llmctl.errors import UserError


@pytest.mark.parametrize("name", ["IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU"])
def test_spans_are_those_of_seqeval(name):
    chance, prefixes = random.Random(name), sorted(set(name.rstrip("12")))
    for _ in range(1000):
        drawn = [(chance.choice(prefixes), chance.choice("XY")) for _ in range(chance.randint(1, 8))]
        tags = [prefix if prefix == "O" else f"{prefix}-{kind}" for prefix, kind in drawn]
        wanted = {(one.tag, one.start, one.end) for one in scheme.Tokens(tags, getattr(scheme, name)).entities}
        assert strict_spans(tags, name) == wanted, tags


def test_what_does_not_begin_as_the_scheme_says_is_no_span():
    tags = ["I-X", "O", "B-X", "I-Y"]
    assert strict_spans(tags, "IOB2") == {("X", 2, 3)}
    assert reader_of("lenient")(tags) == {("X", 0, 1), ("X", 2, 3), ("Y", 3, 4)}


def test_a_prefix_that_the_scheme_does_not_have_is_refused():
    with pytest.raises(UserError, match="'S-X' is not of the scheme IOB2"):
        strict_spans(["O", "S-X"], "IOB2")
