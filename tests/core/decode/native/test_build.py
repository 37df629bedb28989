"""The native step's library is built once, kept whole, and given up with a reason."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llmctl.core.decode.native import build
from llmctl.core.decode.native.build import Unavailable, library, wanted
from llmctl.errors import UserError
from tests.conftest import environment

QUICK = ("-std=c++17", "-O0", "-fPIC", "-shared", "-fopenmp", "-Wno-psabi")  # compiles in a fraction of the time
LOAD = f"""
from llmctl.core.decode.native import build
build.FLAGS = {QUICK}
print(build.library("avx2").llmctl_fast())
"""


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Where libraries are kept, empty at first; nothing that was loaded before is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(build, "FLAGS", QUICK)
    library.cache_clear()
    yield tmp_path / "cache" / "llmctl"
    library.cache_clear()


def compiler(folder: Path, script: str, monkeypatch) -> None:
    """Have a script stand for every compiler."""
    path = folder / "c++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


def test_processes_that_build_at_the_same_time_all_get_a_whole_library(tmp_path):
    extra = {"XDG_CACHE_HOME": str(tmp_path)}
    start = [sys.executable, "-c", LOAD]
    running = [subprocess.Popen(start, env=environment(extra), stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[0] for process in running] == [b"0\n", b"0\n"]
    assert [path.suffix for path in (tmp_path / "llmctl").iterdir()] == [".so"]


def test_without_a_compiler_there_is_a_reason(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="no C"):
        library()


def test_a_compiler_that_fails_is_quoted(cache, tmp_path, monkeypatch):
    compiler(tmp_path, "echo 'step.cpp:1: error: no such thing' >&2; exit 1", monkeypatch)
    with pytest.raises(Unavailable, match="no such thing"):
        library()
    assert not list(cache.glob("*.so"))


def test_a_compiler_that_makes_no_library_is_a_reason_too(cache, tmp_path, monkeypatch):
    compiler(tmp_path, 'while [ $# -gt 1 ]; do shift; done; echo junk > "$1"', monkeypatch)
    with pytest.raises(Unavailable, match="neither kept nor loaded"):
        library()


def test_what_was_built_is_taken_again_even_where_the_compiler_is_gone(cache, tmp_path, monkeypatch):
    library("avx2")
    (made,) = cache.glob("*.so")
    library.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert library("avx2").llmctl_fast() == 0
    assert list(cache.iterdir()) == [made]


def test_the_environment_says_which(monkeypatch):
    for value, meant in (("0", None), ("off", None), ("1", "best"), ("avx2", "avx2"), ("", "best")):
        monkeypatch.setenv("LLMCTL_NATIVE", value)
        assert wanted() == meant
    monkeypatch.delenv("LLMCTL_NATIVE")
    assert wanted() == "best"
    monkeypatch.setenv("LLMCTL_NATIVE", "avx")
    with pytest.raises(UserError, match="LLMCTL_NATIVE is 'avx'; wanted 0, 1, best or avx2"):
        wanted()


def test_a_folder_that_cannot_be_written_leads_to_another(cache, tmp_path, monkeypatch):
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    library("avx2")
    assert list((tmp_path / f"llmctl-{os.getuid()}").glob("*.so"))


def test_a_user_without_a_home_has_another_folder(cache, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where neither HOME nor the system says one
    compiler(tmp_path, "echo 'error: tried' >&2; exit 1", monkeypatch)
    with pytest.raises(Unavailable, match="tried"):
        library()
    assert (tmp_path / f"llmctl-{os.getuid()}").is_dir()
