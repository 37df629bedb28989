"""Requests and answers: in order, and none waits for what is not there yet."""

import io
import os
import sys
import threading

from llmctl.core.data.requests import Request, read_requests
from llmctl.core.decode.answer import answers, readable
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.writer import Manner, writer
from llmctl.spec.sample import Sampling
from llmctl.spec.search import Search
from tests.core.decode.conftest import make_model


def answered(tokenizer, requests, keep=1, rows=1, **settings):
    model, sampling = make_model(), Sampling(**settings)
    manner = Manner(sampling, Rules(), Search().filled({}), keep, frozenset([0]), rows=rows)
    return answers(writer(model, tokenizer, manner), requests, readable(model), 0, keep, rows=rows)


def test_an_answer_is_given_before_the_next_line_is_written(byte_bpe, monkeypatch):
    """With one completion at a time the next request was waited for first, and stdin until a megabyte was there."""
    ours, theirs = os.pipe()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.FileIO(ours))))
    late = threading.Timer(30, os.close, [theirs])  # ends the test where the first answer waits
    late.start()
    os.write(theirs, b"the list\n")
    found = answered(byte_bpe, read_requests("-", "auto", ("prompt",)), max_tokens=3)
    assert next(found).tokens == 3
    os.write(theirs, b"\xff\n")
    assert "not UTF-8" in next(found).error
    assert late.is_alive()
    late.cancel()
    os.close(theirs)
    assert list(found) == []


def test_the_best_of_several_empty_texts_is_one(byte_bpe):
    (answer,) = answered(byte_bpe, [Request(0, "the list")], best_of=3, max_tokens=0)
    assert [one.text for one in answer.completions] == [""]
