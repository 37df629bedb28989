"""Values of stored tensors, read in pieces with numpy: which differ and by how much, which are not finite."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import nan, prod
from pathlib import Path

import numpy as np

from llmctl.errors import UserError
from llmctl.spec.safetensors import BITS, SparseInfo, TensorInfo

PIECE = 1 << 20  # elements read at once

FLOATS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "F64": lambda bits: bits.view("<f8"),
    "F32": lambda bits: bits.view("<f4"),
    "F16": lambda bits: bits.view("<f2"),
    "BF16": lambda bits: (bits.astype("<u4") << 16).view("<f4"),
}
# Bits that are all set in infinities and NaNs, and in nothing else.
EXPONENTS = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "F16": 0x1F << 10, "BF16": 0xFF << 7, "F8_E5M2": 0x1F << 2}
# Source: Micikevicius et al., arXiv:2209.05433, table 1; FNUZ of ONNX; E8M0 of the OCP microscaling formats, 5.4.1.
CODES = {"F8_E4M3": (0x7F, 0xFF), "F8_E4M3FNUZ": (0x80,), "F8_E5M2FNUZ": (0x80,), "F8_E8M0": (0xFF,)}


@dataclass(frozen=True)
class Difference:
    """How the values of two tensors of one shape differ.

    Attributes:
        elements: of the tensor.
        changed: elements that differ: in their bits, or where the dtypes differ, in their value. None: of a type whose
            elements, or whose values, are not told apart here.
        largest: the largest absolute difference; nan where one of the two is no number. None: not of floats.
    """

    elements: int
    changed: int | None
    largest: float | None


def same_bytes(first: Path, a: TensorInfo, second: Path, b: TensorInfo) -> bool:
    """Whether two tensors hold the same bytes.

    Args:
        first, second: the directories of their files.

    Raises:
        UserError: a file has become shorter.
    """
    if a.shape != b.shape or BITS[a.dtype] != BITS[b.dtype]:
        return False
    size = max(1, BITS[a.dtype] // 8)
    pieces = zip(_pieces(first, a, size), _pieces(second, b, size), strict=True)
    return all(one == other for one, other in pieces)


def difference(first: Path, a: TensorInfo, second: Path, b: TensorInfo) -> Difference | None:
    """How two tensors of the same shape differ; None where dtype and bytes are equal.

    Raises:
        ValueError: their shapes differ.
        UserError: a file has become shorter.
    """
    if a.shape != b.shape:
        raise ValueError(f"{a.name} is {a.shape} and {b.shape}")
    floats = a.dtype in FLOATS and b.dtype in FLOATS
    whole = all(BITS[info.dtype] % 8 == 0 for info in (a, b))
    if not floats and (a.dtype != b.dtype or not whole):
        equal = a.dtype == b.dtype and same_bytes(first, a, second, b)
        return None if equal else Difference(prod(a.shape), None, None)
    changed, largest = 0, 0.0
    sizes = [BITS[info.dtype] // 8 for info in (a, b)]
    for one, other in zip(_pieces(first, a, sizes[0]), _pieces(second, b, sizes[1]), strict=True):
        if a.dtype == b.dtype and one == other:
            continue
        x, y = (np.frombuffer(piece, f"<u{size}") for piece, size in zip((one, other), sizes, strict=True))
        if a.dtype == b.dtype:
            differ = x != y
            x, y = x[differ], y[differ]
        if floats:
            x, y = FLOATS[a.dtype](x).astype("<f8"), FLOATS[b.dtype](y).astype("<f8")
            if a.dtype != b.dtype:
                differ = (x != y) & ~(np.isnan(x) & np.isnan(y))
                x, y = x[differ], y[differ]
            largest = _larger(largest, x, y)
        changed += int(np.count_nonzero(differ))
    if a.dtype == b.dtype and not changed:
        return None
    return Difference(prod(a.shape), changed, largest if floats else None)


def not_finite(directory: Path, info: TensorInfo) -> int:
    """How many elements are infinite or NaN; 0 of types that have neither.

    Raises:
        UserError: the file has become shorter.
    """
    dtype = "F32" if info.dtype == "C64" else info.dtype
    if dtype not in EXPONENTS and dtype not in CODES:
        return 0
    size, count = BITS[dtype] // 8, 0
    for piece in _pieces(directory, info, size):
        bits = np.frombuffer(piece, f"<u{size}")
        if dtype in CODES:
            count += int(np.isin(bits, CODES[dtype]).sum())
        else:
            mask = bits.dtype.type(EXPONENTS[dtype])
            count += int(np.count_nonzero((bits & mask) == mask))
    return count


def _larger(largest: float, x: np.ndarray, y: np.ndarray) -> float:
    """The largest of `largest` and the differences of x and y, (N,) float64 that differ; nan stays nan."""
    if not len(x) or largest != largest:
        return largest
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = np.abs(x - y)
    gaps[np.isnan(x) & np.isnan(y)] = 0  # NaNs of other bits
    found = float(gaps.max())
    return nan if found != found else max(largest, found)


def _pieces(directory: Path, info: TensorInfo, size: int) -> Iterator[bytes]:
    """The bytes of a tensor, PIECE elements of `size` bytes at a time."""
    if not isinstance(info, SparseInfo):
        yield from _read(directory, info, PIECE * size)
        return
    values, rest = _read(directory, info, PIECE * size), b""
    whole = BITS[info.dtype] // 8  # bytes of an element
    for bits in _read(directory, info.mask, PIECE // 8):
        stands = np.unpackbits(np.frombuffer(bits, "u1"), bitorder="little").astype(bool)
        need = int(stands.sum()) * whole
        while len(rest) < need:
            rest += next(values, None) or _short(directory / info.file)
        dense = np.zeros((len(stands), whole), "u1")
        dense[stands] = np.frombuffer(rest[:need], "u1").reshape(-1, whole)
        rest = rest[need:]
        yield dense.tobytes()


def _read(directory: Path, info: TensorInfo, size: int) -> Iterator[bytes]:
    """The bytes of a file that are a tensor's, so many at a time."""
    path = directory / info.file
    with open(path, "rb") as file:
        file.seek(info.start)
        left = info.end - info.start
        while left:
            piece = file.read(min(left, size))
            left -= len(piece)
            yield piece or _short(path)


def _short(path: Path) -> bytes:
    raise UserError(f"{path} has become shorter while it was read.", "Let no one write to it.")
