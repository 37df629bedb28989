"""Packing: dense little-endian words of 32 bits, as numpy makes them."""

import numpy as np
import pytest
import torch

from llmctl.core.compress.quant.pack import pack, unpack


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_lie_bit_by_bit_in_words_and_come_back(bits):
    for count in (1, 8, 31, 32, 33, 100, 6000):
        values = torch.randint(0, 1 << bits, (5, count), dtype=torch.uint8)
        each = ((values.numpy()[:, :, None] >> np.arange(bits)) & 1).reshape(5, -1).astype(np.uint8)
        each = np.pad(each, ((0, 0), (0, -each.shape[1] % 32)))
        wanted = np.packbits(each, axis=1, bitorder="little").view("<i4")
        packed = pack(values, bits)
        assert np.array_equal(packed.numpy(), wanted)
        assert torch.equal(unpack(packed, bits, count), values)
        turned = pack(values.t().contiguous().t(), bits)  # as zero points of compressed-tensors come
        assert torch.equal(turned, packed)
        column = values[:1].t().contiguous().t()  # the zero points of whole rows
        assert torch.equal(pack(column, bits), packed[:1])
