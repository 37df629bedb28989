"""Bytes of weights stored in few bits: what one matrix takes in each format, scales and zero points included."""

from dataclasses import dataclass
from math import ceil
from typing import Literal

Quantized = Literal[
    "none", "int8", "int4", "int4-g64", "int4-g32", "int4-asym", "int3", "int2",
    "fp8", "nf4", "nf4-dq", "mxfp4", "nvfp4", "q8_0", "q6_k", "q4_k_m",
]  # fmt: skip


@dataclass(frozen=True)
class Packing:
    """How a matrix is packed.

    Attributes:
        bits: of one weight's code.
        group: weights of a row that share a scale; 0: the whole row.
        scale_bits: of everything that a group carries: scale and zero point.
        nested: groups that share one more 32-bit scale, beside one of all groups; 0: none.
        rows: a group ends with its row; else groups run through the whole matrix.
        everywhere: the embedding and the head are packed too, and vectors are held in 32 bits (GGUF); else
            they stay in 16 bits.
    """

    bits: float
    group: int
    scale_bits: float
    nested: int = 0
    rows: bool = True
    everywhere: bool = False

    def bytes(self, rows: int, columns: int) -> int:
        """Bytes of a (rows, columns) matrix."""
        if not self.rows:
            rows, columns = 1, rows * columns
        groups = rows * (ceil(columns / self.group) if self.group else 1)
        nested = 32 * (1 + ceil(groups / self.nested)) if self.nested else 0
        return ceil((rows * columns * self.bits + groups * self.scale_bits + nested) / 8)


# Source: compressed-tensors (int, fp8, mxfp4, nvfp4: fp16 scales, e8m0, e4m3), bitsandbytes (nf4: fp32 absmax of 64,
# nested: 8 bits of 256; Dettmers et al., arXiv:2305.14314, section 3), llama.cpp (GGUF blocks, bits as a whole).
PACKINGS: dict[str, Packing] = {
    "int8": Packing(8, 0, 16),
    "int4": Packing(4, 128, 16),
    "int4-g64": Packing(4, 64, 16),
    "int4-g32": Packing(4, 32, 16),
    "int4-asym": Packing(4, 128, 20),
    "int3": Packing(3, 128, 16),
    "int2": Packing(2, 64, 16),
    "fp8": Packing(8, 0, 16),
    "nf4": Packing(4, 64, 32, rows=False),
    "nf4-dq": Packing(4, 64, 8, nested=256, rows=False),
    "mxfp4": Packing(4, 32, 8),
    "nvfp4": Packing(4, 16, 8),
    "q8_0": Packing(8.5, 0, 0, everywhere=True),
    "q6_k": Packing(6.5625, 0, 0, everywhere=True),
    "q4_k_m": Packing(4.5, 0, 0, everywhere=True),
}


def packing_of(scheme: str, tensor: str, layer: int, layers: int, tied: bool) -> Packing:
    """How `scheme` packs one matrix.

    Args:
        tensor: the matrix's short name: "embed", "head", or as in `sizes.linears`.
        layer: its layer, 0 for embedding and head.
        layers: the model's layers.
        tied: the embedding serves as the head.

    Source: llama.cpp, llama_tensor_get_type: q4_k_m keeps the head and, in the first and last eighth of the layers
    and in every third of the others, `v` and `down` in q6_k.
    """
    if scheme == "q4_k_m":
        eighth = layers // 8
        careful = layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
        if tensor == "head" or (tensor == "embed" and tied) or (tensor in ("v", "down") and careful):
            return PACKINGS["q6_k"]
    return PACKINGS[scheme]
