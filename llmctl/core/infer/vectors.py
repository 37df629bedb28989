"""VectorFile: vectors and what they belong to, written as they come into one safetensors file."""

import json
import shutil
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import orjson
from torch import Tensor

from llmctl.spec.files import write_file

HEADER = 2040  # bytes of the header's JSON, filled up with spaces, so that it can be written last
LARGEST = 2**63


class VectorFile:
    """Vectors on their way into a file; see `vector_file`.

    Attributes:
        count: vectors so far.
        width: numbers of each, once there is one.
    """

    def __init__(self, file: IO[bytes], lines: IO[bytes]):
        self._file, self._lines = file, lines
        self.count = self.width = 0
        self._numbers = array("q")
        self._ids = array("q")
        self._whole = True  # every id so far is a whole number

    def add(self, vector: Tensor, number: int, id: object = None) -> None:
        """Append one.

        Args:
            vector: (D,) float32 on the CPU.
            number: of the record in the input, from 0.
            id: of the record, or None where it has none: then its number is.
        """
        data = vector.numpy().astype("<f4").tobytes()
        self.width = vector.shape[0]
        self._file.write(data)
        self._numbers.append(number)
        id = number if id is None else id
        self._lines.write(json.dumps(id, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        self._whole = self._whole and type(id) is int and -LARGEST <= id < LARGEST
        if self._whole:
            self._ids.append(id)
        self.count += 1

    def finish(self, metadata: dict[str, str], beside: Path) -> None:
        """Write ids and header; and beside the file the ids themselves, if they are not all whole numbers."""
        ids = np.array(self._ids if self._whole else self._numbers, dtype="<i8")
        header: dict[str, object] = {
            "__metadata__": {"format": "pt", "ids": "ids" if self._whole else beside.name, **metadata}
        }
        end = 4 * self.count * self.width
        header["vectors"] = {"dtype": "F32", "shape": [self.count, self.width], "data_offsets": [0, end]}
        if end % 8:  # int64 begins at a multiple of 8, and tensors lie side by side
            self._file.write(b"\0" * 4)
            header["filler"] = {"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}
            end += 4
        self._file.write(ids.tobytes())
        header["ids"] = {"dtype": "I64", "shape": [self.count], "data_offsets": [end, end + ids.nbytes]}
        text = json.dumps(header).encode().ljust(HEADER)
        self._file.seek(0)
        self._file.write(len(text).to_bytes(8, "little") + text)
        if not self._whole:
            self._lines.seek(0)
            with write_file(beside, force=True) as file:
                shutil.copyfileobj(self._lines, file)


def listed(vector: Tensor) -> list[float]:
    """(D,) float32 as the shortest decimal numbers that read back as the same float32."""
    return orjson.loads(orjson.dumps(vector.numpy(), option=orjson.OPT_SERIALIZE_NUMPY))


@contextmanager
def vector_file(path: Path | None, metadata: dict[str, str], force: bool = False) -> Iterator[VectorFile | None]:
    """A safetensors file, or None where there is no path: `vectors` (N, D) float32 and `ids` (N,) int64, in order.

    `ids` are the records' own where all are whole numbers, else their numbers in the input, from 0; the others then
    lie in NAME.ids.jsonl beside it, a line each. The file appears when the block ends well, and is written as vectors
    come: memory holds 16 bytes for each.

    Raises:
        UserError: the file exists and `force` is not set, or it cannot be written.
    """
    if path is None:
        yield None
        return
    beside = path.with_name(f"{path.stem}.ids.jsonl")
    with write_file(path, force) as file, tempfile.TemporaryFile(dir=path.parent) as lines:
        file.write(b" " * (8 + HEADER))
        vectors = VectorFile(file, lines)
        yield vectors
        vectors.finish(metadata, beside)
