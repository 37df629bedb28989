"""Packing: codes of a few bits side by side in words of 32, and apart again."""

import torch
import torch.nn.functional as F
from torch import Tensor

_LANES = (8, 16, 32)  # bits of the halves of 16, 32 and 64
_WHOLE = {4: torch.int32, 2: torch.int16, 1: torch.int8}  # what eight values take, where it is a type of its own
BLOCK = 1 << 19  # values that are packed at a time on a CPU, few enough to stay in a cache


def pack(values: Tensor, bits: int) -> Tensor:
    """Each row's values one after another, the first in the lowest bits of the first word, without gaps.

    Args:
        values: (O, N) uint8, below 2^bits.
        bits: 1 to 8.

    Returns:
        (O, ceil(N bits / 32)) int32.
    """
    rows, count = values.shape
    words = -(-count * bits // 32)
    if bits == 8 and not count % 4:
        return values.reshape(-1).view(torch.int32).view(rows, -1)
    packed = torch.empty(rows, words, dtype=torch.int32, device=values.device)
    step = max(1, BLOCK // max(1, count)) if values.device.type == "cpu" else max(1, rows)
    for start in range(0, rows, step):
        some = F.pad(values[start : start + step], (0, -count % 32))
        lanes = some.flatten().view(torch.int64).view(len(some), -1)  # a value a byte; flat: one row has any stride
        for width in _LANES:
            lanes = _closer(lanes, width, bits * width // 8)
        if bits in _WHOLE:  # as below, and five times as fast
            whole = lanes.to(_WHOLE[bits])  # (O, N / 8): the lowest of each
        else:
            whole = lanes.view(torch.uint8).unflatten(1, (-1, 8))[..., :bits].contiguous().flatten(1)
        packed[start : start + step] = whole.view(torch.int32)[:, :words]
    return packed


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` values of each row: the inverse of `pack`.

    Args:
        words: (O, W) int32.

    Returns:
        (O, count) uint8.
    """
    rows, width = words.shape
    if bits == 8:
        return words.contiguous().view(torch.uint8)[:, :count]
    more = 0 if bits in _WHOLE else -width % bits  # words, so that eight values never begin in the middle of a byte
    values = torch.empty(rows, 32 * (width + more) // bits, dtype=torch.uint8, device=words.device)
    step = max(1, BLOCK // max(1, count)) if words.device.type == "cpu" else max(1, rows)
    for start in range(0, rows, step):
        some = F.pad(words[start : start + step], (0, more)).flatten()  # or a single column keeps an odd stride
        if bits in _WHOLE:
            lanes = some.view(_WHOLE[bits]).to(torch.int64)  # (O N / 8,); what lies above is not looked at
        else:
            lanes = F.pad(some.view(torch.uint8).view(-1, bits), (0, 8 - bits)).view(torch.int64).flatten()
        for half in reversed(_LANES):
            lanes = _apart(lanes, half, bits * half // 8)
        values[start : start + step] = lanes.view(torch.uint8).view(-1, values.shape[1])
    return values[:, :count]


def _closer(lanes: Tensor, width: int, used: int) -> Tensor:
    """Lanes of twice `width` bits, of each half the lowest `used` in use: the upper half moved down to the lower."""
    moved = lanes >> (width - used)
    if 2 * used > width:  # what was moved may not meet what it was moved from
        moved &= _lowest(used, 2 * width) << used
        lanes = lanes & _lowest(used, 2 * width)
    moved |= lanes
    moved &= _lowest(2 * used, 2 * width)
    return moved


def _lowest(used: int, width: int) -> int:
    """The lowest `used` bits of each lane of 64, as a signed number."""
    mask = sum(((1 << used) - 1) << start for start in range(0, 64, width))
    return mask - (1 << 64) if mask >> 63 else mask


def _apart(lanes: Tensor, width: int, used: int) -> Tensor:
    """The inverse: of each lane's lowest bits, those after the first `used` moved up to the upper half."""
    lane = _lowest(used, 2 * width)
    moved = lanes >> used
    moved &= lane
    moved <<= width
    return moved.bitwise_or_(lanes & lane)
