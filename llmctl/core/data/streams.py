"""Streams of bytes: a file or stdin, decompressed by what it is, with errors that name it."""

import bz2
import gzip
import io
import lzma
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from llmctl.errors import UserError
from llmctl.spec.files import FULL

BUFFER = 1 << 20
WIDE = (b"\xff\xfe", b"\xfe\xff")  # how UTF-16 begins


@contextmanager
def opened(path: str) -> Iterator[io.BufferedReader]:
    """The bytes of a file, or of stdin for "-", decompressed when they begin as gzip, zstd, bzip2 or xz do.

    Raises:
        UserError: it cannot be opened or read, the compressed data is damaged, or it is UTF-16.
    """
    name = "stdin" if path == "-" else path
    if path == "-" and sys.stdin is None:
        raise UserError("stdin is closed.", "Pipe something into it, or name a file.")
    broken: list[type[Exception]] = [EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile]
    try:
        plain = io.BufferedReader(_Arriving(sys.stdin.buffer), BUFFER) if path == "-" else open(path, "rb", BUFFER)  # noqa: SIM115
        try:
            head = plain.peek(8)
            unpack = next((unpack for magic, unpack in MAGIC.items() if head.startswith(magic)), None)
            stream = plain if unpack is None else io.BufferedReader(unpack(plain, broken), BUFFER)
            if stream.peek(2).startswith(WIDE):
                raise UserError(
                    f"{name} is UTF-16, not UTF-8.", f"Convert it: iconv -f UTF-16 -t UTF-8 {path} > text.txt"
                )
            yield stream
        finally:
            if path == "-":
                plain.detach()
            else:
                plain.close()
    except tuple(broken) as error:
        raise UserError(f"{name} is damaged or cut short: {error}.", "Make or fetch the file again.") from error
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.errno in FULL:
            raise  # not this stream's, but that of what was done with it
        raise UserError(f"{name} cannot be read: {error.strerror or error}.") from error


def spooled(paths: list[str], spool: Path) -> list[str]:
    """The same paths, with stdin copied to a file, for those who read it twice."""
    if "-" not in paths:
        return paths
    with opened("-") as stream, open(spool, "wb") as file:
        shutil.copyfileobj(stream, file, BUFFER)
    return [str(spool) if path == "-" else path for path in paths]


class _Arriving(io.RawIOBase):
    """What a buffered stream has by now: nobody who waits for a line waits until a whole buffer is full.

    It is not closed with this.
    """

    def __init__(self, stream: BinaryIO):
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        """Read some bytes, at least one; 0 at the end."""
        found = self._stream.read1(len(buffer))
        buffer[: len(found)] = found
        return len(found)


def _zstd(stream: BinaryIO, broken: list[type[Exception]]) -> io.RawIOBase:
    try:
        import zstandard
    except ImportError as error:
        raise UserError("zstd data needs the package zstandard.", 'pip install "llmctl[zstd]"') from error
    broken.append(zstandard.ZstdError)
    return zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True, closefd=False)


# How compressed data begins, and what reads it.
MAGIC: dict[bytes, Callable[[BinaryIO, list[type[Exception]]], io.RawIOBase]] = {
    b"\x1f\x8b": lambda stream, _: gzip.GzipFile(fileobj=stream),
    b"\x28\xb5\x2f\xfd": _zstd,
    b"BZh": lambda stream, _: bz2.BZ2File(stream),
    b"\xfd7zXZ\x00": lambda stream, _: lzma.LZMAFile(stream),  # noqa: SIM115
}
