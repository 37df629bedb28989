"""Packing: codes of a few bits side by side in words of 32, and apart again."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Of 64 bits: the lower and the upper halves of lanes of 16, 32 and 64 bits.
_LANES = ((0x00FF00FF00FF00FF, 8), (0x0000FFFF0000FFFF, 16), (0x00000000FFFFFFFF, 32))


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
    lanes = F.pad(values, (0, -count % 32)).reshape(-1).view(torch.int64)  # (O N / 8,), a value a byte
    for lower, width in _LANES:
        lanes = _closer(lanes, lower, width, bits * width // 8)
    packed = lanes.view(torch.uint8).view(-1, 8)[:, :bits].contiguous().view(-1)
    return packed.view(torch.int32).view(rows, -1)[:, :words].contiguous()


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` values of each row: the inverse of `pack`.

    Args:
        words: (O, W) int32.

    Returns:
        (O, count) uint8.
    """
    rows = len(words)
    words = F.pad(words, (0, -words.shape[1] % bits)).reshape(-1).view(torch.uint8)
    if bits == 8:
        return words.view(rows, -1)[:, :count]
    lanes = F.pad(words.view(-1, bits), (0, 8 - bits)).view(-1).view(torch.int64)
    for _, width in reversed(_LANES):
        lanes = _apart(lanes, width, bits * width // 8)
    return lanes.view(torch.uint8).view(rows, -1)[:, :count]


def _closer(lanes: Tensor, lower: int, width: int, used: int) -> Tensor:
    """Lanes of twice `width` bits, of each half the lowest `used` in use: the upper half moved down to the lower."""
    return (lanes & lower) | ((lanes & ~lower) >> (width - used))


def _apart(lanes: Tensor, width: int, used: int) -> Tensor:
    """The inverse: of each lane's lowest bits, those after the first `used` moved up to the upper half."""
    lane = sum(((1 << used) - 1) << start for start in range(0, 64, 2 * width))
    return (lanes & lane) | (((lanes >> used) & lane) << width)
