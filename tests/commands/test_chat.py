"""chat: a talk at a terminal and through a pipe."""

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest

from llmctl import typed
from llmctl.typed import Typing
from tests.conftest import environment

SHORT = ["--temperature", "1", "--max-tokens", "8"]


@pytest.fixture(scope="session")
def talker(tmp_path_factory):
    """A random llama with a chat template of its own."""
    from llmctl.core.checkpoint.directory import save_checkpoint
    from llmctl.core.model.init import initialise
    from llmctl.core.model.transformer import Transformer
    from llmctl.core.text.chat import CHATS
    from llmctl.spec.model import ModelConfig
    from tests.core.text.tokenizers_of_all_kinds import made

    tokenizer = made("byte level")
    shape = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ff": 64, "context": 512, "init_std": 0.3}
    config = ModelConfig(vocab=tokenizer.size, tie=False, **shape)
    path = tmp_path_factory.mktemp("talker") / "model"
    path.mkdir()
    save_checkpoint(path, initialise(Transformer(config), seed=5), config)
    tokenizer.save(path)
    (path / "chat_template.jinja").write_text(CHATS["chatml"])
    return path


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def test_from_a_pipe_each_line_is_a_turn_and_each_answer_a_record(call, talker):
    done = call("chat", talker, *SHORT, "--json", stdin=b"Hello\n\nyou are\r\n/quit\n")
    assert (done.code, done.err) == (0, "")
    found = records(done.out)
    assert [one["prompt"] for one in found] == ["Hello", "you are", "/quit"]  # a line is what somebody says
    assert all(one["schema"] == "llmctl/chat/1" and one["finish_reason"] in ("stop", "length") for one in found)
    assert found[0]["usage"]["cached_tokens"] == 0 < found[1]["usage"]["cached_tokens"]
    plain = call("chat", talker, *SHORT, stdin=b"Hello\n\nyou are\r\n/quit\n")
    assert plain == (0, "".join(one["completion"] + "\n" for one in found), "")


def test_an_answer_is_what_generate_writes_after_the_conversation(call, talker):
    (first,) = records(call("chat", talker, "--json", "--max-tokens", 8, stdin=b"Hello\n").out)
    laid = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    (other,) = records(call("generate", talker, "-p", laid, "--special", "--max-tokens", 8, "--json").out)
    assert first["completion"] == other["completion"].lstrip()
    assert first["usage"]["prompt_tokens"] == other["usage"]["prompt_tokens"]


def test_a_turn_that_cannot_be_answered_is_said_in_place_and_the_talk_goes_on(call, talker):
    lines = b"Hello\n" + b"Hello, " * 400 + b"\n\xff\nyou\n"
    done = call("chat", talker, *SHORT, "--json", stdin=lines)
    found = records(done.out)
    assert done.code == 3 and "2 of 4 turns were not answered" in done.err
    assert ["error" in one for one in found] == [False, True, True, False]
    assert "context holds 512" in found[1]["error"] and "UTF-8" in found[2]["error"]
    wanted = records(call("chat", talker, *SHORT, "--json", stdin=b"Hello\nyou\n").out)
    assert found[3]["completion"] == wanted[1]["completion"]
    assert call("chat", talker, *SHORT, stdin=lines).out.splitlines()[1:3] == ["", ""]


def test_a_conversation_that_was_saved_goes_on(call, talker, tmp_path):
    whole = call("chat", talker, *SHORT, "--system", "Be terse.", stdin=b"Hello\nyou are\nyes\n").out
    first = call("chat", talker, *SHORT, "--system", "Be terse.", "--save", "talk.json", stdin=b"Hello\nyou are\n")
    (record,) = records((tmp_path / "talk.json").read_text())
    assert [one["role"] for one in record["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    more = ["--load", "talk.json", "--save", "talk.json"]
    second = call("chat", talker, *SHORT, *more, stdin=b"yes\n")
    assert first.out + second.out == whole
    assert len(records((tmp_path / "talk.json").read_text())[0]["messages"]) == 7
    refused = call("chat", talker, "--save", "talk.json", stdin=b"yes\n")
    assert (refused.code, refused.out) == (1, "") and "exists" in refused.err and "--load" in refused.err


def test_a_model_without_a_template_says_so_and_goes_on_with_a_text(call, tiny, talker):
    done = call("chat", tiny, stdin=b"the\n")
    assert (done.code, done.out) == (4, "") and "has no chat template" in done.err and "--no-template" in done.err
    plain = call("chat", tiny, "--no-template", "--max-tokens", 5, stdin=b"the list\n")
    assert plain.out == call("generate", tiny, "-p", "the list", "--max-tokens", 5).out + "\n"
    layout = call("chat", tiny, "--chat-template", "plain", "--max-tokens", 5, stdin=b"the list\n")
    assert layout.code == 0 and layout.out != plain.out


def test_generation_config_says_how_answers_are_drawn_unless_somebody_else_does(call, talker, tmp_path):
    copy = tmp_path / "sampled"
    shutil.copytree(talker, copy)
    said = json.loads((copy / "generation_config.json").read_text())
    said |= {"do_sample": True, "temperature": 1.7, "top_k": 3}
    (copy / "generation_config.json").write_text(json.dumps(said))
    short, turns = ["--max-tokens", 8], b"Hello\nyou\nyes\n"
    heard = call("chat", copy, *short, stdin=turns).out
    assert heard == call("chat", talker, *short, "--temperature", 1.7, "--top-k", 3, stdin=turns).out
    assert heard != call("chat", talker, *short, stdin=turns).out
    assert (
        call("chat", copy, *short, "--temperature", 0, stdin=turns).out == call("chat", talker, *short, stdin=turns).out
    )


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--n", "2"], 2, "no option --n"),
        (["--temperature", "-1"], 2, "--temperature is -1.0"),
        (["--stop", ""], 2, "--stop is empty"),
        (["--no-template", "--chat-template", "plain"], 2, "exclude each other"),
        (["--chat-template", "nowhere"], 2, "neither a file nor one of"),
        (["--system", "Hello, " * 400], 1, "system prompt takes"),
        (["--load", "nowhere.json"], 1, "nowhere.json"),
        (["--save", "nowhere/talk.json"], 1, "no directory nowhere"),
        ([], 1, "stdin holds no turn"),
    ],
)
def test_what_cannot_be_done_is_said(call, talker, argv, code, words):
    done = call("chat", talker, *argv)
    assert (done.code, done.out) == (code, "") and words in done.err and "Traceback" not in done.err
    assert len(done.err.splitlines()) == 2


def test_an_encoder_decoder_is_refused(call, tmp_path):
    sizes = {"d_model": 8, "num_layers": 1, "vocab_size": 9, "num_heads": 1, "d_ff": 8, "decoder_start_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", **sizes}))
    done = call("chat", tmp_path)
    assert done.code == 4 and "answers a text and not a conversation" in done.err and "generate" in done.err


class Person:
    """Someone at a terminal."""

    def __init__(self, path, cwd, *argv, stdout=None):
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llmctl", "chat", str(path), *map(str, argv)],
            stdin=theirs,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
            cwd=cwd,
            env=environment({"TERM": "dumb"}),
            start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.shown = ""

    def sees(self, text, seconds=60):
        """Waits for a text; what came up to its end."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self.ours], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} did not come; there is {self.shown!r}"
            try:
                block = os.read(self.ours, 1 << 16)
            except OSError:  # how Linux says that the other side is closed
                block = b""
            assert block, f"{text!r} did not come before the end; there is {self.shown!r}"
            self.shown += block.decode().replace("\r\n", "\n")
        found, _, self.shown = self.shown.partition(text)
        return found + text

    def waits(self, seconds):
        """Until something more is shown, and no longer than that."""
        if not self.shown:
            select.select([self.ours], [], [], seconds)

    def types(self, text):
        os.write(self.ours, text.encode())

    def asks(self, text):
        """Types a line; what is shown until the next prompt, the line itself left out."""
        self.types(text + "\n")
        return self.sees(">>> ").removesuffix(">>> ").partition(text + "\n")[2]

    def ends(self):
        """The exit code."""
        end = time.monotonic() + 60
        while select.select([self.ours], [], [], max(0.0, end - time.monotonic()))[0]:
            try:
                if not os.read(self.ours, 1 << 16):
                    break
            except OSError:
                break
        os.close(self.ours)
        return self.process.wait(30)


@pytest.fixture
def person(talker, tmp_path):
    people = []

    def sit(*argv, **how):
        people.append(Person(talker, tmp_path, *argv, **how))
        return people[-1]

    yield sit
    for one in people:
        one.process.kill()
        one.process.wait()


def test_a_talk_at_a_terminal(person, call, talker, tmp_path):
    wanted = call("chat", talker, *SHORT, stdin=b"Hello\nyou are\n").out.splitlines()
    one = person(*SHORT)
    assert "/help" in one.sees(">>> ")
    assert one.asks("Hello").splitlines()[0] == wanted[0]
    assert one.asks("you are").splitlines()[0] == wanted[1]
    assert "temperature 1.0" in one.asks("/set") and "has no value" in one.asks("/set temperature")
    assert "wanted a number" in one.asks("/set temperature hot") and "0 or more" in one.asks("/set temperature -1")
    assert one.asks("/retry").splitlines()[0] != wanted[1]
    assert "2 turns" not in one.asks("/undo")
    one.types('"""you\n')
    one.sees("... ")
    assert one.asks('are"""')
    one.types("and \\\n")
    one.sees("... ")
    assert one.asks("so on")
    shown = one.asks("/show")
    assert "user: you\nare\n" in shown and "user: and \nso on\n" in shown and "user: you are" not in shown
    assert "no command /safe" in one.asks("/safe x") and "/save" in one.asks("/help")
    assert "Saved" in one.asks("/save talk.json") and "exists" in one.asks(f"/save {__file__}")
    for name in ("nowhere/talk.json", "~nobody/talk.json"):  # the talk goes on
        assert "cannot be written" in one.asks(f"/save {name}")
    assert "of 512 tokens" in one.asks("/info")
    one.asks("/reset")
    assert one.asks("/show") == "" and "6 messages" in one.asks("/load talk.json")
    assert "system: Be terse." in one.asks("/system Be terse.")
    assert "nowhere" in one.asks("/load nowhere")
    one.types("/quit\n")
    assert one.ends() == 0
    assert len(json.loads((tmp_path / "talk.json").read_text())["messages"]) == 6


def test_ctrl_c_stops_the_answer_and_not_the_program(person):
    one = person("--temperature", "1", "--max-tokens", "100000", "--min-tokens", "100000")
    one.sees(">>> ")
    one.types("Hello\n")
    one.sees("Hello\n")
    one.waits(60)  # for the answer to begin
    one.types("\x03")
    assert "(stopped)" in one.sees(">>> ")
    one.types("half a line")
    one.sees("half a line")
    one.waits(0.1)
    one.types("\x03")
    assert "Ctrl-D ends" in one.sees(">>> ")
    one.types("\x04")
    assert one.ends() == 0


def test_someone_who_leans_on_ctrl_c_does_not_end_the_program(monkeypatch):
    typing = Typing()
    monkeypatch.setattr(typed, "_edited", lambda prompt: signal.raise_signal(signal.SIGINT))
    with typing:
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                typing.line(">>> ")
            signal.raise_signal(signal.SIGINT)  # while it is told how to end: nobody waits


def test_sigterm_ends_the_program(person):
    one = person(*SHORT)
    one.sees(">>> ")
    one.waits(0.2)  # the prompt is shown a moment before a line is waited for
    os.kill(one.process.pid, signal.SIGTERM)
    assert one.ends() == 130


def test_answers_alone_go_to_a_stdout_that_is_a_file(person, call, talker, tmp_path):
    with open(tmp_path / "out", "w") as file:
        one = person(*SHORT, stdout=file)
        one.sees(">>> ")
        one.types("Hello\n")
        one.sees(">>> ")
        one.types("\x04")
        assert one.ends() == 0
    assert (tmp_path / "out").read_text() == call("chat", talker, *SHORT, stdin=b"Hello\n").out
