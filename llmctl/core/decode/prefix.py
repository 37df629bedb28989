"""Prefix: the beginning of a text that a model has read, with its keys and values, for texts that begin alike."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from llmctl.core.checkpoint.write import DTYPES
from llmctl.errors import Exit, UserError
from llmctl.spec.files import write_file
from llmctl.spec.safetensors import read_header

SCHEMA = "llmctl/prompt/1"
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Prefix:
    """A beginning, and what a model keeps of it.

    Attributes:
        ids: of its tokens, those of virtual ones not counted.
        pairs: of each layer, the keys and values (Hkv, S, D), those of virtual tokens first.
    """

    ids: tuple[int, ...]
    pairs: list[tuple[Tensor, Tensor]]

    def save(self, path: Path, model: str) -> None:
        """Write it as a safetensors file, whole or not at all.

        Args:
            model: `fingerprint` of the checkpoint.

        Raises:
            UserError: the file exists, or cannot be written.
        """
        tensors = {"ids": torch.tensor(self.ids, dtype=torch.int64)}
        for layer, (keys, values) in enumerate(self.pairs):
            tensors |= {f"keys.{layer}": keys, f"values.{layer}": values}
        header: dict[str, object] = {"__metadata__": {"schema": SCHEMA, "model": model}}
        end = 0
        for name, one in tensors.items():
            header[name] = {
                "dtype": _CODES[one.dtype], "shape": list(one.shape), "data_offsets": [end, end := end + one.nbytes]
            }  # fmt: skip
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with write_file(path) as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for one in tensors.values():
                file.write(one.detach().cpu().contiguous().view(torch.uint8).numpy().data)

    @classmethod
    def load(cls, path: Path, model: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> "Prefix":
        """Read what `save` wrote.

        Args:
            model: `fingerprint` of the checkpoint that is to go on from it.
            dtype: of the arithmetic.

        Raises:
            UserError: it is no such file, or of another model or dtype.
        """
        infos, said = read_header(path)
        layers = range((len(infos) - 1) // 2)
        names = {"ids", *(f"{part}.{layer}" for part in ("keys", "values") for layer in layers)}
        if said.get("schema") != SCHEMA or set(infos) != names or infos["ids"].dtype != "I64":
            raise UserError(f"{path} is a safetensors file, but keeps no prompt.", "Name another file.", Exit.MISMATCH)
        if said.get("model") != model:
            raise UserError(
                f"{path} keeps a prompt as another model or adapter read it, or this one before it was changed.",
                f"Remove it, and it is made anew: rm {path}",
                Exit.MISMATCH,
            )
        found = {info.dtype for name, info in infos.items() if name != "ids"}
        if found != {_CODES[dtype]}:
            raise UserError(
                f"{path} keeps keys and values in {' and '.join(sorted(found))}; the arithmetic is in {_CODES[dtype]}.",
                f"Remove it, and it is made anew: rm {path}. Or take the --dtype that it was made with.",
                Exit.MISMATCH,
            )
        tensors = load_file(path, device=str(device))
        return cls(tuple(tensors["ids"].tolist()), [(tensors[f"keys.{n}"], tensors[f"values.{n}"]) for n in layers])
