"""hqq: scales and zero points that fit weights best, found without data."""

import torch
from torch import Tensor

from llmctl.core.compress.quant.grid import Codes, by_rows, dense, nearest, quantise
from llmctl.spec.quant import Clip, Grid

POWER = 0.7  # of the errors that are summed
BETA, GROWTH = 10.0, 1.01  # how strictly the error is what is left over, and how that grows
STEPS = 20


def hqq(weight: Tensor, grid: Grid, dtype: torch.dtype, clip: Clip = "none") -> Codes:
    """Codes of a matrix (O, I) whose error |w - w^|^0.7 is small: outliers count for less than in a sum of squares.

    By turns the errors are shrunk to those that are worth keeping, and the scale and zero point of each group become
    those that come closest to the rest. Each group keeps the best that it had, so that its mean error is at most that
    of rounding alone.

    Args:
        grid: of kind int.
        dtype: of the scales, as they are stored.
        clip: where the search begins; as for `quantise`.

    Source: Badri and Shaji, "Half-Quadratic Quantization", github.com/mobiusml/hqq. There the zero point alone is
    fitted, and need not be whole; here it is, as files hold it, and the scale is fitted with it, by least squares.
    """
    return by_rows(lambda rows: _hqq(rows, grid, dtype, clip), weight)


def _hqq(weight: Tensor, grid: Grid, dtype: torch.dtype, clip: Clip) -> Codes:
    codes, scale, zero = quantise(weight, grid, dtype, clip)
    groups = weight.float().unflatten(1, (scale.shape[1], -1))  # (O, G, N)
    made = _made(codes, scale, zero, grid)
    best = (groups - made).abs().mean(2)  # (O, G)
    tried, point, beta = scale, zero, BETA
    for _ in range(STEPS):
        error = _shrunk(groups - made, beta)
        tried, point = _fitted(groups - error, codes, tried, point, grid)
        codes = nearest(weight, tried, point, grid)
        made = _made(codes, tried, point, grid)
        now = (groups - made).abs().mean(2)
        better = now < best
        if not bool(better.any()):
            break
        best = torch.where(better, now, best)
        scale = torch.where(better, tried, scale)
        zero = None if zero is None else torch.where(better, point, zero)
        beta *= GROWTH
    return Codes(nearest(weight, scale, zero, grid), scale, zero)


def _shrunk(error: Tensor, beta: float) -> Tensor:
    """What is left of errors that cost |e|^POWER, where staying close to them costs, too."""
    size = error.abs()
    return error.sign().mul_(size.sub_(size.clamp(min=1e-12).pow_(POWER - 1).div_(beta)).clamp_(min=0))


def _fitted(
    wanted: Tensor, codes: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid
) -> tuple[Tensor, Tensor | None]:
    """Scales and zero points that come closest to weights (O, G, N), given their codes."""
    whole = codes.unflatten(1, (scale.shape[1], -1)).float()
    if zero is not None:
        mean, middle = whole.mean(2, keepdim=True), wanted.mean(2, keepdim=True)
        centred = whole - mean
        slope = _ratio((centred * (wanted - middle)).sum(2), (centred * centred).sum(2), scale)
        zero = (mean[..., 0] - middle[..., 0] / slope).round().clamp(grid.least, grid.most)
        whole = whole - zero[..., None]
        zero = zero.to(torch.int8)
    return _ratio((wanted * whole).sum(2), (whole * whole).sum(2), scale).to(scale.dtype), zero


def _ratio(above: Tensor, below: Tensor, scale: Tensor) -> Tensor:
    """A scale, float32; the one before where it would be none that can be stored."""
    fitted = above / below
    return torch.where((fitted.to(scale.dtype) > 0) & fitted.to(scale.dtype).isfinite(), fitted, scale.float())


def _made(codes: Tensor, scale: Tensor, zero: Tensor | None, grid: Grid) -> Tensor:
    return dense(Codes(codes, scale, zero), grid, torch.float32).unflatten(1, (scale.shape[1], -1))
