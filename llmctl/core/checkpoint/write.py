"""Shards: tensors into safetensors files, one tensor in memory at a time."""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from llmctl.spec.safetensors import BITS, INDEX, SINGLE

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


class Item(NamedTuple):
    """A tensor to write: what its header says, and how to make it when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]


class Announced(NamedTuple):
    """A tensor to write, as its header says."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Size of its data."""
        return prod(self.shape) * self.dtype.itemsize


def write_shards(directory: Path, items: list[Item], shard_bytes: int) -> list[Path]:
    """Write model.safetensors, or numbered shards and their index where the data is more than `shard_bytes`.

    Returns:
        The files written, index last.

    Raises:
        OSError: the disk is full, or the directory cannot be written.
    """
    with Shards(directory, [Announced(item.name, item.shape, item.dtype) for item in items], shard_bytes) as shards:
        made = {item.name: item.make for item in items}
        for name in shards.order:
            shards.put(name, made[name]())
    return shards.files


class Shards:
    """model.safetensors, or numbered shards and their index, whose tensors may come in any order.

        with Shards(directory, [Announced("a", (2, 3), torch.float32), ...], shard_bytes) as shards:
            shards.put("a", tensor)

    Attributes:
        files: the files, index last.
        order: the names as their data lies in the files: in this order writing is sequential.

    Raises:
        ValueError: a tensor that was not announced or is of another shape or dtype; or one that never came.
        OSError: the disk is full, or the directory cannot be written.
    """

    def __init__(self, directory: Path, tensors: list[Announced], shard_bytes: int):
        runs = _runs(tensors, shard_bytes)
        if len(runs) == 1:
            names = [SINGLE]
        else:
            names = [f"model-{i:05}-of-{len(runs):05}.safetensors" for i in range(1, len(runs) + 1)]
        self.files = [directory / name for name in names]
        self.order: list[str] = []
        self._places: dict[str, tuple[int, int, Announced]] = {}  # number of the file, offset
        self._open: list[BinaryIO] = []
        headers = []
        for number, run in enumerate(runs):
            run = sorted(run, key=lambda one: -BITS[_CODES[one.dtype]])  # stable; keeps every tensor aligned
            headers.append(_header(run))
            end = len(headers[-1])
            for one in run:
                self._places[one.name] = (number, end, one)
                self.order.append(one.name)
                end += one.bytes
        for path, header in zip(self.files, headers, strict=True):
            self._open.append(open(path, "wb"))  # noqa: SIM115 - closed on leaving
            self._open[-1].write(header)
        self._missing = set(self._places)
        if len(runs) > 1:
            index = {
                "metadata": {"total_size": sum(one.bytes for one in tensors)},
                "weight_map": {one.name: name for one in tensors for name in [names[self._places[one.name][0]]]},
            }
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (directory / INDEX).write_text(text, encoding="utf-8")
            self.files.append(directory / INDEX)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor, cast to what was announced."""
        if name not in self._missing:
            raise ValueError(f"{name} was not announced, or has been written")
        number, offset, told = self._places[name]
        tensor = tensor.to(device="cpu", dtype=told.dtype).contiguous()
        if tuple(tensor.shape) != told.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)}, not {told.shape} as announced")
        self._open[number].seek(offset)
        self._open[number].write(tensor.flatten().view(torch.uint8).numpy())
        self._missing.remove(name)

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        for file in self._open:
            file.close()
        if kind is None and self._missing:
            raise ValueError(f"never written: {', '.join(sorted(self._missing)[:4])}")


def _runs(tensors: list[Announced], shard_bytes: int) -> list[list[Announced]]:
    """Runs of tensors of at most shard_bytes each, or of one that is larger."""
    runs: list[list[Announced]] = [[]]
    room = shard_bytes
    for one in tensors:
        if runs[-1] and one.bytes > room:
            runs.append([])
            room = shard_bytes
        runs[-1].append(one)
        room -= one.bytes
    return runs


def _header(tensors: list[Announced]) -> bytes:
    """What stands before the data of tensors that lie one after another."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in tensors:
        start, end = end, end + one.bytes
        header[one.name] = {"dtype": _CODES[one.dtype], "shape": list(one.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
