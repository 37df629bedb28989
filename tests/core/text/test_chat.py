"""Chats: which template is used, what of a conversation is trained on, and templates that do not show it."""

import pytest

from llmctl.core.text.chat import CHATS, Chat, chat_of
from llmctl.core.text.marks import marks_of
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from tests.core.text.tokenizers_of_all_kinds import made

TALK = [
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": "one"},
    {"role": "user", "content": "2"},
    {"role": "assistant", "content": "two"},
]

# A template that leaves out what was thought before, as those of reasoning models do.
FORGETFUL = """{%- for m in messages %}
{%- set thought = '(thinks) ' if loop.last and m.role == 'assistant' else '' %}
{{- '<|im_start|>' + m.role + '\\n' + thought + m.content + '<|im_end|>\\n' }}
{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def trained(source: str, **options) -> list[str]:
    """What of TALK is trained on."""
    tokenizer = made("byte level")
    marks = marks_of(tokenizer)
    marked = marks.marked(Chat("made", source, tokenizer).answered(TALK, **options))
    return [marks.text(marked.text[start:stop]) for start, stop in marked.spans]


def test_every_built_in_layout_shows_what_the_assistant_says():
    ends = {"chatml": "<|im_end|>"}
    for name in set(CHATS) - {"llama3"}:
        end = ends.get(name, "<|endoftext|>")
        assert [one.strip() for one in trained(CHATS[name])] == [f"one{end}", f"two{end}"]
        assert [one.strip() for one in trained(CHATS[name], train_on="last")] == [f"two{end}"]
        assert [one.strip() for one in trained(CHATS[name], given=2)] == [f"two{end}"]


def test_the_ids_of_a_conversation_have_the_special_tokens_of_the_template_and_typed_ones_as_text():
    tokenizer = made("byte level")
    chat = chat_of(tokenizer)
    end = tokenizer.id("<|im_end|>")
    for talk in (TALK, [{"role": "user", "content": "<|im_end|> über"}]):
        ids = chat.ids(talk)
        assert tokenizer.decode(ids, skip_special=False) == chat.render(talk, add_generation_prompt=True)
        assert ids.count(end) == len(talk)
    assert chat.ids(TALK) == tokenizer.encode(chat.render(TALK, add_generation_prompt=True), special=True)
    assert chat.ids(TALK)[: len(chat.ids(TALK, add_generation_prompt=False))] == chat.ids(TALK, False)


def test_a_template_that_lays_out_turns_anew_is_refused_but_for_the_last_turn():
    with pytest.raises(UserError, match=r"message 2 in another way once others follow") as found:
        trained(FORGETFUL)
    assert "--train-on last" in found.value.hint
    assert trained(FORGETFUL, train_on="last") == ["(thinks) two<|im_end|>"]


def test_a_template_that_cannot_lay_out_a_beginning_alone_is_refused():
    picky = "{% if messages | length != 4 %}{{ raise_exception('four!') }}{% endif %}x"
    with pytest.raises(UserError, match=r"four!, up to message 2"):
        trained(picky)


def test_generation_marks_say_what_is_trained_on_and_the_token_that_ends_a_turn_is_with_it():
    marked = """{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}
{%- else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"""
    assert trained(marked) == ["one<|im_end|>", "two<|im_end|>"]
    assert trained(marked, given=2) == trained(marked, train_on="last") == ["two<|im_end|>"]
    assert len(trained(marked, train_on="all")) == 1
    with pytest.raises(UserError, match="marks 1 runs as generated, but the assistant has 2 turns"):
        trained("{% generation %}{{ messages[1].content }}{% endgeneration %}")


def test_the_layout_is_chatml_where_its_tokens_are_there_and_else_plain():
    assert chat_of(made("byte level")).name == "chatml"
    assert chat_of(made("metaspace")).name == "plain"


def test_a_layout_whose_tokens_are_not_there_is_refused():
    with pytest.raises(UserError, match=r"<\|im_start\|>, <\|im_end\|>") as found:
        chat_of(made("metaspace"), "chatml")
    assert found.value.code == Exit.MISMATCH and "plain" in found.value.hint
    for wanted in ("chatgpt", "own"):
        with pytest.raises(UserError, match=wanted):
            chat_of(made("metaspace"), wanted)


def test_a_conversation_begins_as_texts_do():
    tokenizer = made("metaspace")
    text = chat_of(tokenizer, "plain").render(TALK)
    assert text.startswith("<s>User: 1\nAssistant: one</s>\n") and text.count("<s>") == 1
    assert not chat_of(made("byte level"), "plain").render(TALK).startswith("<")


def test_several_templates_by_name_have_a_default(tmp_path):
    backend = made("byte level").backend
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "{{ messages[0].content }}"}]
    assert chat_of(Tokenizer(backend, {"chat_template": several})).render(TALK) == "1"


def test_what_a_template_may_not_do_it_does_not():
    for source in (
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{{ cycler.__init__.__globals__ }}",
    ):
        with pytest.raises(UserError, match="chat template"):
            Chat("made", source, made("byte level")).render(TALK)


def test_dates_can_be_fixed(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400000")
    assert Chat("made", "{{ strftime_now('%Y-%m') }}", made("byte level")).render(TALK) == "1972-09"
