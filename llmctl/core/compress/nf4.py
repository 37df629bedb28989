"""NF4: weights in 4 bits each, packed and unpacked byte for byte as bitsandbytes does it."""

from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The 16 values: quantiles of a normal distribution, scaled to [-1, 1], 0 among them.
VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
BLOCK = 64  # weights that share a scale
NESTED = 256  # scales that share a scale of theirs
LEVELS = 65536  # to which bitsandbytes rounds scales on a CPU before it looks for their code
PACKED_AT_ONCE = 1 << 20  # weights: what is at work beside them is a few times as large
UNPACKED_AT_ONCE = {"cpu": 1 << 16}  # bytes of two weights: those that stay in a core's own cache; elsewhere all
SMALLEST = 1e-38  # in place of 0, to divide by


class Nf4(NamedTuple):
    """N weights in 4 bits each.

    Attributes:
        codes: (ceil(N / 2), 1) uint8, two weights each, the first in the high bits.
        absmax: (ceil(N / BLOCK),), the largest magnitude of each block: float32, or with double quantization uint8,
            codes of `scale_codes`.
        nested: (ceil(N / BLOCK / NESTED),) float32, the largest magnitude of NESTED scales less their mean; None:
            scales are not quantized.
        offset: () float32, the mean of all scales, or None.
    """

    codes: Tensor
    absmax: Tensor
    nested: Tensor | None
    offset: Tensor | None


def pack(weight: Tensor, double: bool) -> Nf4:
    """The weights of a matrix, read row by row, in 4 bits.

    Args:
        weight: of any shape and float dtype.
        double: quantize the scales, too.

    Source: Dettmers et al., "QLoRA", arXiv:2305.14314, section 3; the decisions are those of bitsandbytes 0.50.2.
    """
    bounds = _middles(torch.tensor(VALUES, device=weight.device))
    codes, scales = [], []
    for part in weight.detach().reshape(-1).split(PACKED_AT_ONCE):
        scaled, absmax = _scaled(part.float())
        found = torch.bucketize(F.pad(scaled, (0, len(scaled) % 2)), bounds, out_int32=True).to(torch.uint8)
        codes.append(found[::2] << 4 | found[1::2])
        scales.append(absmax)
    absmax = torch.cat(scales)
    packed = torch.cat(codes)[:, None]
    if not double:
        return Nf4(packed, absmax, None, None)
    offset = absmax.mean()
    return Nf4(packed, *_pack_scales(absmax - offset), offset)


def unpack(packed: Nf4, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The weights again: each its code's value times its block's scale, multiplied in float32.

    Args:
        packed: of as many weights as the shape has.

    Returns:
        `shape`, in `dtype`.
    """
    codes, scales = packed.codes.view(-1), scales_of(packed)  # (N / 2,), (N / BLOCK,)
    out = torch.empty(prod(shape), dtype=dtype, device=codes.device)
    pairs = _pairs(codes.device)
    whole = len(out) // BLOCK * BLOCK // 2  # codes of blocks that are full
    step = UNPACKED_AT_ONCE.get(codes.device.type, max(whole, BLOCK // 2))
    for start in range(0, whole, step):
        end = min(whole, start + step)
        values = pairs.index_select(0, codes[start:end].int()).view(torch.float32).view(-1, BLOCK)
        values *= scales[2 * start // BLOCK : 2 * end // BLOCK, None]
        out[2 * start : 2 * end] = values.view(-1)
    if 2 * whole < len(out):
        rest = pairs.index_select(0, codes[whole:].int()).view(torch.float32)[: len(out) - 2 * whole]
        out[2 * whole :] = rest * scales[-1]
    return out.view(shape)


@lru_cache
def scale_codes(device: torch.device | None = None) -> Tensor:
    """The values of 8-bit scales, (256,) float32, ascending: 7 decades, each with half as many values as the next.

    Source: Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", arXiv:1511.04561, section 2.1.
    """
    found = [0.0, 1.0]
    for decade in range(7):
        steps = torch.linspace(0.1, 1, 2**decade + 1)
        values = (10.0 ** (decade - 6) * _middles(steps)).tolist()
        found += values + [-value for value in values]
    return torch.tensor(sorted(found), device=device)


def _scaled(weights: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) float32 over the largest magnitude of each block, (N,), and those, (ceil(N / BLOCK),)."""
    blocks, rest = weights[: len(weights) // BLOCK * BLOCK].view(-1, BLOCK), weights[len(weights) // BLOCK * BLOCK :]
    absmax = blocks.abs().amax(1)
    scaled = (blocks * (1 / absmax.clamp(min=SMALLEST))[:, None]).clamp(-1, 1).view(-1)
    if len(rest):  # bitsandbytes divides here, where it multiplies there
        last = rest.abs().amax().clamp(min=SMALLEST)
        absmax, scaled = torch.cat([absmax, last[None]]), torch.cat([scaled, (rest / last).clamp(-1, 1)])
    return scaled, absmax


def _pack_scales(scales: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) float32 in 8 bits, (N,) uint8, and the largest magnitude of each NESTED of them."""
    blocks = F.pad(scales, (0, -len(scales) % NESTED)).view(-1, NESTED)
    absmax = blocks.abs().amax(1)
    scaled = blocks * torch.where(absmax > 0, 1 / absmax, 0)[:, None]
    level = ((scaled + 1) * ((LEVELS - 1) / 2) + 0.5).clamp(0, LEVELS - 1).long()
    codes = _codes_of_levels(scales.device)[level]
    codes[absmax == 0] = 0
    return codes.view(-1)[: len(scales)].contiguous(), absmax


@lru_cache
def _codes_of_levels(device: torch.device) -> Tensor:
    """The nearest code of each level, (LEVELS,) uint8."""
    levels = torch.arange(LEVELS) / ((LEVELS - 1) / 2) - 1
    return torch.bucketize(levels, _middles(scale_codes())).to(device=device, dtype=torch.uint8)


def scales_of(packed: Nf4) -> Tensor:
    """The scale of each block, (blocks,) float32."""
    if packed.nested is None:
        return packed.absmax
    values = scale_codes(packed.absmax.device)[packed.absmax.int()]
    return values * packed.nested.repeat_interleave(NESTED)[: len(values)] + packed.offset


@lru_cache
def _pairs(device: torch.device) -> Tensor:
    """What each byte stands for: two float32 side by side, held as (256,) int64, which is looked up fastest."""
    values, byte = torch.tensor(VALUES), torch.arange(256)
    return torch.stack([values[byte >> 4], values[byte & 15]], 1).view(torch.int64).view(-1).to(device)


def _middles(values: Tensor) -> Tensor:
    return (values[:-1] + values[1:]) / 2
