"""Talk: what was read is not read again, and every answer is what it would be if it were."""

from dataclasses import replace

import pytest

from llmctl.core.decode.native.engine import Engine
from llmctl.core.decode.native.engine import made as made_ready
from llmctl.core.decode.ready import ready
from llmctl.core.decode.rows import Rows
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.talk import Talk, continued
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.chat import Chat, chat_of
from llmctl.errors import UserError
from llmctl.spec.chat import Talking
from llmctl.spec.model import RopeScaling
from tests.core.text.tokenizers_of_all_kinds import made
from tests.core.variants import DECODERS

TURNS = ["Hello, how are you?", "über naïve 日本語", "a  b", "yes <|im_end|> no"]
LONG = 600  # tokens: more than every conversation here but those that are to be cut
KINDS = {
    **DECODERS,
    "dynamic": replace(DECODERS["llama"], rope_scaling=RopeScaling("dynamic", 4.0, 64)),
}


def talker(kind="llama", context=LONG, layout="chatml", native=False, **how):
    tokenizer = made("byte level")
    config = replace(KINDS[kind], vocab=tokenizer.size + 7, context=context)
    model = initialise(Transformer(config), seed=5).eval()
    ready(model, not native)
    lay = continued(tokenizer, config) if layout is None else chat_of(tokenizer, layout).ids
    sampling = how.pop("sampling", Talking(temperature=1.5, max_tokens=12))
    eos = how.pop("eos", frozenset({tokenizer.id("<|im_end|>")}))
    return Talk(model, tokenizer, lay, sampling, eos, bare=layout is not None, **how)


def anew(talk, **how):
    """The same conversation, of which nothing has been read."""
    twin = Talk(talk._model, talk.tokenizer, talk.lay, talk.sampling, talk.eos, bare=talk.bare, **how)
    twin.restart(talk.messages)
    return twin


def said(pieces, talk):
    text = "".join(pieces)
    assert talk.said.text == text and talk.messages[-1] == {"role": "assistant", "content": text}
    return text


@pytest.mark.parametrize("native", [False, True], ids=["stock", "native"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_as_if_all_had_been_read_anew(kind, native):
    talk = talker(kind, native=native)
    talk.system = "Be terse."
    for turn in TURNS:
        twin = anew(talk)
        text = said(talk.ask(turn), talk)
        assert text == said(twin.ask(turn), twin)
        assert twin.said.known_tokens == 0
    if kind in ("prefix", "dynamic"):  # what comes first depends on what comes after
        assert talk.said.known_tokens == 0
    elif kind != "linear":  # its sums go on only where the template puts an answer down as it was written
        assert talk.said.known_tokens > talk.said.prompt_tokens // 2


def test_a_second_answer_takes_the_place_of_the_first_and_reads_one_token():
    talk = talker()
    first = said(talk.ask("Hello"), talk)
    others = {said(talk.retry(), talk) for _ in range(4)}
    assert len(others | {first}) == 5 and len(talk.messages) == 2 and talk.turns == 1
    assert talk.said.known_tokens == talk.said.prompt_tokens - 1
    twin = talker()
    assert said(twin.ask("Hello"), twin) == first
    assert said(twin.retry(), twin) in others


def test_the_seed_decides():
    texts = [said(talk.ask("Hello"), talk) for talk in (talker(seed=1), talker(seed=1), talker(seed=2))]
    assert texts[0] == texts[1] != texts[2]


def test_a_turn_that_is_taken_back_was_never_said():
    talk, other = talker(), talker()
    said(talk.ask(TURNS[0]), talk)
    before = list(talk.messages)
    list(talk.ask(TURNS[1]))
    talk.undo()
    assert talk.messages == before
    said(other.ask(TURNS[0]), other)
    assert said(talk.ask(TURNS[2]), talk) == said(other.ask(TURNS[2]), other)
    talk.undo(), talk.undo()
    assert talk.messages == []
    with pytest.raises(UserError, match="no turn"):
        talk.undo()
    with pytest.raises(UserError, match="Nothing was asked"):
        list(talk.retry())


def test_the_oldest_turns_go_when_the_context_is_full_and_the_system_stays():
    talk = talker(context=200, sampling=Talking(max_tokens=20))
    talk.system = "Be terse."
    read = []
    lay = talk.lay
    talk.lay = lambda messages: read.append(list(messages)) or lay(messages)
    firsts = []
    for number in range(12):
        said(talk.ask(f"Number {number}, how are you today?"), talk)
        kept, firsts = read[-1], [*firsts, talk.first]
        assert kept[0] == {"role": "system", "content": "Be terse."} and kept[1]["role"] == "user"
        assert kept[1:] == talk.messages[1 + talk.first : -1]
        assert talk.said.prompt_tokens + talk.said.tokens <= 201
    assert len(talk.messages) == 25
    assert firsts[0] == 0 < firsts[-1] and len(set(firsts)) < 8  # room is made for several turns at a time


def test_a_turn_longer_than_the_context_is_refused_and_taken_back():
    talk = talker(context=60)
    said(talk.ask("Hello"), talk)
    before, first = list(talk.messages), talk.first
    with pytest.raises(UserError, match=r"turn has \d+ tokens; the model's context holds 60"):
        list(talk.ask("Hello, " * 50))
    assert (talk.messages, talk.first) == (before, first)
    talk.system = "Hello, " * 50
    with pytest.raises(UserError, match="system prompt takes"):
        talk.check()


def test_an_answer_that_is_stopped_stays_as_far_as_it_came():
    talk = talker(eos=frozenset(), sampling=Talking(temperature=1.0, max_tokens=30))
    heard = []
    for piece in talk.ask("Hello", lambda: len("".join(heard)) > 10):
        heard.append(piece)
    assert talk.said.ending == "interrupted" and talk.said.text == "".join(heard) and talk.said.tokens < 30
    assert talk.messages[-1]["content"] == talk.said.text
    twin = anew(talk)
    assert said(talk.ask("and?"), talk) == said(twin.ask("and?"), twin)
    before = list(talk.messages)
    assert list(talk.ask("too late", lambda: True)) == [] and talk.messages == before


def test_what_an_interruption_leaves_half_done_is_not_used():
    talk = talker(eos=frozenset())
    said(talk.ask("Hello"), talk)
    before = list(talk.messages)

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(talk.ask("How are you?", interrupt))
    assert talk.messages == before
    answer = talk.ask("How are you?")
    next(answer)
    answer.close()
    assert talk.messages == before
    twin = anew(talk)
    assert said(talk.ask(TURNS[1]), talk) == said(twin.ask(TURNS[1]), twin)


@pytest.mark.parametrize(("native", "kind", "work"), [(False, Rows, "_pass"), (True, Engine, "run")])
@pytest.mark.parametrize("passes", [0, 3])
def test_what_an_interruption_in_the_middle_of_a_pass_leaves_is_not_used(native, kind, work, passes, monkeypatch):
    talk = talker(native=native, eos=frozenset())
    said(talk.ask("Hello"), talk)
    before, left, real = list(talk.messages), [passes], getattr(kind, work)

    def interrupted(*argv):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*argv)

    if not native or made_ready(talk._model):
        with monkeypatch.context() as patch:
            patch.setattr(kind, work, interrupted)
            if not native:
                patch.setattr(Rows, "step", lambda rows, tokens: rows.read([[one] for one in tokens], last=True))
            with pytest.raises(KeyboardInterrupt):
                list(talk.ask("How are you?"))
    assert talk.messages == before
    twin = anew(talk)
    assert said(talk.ask(TURNS[1]), talk) == said(twin.ask(TURNS[1]), twin)


def test_a_model_that_knows_no_turns_goes_on_with_the_text():
    talk = talker(layout=None)
    tokenizer = talk.tokenizer
    first = said(talk.ask("Hello, "), talk)
    said(talk.ask("how are"), talk)
    text = f"Hello, {first}\nhow are"
    assert tokenizer.decode(talk.lay(talk.messages[:-1])) == (
        text if not first.endswith("\n") else text[:-8] + "how are"
    )


def test_white_space_before_an_answer_belongs_to_the_template():
    tokenizer = made("byte level")
    (space,) = tokenizer.encode(" ")
    talk = talker(layout="plain", rules=Rules(first=space))
    said(talk.ask("Hello"), talk)
    assert talk.said.text == talk.said.text.lstrip() != ""
    assert f"Assistant: {talk.said.text}<" in tokenizer.decode(talk.lay(talk.messages), skip_special=False)
    talk = talker(layout=None, rules=Rules(first=space))
    said(talk.ask("Hello"), talk)
    assert talk.said.text.startswith(" ")


def test_a_template_that_refuses_a_turn_leaves_the_conversation_as_it_was():
    talk = talker()
    picky = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}x{% endfor %}"
    )
    talk.lay = Chat("picky", picky, talk.tokenizer).ids
    said(talk.ask("Hello"), talk)
    talk.system = "Be terse."
    with pytest.raises(UserError, match="no system") as refused:
        talk.check()
    assert "Leave the system prompt out" in refused.value.hint
    before = list(talk.messages)
    with pytest.raises(UserError, match="no system"):
        list(talk.ask("Hello"))
    assert talk.messages == before
