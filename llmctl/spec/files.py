"""Files and directories on a real disk: written whole, synced, locked, digested; failures in plain words."""

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import IO, Any

from llmctl.errors import Exit, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BARRED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)


def read_json(path: Path, what: str = "JSON file") -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: the file is absent, not UTF-8, not JSON, or not an object; names it and `what` it should be.
    """
    what = what if what.split()[0] in ("a", "an", "the") else f"a {what}"
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; wanted {what}.", "Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not {what}: {error}.", "It may be cut short; make or fetch it again.") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not {what}: it holds a {type(data).__name__}, not an object.", "Name another.")
    return data


def read_toml(path: Path, hint: str, option: str = "") -> dict[str, Any]:
    """What a TOML file holds.

    Args:
        hint: for a file that is not TOML: what one has.
        option: that names the file: its errors are of usage.

    Raises:
        UserError: it cannot be read, or is not TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    name, code = f"{option} {path}".lstrip(), Exit.USAGE if option else Exit.FAILURE
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}.", "Check the path.", code) from error
    except ValueError as error:  # also of UTF-8
        raise UserError(f"{name} is not TOML: {error}.", hint, code) from error


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes an indented JSON file, whole or not at all, even when the machine goes down."""
    text = json.dumps(jsonable(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with write_file(path, force=True) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def jsonable(value: Any) -> Any:
    """The value with paths as text, tuples as lists, and "inf" and "nan", for which JSON has no numbers, as text."""
    if isinstance(value, dict):
        return {str(name): jsonable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Real) and not isinstance(value, (int, float)):  # numpy's
        value = int(value) if isinstance(value, Integral) else float(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def write_file(path: Path, force: bool = False) -> Iterator[IO[bytes]]:
    """A binary file to write to; it appears under its name only when the block ends well.

    A pipe or device is written to as it is.

    Raises:
        UserError: `path` exists and `force` is not set, or its directory is not there, or it cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory; wanted the name of a file to write.")
    if path.exists() and not path.is_file():
        with plain_errors(path), open(path, "wb") as file:
            yield file
        return
    if path.exists() and not force:
        raise UserError(f"{path} exists.", "Use --force to replace it, or another name.")
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: {path.parent} is no directory.", "Make it, or write elsewhere.")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with plain_errors(path):
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Removes a directory with all that is in it; of a link, only the link."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)


def lock(directory: Path) -> int | None:
    """Makes the directory where it is absent and locks it; None when another process holds it.

    The lock is on the directory itself, so that it leaves no file behind, follows a rename, and ends with the
    process. Where the file system has no locks (some network ones), it is had by everyone.

    Returns:
        a file descriptor; closing it unlocks.
    """
    while True:
        directory.mkdir(exist_ok=True)
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:
            return handle
        if _is(handle, directory):
            return handle
        os.close(handle)  # renamed or removed by its holder before we had it: a new one is made


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """What the disk refuses, in plain words.

    Raises:
        UserError: in place of an OSError of a full or barred disk, naming the file, or `path` where it names none.
    """
    try:
        yield
    except OSError as error:
        name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else path
        if error.errno in FULL:
            hint = "Free some space, or write elsewhere."
            raise UserError(f"{name}: {error.strerror}.", hint, Exit.SPACE) from error
        if error.errno in BARRED:
            raise UserError(f"{name}: {error.strerror}.", "Check who may write there, or write elsewhere.") from error
        raise


def _is(handle: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), directory.stat())
    except FileNotFoundError:
        return False
