"""Layouts: the codes of a matrix as the tensors of a file hold them, and back."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from llmctl.core.compress.nf4 import VALUES, Nf4, scales_of
from llmctl.core.compress.quant.grid import Codes
from llmctl.core.compress.quant.pack import pack, unpack
from llmctl.errors import Exit, UserError
from llmctl.spec.coding import BLOCK, NESTED, Coding, Layout
from llmctl.spec.quant import Grid

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of eight columns, as they lie in a word from its lowest bits


class Read(NamedTuple):
    """A matrix out of a file.

    Attributes:
        grid: what its codes stand for.
        order: (I,) int64: column i of the codes multiplies input order[i]; None: input i.
    """

    codes: Codes
    grid: Grid
    order: Tensor | None = None


def encode(codes: Codes, coding: Coding, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a matrix, by the suffix of their names.

    Args:
        codes: on the grid of `coding`, which is one that we write.
        shape: (O, I).
        dtype: of the numbers beside it.
    """
    return _WRITERS[coding.layout](codes, coding, shape, dtype)


def decode(parts: Mapping[str, Tensor], coding: Coding, shape: tuple[int, int], dtype: torch.dtype) -> Read:
    """The codes that the tensors of a matrix hold.

    Args:
        parts: by the suffix of their names; of the shapes and dtypes that `coding` says.
        shape: (O, I).
        dtype: of the scales of whole numbers and of fp8: that of the activations, as transformers has it.

    Raises:
        UserError: a value among them that is not understood.
    """
    return READERS[coding.layout](parts, coding, shape, dtype)


def _write_packed(codes: Codes, coding: Coding, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    bits = coding.grid.bits
    found = {
        "weight_packed": pack(_lifted(codes.codes, bits), bits),
        "weight_scale": codes.scale,
        "weight_shape": torch.tensor(shape),
    }
    if codes.zero is not None:
        found["weight_zero_point"] = pack(_lifted(codes.zero.t(), bits), bits).t()
    return found


def _read_packed(parts: Mapping[str, Tensor], coding: Coding, shape: tuple[int, int], dtype: torch.dtype) -> Read:
    if tuple(parts["weight_shape"].tolist()) != shape:
        raise _odd(f"weight_shape is {parts['weight_shape'].tolist()}, wanted {list(shape)}")
    bits = coding.grid.bits
    codes, zero = _lowered(unpack(parts["weight_packed"], bits, shape[1]), bits), parts.get("weight_zero_point")
    if zero is not None and zero.dtype == torch.int32:
        zero = _lowered(unpack(zero.t(), bits, shape[0] if coding.rows else 1), bits).t()
    return _spread(codes, parts["weight_scale"].to(dtype), zero, coding, shape)


def _write_whole(codes: Codes, coding: Coding, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    return {"weight": codes.codes, "weight_scale": codes.scale}


def _read_whole(parts: Mapping[str, Tensor], coding: Coding, shape: tuple[int, int], dtype: torch.dtype) -> Read:
    zero = parts.get("weight_zero_point")
    return _spread(parts["weight"], parts["weight_scale"].to(dtype), zero, coding, shape)


def _spread(codes: Tensor, scale: Tensor, zero: Tensor | None, coding: Coding, shape: tuple[int, int]) -> Read:
    """With scales for each row and group, where fewer are stored, or the last group is short."""
    grid, (rows, columns) = coding.fitted(shape[1]), shape

    def spread(values: Tensor) -> Tensor:
        values = values.reshape(1, 1) if values.ndim < 2 else values
        if coding.rows != 1:
            values = values.repeat_interleave(coding.rows or rows, 0)[:rows]
        if grid.group != coding.grid.group:
            values = values.repeat_interleave(coding.grid.group // grid.group, 1)[:, : columns // grid.group]
        return values.contiguous()

    zero = None if zero is None else spread(zero)
    symmetric = zero is None or not bool(zero.any())
    return Read(Codes(codes, spread(scale), None if symmetric else zero), replace(grid, symmetric=symmetric))


def _write_mxfp4(codes: Codes, coding: Coding, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    return {"weight_packed": codes.codes[:, ::2] | codes.codes[:, 1::2] << 4, "weight_scale": codes.scale}


def _read_mxfp4(parts: Mapping[str, Tensor], coding: Coding, shape: tuple[int, int], dtype: torch.dtype) -> Read:
    packed = parts["weight_packed"]
    codes = torch.stack((packed & 15, packed >> 4), -1).flatten(1)  # (O, I)
    return Read(Codes(codes, parts["weight_scale"]), coding.grid)


def _write_gptq(codes: Codes, coding: Coding, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    bits = coding.grid.bits
    zeros = (_zeros(codes, bits) - int(coding.shifted)) & ((1 << bits) - 1)
    return {
        "qweight": pack(_lifted(codes.codes, bits), bits).t(),
        "qzeros": pack(zeros, bits),
        "scales": codes.scale.t(),
        "g_idx": torch.arange(shape[1], dtype=torch.int32) // (coding.grid.group or shape[1]),
    }


def _read_gptq(parts: Mapping[str, Tensor], coding: Coding, shape: tuple[int, int], dtype: torch.dtype) -> Read:
    (rows, columns), bits = shape, coding.grid.bits
    codes = unpack(parts["qweight"].t(), bits, columns)  # (O, I)
    zeros = unpack(parts["qzeros"], bits, rows)  # (G, O)
    zeros = _lowered((zeros + int(coding.shifted)) & ((1 << bits) - 1), bits).t()
    group, order = coding.grid.group or columns, None
    found = parts.get("g_idx")
    if found is not None and not torch.equal(found.long(), torch.arange(columns) // group):
        found = found.long()
        if found.min() < 0 or found.max() >= len(parts["scales"]):
            raise _odd(
                f"g_idx has {int(found.min())} to {int(found.max())}, and there are {len(parts['scales'])} groups"
            )
        order = torch.sort(found, stable=True).indices
        if not torch.equal(found[order], torch.arange(columns) // group):
            raise _odd(f"g_idx has groups that are not of {group} columns each")
        codes = codes[:, order]
    read = _spread(_lowered(codes, bits), parts["scales"].t().to(dtype), zeros, coding, shape)
    return read._replace(order=order)


def _write_awq(codes: Codes, coding: Coding, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    def packed(values: Tensor) -> Tensor:
        return pack(values.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1), 4)

    return {
        "qweight": packed(_lifted(codes.codes.t(), 4)),
        "qzeros": packed(_zeros(codes, 4)),
        "scales": codes.scale.t(),
    }


def _read_awq(parts: Mapping[str, Tensor], coding: Coding, shape: tuple[int, int], dtype: torch.dtype) -> Read:
    back = torch.tensor(AWQ_ORDER).argsort()

    def unpacked(words: Tensor) -> Tensor:
        values = unpack(words, 4, 8 * words.shape[1]).unflatten(1, (-1, 8))[..., back].flatten(1)
        return _lowered(values, 4).t()[: shape[0]]  # (O, I or G)

    codes = unpacked(parts["qweight"]).contiguous()
    return _spread(codes, parts["scales"].t().to(dtype), unpacked(parts["qzeros"]), coding, shape)


def _write_nf4(codes: Codes, coding: Coding, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    named = str(dtype).removeprefix("torch.")
    state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": named, "shape": list(shape)}
    return {
        "weight": codes.codes,
        "weight.absmax": codes.scale,
        "weight.quant_map": torch.tensor(VALUES),
        "weight.quant_state.bitsandbytes__nf4": torch.frombuffer(
            bytearray(json.dumps(state).encode()), dtype=torch.uint8
        ),
    }


def _read_nf4(parts: Mapping[str, Tensor], coding: Coding, shape: tuple[int, int], dtype: torch.dtype) -> Read:
    text = bytes(parts["weight.quant_state.bitsandbytes__nf4"].tolist())
    try:
        state = json.loads(text)
        found = {key: state.get(key) for key in ("quant_type", "blocksize", "shape")}
    except (ValueError, AttributeError) as error:
        raise _odd("quant_state is no JSON object") from error
    if found != {"quant_type": "nf4", "blocksize": BLOCK, "shape": list(shape)}:
        raise _odd(f"quant_state says {found}, wanted nf4, blocks of {BLOCK} and {list(shape)}")
    if (parts["weight.quant_map"] - torch.tensor(VALUES)).abs().max() > 1e-6:
        raise _odd("quant_map has other values than nf4's")
    absmax, nested = parts["weight.absmax"], parts.get("weight.nested_absmax")
    if (absmax.dtype == torch.uint8) != (nested is not None):
        raise _odd("absmax and nested_absmax do not fit each other")
    if nested is not None:
        offset = state.get("nested_offset")
        if state.get("nested_blocksize") != NESTED or type(offset) not in (int, float):
            raise _odd(f"quant_state's nested_blocksize or nested_offset are not {NESTED} and a number")
        absmax = scales_of(Nf4(parts["weight"], absmax, nested, torch.tensor(float(offset))))
    return Read(Codes(parts["weight"], absmax), coding.grid)


def _read_llm_int8(parts: Mapping[str, Tensor], coding: Coding, shape: tuple[int, int], dtype: torch.dtype) -> Read:
    if "weight_format" in parts and int(parts["weight_format"]) != 0:
        raise _odd(f"weight_format is {int(parts['weight_format'])}, wanted 0 (by rows)")
    return Read(Codes(parts["weight"], (parts["SCB"] / 127).to(dtype)[:, None]), coding.grid)


def _zeros(codes: Codes, bits: int) -> Tensor:
    """Zero points (G, O) as uint8: those of the codes, or the middle."""
    zero = torch.zeros_like(codes.scale, dtype=torch.int8) if codes.zero is None else codes.zero
    return _lifted(zero, bits).t().contiguous()


def _lifted(codes: Tensor, bits: int) -> Tensor:
    """Signed codes, the least of them 0, as uint8."""
    return codes.view(torch.uint8) + (1 << (bits - 1))


def _lowered(codes: Tensor, bits: int) -> Tensor:
    """The inverse."""
    return (codes - (1 << (bits - 1))).view(torch.int8)


def _odd(what: str) -> UserError:
    return UserError(f"{what}.", "Copy or download the checkpoint again.", Exit.MISMATCH)


_WRITERS: dict[str, Callable[[Codes, Coding, tuple[int, int], torch.dtype], dict[str, Tensor]]] = {
    "packed": _write_packed,
    "whole": _write_whole,
    "mxfp4": _write_mxfp4,
    "gptq": _write_gptq,
    "awq": _write_awq,
    "nf4": _write_nf4,
}
READERS: dict[Layout, Callable[[Mapping[str, Tensor], Coding, tuple[int, int], torch.dtype], Read]] = {
    "packed": _read_packed,
    "whole": _read_whole,
    "mxfp4": _read_mxfp4,
    "gptq": _read_gptq,
    "awq": _read_awq,
    "nf4": _read_nf4,
    "llm-int8": _read_llm_int8,
}
