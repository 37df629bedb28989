"""Marks: one tokenization, as the tokenizer has it, in which only a template's special tokens are special."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.core.text.marks import CLOSE, MEANT, OPEN, TYPED, Marks, marks_of
from llmctl.core.text.tokenizer import Tokenizer
from tests.core.text.tokenizers_of_all_kinds import KINDS, made

LETTERS = st.text(st.sampled_from("ab. ,\n\tü日😀ﬁ<|/s>_▁") | st.characters(codec="utf-8"), max_size=12)
FEW = settings(max_examples=25, deadline=None)


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(text=LETTERS)
def test_a_text_without_marks_has_the_ids_that_the_tokenizer_gives_it(kind, text):
    marks = marks_of(made(kind))
    hidden = marks.hidden(text)
    clean = "".join("\ufffd" if "\ufdd0" <= one <= "\ufdd3" else one for one in text)
    assert marks.shown(hidden) == clean
    assert marks.encode([marks.marked(hidden).text])[0].ids.tolist() == made(kind).encode(clean)


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(before=LETTERS, after=LETTERS, typed=st.booleans())
def test_a_typed_special_token_is_text_and_one_that_is_meant_is_special(kind, before, after, typed):
    tokenizer = made(kind)
    marks = marks_of(tokenizer)
    special = next(name for name in marks.names if "unk" not in name)
    text = before + special + after
    meant = marks.hidden(before) + special + marks.hidden(after)
    pieces = marks.encode([marks.marked(marks.hidden(text) if typed else meant).text])[0]
    assert pieces.ids.tolist().count(marks.ids[special]) == (not typed)


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(given=LETTERS, said=LETTERS, more=LETTERS)
def test_tokens_within_a_span_stand_for_all_of_it_and_no_token_wholly_before_it_does(kind, given, said, more):
    marks = marks_of(made(kind))
    text = marks.hidden(given) + OPEN + marks.hidden(said) + CLOSE + marks.hidden(more)
    marked = marks.marked(text)
    pieces, (start, stop) = marks.encode([marked.text])[0], marked.spans[0]
    inside = pieces.within(marked.spans)
    for begin, end, scored in zip(pieces.starts.tolist(), pieces.stops.tolist(), inside.tolist(), strict=True):
        reaches = max(begin, start) < min(end, stop)
        assert scored == (reaches or (begin == end and start <= begin < stop))
    at = inside.nonzero()[0]
    assert len(at) == 0 or (at[-1] - at[0] + 1 == len(at))  # one run


def test_a_token_that_straddles_where_the_answer_begins_belongs_to_the_answer():
    marks = marks_of(made("byte level"))
    marked = marks.marked(f"yes {OPEN}are{CLOSE}")
    pieces = marks.encode([marked.text])[0]
    straddling = (pieces.starts < 4) & (pieces.stops > 4)
    assert straddling.any()  # " a" is one token
    assert pieces.within(marked.spans)[straddling].all()


def test_all_tokens_of_a_character_that_is_split_are_on_its_side():
    marks = marks_of(made("byte level"))
    marked = marks.marked(f"😎{OPEN}😎{CLOSE}😎")
    pieces = marks.encode([marked.text])[0]
    assert len(pieces.ids) == 9
    assert pieces.within(marked.spans).tolist() == [False] * 3 + [True] * 3 + [False] * 3


def test_what_is_trained_on_ends_with_the_special_token_that_ends_it():
    marks = marks_of(made("byte level"))
    spaced = marks.marked(f"x{OPEN}a<|im_end|>\n\n{CLOSE}b")
    outside = marks.marked(f"x{OPEN}a{CLOSE}<|im_end|>\nb")
    for marked in (spaced, outside):
        assert marked.spans == ((1, 4),)  # "a", and the mark of <|im_end|>, which is two characters
        assert marks.end(marked) == marks.ids["<|im_end|>"]
    assert marks.end(marks.marked(f"x{OPEN}a{CLOSE}")) is None


def test_marks_that_are_typed_do_nothing():
    marks = marks_of(made("byte level"))
    text = f"{MEANT}{chr(0xF0000)}{OPEN}{TYPED}{CLOSE}"
    marked = marks.marked(marks.hidden(text))
    assert marked.spans == () and MEANT not in marked.text and TYPED not in marked.text
    assert not set(marks.encode([marked.text])[0].ids.tolist()) & made("byte level").special_ids


def test_a_token_that_only_its_role_makes_special_is_special():
    """tokenizer_config.json names an eos that tokenizer.json holds as a plain piece, as transformers allows."""
    plain = made("byte level")
    roles = Tokenizer(plain.backend, {"eos_token": "!"})
    assert roles.eos is not None and roles.eos not in roles.special_ids
    marks = Marks(roles)
    ids = marks.encode([marks.marked(marks.hidden("yes! ") + "!").text])[0].ids.tolist()
    assert ids == [*plain.encode("yes! "), roles.eos]  # what is typed is not lost, though no other token spells it
    assert marks.end(marks.marked(f"{OPEN}yes!{CLOSE}")) == roles.eos
