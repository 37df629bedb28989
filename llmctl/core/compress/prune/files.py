"""Files: a checkpoint written anew, some of its matrices changed, one tensor in memory at a time; its sparse form."""

from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmctl.core.checkpoint.directory import SHARD_BYTES
from llmctl.core.checkpoint.names import join, split
from llmctl.core.checkpoint.stream import Stream
from llmctl.core.checkpoint.write import DTYPES, Announced, Item, Shards, write_shards
from llmctl.spec.account import account
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name
from llmctl.spec.safetensors import INDEX, MASK, SINGLE, SPARSE, VALUES, TensorInfo, read_tensors
from llmctl.spec.sizes import shapes

# What becomes of one of our matrices, (O, I), given its name: the same dtype, a tensor of its own.
Change = Callable[[str, Tensor], Tensor]


@torch.no_grad()
def rewrite(
    source: Path,
    directory: Path,
    config: ModelConfig,
    names: Iterable[str],
    change: Change,
) -> None:
    """Write the tensors of a checkpoint into an existing directory, those of some of our names changed.

    Names, dtypes and order of its tensors stay. Memory: one tensor as it is read, and as it is written.

    Args:
        names: "decoder.layers.0.attention.q.weight" ...

    Raises:
        UserError: tensors that do not fit the config.
        OSError: the disk is full.
    """
    tensors, stream, changed = read_tensors(source), Stream(source), frozenset(names)
    rules = {info.name: rule for rule, info in account(tensors, config, str(source)).stored.items()}
    wanted = shapes(config)

    def made(info: TensorInfo) -> Tensor:
        stream.release()
        stored, rule = stream.tensor(info), rules.get(info.name)
        if rule is None or changed.isdisjoint(rule.ours):
            return stored
        parts = split(rule, stored, [wanted[name][0] for name in rule.ours], config.heads)
        pairs = zip(rule.ours, parts, strict=True)
        return join(rule, [change(name, part) if name in changed else part for name, part in pairs], config.heads)

    items = [Item(info.name, info.shape, DTYPES[info.dtype], lambda info=info: made(info)) for info in tensors.values()]
    write_shards(directory, items, SHARD_BYTES)


@torch.no_grad()
def compact(directory: Path, config: ModelConfig) -> int:
    """Replace the weights of a checkpoint by their sparse form: of matrices of the layers zeros are left out.

    Where it saves nothing, or rows do not divide by 8, a tensor stays as it is. Values are stored row after row, as the
    file has the matrix, and beside them a bit for each weight; see `SparseInfo`.

    Returns:
        How many tensors are without their zeros.
    """
    tensors, stream = read_tensors(directory), Stream(directory)
    rules = {info.name: rule for rule, info in account(tensors, config, str(directory)).stored.items()}
    counts = {name: _values(stream, info) for name, info in tensors.items() if _layered(rules.get(name), info)}
    folded = {
        name: count
        for name, count in counts.items()
        if count * DTYPES[tensors[name].dtype].itemsize + prod(tensors[name].shape) // 8 < tensors[name].bytes
    }
    told: list[Announced] = []
    for name, info in tensors.items():
        dtype = DTYPES[info.dtype]
        if name in folded:
            rows, columns = info.shape
            told += [Announced(name + VALUES, (folded[name],), dtype)]
            told += [Announced(name + MASK, (rows, columns // 8), torch.uint8)]
        else:
            told.append(Announced(name, info.shape, dtype))
    scratch = directory / ".sparse"
    scratch.mkdir()
    with Shards(scratch, told, 1 << 62) as shards:
        for name, info in tensors.items():
            stored = stream.tensor(info)
            if name in folded:
                stands = stored != 0
                shards.put(name + VALUES, stored[stands])
                packed = np.packbits(stands.numpy(), axis=1, bitorder="little")
                shards.put(name + MASK, torch.from_numpy(packed))
            else:
                shards.put(name, stored)
            stream.release()
    del stored
    for path in {directory / info.file for info in tensors.values()} | {directory / INDEX}:
        path.unlink(missing_ok=True)
    (scratch / SINGLE).rename(directory / SPARSE)
    scratch.rmdir()
    return len(folded)


def _layered(rule: Name | None, info: TensorInfo) -> bool:
    """Whether a tensor holds matrices of layers, and its form can be sparse."""
    return rule is not None and ".layers." in rule.ours[0] and len(info.shape) == 2 and info.shape[1] % 8 == 0


def _values(stream: Stream, info: TensorInfo) -> int:
    """How many weights of a tensor are not zero."""
    count = int(stream.tensor(info).count_nonzero())
    stream.release()
    return count
