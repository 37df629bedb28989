"""Checkpoints in few bits made by hand in numpy, as other tools lay them out, and the weights that they stand for."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Made = Callable[[np.random.Generator, int, int], tuple[dict[str, np.ndarray], np.ndarray]]


def words(values: np.ndarray, bits: int) -> np.ndarray:
    """Rows of whole numbers below 2^bits, bit by bit into little-endian words of 32."""
    rows = ((values[:, :, None] >> np.arange(bits)) & 1).reshape(len(values), -1).astype(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 32)))
    return np.packbits(rows, axis=1, bitorder="little").view("<i4")


def compressed(bits: int, group: int, zeros: bool = False) -> Made:
    """compressed-tensors' pack-quantized."""

    def made(chance: np.random.Generator, rows: int, columns: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        codes, zero, scale = drawn(chance, bits, rows, columns, group, np.float32)
        zero = zero if zeros else np.full_like(zero, 1 << (bits - 1))
        tensors = {
            "weight_packed": words(codes, bits),
            "weight_scale": scale,
            "weight_shape": np.array([rows, columns]),
        }
        if zeros:
            tensors["weight_zero_point"] = words(zero.T, bits).T
        return tensors, dense(codes, zero, scale, np.arange(columns) // (group or columns))

    return made


def gptq(bits: int, group: int, shifted: bool = True, ordered: bool = False) -> Made:
    """GPTQ, v1 (`shifted`) or v2; `ordered`: columns in any order, as act-order leaves them."""

    def made(chance: np.random.Generator, rows: int, columns: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        codes, zero, scale = drawn(chance, bits, rows, columns, group, np.float16)
        of = np.arange(columns) // (group or columns)
        of = chance.permutation(of) if ordered else of
        tensors = {
            "qweight": words(codes, bits).T,
            "qzeros": words((zero.T - shifted) % (1 << bits), bits),
            "scales": scale.T,
            "g_idx": of.astype(np.int32),
        }
        return tensors, dense(codes, zero, scale, of)

    return made


def awq(group: int) -> Made:
    """AWQ's gemm form."""

    def packed(values: np.ndarray) -> np.ndarray:
        found = np.zeros((len(values), values.shape[1] // 8), np.uint32)
        for nibble, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            found |= values[:, column::8].astype(np.uint32) << (4 * nibble)
        return found.view(np.int32)

    def made(chance: np.random.Generator, rows: int, columns: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        codes, zero, scale = drawn(chance, 4, rows, columns, group, np.float16)
        tensors = {"qweight": packed(codes.T), "qzeros": packed(zero.T), "scales": scale.T}
        return tensors, dense(codes, zero, scale, np.arange(columns) // group)

    return made


def llm_int8(chance: np.random.Generator, rows: int, columns: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """bitsandbytes' LLM.int8."""
    codes = chance.integers(-127, 128, (rows, columns)).astype(np.int8)
    most = chance.uniform(0.5, 1.0, rows).astype(np.float32)
    tensors = {"weight": codes, "SCB": most, "weight_format": np.array(0, np.uint8)}
    return tensors, codes * (most / 127)[:, None]


def drawn(
    chance: np.random.Generator, bits: int, rows: int, columns: int, group: int, dtype: type
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes (O, I) and zero points (O, G) from 0 up, scales (O, G)."""
    groups = columns // group if group else 1
    codes, zeros = (chance.integers(0, 1 << bits, (rows, count)) for count in (columns, groups))
    return codes, zeros, (chance.uniform(0.5, 1.5, (rows, groups)) / (1 << bits)).astype(dtype)


def dense(codes: np.ndarray, zero: np.ndarray, scale: np.ndarray, of: np.ndarray) -> np.ndarray:
    """What codes stand for: (q - z) s, of each column those of its group."""
    return ((codes - zero[:, of]) * scale[:, of].astype(np.float64)).astype(np.float32)


def requantized(source: Path, to: Path, config: dict, chosen: Callable[[str], Made | None]) -> dict[str, Tensor]:
    """Put random matrices in few bits into a checkpoint.

    Args:
        source: a checkpoint that transformers saved, in one file.
        to: where the other goes; exists.
        config: its quantization_config.
        chosen: by the name of a module, how it is stored; None: as it is.

    Returns:
        The weights that `to` stands for, by the names that transformers gives them.
    """
    chance = np.random.default_rng(0)
    state, kept = load_file(source / "model.safetensors"), {}
    for name, tensor in state.items():
        module = name.removesuffix(".weight")
        made = chosen(module) if name.endswith(".weight") and tensor.ndim == 2 else None
        if made is None:
            kept[name] = tensor
            continue
        tensors, matrix = made(chance, *tensor.shape)
        kept |= {f"{module}.{part}": torch.from_numpy(np.array(one, order="C")) for part, one in tensors.items()}
        state[name] = torch.from_numpy(matrix)
    save_file(kept, to / "model.safetensors", metadata={"format": "pt"})
    json_ = json.loads((source / "config.json").read_text()) | {"quantization_config": config}
    (to / "config.json").write_text(json.dumps(json_))
    return state
