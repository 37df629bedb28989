"""Headers of safetensors files, read and checked without any library, and the tensors of a checkpoint directory."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from llmctl.errors import Exit, UserError
from llmctl.spec.files import read_json

BITS: dict[str, int] = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SPARSE = "sparse.safetensors"  # in place of the two: pruned matrices as their values and a bit for each weight
MASK, VALUES = ".bitmask", ".values"  # what the two are called after the name of the tensor
_LARGEST_HEADER = 100_000_000
_LARGEST_SIZE = 1 << 62
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "model.pt", "model.pth")


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: bytes start to end of `file`, counted from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int

    @property
    def bytes(self) -> int:
        """Size of its data."""
        return self.end - self.start


@dataclass(frozen=True)
class SparseInfo(TensorInfo):
    """A matrix of which only what is not zero lies in the file, row after row: bytes start to end.

    Attributes:
        mask: a bit for each weight, 1 where there is a value: U8, (rows, columns / 8), the first column in the least
            bit of a byte.
    """

    mask: TensorInfo

    @property
    def bytes(self) -> int:
        """Size of its data as it is stored."""
        return self.end - self.start + self.mask.bytes


def read_header(path: Path | str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of one safetensors file, in the order they lie in it, and its metadata.

    Reads the header only. What it accepts, other readers of the format accept too: one JSON object, each tensor's
    bytes as many as its shape and dtype need, the tensors side by side from the header's end to the file's.

    Raises:
        UserError: the file cannot be read, or is not that.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            if len(start) < 8:
                raise _broken(path, f"it has {size} bytes, and a safetensors file has at least 8")
            length = int.from_bytes(start, "little")
            if length > _LARGEST_HEADER:
                raise _broken(path, f"its header claims {length} bytes, and {_LARGEST_HEADER} is the most allowed")
            if 8 + length > size:
                raise _broken(path, f"its header claims {length} bytes, but the file ends after {size}")
            text = file.read(length)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    header = _parsed(path, text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(path, "its __metadata__ is not an object of strings")
    tensors = [_tensor(path, name, entry, 8 + length) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.end))
    _check_layout(path, tensors, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}, metadata


def read_tensors(directory: Path | str) -> dict[str, TensorInfo]:
    """Every tensor of a checkpoint directory: of model.safetensors, the shards its index names, or sparse.safetensors.

    Raises:
        UserError: no such files, only pickled ones, or shards and index that disagree.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(
            f"{directory} is not a directory." if directory.exists() else f"{directory} does not exist.",
            "Name a checkpoint directory: config.json and model.safetensors in it.",
        )
    names = set(os.listdir(directory))
    if INDEX in names:
        weight_map = _read_index(directory / INDEX)
        _refuse_strays(directory, names, set(weight_map.values()))
        return _sharded(directory, names, weight_map)
    if SINGLE in names:
        _refuse_strays(directory, names, {SINGLE})
        return read_header(directory / SINGLE)[0]
    if SPARSE in names:
        return _unfolded(directory / SPARSE)
    pickles = [name for name in _PICKLES if name in names]
    if pickles:
        raise UserError(
            f"{directory} holds {pickles[0]}, a pickle: loading one runs whatever code is in it, so llmctl does not.",
            'Convert it where you trust it: python -c "import sys; from transformers import AutoModelForCausalLM as M; '
            'M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])" IN OUT',
            Exit.MISMATCH,
        )
    raise UserError(
        f"{directory} has neither {SINGLE} nor {INDEX}.",
        "Name a checkpoint directory in Hugging Face layout.",
        Exit.MISMATCH,
    )


def _unfolded(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a file in which some matrices are two: what is not zero, and where it stands."""
    tensors = read_header(path)[0]
    for name in [name for name in tensors if name.endswith(MASK)]:
        whole = name.removesuffix(MASK)
        mask, values = tensors.pop(name), tensors.pop(whole + VALUES, None)
        fits = values is not None and len(values.shape) == 1 and len(mask.shape) == 2 and mask.dtype == "U8"
        if not fits or whole in tensors or values.shape[0] > 8 * prod(mask.shape):
            raise _broken(path, f"{name} is not the mask of a matrix {whole} whose values lie beside it")
        shape = (mask.shape[0], 8 * mask.shape[1])
        tensors[whole] = SparseInfo(whole, values.dtype, shape, values.file, values.start, values.end, mask)
    return tensors


def main_dtype(infos: Iterable[TensorInfo]) -> str:
    """The dtype that holds most bytes of some tensors, as headers spell it: "BF16"."""
    sizes: dict[str, int] = {}
    for info in infos:
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.bytes
    return max(sizes, key=lambda name: sizes[name])


def _broken(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} is not a sound safetensors file: {what}.", "Copy or download the file again.", Exit.MISMATCH
    )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return found


def _parsed(path: Path, text: bytes) -> dict[str, object]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError as error:
        raise _broken(path, "its JSON is nested too deeply") from error
    except ValueError as error:  # not UTF-8, not JSON, a key twice
        raise _broken(path, f"its header cannot be parsed ({error})") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a JSON object")
    return header


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_SIZE


def _tensor(path: Path, name: str, entry: object, data: int) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"{name} is not described by dtype, shape and data_offsets alone")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _broken(path, f"{name} has the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or not all(_count(size) for size in shape):
        raise _broken(path, f"{name} has the shape {shape!r}, not a list of whole numbers from 0 up")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_count(offset) for offset in offsets):
        raise _broken(path, f"{name} has the data_offsets {offsets!r}, not two whole numbers from 0 up")
    start, end = offsets
    bits = prod(shape) * BITS[dtype]
    if (end - start) * 8 != bits:
        raise _broken(path, f"{name} has {end - start} bytes, but {dtype} {shape} needs {bits / 8:g}")
    return TensorInfo(name, dtype, tuple(shape), path.name, data + start, data + end)


def _check_layout(path: Path, tensors: list[TensorInfo], data: int, size: int) -> None:
    end = data
    for tensor in tensors:
        if tensor.end > size:
            raise _broken(path, f"{tensor.name} ends at byte {tensor.end}, but the file ends after {size}")
        if tensor.start != end:
            what = "overlaps the tensor before it" if tensor.start < end else "leaves a hole before it"
            raise _broken(path, f"{tensor.name} {what}")
        end = tensor.end
    if end != size:
        raise _broken(path, f"{size - end} bytes after its last tensor belong to none")


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json(path, "safetensors index").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{path} has no weight_map of tensor names to file names.", code=Exit.MISMATCH)
    outside = sorted({file for file in weight_map.values() if not re.fullmatch(r"(?!\.\.?$)[^/\\\0]+", file)})
    if outside:
        raise UserError(
            f"{path} names shards outside its directory: {_several(outside)}.",
            "A shard is a file beside the index; do not use this checkpoint unless you trust where it comes from.",
            Exit.MISMATCH,
        )
    return weight_map


def _refuse_strays(directory: Path, names: set[str], used: set[str]) -> None:
    # model.fp16.safetensors and the like are whole variants that lie beside the weights by custom; shards are not
    found = {name for name in names if re.fullmatch(r"model(?!\.(?!safetensors$)).*\.safetensors", name)}
    strays = sorted(found - used)
    if strays:
        raise UserError(
            f"{directory} holds {_several(strays)} beside the weights in {SINGLE if used == {SINGLE} else INDEX}: "
            "left over from another checkpoint?",
            "Remove what does not belong to this model; other tools would load it.",
            Exit.MISMATCH,
        )


def _sharded(directory: Path, names: set[str], weight_map: dict[str, str]) -> dict[str, TensorInfo]:
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if file not in names]
    if missing:
        raise UserError(
            f"{directory / INDEX} names {len(missing)} shard{'s' * (len(missing) > 1)} that are not there: "
            f"{_several(missing)}.",
            "Copy or download them.",
            Exit.MISMATCH,
        )
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, tensor in read_header(directory / file)[0].items():
            if name in tensors:
                raise _disagree(directory, f"{name} is in both {tensors[name].file} and {file}")
            if weight_map.get(name) != file:
                raise _disagree(directory, f"{file} holds {name}, which the index does not place there")
            tensors[name] = tensor
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        raise _disagree(directory, f"no shard holds {_several(absent)}")
    return tensors


def _disagree(directory: Path, what: str) -> UserError:
    return UserError(
        f"The shards of {directory} and their index disagree: {what}.", "Copy or download them again.", Exit.MISMATCH
    )


def _several(names: list[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
