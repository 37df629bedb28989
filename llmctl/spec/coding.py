"""Coding: how the tensors of a file hold a matrix in few bits, and what they are called."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, gcd
from typing import Literal

from llmctl.spec.quant import Grid

BLOCK, NESTED = 64, 256  # weights that share a scale in nf4, and scales that share one of theirs
FLOATS = ("F32", "BF16", "F16", "F64")
Layout = Literal["packed", "whole", "mxfp4", "gptq", "awq", "nf4", "llm-int8"]


@dataclass(frozen=True)
class Part:
    """One tensor of a matrix in few bits.

    Attributes:
        suffix: of its name, after the module's: "weight_packed".
        shape: None: any of one dimension.
        dtypes: those that it may have, as headers spell them; the first is written.
        optional: it may be absent.
    """

    suffix: str
    shape: tuple[int, ...] | None
    dtypes: tuple[str, ...]
    optional: bool = False


@dataclass(frozen=True)
class Coding:
    """How a matrix is stored.

    Attributes:
        layout: packed: compressed-tensors, codes side by side in int32; whole: compressed-tensors, a code a byte;
            mxfp4: two codes a byte; gptq; awq: its gemm form; nf4, llm-int8: bitsandbytes.
        grid: what the codes stand for.
        rows: that share a scale; 0: all of them.
        shifted: of gptq: zero points are stored less one.
    """

    layout: Layout
    grid: Grid
    rows: int = 1
    shifted: bool = False

    def fitted(self, columns: int) -> Grid:
        """The grid of a matrix of so many columns, with groups that divide them: where the last would be short, all are
        as long as their greatest common divisor, and several have the same scale."""
        group = self.grid.group
        return replace(self.grid, group=gcd(group, columns)) if group and columns % group else self.grid

    def parts(self, rows: int, columns: int) -> list[Part]:
        """The tensors of a (rows, columns) matrix."""
        return PARTS[self.layout](self, rows, columns)

    def wrong(self, rows: int, columns: int) -> str | None:
        """Why a (rows, columns) matrix cannot be written so; None: it can."""
        bits, group = self.grid.bits, self.grid.group
        if group and self.layout != "nf4" and columns % group:
            return f"{columns} columns do not divide by groups of {group}"
        if self.layout == "gptq" and (columns * bits % 32 or rows * bits % 32):
            return f"GPTQ's words of 32 bits do not divide {rows} x {columns} of {bits}"
        if self.layout == "awq" and rows % 8:
            return f"AWQ's words hold 8 rows, and {rows} do not divide by that"
        return None


def _scale(coding: Coding, rows: int, columns: int) -> tuple[int, ...]:
    """The shape of the scales of compressed-tensors."""
    group = coding.grid.group
    if coding.rows == 0:
        return (1,)
    return (ceil(rows / coding.rows), ceil(columns / group) if group else 1)


def _words(count: int, bits: int) -> int:
    """Of 32 bits, for so many codes side by side."""
    return ceil(count * bits / 32)


def _packed(coding: Coding, rows: int, columns: int) -> list[Part]:
    bits, scale = coding.grid.bits, _scale(coding, rows, columns)
    found = [
        Part("weight_packed", (rows, _words(columns, bits)), ("I32",)),
        Part("weight_scale", scale, FLOATS),
        Part("weight_shape", (2,), ("I64", "I32")),
    ]
    if not coding.grid.symmetric:
        along = Part("weight_zero_point", (_words(rows, bits), scale[-1]), ("I32",))
        found.append(along if len(scale) == 2 else Part("weight_zero_point", scale, ("I8",)))
    return found


def _whole(coding: Coding, rows: int, columns: int) -> list[Part]:
    scale = _scale(coding, rows, columns)
    kind = "F8_E4M3" if coding.grid.kind == "fp8" else "I8"
    found = [Part("weight", (rows, columns), (kind,)), Part("weight_scale", scale, FLOATS)]
    symmetric = coding.grid.symmetric
    return found if symmetric else [*found, Part("weight_zero_point", scale, ("I8",))]


def _mxfp4(coding: Coding, rows: int, columns: int) -> list[Part]:
    return [
        Part("weight_packed", (rows, ceil(columns / 2)), ("U8",)),
        Part("weight_scale", (rows, ceil(columns / coding.grid.group)), ("U8",)),
    ]


def _gptq(coding: Coding, rows: int, columns: int) -> list[Part]:
    bits, groups = coding.grid.bits, ceil(columns / coding.grid.group) if coding.grid.group else 1
    return [
        Part("qweight", (_words(columns, bits), rows), ("I32",)),
        Part("qzeros", (groups, _words(rows, bits)), ("I32",)),
        Part("scales", (groups, rows), ("F16", "BF16", "F32")),
        Part("g_idx", (columns,), ("I32", "I64"), optional=True),
    ]


def _awq(coding: Coding, rows: int, columns: int) -> list[Part]:
    groups, words = ceil(columns / coding.grid.group) if coding.grid.group else 1, ceil(rows / 8)
    return [
        Part("qweight", (columns, words), ("I32",)),
        Part("qzeros", (groups, words), ("I32",)),
        Part("scales", (groups, rows), ("F16", "BF16", "F32")),
    ]


def _nf4(coding: Coding, rows: int, columns: int) -> list[Part]:
    blocks = ceil(rows * columns / BLOCK)
    return [
        Part("weight", (ceil(rows * columns / 2), 1), ("U8",)),
        Part("weight.absmax", (blocks,), ("F32", "U8")),
        Part("weight.quant_map", (16,), ("F32",)),
        Part("weight.quant_state.bitsandbytes__nf4", None, ("U8",)),
        Part("weight.nested_absmax", (ceil(blocks / NESTED),), ("F32",), optional=True),
        Part("weight.nested_quant_map", (256,), ("F32",), optional=True),
    ]


def _llm_int8(coding: Coding, rows: int, columns: int) -> list[Part]:
    return [
        Part("weight", (rows, columns), ("I8",)),
        Part("SCB", (rows,), ("F32",)),
        Part("weight_format", (), ("U8",), optional=True),
    ]


PARTS: dict[Layout, Callable[[Coding, int, int], list[Part]]] = {
    "packed": _packed,
    "whole": _whole,
    "mxfp4": _mxfp4,
    "gptq": _gptq,
    "awq": _awq,
    "nf4": _nf4,
    "llm-int8": _llm_int8,
}
