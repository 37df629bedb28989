"""What goes to stdout and what to stderr, on a terminal and off it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from llmctl import console as module
from llmctl import flags
from llmctl.console import Console, clock
from llmctl.flags import Shown

ROOT = Path(__file__).resolve().parent.parent
PROGRESS = (
    "import time; from llmctl.flags import Shown; from llmctl.console import Console\n"
    "with Console(Shown({shown})).progress(3, 'steps', 'training') as progress:\n"
    "    for step in (1, 2, 3): time.sleep(0.3); progress.update(step, loss=2.5)\n"
)
TABLE = (
    "from llmctl import flags; from llmctl.flags import Shown; from llmctl.console import Console\n"
    "flags._running = flags.Invocation('memcalc', [], {{}})\n"
    "console = Console(Shown({shown}))\n"
    "console.report({{'total': 3}}, console.table('Memory', ('part', 'bytes'), [('weights [k]', 1), ('total', 3)]))\n"
)


@pytest.fixture(autouse=True)
def running(monkeypatch):
    """As if memcalc were running."""
    monkeypatch.setattr(flags, "_running", flags.Invocation("memcalc", [], {}))


def on_a_terminal(code: str, **environment: str) -> str:
    """All that the code writes to its stdout and stderr, both a terminal."""
    master, slave = pty.openpty()
    steering = ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if name not in steering}
    kept |= {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"} | environment
    with subprocess.Popen([sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env=kept) as process:
        os.close(slave)
        seen = b""
        try:
            while part := os.read(master, 65536):
                seen += part
        except OSError:  # Linux: the other side is closed
            pass
    os.close(master)
    assert process.returncode == 0, seen.decode()
    return seen.decode()


def test_progress_on_a_terminal_is_a_bar():
    seen = on_a_terminal(PROGRESS.format(shown=""))
    assert "\x1b[" in seen and "━" in seen and "3/3 steps" in seen and "loss 2.5" in seen


@pytest.mark.parametrize("off", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_progress_is_plain_lines_where_a_terminal_must_not_be_steered(off):
    seen = on_a_terminal(PROGRESS.format(shown=""), **off)
    assert "\x1b" not in seen and "training: 3/3 steps" in seen


def test_no_color_as_a_flag_does_the_same():
    assert "\x1b" not in on_a_terminal(PROGRESS.format(shown="color=False"))


def test_progress_is_silent_with_quiet():
    assert on_a_terminal(PROGRESS.format(shown="quiet=True")) == ""


def test_a_report_on_a_terminal_is_a_table_and_what_looks_like_markup_in_it_is_text():
    seen = on_a_terminal(TABLE.format(shown=""))
    assert "Memory" in seen and "weights [k]" in seen and "{" not in seen
    assert "\x1b" not in on_a_terminal(TABLE.format(shown=""), NO_COLOR="1")


def test_a_report_with_json_is_one_object_even_on_a_terminal():
    assert json.loads(on_a_terminal(TABLE.format(shown="json=True"))) == {"schema": "llmctl/memcalc/1", "total": 3}


@pytest.mark.parametrize("environment", ["GITHUB_ACTIONS", "FORCE_COLOR", "CLICOLOR_FORCE"])
def test_nothing_turns_color_on_in_a_pipe(environment):
    code = PROGRESS.format(shown="") + TABLE.format(shown="")
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), environment: "1"},
    )
    assert "\x1b" not in process.stdout + process.stderr
    assert json.loads(process.stdout)["total"] == 3


def test_plain_progress_says_a_line_now_and_then_and_one_at_the_end(capsys, monkeypatch):
    monkeypatch.setattr(module, "EVERY", 30.0)
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Console(Shown()).progress(100, "steps", "training") as progress:
        for step in range(1, 101):
            now[0] += 1
            progress.update(step, loss=4.0 / step)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 4
    assert lines[0] == "training: 30/100 steps, 1 steps/s, 1:10 left, loss 0.1333"
    assert lines[-1] == "training: 100/100 steps, 1 steps/s, loss 0.04"


def test_progress_in_bytes_is_told_in_larger_units(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Console(Shown()).progress(None, "bytes", "encoding") as progress:
        now[0] += 2
        progress.update(0)
        now[0] += 2
        progress.update(52_428_800)
    assert capsys.readouterr().err == "encoding: 52.4 MB, 26.2 MB/s\n"


def test_the_rate_of_a_resumed_run_leaves_out_what_was_done_before(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Console(Shown()).progress(1000, "steps", "training") as progress:
        for done in (900, 902, 904):
            now[0] += 1
            progress.update(done)
    assert capsys.readouterr().err == "training: 904/1,000 steps, 2 steps/s, 0:48 left\n"


def test_progress_that_fails_says_how_far_it_came(capsys):
    with pytest.raises(ValueError), Console(Shown()).progress(9, "files", "reading") as progress:
        progress.update(4)
        raise ValueError
    assert capsys.readouterr().err.startswith("reading: 4/9 files")


def test_what_is_said_goes_to_stderr_and_not_at_all_with_quiet(capsys):
    Console(Shown()).say("hello")
    Console(Shown()).warn("careful")
    Console(Shown(quiet=True)).warn("careful")
    assert capsys.readouterr() == ("", "hello\nwarning: careful\n")


def test_a_directory_that_was_made_is_its_path_on_stdout(capsys):
    Console(Shown()).made(Path("out"), {"loss": 2.5}, 1.5)
    assert capsys.readouterr() == ("out\n", "")
    Console(Shown()).made(Path("out"), {}, 1.5, up_to_date=True)
    assert capsys.readouterr() == ("out\n", "out is up to date.\n")
    Console(Shown(json=True)).made(Path("out"), {"loss": 2.5}, 1.5)
    made = json.loads(capsys.readouterr().out)
    assert made == {
        "schema": "llmctl/memcalc/1",
        "path": "out",
        "up_to_date": False,
        "metrics": {"loss": 2.5},
        "seconds": 1.5,
    }


def test_json_is_valid_whatever_is_in_it(capsys):
    import numpy

    Console(Shown()).jsonl(
        {"a": float("inf"), "b": Path("x"), "c": numpy.float32(0.5), "d": (1, numpy.int64(2)), "é": "✓"}
    )
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": "inf", "b": "x", "c": 0.5, "d": [1, 2], "é": "✓"} and "✓" in out


def test_half_a_surrogate_pair_does_not_stop_the_stream(capfdbinary):
    with open(1, "w", encoding="utf-8", closefd=False) as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        Console(Shown()).jsonl({"text": "a\ud800b"})
        Console(Shown()).out("c\ud800d\n")
    lines = capfdbinary.readouterr().out.decode("utf-8").splitlines()
    assert lines == ['{"text": "a?b"}', "c?d"]


@pytest.mark.parametrize(("seconds", "text"), [(7, "0:07"), (750, "12:30"), (10921, "3:02:01"), (59.7, "1:00")])
def test_durations_read_as_clocks(seconds, text):
    assert clock(seconds) == text
