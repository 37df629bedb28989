"""Whole: the files of a directory against the sizes and hashes that its llmctl.json lists; Problem, what is wrong."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.files import sha256_of

Trouble = Literal[
    "missing", "size", "hash", "unreadable", "values", "header", "tensors", "config", "vocabulary", "tokens"
]

CODES: dict[Trouble, Exit] = {
    "missing": Exit.FAILURE,
    "size": Exit.FAILURE,
    "hash": Exit.FAILURE,
    "unreadable": Exit.FAILURE,
    "values": Exit.FAILURE,
    "header": Exit.MISMATCH,
    "tensors": Exit.MISMATCH,
    "config": Exit.MISMATCH,
    "vocabulary": Exit.MISMATCH,
    "tokens": Exit.MISMATCH,
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        path: the file or directory.
        problem: what is wrong, in words.
        kind: which of `CODES`: damage ends with exit code 1, what does not fit with 4.
    """

    path: str
    problem: str
    kind: Trouble

    @classmethod
    def of(cls, path: Path, error: UserError, kind: Trouble) -> "Problem":
        """The problem that an error tells; `kind` is what it is where it is no damage."""
        return cls(str(path), error.problem, kind if error.code == Exit.MISMATCH else "unreadable")


def exit_code(problems: list[Problem]) -> Exit:
    """0 without problems; 1 where something is damaged, which explains the rest; 4 where things do not fit."""
    return min((CODES[problem.kind] for problem in problems), default=Exit.DONE)


def check_files(directory: Path, files: list[dict[str, Any]], read: Callable[[int], None]) -> Iterator[Problem]:
    """What is missing, of another size, or has another hash than listed; several files are read at a time.

    Args:
        files: each {name, bytes, sha256}.
        read: told the bytes of each file that has been read.
    """
    sound = []
    for file in files:
        path = directory / file["name"]
        parts = PurePosixPath(file["name"])
        if parts.is_absolute() or ".." in parts.parts:
            yield Problem(str(directory), f"llmctl.json lists {file['name']!r}, outside the directory.", "unreadable")
        elif not path.is_file():
            yield Problem(str(path), f"is missing: llmctl.json lists it with {file['bytes']:,} bytes.", "missing")
        elif (size := path.stat().st_size) != file["bytes"]:
            yield Problem(str(path), f"has {size:,} bytes, but llmctl.json lists {file['bytes']:,}.", "size")
        else:
            sound.append((path, file))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for (path, file), found in zip(sound, pool.map(_sha256, [path for path, _ in sound]), strict=True):
            if isinstance(found, OSError):
                yield Problem(str(path), f"cannot be read: {found.strerror}.", "unreadable")
            elif found != file["sha256"].lower():
                yield Problem(str(path), f"has other bytes: sha256 {found}, listed {file['sha256']}.", "hash")
            read(file["bytes"])


def _sha256(path: Path) -> str | OSError:
    try:
        return sha256_of(path)
    except OSError as error:
        return error
