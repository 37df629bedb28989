"""write_shards: tensors into safetensors files, one tensor in memory at a time."""

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import NamedTuple

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
    shards = _shards(items, shard_bytes)
    if len(shards) == 1:
        return [_write(directory / SINGLE, shards[0])]
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    files = [_write(directory / name, shard) for name, shard in zip(names, shards, strict=True)]
    index = {
        "metadata": {"total_size": sum(item.bytes for item in items)},
        "weight_map": {item.name: name for name, shard in zip(names, shards, strict=True) for item in shard},
    }
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [*files, directory / INDEX]


def _shards(items: list[Item], shard_bytes: int) -> list[list[Item]]:
    """Runs of items of at most shard_bytes each, or of one item that is larger."""
    shards: list[list[Item]] = [[]]
    room = shard_bytes
    for item in items:
        if shards[-1] and item.bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(item)
        room -= item.bytes
    return shards


def _write(path: Path, items: list[Item]) -> Path:
    items = sorted(items, key=lambda item: -BITS[_CODES[item.dtype]])  # stable; keeps every tensor aligned
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in items:
        start, end = end, end + item.bytes
        header[item.name] = {"dtype": _CODES[item.dtype], "shape": list(item.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for item in items:
            tensor = item.make().to(device="cpu", dtype=item.dtype).contiguous()
            if tuple(tensor.shape) != item.shape:
                raise ValueError(f"{item.name} is {tuple(tensor.shape)}, not {item.shape} as announced")
            file.write(tensor.flatten().view(torch.uint8).numpy())
            del tensor  # before the next is made
    return path
