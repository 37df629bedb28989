"""awq: columns that meet large inputs are made larger before they are rounded, by as much as serves best."""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmctl.core.compress.quant.fold import Fold, Given
from llmctl.core.compress.quant.grid import Codes, dense, nearest, quantise, scales
from llmctl.spec.calibration import Rounding
from llmctl.spec.quant import Grid

STEPS = 20  # powers of the mean input that are tried
ROWS = 512  # of a matrix that tell one power from another
SHARES = tuple(1 - step / 20 for step in range(1, 12))  # of a group's range that are tried
SPAN = 512


def search(
    at: Fold, matrices: Sequence[tuple[Tensor, Grid]], given: Given, rounding: Rounding, dtype: torch.dtype
) -> Tensor:
    """Factors (I,) of the columns of matrices that are given the same, with which rounding errs least.

    Args:
        matrices: (O, I) float32 each, and its grid.
        dtype: of the scales, as for `quantise`.

    Source: Lin et al., arXiv:2306.00978, section 3.2: powers of the mean input from 0, less than 1; the error of
    outputs follows from second moments. Where several heads read the same values their inputs' means are averaged.
    """
    best, least = torch.ones_like(given.mean), float("inf")
    mean = at.shared(given.mean)
    some = [(weight[:: -(-len(weight) // ROWS)], grid) for weight, grid in matrices]
    for step in range(STEPS):
        factor = torch.where(mean > 0, mean, mean.new_ones(())).pow(step / STEPS).clamp(min=1e-4)
        factor = factor / (factor.max() * factor.min()).sqrt()
        error = 0.0
        for weight, grid in some:
            made = dense(quantise(weight * factor, grid, dtype), grid, torch.float32) / factor
            error += float(((made - weight) @ given.moment).mul_(made - weight).sum())
        if error < least:
            best, least = factor, error
    return best


def clipped(weight: Tensor, moment: Tensor, grid: Grid, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Scales and zero points (O, G) of the range of each group with which its own part of the outputs errs least.

    Args:
        weight: (O, I) float32.
        moment: (I, I) float32, the second moments of its inputs.
        dtype: of the scales.

    Source: as `search`, section 3.2's clipping; here all matrices have it, and of a group wider than SPAN columns the
    errors of so many are taken together.
    """
    count = grid.groups(weight.shape[1])
    groups = weight.unflatten(1, (count, -1))  # (O, G, N)
    ends = torch.stack((groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)), 2).flatten(1)  # (O, 2 G)
    pairs = Grid(grid.kind, grid.bits, 2, grid.symmetric)
    scale, zero = scales(ends, pairs, dtype)
    least = _errors(weight, Codes(nearest(weight, scale, zero, grid), scale, zero), moment, grid)
    for share in SHARES:
        tried, point = scales(ends * share, pairs, dtype)
        error = _errors(weight, Codes(nearest(weight, tried, point, grid), tried, point), moment, grid)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, tried, scale)
        zero = None if zero is None else torch.where(better, point, zero)
    return scale, zero


def _errors(weight: Tensor, codes: Codes, moment: Tensor, grid: Grid) -> Tensor:
    """The error of each row's outputs through each group, (O, G)."""
    groups = codes.scale.shape[1]
    wrong = (dense(codes, grid, torch.float32) - weight).unflatten(1, (groups, -1)).transpose(0, 1)  # (G, O, N)
    blocks = moment.unflatten(1, (groups, -1)).unflatten(0, (groups, -1))  # (G, N, G, N)
    own = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (G, N, N)
    parts = [slice(start, start + SPAN) for start in range(0, wrong.shape[2], SPAN)]
    return sum((wrong[..., part] @ own[:, part, part] * wrong[..., part]).sum(2) for part in parts).t()
