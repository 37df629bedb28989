"""Single files: whole or absent; JSON that is read with its name in every error."""

import hashlib
import os
from pathlib import Path

import pytest

from llmctl.errors import UserError
from llmctl.spec.files import lock, read_json, sha256_of, write_file


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_file_appears_when_it_is_whole():
    with write_file(Path("x.png")) as file:
        file.write(b"half")
        assert not Path("x.png").exists()
    assert Path("x.png").read_bytes() == b"half" and os.listdir() == ["x.png"]


def test_a_file_that_fails_leaves_nothing_and_an_old_one_as_it_was():
    Path("x.png").write_bytes(b"old")
    with pytest.raises(ValueError), write_file(Path("x.png"), force=True) as file:
        file.write(b"half")
        raise ValueError
    assert Path("x.png").read_bytes() == b"old" and os.listdir() == ["x.png"]


def test_an_existing_file_is_refused_without_force():
    Path("x.png").write_bytes(b"old")
    with pytest.raises(UserError, match=r"x\.png exists"), write_file(Path("x.png")):
        pass


def test_a_directory_in_the_place_of_a_file_is_refused():
    Path("x").mkdir()
    with pytest.raises(UserError, match="is a directory"), write_file(Path("x"), force=True):
        pass


def test_a_device_is_written_to_as_it_is():
    with write_file(Path("/dev/null")) as file:
        file.write(b"gone")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"{", "is not a recipe"),
        (b"[1]", "holds a list"),
        (b"\xff{}", "is not a recipe"),
        (b"[" * 100_000, "is not a recipe"),
    ],
)
def test_what_is_not_a_json_object_is_refused_by_name(data, told):
    Path("r.json").write_bytes(data)
    with pytest.raises(UserError, match=rf"r\.json .*{told}|r\.json {told}"):
        read_json(Path("r.json"), "recipe")


def test_a_missing_json_file_says_what_was_wanted():
    with pytest.raises(UserError, match=r"r\.json: No such file or directory; wanted a recipe"):
        read_json(Path("r.json"), "recipe")


def test_a_digest_is_that_of_all_bytes_in_one():
    data = bytes(range(256)) * 9000  # more than one buffer
    Path("x").write_bytes(data)
    assert sha256_of(Path("x")) == hashlib.sha256(data).hexdigest()


def test_a_lock_is_had_once_and_ends_when_it_is_closed():
    held = lock(Path("d"))
    assert held is not None and lock(Path("d")) is None
    os.close(held)
    again = lock(Path("d"))
    assert again is not None
    os.close(again)


def test_a_lock_on_a_directory_that_was_renamed_away_is_taken_on_a_new_one():
    held = lock(Path("d"))
    os.rename("d", "done")
    other = lock(Path("d"))
    assert other is not None and Path("d").is_dir() and os.listdir("d") == []
    os.close(held)
    os.close(other)
