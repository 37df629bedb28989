"""gptq: codes of a matrix chosen column by column, each making up for the errors of those before it."""

from typing import NamedTuple

import torch
from torch import Tensor

from llmctl.core.compress.quant.grid import Codes, dense, nearest, quantise, scales
from llmctl.spec.calibration import Rounding
from llmctl.spec.quant import Clip, Grid

BLOCK = 128  # columns whose errors reach the later ones together


class Curve(NamedTuple):
    """How errors of columns bear on each other.

    Attributes:
        order: (I,) int64, the columns in the order in which they are rounded.
        upper: (I, I) upper triangular U, where U' U is the inverse of the damped second moments in that order.
    """

    order: Tensor
    upper: Tensor


def curve(moment: Tensor, rounding: Rounding) -> Curve:
    """Of inputs with second moments (I, I) of any float dtype, which U takes; computed in float64 where there is.

    Inputs that are always 0 bear on nothing: their columns are rounded as they are, where the reference zeroes them.

    Source: Frantar et al., arXiv:2210.17323, section 3.3, step 3; order and damping: github.com/IST-DASLab/gptq.
    """
    exact = torch.float32 if moment.device.type == "mps" else torch.float64
    full = moment.to(exact, copy=True)
    diagonal = full.diagonal()
    diagonal[diagonal == 0] = 1
    order = torch.arange(len(full), device=full.device)
    if rounding.act_order:
        order = diagonal.argsort(descending=True, stable=True)
    back = order.flip(0)  # of a factor from the last column to the first, the inverse is U
    full = full[back][:, back]
    added = rounding.damp * float(diagonal.mean())
    full.diagonal().add_(added)
    lower, failed = torch.linalg.cholesky_ex(full)
    while failed:  # inputs that are sums of others, and damping below what the arithmetic resolves
        full.diagonal().add_(9 * added)
        added *= 10
        lower, failed = torch.linalg.cholesky_ex(full)
    one = torch.eye(len(full), dtype=exact, device=full.device)
    upper = torch.linalg.solve_triangular(lower, one, upper=False).flip(0, 1)
    return Curve(order, upper.to(moment.dtype))


def gptq(
    weight: Tensor,
    curve: Curve,
    grid: Grid,
    dtype: torch.dtype,
    clip: Clip = "none",
    fixed: tuple[Tensor, Tensor | None] | None = None,
    block: int = BLOCK,
) -> Codes:
    """Codes whose product with the inputs is nearest to the weight's.

    In the order of the columns, a group's scales are those of its weights as errors before it have left them; in
    another order they are those of the weights as they were ("static groups"), so that no index of groups is needed.

    Args:
        weight: (O, I). Matrices of the same inputs may come as one: rows know nothing of each other.
        grid: of kind int, fp8 or mxfp4.
        dtype: of the scales, as for `quantise`.
        fixed: scales and zero points (O, G), in place of those of the weights.
        block: changes the time that it takes, and nothing else.

    Source: Frantar et al., arXiv:2210.17323, algorithm 1. In a block a column is brought up to date when its turn
    comes, not after each one before it.
    """
    order, upper = curve.order.tolist(), curve.upper
    columns = weight.shape[1]
    size = columns // grid.groups(columns)  # of a group
    moving = fixed is None and bool(grid.group) and order == list(range(columns))
    scale, zero = fixed or quantise(weight, grid, dtype, clip)[1:]
    rest = weight.to(upper.dtype)[:, order].t().contiguous()  # (I, O), less errors of earlier blocks
    codes: list[Tensor] = [torch.empty(0)] * columns
    for start, end in _blocks(columns, size, block, moving):
        own, errors = upper[start:end, start:end], torch.zeros_like(rest[start:end])  # (B, B), (B, O)
        for i in range(end - start):
            column = torch.addmv(rest[start + i], errors[:i].t(), own[:i, i], alpha=-1)[:, None]  # (O, 1)
            group = slice(order[start + i] // size, order[start + i] // size + 1)
            if moving and (start + i) % size == 0:
                whole = rest[start + i : start + i + size].t().clone()  # (O, N)
                here = min(i + size, end - start)  # where the group ends in this block
                whole[:, : here - i].addmm_(errors[:i].t(), own[:i, i:here], alpha=-1)
                fresh = scales(whole, grid, dtype, clip)
                for held, new in zip((scale, zero), fresh, strict=True):
                    if held is not None:
                        held[:, group] = new
            part = scale[:, group], None if zero is None else zero[:, group]
            code = nearest(column, *part, grid)
            codes[order[start + i]] = code[:, 0]
            errors[i] = (column - dense(Codes(code, *part), grid, column.dtype))[:, 0] / own[i, i]
        rest[end:].addmm_(upper[start:end, end:].t(), errors, alpha=-1)
    return Codes(torch.stack(codes, dim=1), scale, zero)


def _blocks(columns: int, size: int, block: int, moving: bool) -> list[tuple[int, int]]:
    """Where blocks begin and end: with scales that move a block holds whole groups, or lies within one."""
    if moving and size < block:
        block = block // size * size
    starts = range(0, columns, block)
    if moving and size > block:
        starts = [first + start for first in range(0, columns, size) for start in range(0, size, block)]
    return list(zip(starts, [*starts[1:], columns], strict=True))
