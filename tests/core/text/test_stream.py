"""Streaming: pieces add up to the whole, and none ends inside a character."""

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from llmctl.core.text.tokenizer import Tokenizer
from llmctl.spec.data import VOCAB_SIZES

relaxed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = [
    "👩‍👩‍👧‍👦 family",
    "日本語と한국어",
    "naïve café\n\n\tx",
    "a" * 50,
    "\ufffd really \ufffd",
    "",
    "<|endoftext|>",
]


def streamed(tokenizer, ids, skip_special=True):
    stream = tokenizer.stream(skip_special)
    return [stream.push(id) for id in ids] + [stream.flush()]


@pytest.mark.parametrize("algorithm", VOCAB_SIZES)
@relaxed
@given(data=st.data())
def test_any_ids_stream_to_what_they_decode_to(trained, algorithm, data):
    tokenizer = trained[algorithm]
    ids = data.draw(st.lists(st.integers(0, tokenizer.size + 3), max_size=40))
    skip_special = data.draw(st.booleans())
    assert "".join(streamed(tokenizer, ids, skip_special)) == tokenizer.decode(ids, skip_special)


@pytest.mark.parametrize("algorithm", VOCAB_SIZES)
@pytest.mark.parametrize("text", TEXTS)
def test_texts_stream_to_what_they_decode_to(trained, algorithm, text):
    tokenizer = trained[algorithm]
    ids = tokenizer.encode(text)
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("algorithm", ["bpe", "byte", "unigram"])
@given(text=st.text(alphabet="a é日👩\u200d"))
@relaxed
def test_no_piece_holds_half_a_character(trained, algorithm, text):
    tokenizer = trained[algorithm]
    pieces = streamed(tokenizer, tokenizer.encode(text))
    assert "\ufffd" not in "".join(pieces)
    assert pieces[-1] == "" or algorithm == "unigram"  # a last run of byte tokens waits for the end


def test_a_piece_comes_as_soon_as_its_character_is_whole(trained):
    assert streamed(trained["byte"], "é日a".encode()) == ["", "é", "", "", "日", "a", ""]


def test_bytes_that_never_become_a_character_are_flushed(trained):
    assert streamed(trained["byte"], [0xE6, 0x97]) == ["", "", "\ufffd"]


DECODERS = {
    "llama": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "metaspace": decoders.Metaspace(),
    "wordpiece": decoders.WordPiece(cleanup=True),
    "suffix": decoders.BPEDecoder(),
    "none": None,
}


@pytest.mark.parametrize("name", DECODERS)
@relaxed
@given(ids=st.lists(st.integers(0, 22), max_size=30))
def test_decoders_of_other_tokenizers_stream_to_what_they_decode_to(name, ids):
    words = ["▁", "▁▁", "▁a", "b", "##c", ".", "##.", "n't", "do", "d</w>", "</w>", "日", "�", "▁b▁", " x", "'m"]
    vocab = {token: i for i, token in enumerate([*words, *(f"<0x{b:02X}>" for b in (0x41, 0xE6, 0x97, 0xA5, 0xFF))])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    if DECODERS[name] is not None:
        backend.decoder = DECODERS[name]
    backend.add_special_tokens(["<s>"])
    tokenizer = Tokenizer(backend, {})
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_streaming_costs_the_same_for_every_token(trained):
    tokenizer = trained["bpe"]
    stream = tokenizer.stream()
    ids = tokenizer.encode("The sorted list. " * 300)
    text = "".join(stream.push(id) for id in ids)
    assert text + stream.flush() == tokenizer.decode(ids)
    assert len(stream._window) <= 1
