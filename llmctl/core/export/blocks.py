"""Blocks: matrices in the types of GGUF files, as llama.cpp reads them."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from llmctl.spec.gguf import BLOCKS, TensorType

AT_ONCE = 1 << 18  # weights that are rounded at once: few enough to stay in a cache
_TRIES = 9  # scales on either side of the plain one that Q6_K tries
_STEPS = 20  # scales that Q4_K tries
_DTYPES: dict[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def packed(matrix: Tensor, type: TensorType) -> np.ndarray:
    """The bytes of a matrix or a vector in a GGUF file.

    Args:
        matrix: (rows, columns) or (n,), any float dtype; the columns fill whole blocks of the type.

    Returns:
        uint8, as long as the file has it.

    Raises:
        ValueError: the columns do not fill whole blocks; or as F16 a number is too large to be finite.
    """
    if type in _DTYPES:
        made = matrix.to(_DTYPES[type])
        if type == "F16" and not made.isfinite().all() and matrix.isfinite().all():
            raise ValueError("a number is beyond float16")
        return made.contiguous().view(torch.uint8).numpy().reshape(-1)
    size = BLOCKS[type][0]
    if matrix.shape[-1] % size:
        raise ValueError(f"{matrix.shape[-1]} columns are no whole blocks of {size}")
    blocks = matrix.reshape(-1, size)
    made = [_PACKERS[type](part.float()) for part in blocks.split(max(1, AT_ONCE // size))]
    return torch.cat(made).numpy().reshape(-1)


def _signed(bits: int) -> Callable[[Tensor], Tensor]:
    """Q4_0 and Q5_0: x = d (q - 2^(bits - 1)), the largest number of a block exactly at its end of the grid."""
    half = 1 << (bits - 1)

    def pack(x: Tensor) -> Tensor:
        extreme = x.gather(1, x.abs().argmax(1, keepdim=True))  # (N, 1)
        d = extreme / -half
        codes = (x * _inverse(d) + (half + 0.5)).trunc().clamp(0, 2 * half - 1).byte()
        return torch.cat([_half(d), *_nibbles(codes, bits)], 1)

    return pack


def _ranged(bits: int) -> Callable[[Tensor], Tensor]:
    """Q4_1 and Q5_1: x = d q + m."""
    most = (1 << bits) - 1

    def pack(x: Tensor) -> Tensor:
        low, high = x.aminmax(dim=1, keepdim=True)  # (N, 1)
        d = (high - low) / most
        codes = ((x - low) * _inverse(d) + 0.5).trunc().clamp(0, most).byte()
        return torch.cat([_half(d), _half(low), *_nibbles(codes, bits)], 1)

    return pack


def _bytes(x: Tensor) -> Tensor:
    """Q8_0: x = d q; halves are rounded away from zero."""
    d = x.abs().amax(1, keepdim=True) / 127
    scaled = x * _inverse(d)
    codes = (scaled.abs() + 0.5).floor().copysign(scaled).to(torch.int8)
    return torch.cat([_half(d), codes.view(torch.uint8)], 1)


def _six(x: Tensor) -> Tensor:
    """Q6_K: x = d s q, q from -32 to 31, s a byte for each 16 of 256; errors are weighed by x squared."""
    groups = x.unflatten(1, (16, 16))  # (N, 16, 16)
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True))  # (N, 16, 1)
    weight = groups.square()
    best, scale = torch.full_like(extreme, -1.0), torch.zeros_like(extreme)
    for step in range(-_TRIES, _TRIES + 1):
        codes = (groups * (-(32 + 0.1 * step) * _inverse(extreme))).round().clamp(-32, 31)
        weighed = weight * codes
        along, square = ((weighed * a).sum(2, keepdim=True) for a in (groups, codes))
        gain = torch.where(square > 0, along.square() / square, 0)  # what of the weighted sum of x squared is kept
        scale = torch.where(gain > best, torch.where(square > 0, along / square, 0), scale)
        best = torch.maximum(gain, best)
    largest = scale.gather(1, scale.abs().argmax(1, keepdim=True))  # (N, 1, 1)
    d = (largest / -128).half()
    steps = (scale * _inverse(d.float())).round().clamp(-128, 127)
    codes = (groups * _inverse(d.float() * steps)).round().clamp(-32, 31)
    q = (codes + 32).byte().reshape(-1, 2, 4, 32)  # halves of 128, four runs of 32
    low = torch.cat([(q[:, :, 0] & 15) | (q[:, :, 2] << 4), (q[:, :, 1] & 15) | (q[:, :, 3] << 4)], 2)  # (N, 2, 64)
    high = (q[:, :, 0] >> 4) | (q[:, :, 1] >> 4 << 2) | (q[:, :, 2] >> 4 << 4) | (q[:, :, 3] >> 4 << 6)  # (N, 2, 32)
    parts = [low.flatten(1), high.flatten(1), steps.to(torch.int8).flatten(1).view(torch.uint8)]
    return torch.cat([*parts, d.flatten(1).view(torch.uint8)], 1)


def _four(x: Tensor) -> Tensor:
    """Q4_K: x = d s q - e m, q from 0 to 15, s and m six bits for each 32 of 256."""
    groups = x.unflatten(1, (8, 32))  # (N, 8, 32)
    scale, least = _fitted(groups)  # (N, 8, 1) each, 0 or more
    d, e = ((part.amax(1, keepdim=True) / 63).half() for part in (scale, least))  # (N, 1, 1)
    steps, drops = ((part * _inverse(one.float())).round().clamp(0, 63) for part, one in ((scale, d), (least, e)))
    codes = (groups + e.float() * drops) * _inverse(d.float() * steps)
    q = codes.round().clamp(0, 15).byte().unflatten(1, (4, 2))  # (N, 4, 2, 32)
    s, m = steps.byte().flatten(1), drops.byte().flatten(1)  # (N, 8)
    first = [s[:, :4] | (s[:, 4:] >> 4 << 6), m[:, :4] | (m[:, 4:] >> 4 << 6)]
    scales = torch.cat([*first, (s[:, 4:] & 15) | (m[:, 4:] << 4)], 1)  # (N, 12)
    nibbles = (q[:, :, 0] | (q[:, :, 1] << 4)).flatten(1)  # (N, 128)
    return torch.cat([d.flatten(1).view(torch.uint8), e.flatten(1).view(torch.uint8), scales, nibbles], 1)


def _fitted(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the drop of each group (..., 32) that keep most of it on 16 steps: x = scale q - drop.

    Of several scales, each with the codes that it gives, the least squares of scale and drop for these codes; errors
    are weighed by |x| and the root of the mean square.
    """
    weight = groups.square().mean(-1, keepdim=True).sqrt() + groups.abs()
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True)
    span = (high - low).clamp(min=0)
    total, mass = weight.sum(-1, keepdim=True), (weight * groups).sum(-1, keepdim=True)

    whole = (weight * groups.square()).sum(-1, keepdim=True)
    scale, drop, least = span / 15, -low, torch.full_like(span, torch.inf)
    for step in range(-1, _STEPS + 1):
        times = 15.0 if step < 0 else 14 + 0.1 * step
        codes = ((groups - low) * (times * _inverse(span))).round().clamp(0, 15)
        weighed = weight * codes
        first = weighed.sum(-1, keepdim=True)
        second, along = ((weighed * a).sum(-1, keepdim=True) for a in (codes, groups))
        spread = total * second - first.square()
        slope = (total * along - mass * first) * _inverse(spread)
        level = (second * mass - first * along) * _inverse(spread)
        flat = level > 0  # a drop is never negative
        slope = torch.where(flat, along * _inverse(second), slope)
        level = torch.where(flat, 0, level)
        if step < 0:  # the plain scale, whatever the squares say
            slope, level = span / 15, low
        wrong = slope.square() * second + level.square() * total + whole
        wrong += 2 * (slope * level * first - slope * along - level * mass)
        usable = spread > 1e-6 * total * second  # else all codes are alike, and any scale and drop do
        better = (usable & (slope > 0) & (wrong < least)) if step >= 0 else least == torch.inf
        scale, drop = torch.where(better, slope, scale), torch.where(better, -level, drop)
        least = torch.where(better, wrong, least)
    return scale, drop


def _inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 of 0."""
    return torch.where(x == 0, 0, 1 / x)


def _half(x: Tensor) -> Tensor:
    """(N, 1) as two bytes each."""
    return x.half().view(torch.uint8)


def _nibbles(codes: Tensor, bits: int) -> list[Tensor]:
    """Codes (N, 32) of 4 or 5 bits: the fifth bits in four bytes, then 16 pairs of the others, i beside i + 16."""
    pairs = (codes[:, :16] & 15) | (codes[:, 16:] << 4)
    if bits == 4:
        return [pairs]
    places = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8)
    fifth = ((codes >> 4).unflatten(1, (4, 8)) * places).sum(2, dtype=torch.uint8)
    return [fifth, pairs]


_PACKERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": _bytes,
    "Q6_K": _six,
    "Q5_1": _ranged(5),
    "Q5_0": _signed(5),
    "Q4_K": _four,
    "Q4_1": _ranged(4),
    "Q4_0": _signed(4),
}
