"""Codes: the weights of a matrix on a grid, and the nearest of them to weights as they are."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from llmctl.core.compress.nf4 import Nf4, pack, unpack
from llmctl.spec.quant import Clip, Grid

FP8_MOST = 448.0  # of e4m3fn
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # magnitudes of mxfp4; bit 3 of a code is the sign
BIAS = 127  # of the exponents that mxfp4 stores


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
    scale, zero = scales(weight, grid, dtype, clip)
    return Codes(nearest(weight, scale, zero, grid), scale, zero)


def scales(weight: Tensor, grid: Grid, dtype: torch.dtype, clip: Clip = "none") -> tuple[Tensor, Tensor | None]:
    """Scales (O, G) and zero points (O, G) of a matrix (O, I), or of some whole groups of its columns; not of nf4.

    Args:
        dtype, clip: as for `quantise`.
    """
    groups = weight.float().unflatten(1, (grid.groups(weight.shape[1]), -1))  # (O, G, N)
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
        scaled = groups * torch.exp2(BIAS - scale.float())[..., None]
        bounds = torch.tensor([(a + b) / 2 for a, b in pairwise(E2M1)], device=groups.device)
        magnitude = scaled.abs()
        down = torch.bucketize(magnitude, bounds)  # ties to the lower
        up = torch.bucketize(magnitude, bounds, right=True)  # and to the upper: even codes win
        code = torch.where(down % 2 == 0, down, up)
        return (code | (torch.signbit(scaled).long() << 3)).to(torch.uint8)
    scaled = groups / scale.float()[..., None]
    if grid.kind == "fp8":
        return scaled.clamp(-FP8_MOST, FP8_MOST).to(torch.float8_e4m3fn)
    shifted = torch.round(scaled) if zero is None else torch.round(scaled) + zero[..., None]
    return shifted.clamp(grid.least, grid.most).to(torch.int8)


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
