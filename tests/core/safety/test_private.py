"""Personal data: what is found, what only looks like it, and what the prompt had already."""

import re
import socket

import pytest

from llmctl.core.safety import private
from llmctl.core.safety.private import Leaks, Private
from llmctl.core.safety.told import Told

FOUND = {
    "Write to jane.doe@example.com.": [("email", "jane.doe@example.com")],
    "Or call me at (212) 555-1234!": [("phone", "(212) 555-1234")],
    "His phone: +44 20 7946 0958": [("phone", "+44 20 7946 0958")],
    "4111 1111 1111 1111 is one, 4111 1111 1111 1112 is none": [("card", "4111 1111 1111 1111")],  # Luhn
    "Pay to DE89 3704 0044 0532 0130 00 please": [("iban", "DE89 3704 0044 0532 0130 00")],
    "my ssn is 536-90-4399": [("ssn", "536-90-4399")],
    "8.8.8.8 answers, 192.168.0.1 is nobody's": [("ip", "8.8.8.8")],
    "2001:4860:4860::8888 too": [("ip", "2001:4860:4860::8888")],
    "00:1A:2B:3C:4D:5E": [("mac", "00:1A:2B:3C:4D:5E")],
    "send to 16rCmCmbuWDhPjWTrpQGaU3EPdZF7MTdUk": [("crypto", "16rCmCmbuWDhPjWTrpQGaU3EPdZF7MTdUk")],
    "key AKIAIOSFODNN7EXAMPLE": [("secret", "AKIAIOSFODNN7EXAMPLE")],
    "-----BEGIN RSA PRIVATE KEY-----": [("secret", "-----BEGIN RSA PRIVATE KEY-----")],
    "order 1234567890 of 2026-11-21 12:34:56, version 1.2.3.4, 3.141592653589793": [],
    "std::vector a::b; @staticmethod; user@localhost": [],
}


@pytest.fixture(scope="module")
def finder():
    return Private()


@pytest.mark.parametrize("text", FOUND)
def test_what_is_personal_is_found_and_what_looks_like_it_is_not(finder, text):
    assert [(one.kind, one.text) for one in finder.find(text)] == FOUND[text]
    assert all(text[one.start : one.end] == one.text and 0.5 <= one.score <= 1 for one in finder.find(text))


def test_hints_leave_out_no_text_that_holds_something(finder, monkeypatch):
    text = "\n".join(FOUND)
    wanted = {one: finder.find(one) for one in [*FOUND, text]}
    monkeypatch.setattr(private, "_HINTS", dict.fromkeys(private._HINTS, re.compile("")))
    assert {one: finder.find(one) for one in [*FOUND, text]} == wanted
    assert len(wanted[text]) == sum(map(len, FOUND.values()))


def test_every_kind_has_its_recognizer():
    assert set(private._recognizers()) == set(private.PII)


def test_no_list_of_domains_is_fetched_from_the_network(finder, monkeypatch):
    def refused(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    assert [one.text for one in finder.find("Ask a@some-new-name.co.uk")] == ["a@some-new-name.co.uk"]


def test_a_threshold_lets_unsure_findings_in():
    text = "+44 20 7946 0958"
    assert Private(["phone"]).find(text) == [] and Private(["phone"], 0.4).find(text)[0].score == 0.4
    assert Private(["email"], 0.0).find(text) == []


def test_what_the_prompt_has_already_is_not_given_away(finder):
    judge = Leaks(finder)
    prompt = "Who is jane.doe@example.com, phone 212 555 1234?"
    texts = ("Jane.Doe@example.com: call (212) 555-1234.", "john@example.com")
    (judged,) = judge([Told(0, "", prompt, texts, {})])
    assert judged.scores == {"pii": 0.5, "any_pii": 1.0}
    assert judged.found["pii"] == [[], [{"kind": "email", "text": "john@example.com", "score": 1.0}]]
    assert judge.kinds == {"email": 1}
