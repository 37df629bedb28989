"""fingerprint: which model a checkpoint holds, by its config and by what its files say at some places."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from llmctl.spec.families import read_config, read_config_json
from llmctl.spec.files import plain_errors, read_json
from llmctl.spec.peft import base_of, is_adapter, weights_of
from llmctl.spec.safetensors import TensorInfo, read_header, read_tensors

PLACES = 4  # in a tensor, of which so many bytes each are looked at
BYTES = 256


def fingerprint(path: Path) -> str:
    """The same for every copy of a checkpoint, or of an adapter and its base; another one after any training.

    Not all of the weights are read: of a tensor, some runs from its first to its last byte, and small ones whole. A
    change that leaves all of them as they are would not be noticed.

    Returns:
        32 hex digits.

    Raises:
        UserError: files are missing or broken.
    """
    digest = hashlib.blake2b(digest_size=16)
    if is_adapter(path):
        weights = weights_of(path)
        told = [fingerprint(base_of(path)), read_json(path / "adapter_config.json")]
        told[1].pop("base_model_name_or_path", None)  # where it lies is no part of it
        digest.update(_plain(told))
        _look(digest, weights.parent, read_header(weights)[0].values())
    else:
        said = read_config_json(path).get("quantization_config")
        digest.update(_plain([dataclasses.asdict(read_config(path)), said]))
        _look(digest, path, read_tensors(path).values())
    return digest.hexdigest()


def _plain(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, default=str).encode()


def _look(digest: "hashlib._Hash", directory: Path, tensors: Iterable[TensorInfo]) -> None:
    """Add tensors in the order of their names, whatever files they lie in."""
    files: dict[str, list[TensorInfo]] = {}
    for one in tensors:
        files.setdefault(one.file, []).append(one)
    seen: dict[str, bytes] = {}
    for name, infos in files.items():
        path = directory / name
        with plain_errors(path), open(path, "rb", buffering=0) as file:
            for info in infos:
                runs = [_plain([info.dtype, info.shape, info.end - info.start])]
                for start, count in _runs(info.start, info.end):
                    file.seek(start)
                    runs.append(file.read(count))
                seen[info.name] = b"".join(runs)
    for name in sorted(seen):
        digest.update(_plain(name) + seen[name])


def _runs(start: int, end: int) -> list[tuple[int, int]]:
    """Where to look between two bytes, and at how many."""
    size = end - start
    if size <= 2 * PLACES * BYTES:
        return [(start, size)]
    return [(start + at * (size - BYTES) // (PLACES - 1), BYTES) for at in range(PLACES)]
