"""nf4: the bytes and values of bitsandbytes."""

import logging

import pytest
import torch

from llmctl.core.compress.nf4 import BLOCK, VALUES, pack, scale_codes, unpack

RAMP = [
    0, 0, 0, 0, 0, 0, 1, 17, 17, 17, 17, 17, 17, 17, 17, 17, 18, 34, 34, 34, 34, 34, 34, 51, 51, 51, 51, 51, 68, 68,
    68, 68, 34, 51, 51, 52, 68, 69, 85, 86, 102, 103, 119, 120, 136, 153, 153, 170, 170, 187, 187, 204, 204, 221, 221,
    221, 238, 238, 238, 238, 238, 255, 255, 255,
]  # fmt: skip


@pytest.fixture(scope="module")
def oracle():
    logging.disable(logging.WARNING)  # about kernels that it would fetch
    from bitsandbytes import functional

    yield functional
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("double", [False, True], ids=["scales", "double"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 5), (64, 64), (300, 70), (33, 63), (1030, 1100)])
def test_bytes_scales_and_values_are_those_of_bitsandbytes(oracle, shape, dtype, double):
    """Whole blocks and broken ones, odd counts, more than one part, rows of zeros, rows of very different size."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight = (weight * torch.logspace(-6, 3, shape[0])[:, None]).to(dtype)
    weight[0] = 0
    codes, state = oracle.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    packed = pack(weight, double)
    assert torch.equal(packed.codes, codes) and packed.codes.dtype == torch.uint8
    assert torch.equal(packed.absmax, state.absmax) and packed.absmax.dtype == state.absmax.dtype
    if double:
        assert torch.equal(packed.nested, state.state2.absmax) and torch.equal(packed.offset, state.offset)
    else:
        assert packed.nested is None and packed.offset is None
    assert torch.equal(unpack(packed, shape, dtype), oracle.dequantize_4bit(codes, state))


def test_scales_in_8_bits_are_rounded_as_bitsandbytes_rounds_them(oracle):
    """On a CPU it looks their codes up in a table of 65,536 levels, which sends even 0 elsewhere."""
    scales = torch.randn(100_000, generator=torch.Generator().manual_seed(1)).abs()
    weight = torch.zeros(len(scales), BLOCK)
    weight[:, 5] = -scales
    _, state = oracle.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    assert torch.equal(pack(weight, True).absmax, state.absmax)
    assert torch.equal(scale_codes(), state.state2.code)


def test_values_that_bitsandbytes_gave():
    """Of bitsandbytes 0.50.2: the bytes of a ramp of 128 weights, and its scales."""
    ramp = torch.linspace(-2, 1, 128)
    plain, double = pack(ramp, False), pack(ramp, True)
    assert plain.codes.flatten().tolist() == RAMP
    assert plain.absmax.tolist() == [2.0, 1.0]
    assert (double.absmax.tolist(), double.nested.tolist(), double.offset.item()) == ([255, 0], [0.5], 1.5)
    assert unpack(plain, (128,), torch.float32)[[0, 64, 127]].tolist() == [-2.0, VALUES[2], 1.0]


def test_what_is_unpacked_packs_to_the_same_codes():
    """Each block has its largest value among its codes, so that its scale and its codes come out again."""
    packed = pack(torch.randn(64, 256, generator=torch.Generator().manual_seed(2)), False)
    again = pack(unpack(packed, (64, 256), torch.float32), False)
    assert torch.equal(again.codes, packed.codes) and torch.equal(again.absmax, packed.absmax)


def test_errors_are_smaller_than_those_of_16_even_steps():
    """On normal weights: 0.092 of their size, against 0.103."""
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(3))
    wrong = unpack(pack(weight, False), (256, 1024), torch.float32) - weight
    blocks = weight.view(-1, BLOCK)
    step = 2 * blocks.abs().amax(1, keepdim=True) / 15
    even = (blocks / step).round().clamp(-8, 7) * step - blocks
    assert 0.09 < wrong.norm() / weight.norm() < 0.094 < even.norm() / weight.norm()
