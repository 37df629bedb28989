"""Blocks of GGUF's types: byte for byte those of the package gguf where it makes them, else as near as llama.cpp's."""

import gguf
import numpy as np
import pytest
import torch

from llmctl.core.export.blocks import packed
from llmctl.spec.gguf import BLOCKS

CHANCE = torch.Generator().manual_seed(0)
MATRIX = torch.randn(48, 512, generator=CHANCE)
MATRIX[3] = 0
MATRIX[5, :32] = 0
MATRIX[7] = 0.25
MATRIX[9, ::3] *= 50


def kind(type: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[type]


@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_the_bytes_are_those_of_the_package_gguf(type):
    theirs = gguf.quants.quantize(MATRIX.numpy(), kind(type)).view(np.uint8).reshape(-1)
    assert np.array_equal(packed(MATRIX, type), theirs)


@pytest.mark.parametrize(("type", "most"), [("Q6_K", 0.018), ("Q4_K", 0.073)])
def test_k_quants_read_by_the_package_gguf_are_as_near_as_those_of_llama_cpp(type, most):
    """Root mean square error on N(0, 1): llama.cpp's own is .0175 and .0715 (METHODS.md 2.4)."""
    plain = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    plain[0], plain[1], plain[2] = 0, 0.25, -0.25
    weights, size = BLOCKS[type]
    rows = packed(plain, type).reshape(64, 512 // weights * size)
    back = torch.from_numpy(gguf.quants.dequantize(rows, kind(type)))
    assert float((back - plain).square().mean().sqrt()) < most
    assert torch.equal(back[0], plain[0])
    torch.testing.assert_close(back[1:3], plain[1:3], rtol=0.01, atol=0)


def test_sizes_are_those_that_the_package_gguf_says():
    assert {kind(type): size for type, size in BLOCKS.items()}.items() <= gguf.GGML_QUANT_SIZES.items()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="float16"):
        packed(torch.tensor([1e5]), "F16")
    with pytest.raises(ValueError, match="whole blocks"):
        packed(torch.zeros(2, 40), "Q4_0")
