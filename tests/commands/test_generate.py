"""generate: what goes in, what comes out, and where."""

import json
import os
import pty
import shutil
import subprocess
import sys

import pytest

WARM = ["--temperature", "1", "--max-tokens", "12"]


def records(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def alone(call, tiny):
    """The completion of one prompt, asked for by itself."""

    def alone(prompt, *options):
        return call("generate", tiny, "-p", prompt, *options).out

    return alone


def test_stdout_is_exactly_the_completion(call, tiny):
    done = call("generate", tiny, "-p", "the list", *WARM)
    (record,) = records(call("generate", tiny, "-p", "the list", *WARM, "--json").out)
    assert done == (0, record["completion"], "")
    assert record["prompt"] == "the list" and record["schema"] == "llmctl/generate/1"
    assert record["finish_reason"] == "length"
    assert record["usage"] == {"prompt_tokens": 2, "completion_tokens": 12}


def test_the_seed_decides_and_nothing_else_does(call, tiny, alone):
    texts = {alone("the", *WARM, "--seed", seed) for seed in range(4)}
    assert len(texts) == 4
    assert alone("the", *WARM, "--seed", 3) == alone("the", *WARM, "--seed", 3)
    assert alone("the", "--max-tokens", 5) == alone("the", "--max-tokens", 5, "--seed", 9)
    prompts = b"".join(b'{"prompt": "%s"}\n' % (b"thing " * (3 * i % 5 + 1)) for i in range(5))
    sizes = {call("generate", tiny, "-", *WARM, "--n", 3, "--batch-size", s, stdin=prompts).out for s in (1, 4, 50)}
    assert len(sizes) == 1 and len(set(map(str, records(sizes.pop())))) == 5


def test_more_samples_begin_with_those_of_fewer(call, tiny, alone):
    several = call("generate", tiny, "-p", "the", *WARM, "--n", 3, "--json")
    (record,) = records(several.out)
    assert record["completions"][0] == alone("the", *WARM)
    assert len(set(record["completions"])) == 3 and record["finish_reason"] == ["length"] * 3
    assert record["usage"]["completion_tokens"] == 36


def test_records_come_back_in_order_with_their_fields(call, tiny):
    lines = (
        b'{"id": 1, "prompt": "the list", "big": 12345678901234567890}\n'
        b"\n"
        b"not json\n"
        b'{"id": 2, "text": "the"}\n'
        b'{"id": 3}\n'
        b'{"id": 4, "prompt": "' + b"things " * 80 + b'"}\n'
        b'{"id": 5, "prompt": "", "completion": "reference"}\n'
        b'{"id": 6, "prompt": ["a"]}\n'
        b"[]\n"
        b'{"id": 7, "prompt": "\xff"}\n'
        b'{"id": 8, "prompt": "the"}'
    )
    done = call("generate", tiny, "-", "--max-tokens", 3, "--batch-size", 2, stdin=lines)
    found = records(done.out)
    assert done.code == 3 and "6 of 10 prompts were not answered" in done.err
    assert [record.get("id") for record in found] == [1, None, 2, 3, 4, 5, 6, None, None, 8]
    assert ["error" in record for record in found] == [False, True, False, True, True, False, True, True, True, False]
    assert found[0]["big"] == 12345678901234567890 and list(found[0])[:3] == ["id", "prompt", "big"]
    assert "84 tokens" in found[4]["error"] and "64" in found[4]["error"] and found[4]["prompt"]
    assert "no field 'prompt'" in found[3]["error"]
    assert "'completion' already" in done.err and found[5]["completion"] != "reference"


def test_the_field_can_be_named_and_what_is_there_kept(call, tiny, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"question": "the", "completion": "reference"}\n')
    done = call("generate", tiny, "in.jsonl", "--field", "question", "--output-field", "answer", "--max-tokens", 3)
    (record,) = records(done.out)
    assert list(record) == ["question", "completion", "answer", "finish_reason", "usage"]
    assert record["completion"] == "reference" and "warning" not in done.err
    told = call("generate", tiny, "-", "--max-tokens", 1, stdin=b'{"prompt": "the", "usage": 1}\n').err
    assert "'usage' already, which is replaced." in told  # which no --output-field would change


def test_of_several_texts_each_ends_with_a_newline(call, tiny, alone):
    done = call("generate", tiny, "-", "--max-tokens", 5, stdin=b"the list\r\n\nthe")
    wanted = [alone(prompt, "--max-tokens", 5) for prompt in ("the list", "", "the")]
    assert done.out == "".join(f"{text}\n" for text in wanted)
    assert call("generate", tiny, "-", "--max-tokens", 5, stdin=b"the list\n").out == wanted[0]
    assert call("generate", tiny, "-p", "the list", "-p", "the", "--max-tokens", 5).out == f"{wanted[0]}\n{wanted[2]}\n"


def test_formats_are_told_apart_by_name_and_content(call, tiny, tmp_path, alone):
    short = ["--max-tokens", 4]
    two = b"the list\nthe"
    (tmp_path / "a.txt").write_bytes(b'{"prompt": "the"}')
    assert call("generate", tiny, "a.txt", *short).out == alone('{"prompt": "the"}', *short)
    (tmp_path / "a.txt").write_bytes(two)
    assert call("generate", tiny, "a.txt", *short, "--format", "text").out == alone("the list\nthe", *short)
    (tmp_path / "b").write_bytes(b'\xef\xbb\xbf{"prompt": "the"}')
    assert records(call("generate", tiny, "b", *short).out)[0]["completion"] == alone("the", *short)
    assert call("generate", tiny, "-", *short, stdin=b"{not json\n").out == alone("{not json", *short)
    done = call("generate", tiny, "-", *short, "--format", "jsonl", stdin=two)
    assert done.code == 3 and all("error" in record for record in records(done.out))


def test_a_prompt_is_used_as_it_is(call, tiny):
    """No escapes are rewritten, specials are plain text unless asked for, nothing is stripped or added."""
    for prompt, tokens, special in (
        (r"\nabla", 6, []),
        (" a \n", 4, []),
        ("<|turn|>", 8, []),
        ("<|turn|>", 1, ["--special"]),
    ):
        (record,) = records(call("generate", tiny, "-p", prompt, "--max-tokens", 0, "--json", *special).out)
        assert record["usage"]["prompt_tokens"] == tokens
        assert record["prompt"] == prompt and record["completion"] == "" and record["finish_reason"] == "length"


def test_a_beginning_that_the_tokenizer_adds_is_there_once(call, tiny, tmp_path):
    from tokenizers import Tokenizer, processors

    copy = tmp_path / "begins"
    shutil.copytree(tiny, copy)
    backend = Tokenizer.from_file(str(copy / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<|turn|> $A", special_tokens=[("<|turn|>", 1)])
    backend.save(str(copy / "tokenizer.json"))
    (copy / "tokenizer_config.json").write_text('{"bos_token": "<|turn|>", "eos_token": "<|endoftext|>"}')
    for prompt, options, tokens in (("the", [], 2), ("<|turn|>the", ["--special"], 2), ("", [], 1)):
        (record,) = records(call("generate", copy, "-p", prompt, "--max-tokens", 0, "--json", *options).out)
        assert record["usage"]["prompt_tokens"] == tokens


def test_every_listed_end_of_text_stops(call, tiny, tmp_path, alone):
    whole = alone("the", *WARM)
    copy = tmp_path / "stops"
    shutil.copytree(tiny, copy)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(100, 280, 2))}))
    (record,) = records(call("generate", copy, "-p", "the", *WARM, "--json").out)
    assert record["finish_reason"] == "stop" and 1 < record["usage"]["completion_tokens"] < 12
    assert whole.startswith(record["completion"]) and len(record["completion"]) < len(whole)


def test_a_stop_string_is_left_out(call, tiny, alone):
    whole = alone("the", *WARM)
    stop = whole[3:5]
    (record,) = records(call("generate", tiny, "-p", "the", *WARM, "--stop", "never", "--stop", stop, "--json").out)
    assert record["completion"] == whole[: whole.index(stop)] and record["finish_reason"] == "stop"


def test_a_text_beyond_the_context_is_warned_of(call, tiny):
    done = call("generate", tiny, "-p", "the", "--max-tokens", 80)
    assert done.code == 0 and "longer than the model's context of 64" in done.err


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ([], 2, "no prompt"),
        (["a", "-p", "b"], 2, "not both"),
        (["Once upon a time"], 1, "does not exist"),
        (["-"], 1, "stdin holds no prompt"),
        (["-p", "things " * 80], 1, "84 tokens"),
        (["-p", "a", "--stop", ""], 2, "--stop is empty"),
        (["-p", "a", "--batch-size", "0"], 2, "--batch-size is 0"),
        (["-p", "a", "--temperature", "-1", "--top-p", "2"], 2, "--top-p is 2.0"),
        (["-p", "a", "--seed", str(2**63)], 2, "--seed"),
        (["-p", "a", "--field", "text", "--format", "lines"], 2, "--format, --field say nothing beside -p"),
        (["-p", "a", "--temperature", "0", "--top-k", "5"], 2, "--top-k says nothing where --temperature is 0"),
        (["-p", "a", "--output-field", "usage"], 2, "--output-field is 'usage', which is taken"),
        (["-p", "a", "--cache-prompt", "no/where"], 1, "no directory no"),
    ],
)
def test_what_cannot_be_done_is_said(call, tiny, argv, code, words):
    done = call("generate", tiny, *argv)
    assert (done.code, done.out) == (code, "") and words in done.err and "Traceback" not in done.err


def test_the_model_can_come_from_a_pipe_but_not_with_the_prompts(call, tiny, alone):
    assert call("generate", "-", "-p", "the", "--max-tokens", 4, stdin=f"{tiny}\n".encode()).out == alone(
        "the", "--max-tokens", 4
    )
    both = call("generate", "-", "-", stdin=f"{tiny}\n".encode())
    assert both.code == 2 and "stdin" in both.err


def test_a_tokenizer_of_another_model_is_refused(call, tiny, tmp_path):
    copy = tmp_path / "other"
    shutil.copytree(tiny, copy)
    config = json.loads((copy / "tokenizer.json").read_text())
    config["model"]["vocab"] = {token: i + 200 for token, i in config["model"]["vocab"].items()}
    config["added_tokens"] = []
    (copy / "tokenizer.json").write_text(json.dumps(config))
    done = call("generate", copy, "-p", "the")
    assert done.code == 4 and "model knows only" in done.err
    assert call("generate", copy, "-", stdin=b'{"prompt": "the"}').code == 4


def terminal(argv, tmp_path, stdout):
    """Runs llmctl with stderr, and stdout if it is None, on a terminal; what that shows."""
    from tests.conftest import environment

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "llmctl", *map(str, argv)],
        stdin=subprocess.DEVNULL,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        cwd=tmp_path,
        env=environment(),
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 1 << 16)
        except OSError:  # how Linux says that the other side is closed
            break
        if not block:
            break
        shown += block
    os.close(ours)
    assert process.wait(60) == 0, shown
    return shown.decode().replace("\r\n", "\n")


def test_a_terminal_gets_whole_characters_no_controls_and_a_last_newline(tiny, tmp_path, alone):
    hot = ["--temperature", "2", "--max-tokens", "50"]  # bytes at random: broken characters, escapes
    shown = terminal(["generate", tiny, "-p", "the", *hot], tmp_path, None)
    text = alone("the", *hot)
    assert any(ord(c) < 32 and c != "\n" for c in text), "the test needs a control character"
    assert shown.endswith("\n") and "\x1b" not in shown
    pictures = {c: chr(0x2400 + c) for c in range(32) if c not in (9, 10)} | {127: "\u2421"}
    pictures |= dict.fromkeys(range(0x80, 0xA0), "\ufffd")
    assert shown.rstrip("\n") == text.translate(pictures).rstrip("\n")


def test_stdout_is_a_file_while_progress_is_on_the_terminal(tiny, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "the"}\n' * 5)
    with open(tmp_path / "out.jsonl", "w") as file:
        shown = terminal(["generate", tiny, "in.jsonl", "--max-tokens", "3"], tmp_path, file)
    assert len(records((tmp_path / "out.jsonl").read_text())) == 5
    assert "prompts" in shown and "completion" not in shown
