"""llmctl.json: what made a directory, and from what: inputs by their digests, parents by their own llmctl.json."""

import hashlib
import os
import platform
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llmctl import __version__
from llmctl.errors import UserError
from llmctl.spec.files import read_json, sha256_of

MANIFEST = "llmctl.json"


@dataclass(frozen=True)
class Input:
    """A file, or a directory by the names and contents of its files, as a command read it.

    Attributes:
        path: as the user gave it.
        bytes: size; None, as the rest, for what cannot be read twice: stdin, a pipe, a name on a hub.
        sha256: of a file's bytes; of a directory, of its sorted lines "sha256  name".
        mtime_ns: of a file, so that an unchanged one need not be read again.
    """

    path: str
    bytes: int | None = None
    sha256: str | None = None
    mtime_ns: int | None = None

    @classmethod
    def of(cls, path: Path | str, known: Sequence["Input"] = ()) -> "Input":
        """The input at `path`; the digest of a file that `known` lists with its size and time is taken from there.

        Raises:
            UserError: nothing lies there, or it cannot be read.
        """
        if str(path) == "-" or str(path).startswith("hf:"):
            return cls(str(path))
        path = Path(path)
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                return cls(str(path), *_digest_of_directory(path))
            if not stat.S_ISREG(status.st_mode):
                return cls(str(path))
            for old in known:
                if (old.path, old.bytes, old.mtime_ns) == (str(path), status.st_size, status.st_mtime_ns):
                    return old
            return cls(str(path), status.st_size, sha256_of(path), status.st_mtime_ns)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename} does not exist.", "Check the path.") from error
        except OSError as error:
            raise UserError(f"{error.filename or path}: {error.strerror}.", "Check the path.") from error


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The llmctl.json of a directory; None where there is none.

    Raises:
        UserError: it is not JSON.
    """
    path = Path(directory) / MANIFEST
    return read_json(path, "manifest") if path.is_file() else None


def damaged(directory: Path, manifest: dict[str, Any]) -> list[str]:
    """The listed files that are not there with their size."""
    files = [(directory / file["name"], file) for file in listed(manifest)]
    return [file["name"] for path, file in files if not path.is_file() or path.stat().st_size != file["bytes"]]


def listed(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The files that an llmctl.json lists, each {name, bytes, sha256}.

    Raises:
        UserError: the list is not such a list.
    """
    files = manifest.get("files") or []
    wanted = {"name": str, "bytes": int, "sha256": str}
    if not isinstance(files, list) or not all(
        isinstance(file, dict) and all(isinstance(file.get(key), kind) for key, kind in wanted.items())
        for file in files
    ):
        raise UserError(f'"files" in {MANIFEST} is not a list of name, bytes and sha256.', "It was edited or damaged.")
    return files


def recorded(plan: dict[str, Any]) -> list[Input]:
    """The inputs that a plan or an llmctl.json names."""
    keys = [field.name for field in fields(Input)]
    return [Input(**{key: given.get(key) for key in keys}) for given in plan.get("inputs") or []]


def inputs_in(file: Path) -> list[Input]:
    """The inputs that such a file names; none where there is no file."""
    return recorded(read_json(file, "record of an earlier run")) if file.is_file() else []


def versions() -> dict[str, str]:
    """llmctl, Python, and those libraries that this run has loaded."""
    loaded = {
        name: sys.modules[name] for name in ("torch", "numpy", "tokenizers", "safetensors") if name in sys.modules
    }
    libraries = {name: str(getattr(module, "__version__", "")) for name, module in loaded.items()}
    return {"llmctl": __version__, "python": platform.python_version(), **libraries}


def parent_of(path: Path | str) -> dict[str, Any] | None:
    """What an input's own llmctl.json says of its making, in short; None where it has none."""
    manifest = read_manifest(Path(path))
    if manifest is None:
        return None
    kept = {key: manifest[key] for key in ("command", "options", "seed", "metrics", "parents") if key in manifest}
    return {"path": str(path), **kept}


def files_of(directory: Path) -> list[Path]:
    """Every file in it, by name, but those with a dot in front and those in such directories."""
    found = []
    for folder, folders, names in os.walk(directory, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder) / name for name in names if not name.startswith(".")]
    return sorted(found, key=lambda path: name_in(path, directory))


def name_in(path: Path, directory: Path) -> str:
    """The file's name in its directory, with forward slashes."""
    return path.relative_to(directory).as_posix()


def _digest_of_directory(directory: Path) -> tuple[int, str]:
    """Bytes and digest of all files; what llmctl.json lists, and is not newer than it, is not read again."""
    manifest = directory / MANIFEST
    known = {file["name"]: file for file in listed(read_manifest(directory) or {})}
    sealed = manifest.stat().st_mtime_ns if known else 0
    total, lines = 0, []
    for path in files_of(directory):
        if path == manifest:
            continue
        name, status = name_in(path, directory), path.stat()
        same = name in known and known[name]["bytes"] == status.st_size and status.st_mtime_ns <= sealed
        lines.append(f"{known[name]['sha256'] if same else sha256_of(path)}  {name}\n")
        total += status.st_size
    return total, hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
