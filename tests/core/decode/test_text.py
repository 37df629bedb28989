"""TextStream: whole characters, nothing of a stop string, and in sum the text of all tokens."""

import pytest

from llmctl.core.decode.text import TextStream, first_stop, open_stop

TEXTS = ["the list of the things", "naïve 😀👩‍👩‍👧 日本語 ↦ \u202e!", "a\n\n\tb", "e\u0301", ""]


def shown(stream: TextStream, ids: list[int]) -> list[str]:
    """What a terminal is given, call by call."""
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_every_piece_is_whole_and_their_sum_is_the_text(byte_bpe, text):
    pieces = shown(TextStream(byte_bpe), byte_bpe.encode(text))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_characters_that_never_end_are_shown_at_the_end(byte_bpe):
    ids = byte_bpe.encode("a😀")[:-1]
    pieces = shown(TextStream(byte_bpe), ids)
    assert "".join(pieces) == byte_bpe.decode(ids)
    assert "\ufffd" in pieces[-1] and "\ufffd" not in "".join(pieces[:-1])


@pytest.mark.parametrize("prompt", ["the", "the list", "日本", "a\n", "broken \ufffd", ""])
def test_a_completion_continues_its_prompt(byte_fallback, byte_bpe, prompt):
    """A leading space stays although decoders strip it from a text's first word, and nothing of the prompt comes back.

    Prompts that end in byte tokens (a newline, in Llama 2) or in U+FFFD are still held by the detokenizer when the
    completion begins.
    """
    for tokenizer in (byte_fallback, byte_bpe):
        before = tokenizer.encode(prompt)
        for text in (" list", "ab", "\nlist", "語 a"):
            after = tokenizer.encode(text)
            whole = tokenizer.decode(before + after)
            pieces = shown(TextStream(tokenizer, before), after)
            assert tokenizer.decode(before) + "".join(pieces) == whole


def test_special_tokens_are_left_out_unless_asked_for(byte_bpe):
    ids = [*byte_bpe.encode("the"), byte_bpe.eos, *byte_bpe.encode(" list")]
    assert "".join(shown(TextStream(byte_bpe), ids)) == "the list"
    assert "".join(shown(TextStream(byte_bpe, special=True), ids)) == "the<|endoftext|> list"


def test_what_may_be_a_stop_string_is_held_back_and_given_when_it_is_none(byte_bpe):
    stream = TextStream(byte_bpe, stops=["\n\nUser:"])
    assert stream.push(byte_bpe.encode("a")[0]) == "a"
    newline, letter = byte_bpe.encode("\n")[0], byte_bpe.encode("b")[0]
    assert stream.push(newline) == "" and stream.push(newline) == ""
    assert stream.push(newline) == "\n"  # the last two may still begin it
    assert stream.push(letter) == "\n\nb"
    assert "".join(stream.push(token) for token in byte_bpe.encode(" the\n\nUser: x")) == " the"
    assert stream.stopped and stream.finish() == "" and stream.text == "a\n\n\nb the"


def test_a_text_that_ends_like_a_stop_string_begins_is_shown_whole(byte_bpe):
    stream = TextStream(byte_bpe, stops=["\n\nUser:"])
    assert "".join(shown(stream, byte_bpe.encode("the\n\nUs"))) == "the\n\nUs"
    assert not stream.stopped


def test_the_stop_string_completed_first_counts():
    assert first_stop("abcdef", ["abcdef", "cd"]) == 2
    assert first_stop("abcd", ["cd", "bcd"]) == 1
    assert first_stop("abcd", ["x", "xy"]) is None
    assert first_stop("", ["x"]) is None
    assert open_stop("abca", ["abcabd"]) == 4
    assert open_stop("abab", ["abc"]) == 2
    assert open_stop("ab", []) == 0
