"""Codes: the weights of a matrix on a grid, and the nearest of them to weights as they are."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from llmctl.core.compress.nf4 import BLOCK as NF4_BLOCK
from llmctl.core.compress.nf4 import Nf4, pack, unpack
from llmctl.spec.quant import Clip, Grid

FP8_MOST = 448.0  # of e4m3fn
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # magnitudes of mxfp4; bit 3 of a code is the sign
BIAS = 127  # of the exponents that mxfp4 stores
BLOCK = 1 << 18  # weights that are rounded at a time on a CPU: few enough to stay in a cache, enough to be worth a call


class Codes(NamedTuple):
    """The weights of an (O, I) matrix on a grid with G scales a row.

    Attributes:
        codes: (O, I): int8 of kind int, from least to most; float8_e4m3fn; uint8, 0 to 15, of mxfp4. Of nf4 what
            `nf4.pack` makes, (ceil(O I / 2), 1) uint8.
        scale: (O, G), of a float dtype; uint8 exponents of mxfp4. Of nf4 (ceil(O I / 64),) float32.
        zero: (O, G) int8, what code stands for 0; None: 0 does.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None


def quantise(weight: Tensor, grid: Grid, dtype: torch.dtype, clip: Clip = "none") -> Codes:
    """The nearest values of a grid.

    Args:
        weight: (O, I), any float dtype.
        dtype: of the scales, as they are stored; codes are chosen for scales so rounded.
        clip: mse: of each group the range with the least sum of |w - w^|^2.4.

    Source: METHODS of each kind: symmetric scales 2 max|w| / (2^b - 1), as compressed-tensors has them; zero points:
    Jacob et al., arXiv:1712.05877, equation 1; e2m1: Open Compute Project, microscaling formats 1.0, 6.3.
    """
    if grid.kind == "nf4":
        packed = pack(weight, double=False)
        return Codes(packed.codes, packed.absmax)

    def rounded(rows: Tensor) -> Codes:
        groups = rows.float().unflatten(1, (grid.groups(rows.shape[1]), -1))  # (O, G, N)
        scale, zero = _scales(groups, grid, dtype, clip)
        return Codes(_nearest(groups, scale, zero, grid).flatten(1), scale, zero)

    return by_rows(rounded, weight)


def by_rows(choose: Callable[[Tensor], Codes], weight: Tensor) -> Codes:
    """Codes of a matrix (O, I) whose rows know nothing of each other, some of them at a time."""
    return _joined([choose(rows) for rows in weight.split(_rows_at_once(weight))])


def measured(choose: Callable[[Tensor], Codes], weight: Tensor, grid: Grid) -> tuple[Codes, float]:
    """What a choice of codes makes of a matrix (O, I), as `by_rows` has it, and its error: |W^ - W|^2 over |W|^2.

    Args:
        choose: told some rows, float32.
    """
    parts, wrong, whole = [], 0.0, 0.0
    for rows in weight.split(_rows_at_once(weight)):
        rows = rows.float()
        parts.append(choose(rows))
        off = dense(parts[-1], grid, torch.float32, tuple(rows.shape)).sub_(rows).view(-1)
        wrong += float(off @ off)
        flat = rows.reshape(-1)
        whole += float(flat @ flat)
    return _joined(parts), wrong / whole if whole else wrong


def scales(weight: Tensor, grid: Grid, dtype: torch.dtype, clip: Clip = "none") -> tuple[Tensor, Tensor | None]:
    """Scales (O, G) and zero points (O, G) of a matrix (O, I), or of some whole groups of its columns; not of nf4.

    Args:
        dtype, clip: as for `quantise`.
    """
    return _scales(weight.float().unflatten(1, (grid.groups(weight.shape[1]), -1)), grid, dtype, clip)


def nearest(weight: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> Tensor:
    """Codes (O, I) of a matrix, or of some whole groups of its columns, given scales (O, G); not of nf4."""
    groups = weight.float().unflatten(1, (scale.shape[1], -1))  # (O, G, N)
    return _nearest(groups, scale, zero, grid).flatten(1)


def dense(codes: Codes, grid: Grid, dtype: torch.dtype, shape: tuple[int, int] | None = None) -> Tensor:
    """The matrix (O, I) that codes stand for, in `dtype`: their product with scales in the dtype of these, then cast.

    Args:
        shape: (O, I), of nf4, whose codes do not tell.
    """
    if grid.kind == "nf4":
        return unpack(Nf4(codes.codes, codes.scale, None, None), shape, dtype)
    groups = codes.codes.unflatten(1, (codes.scale.shape[1], -1))  # (O, G, N)
    return _values(groups, codes.scale, codes.zero, grid).flatten(1).to(dtype)


def fake(weight: Tensor, grid: Grid, dtype: torch.dtype, clip: Clip = "none") -> Tensor:
    """A matrix with each weight in its nearest value, in the weight's own dtype."""
    return dense(quantise(weight, grid, dtype, clip), grid, weight.dtype, tuple(weight.shape))


def _rows_at_once(weight: Tensor) -> int:
    """Rows of a matrix that are rounded at a time; of such that nf4's blocks of 64 weights end with them."""
    if weight.device.type != "cpu":
        return max(1, len(weight))
    return max(NF4_BLOCK, BLOCK // max(1, weight.shape[1]) // NF4_BLOCK * NF4_BLOCK)


def _joined(parts: list[Codes]) -> Codes:
    if len(parts) == 1:
        return parts[0]
    return Codes(*(None if one[0] is None else torch.cat(one) for one in zip(*parts, strict=True)))


def _scales(groups: Tensor, grid: Grid, dtype: torch.dtype, clip: Clip) -> tuple[Tensor, Tensor | None]:
    """Scales and zero points (O, G) of (O, G, N) float32."""
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)  # (O, G)
    scale, zero = _of_range(low, high, grid, dtype)
    if clip == "none" or grid.kind == "mxfp4":
        return scale, zero
    least = _error(groups, scale, zero, grid)
    for step in range(1, 80):  # Frantar et al.'s search: https://github.com/IST-DASLab/gptq
        share = 1 - step / 100
        tried, point = _of_range(low * share, high * share, grid, dtype)
        wrong = _error(groups, tried, point, grid)
        better = wrong < least
        least = torch.where(better, wrong, least)
        scale = torch.where(better, tried, scale)
        zero = None if zero is None else torch.where(better, point, zero)
    return scale, zero


def _of_range(low: Tensor, high: Tensor, grid: Grid, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Scales and zero points of groups whose weights lie between low <= 0 and high >= 0, all (O, G)."""
    largest = torch.maximum(-low, high)
    if grid.kind == "mxfp4":
        exponent = torch.floor(torch.log2(largest.clamp(min=2.0**-126))) - 2
        return (exponent + BIAS).clamp(0, 254).to(torch.uint8), None
    if grid.kind == "fp8":
        return _positive(largest / FP8_MOST, dtype), None
    steps = (1 << grid.bits) - 1
    if grid.symmetric:
        return _positive(2 * largest / steps, dtype), None
    scale = _positive((high - low) / steps, dtype)
    zero = (grid.least - torch.round(low / scale.float())).clamp(grid.least, grid.most)
    return scale, zero.to(torch.int8)


def _positive(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """A scale as stored; that of a group of zeros is 1."""
    stored = scale.to(dtype)
    return torch.where(stored > 0, stored, torch.ones_like(stored))


def _nearest(groups: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> Tensor:
    """Codes of (O, G, N) float32."""
    if grid.kind == "mxfp4":
        return _e2m1(groups * torch.exp2(BIAS - scale.float())[..., None])
    scaled = groups / scale.float()[..., None]
    if grid.kind == "fp8":
        return scaled.clamp_(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn)
    scaled.round_()
    if zero is not None:
        scaled += zero.float()[..., None]
    return scaled.clamp_(grid.least, grid.most).to(torch.int8)


def _e2m1(values: Tensor) -> Tensor:
    """Codes of float32, uint8: the nearest, of two the even one; steps are 0.5 below 2, 1 below 4, then 2."""
    size = values.abs().clamp_(max=E2M1[-1])
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    code = (size / step).round_() + 2 * torch.log2(2 * step)
    return code.to(torch.uint8) | (torch.signbit(values).to(torch.uint8) << 3)


def _values(codes: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> Tensor:
    """What codes (O, G, N) stand for, in the dtype of the scales; mxfp4's in float32."""
    if grid.kind == "mxfp4":
        table = torch.tensor([*E2M1, *(-value for value in E2M1)], device=codes.device)
        return table[codes.int()] * torch.exp2(scale.float() - BIAS)[..., None]
    shifted = codes.to(scale.dtype)
    if zero is not None:
        shifted = shifted - zero[..., None].to(scale.dtype)
    return shifted * scale[..., None]


def _error(groups: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> Tensor:
    """The sum of |w - w^|^2.4 of each group, (O, G)."""
    made = _values(_nearest(groups, scale, zero, grid), scale, zero, grid)
    return (groups - made.float()).abs_().pow_(2.4).sum(2)
