"""chat: files of conversations, and settings that change while one goes on."""

import json

import pytest

from llmctl.errors import UserError
from llmctl.spec.chat import Talking, changed, read_talk, settings, write_talk
from llmctl.spec.sample import Sampling

TALK = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "\ud800 über\n"}]


def test_a_conversation_is_one_line_and_comes_back(tmp_path):
    path = tmp_path / "talk.json"
    write_talk(path, TALK)
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") == 1 and json.loads(text)["schema"] == "llmctl/chat/1"
    assert [one["role"] for one in read_talk(path)] == ["system", "user"]
    with pytest.raises(UserError, match="exists"):
        write_talk(path, TALK)
    for name in ("nowhere/talk", "a" * 300, "nul\0"):
        with pytest.raises(UserError, match="cannot be written"):
            write_talk(tmp_path / name, TALK)
    write_talk(path, [], force=True)
    assert read_talk(path) == []
    path.write_text(json.dumps([{"role": "user", "content": "a", "name": "kept"}]))
    assert read_talk(path) == [{"role": "user", "content": "a", "name": "kept"}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not a conversation in JSON"),
        ("{}", "holds no messages"),
        ('{"messages": {"role": "user"}}', "holds no messages"),
        ('["a"]', "message 1 has no role"),
        (
            '[{"role": "user", "content": "a"}, {"role": "user", "content": null}]',
            "message 2 has no role",
        ),
        ('[{"role": 1, "content": "a"}]', "message 1"),
        (b"\xff", "is not a conversation in JSON"),
    ],
)
def test_what_is_no_conversation_is_refused(text, words, tmp_path):
    path = tmp_path / "talk.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=words):
        read_talk(path)


def test_a_setting_is_changed_as_it_is_typed_and_checked_as_its_flag():
    now = Talking()
    assert now.greedy and now.max_tokens == 1024
    for name, text, value in (
        ("temperature", "0.5", 0.5),
        ("--top-k", " 40", 40),
        ("max_tokens", "7", 7),
        ("min_tokens", "3", 3),
        ("min_tokens", "none", None),
    ):
        now = changed(now, name, text)
        assert getattr(now, name.strip("-").replace("-", "_")) == value
    assert (now.temperature, now.top_k) == (0.5, 40)
    for name, text, words in (
        ("temperature", "warm", "temperature is 'warm'; wanted a number"),
        ("top_k", "1.5", "wanted a whole number"),
        ("top_p", "2", "--top-p is 2.0"),
        ("n", "2", "no setting 'n'"),
        ("volume", "11", "no setting 'volume'"),
    ):
        with pytest.raises(UserError, match=words):
            changed(now, name, text)
    assert {"n", "best_of", "explain", "logprobs"}.isdisjoint(one.name for one in settings(now))


def test_a_checkpoint_says_how_to_sample_only_where_nobody_else_does():
    said = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50, "repetition_penalty": "much", "eos": 3}
    heard = Talking(top_p=0.5, max_tokens=3).after(said)
    assert (heard.temperature, heard.top_p, heard.top_k, heard.max_tokens) == (0.6, 0.5, 50, 3)
    assert Talking().after({"do_sample": True}).temperature == 1
    for one in (Talking(temperature=0), Talking(temperature=0.7, top_k=2)):
        assert one.after(said) is one
    assert Talking().after({**said, "do_sample": False}).greedy
    with pytest.raises(UserError, match=r"generation_config.json: --temperature is -1"):
        Talking().after({**said, "temperature": -1})


def test_every_setting_of_generate_is_one_of_chat_or_of_no_use_there():
    ours = {one.name for one in settings(Talking())}
    assert ours | {"n", "best_of", "logprobs", "explain"} == set(Sampling.__dataclass_fields__)
