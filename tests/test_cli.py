"""The one error boundary: what each exception becomes on stderr and as an exit code."""

import errno
import os

import pytest
import typer

from llmctl import cli
from llmctl.errors import Exit, Interrupted, UserError
from tests.conftest import ROOT

CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 8 B."
CASES = [
    (
        UserError("The pot is cracked.", "Bake another.", Exit.MISMATCH),
        4,
        "error: The pot is cracked.\nhint:  Bake another.\n",
    ),
    (UserError("The pot is cracked."), 1, "error: The pot is cracked.\nhint:  See llmctl --help.\n"),
    (UserError("two\nlines \x1b[31m"), 1, "error: two lines \\x1b[31m\nhint:  "),
    (Interrupted("Saved after step 3."), 75, "Saved after step 3.\n"),
    (KeyboardInterrupt(), 130, "error: interrupted.\n"),
    (typer.Abort(), 130, "error: interrupted.\n"),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    (MemoryError(), 5, "error: The memory does not suffice.\nhint:  "),
    (
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB."),
        5,
        "error: The memory does not suffice: CUDA out of",
    ),
    (RuntimeError(CPU), 5, "error: The memory does not suffice: [enforce fail"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), 5, "error: The memory does not suffice"),
    (OSError(errno.ENOSPC, "No space left on device", "pot"), 5, "error: pot: No space left on device.\nhint:  "),
    (RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"), 5, "error: "),
    (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "pot"),
        1,
        "error: pot: No such file or directory.\nhint:  ",
    ),
    (PermissionError(errno.EACCES, "Permission denied", b"pot"), 1, "error: pot: Permission denied.\nhint:  "),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "pot"), 1, "error: pot: Is a directory.\nhint:  "),
    (KeyError("clay"), 1, "error: This is a bug in llmctl: KeyError: 'clay'.\nhint:  Run it again with LLMCTL_DEBUG=1"),
]


@pytest.mark.parametrize(("error", "code", "said"), CASES, ids=[repr(error)[:40] for error, _, _ in CASES])
def test_an_exception_becomes_lines_and_a_code(error, code, said, capsys):
    def work():
        raise error

    assert cli._guarded(work) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(said) and err.count("\n") <= 2
    if not said:
        assert err == ""


def test_debug_adds_the_traceback(capsys, monkeypatch):
    def work():
        raise KeyError("clay")

    monkeypatch.setenv("LLMCTL_DEBUG", "1")
    assert cli._guarded(work) == Exit.FAILURE
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and "error: This is a bug" in err


def test_the_readmes_table_has_a_row_for_each_command():
    rows = cli.table().splitlines()
    assert len(rows) == 2 + len(cli.COMMANDS) and all(row.startswith("| ") for row in rows[2:])


def test_an_interrupt_while_the_program_loads_ends_like_a_later_one(run, tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    done = run("--help", env={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted.\n")
