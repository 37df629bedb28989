"""SparseGPT: pruned weights whose part the others of their row take over, column after column."""

import math

import torch
from torch import Tensor

from llmctl.core.compress.prune.masks import chosen
from llmctl.spec.prune import BLOCK, Per

MOST_DAMP = 100.0  # where even that makes no matrix positive, it is not finite


def sparsegpt(
    weight: Tensor,
    moment: Tensor,
    share: float,
    per: Per = "tensor",
    group: tuple[int, int] | None = None,
    damp: float = 0.01,
    block: int = BLOCK,
) -> Tensor:
    """A matrix some of whose weights are zero, and the others such that its outputs change little.

    Args:
        weight: (O, I); it stays as it is.
        moment: (I, I), 2 X X' / N of its inputs.
        share: of zeros: floor(share O I), spread evenly over blocks of columns; or of each row floor(share I).
        per: what a weight is compared with: those of its block, or those of its block and row.
        group: N zeros in each run of M of a row, in place of `share` and `per`.
        damp: what is added to the moment's diagonal, as a share of its mean.
        block: columns that are compared with each other; a multiple of M.

    Returns:
        (O, I), in the dtype of `weight`, or float32 where that is shorter.

    Raises:
        ValueError: a moment that is not finite.

    Source: Frantar & Alistarh, arXiv:2301.00774, algorithm 1. Of the authors' code we differ in two ways: counts of
    zeros are exact, and inputs that are always zero lose their weights first, but none beyond that count.
    """
    work = torch.promote_types(weight.dtype, torch.float32)
    left = weight.to(work).t().contiguous()  # (I, O): a column of the matrix lies in one piece
    moment = moment.to(work)
    dead = moment.diagonal() == 0
    root = inverse_root(moment, damp)  # (I, I) upper
    columns = len(left)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        part, within = left[start:end], root[start:end, start:end]
        scale = within.diagonal().square().masked_fill(dead[start:end], math.inf)[:, None]  # (B, 1)
        mask = torch.ones_like(part, dtype=torch.bool)
        if group is None:
            mask = _kept((part.square() / scale).t(), share, per, start, end).t()
        lost = torch.zeros_like(part)
        for i in range(end - start):
            if group is not None and i % group[1] == 0:
                run = slice(i, i + group[1])
                mask[run] = chosen((part[run].square() / scale[run]).t().float(), share, group=group).t()
            lost[i] = part[i].masked_fill(mask[i], 0) / within[i, i]
            part[i:].addr_(within[i, i:], lost[i], alpha=-1)
        part.masked_fill_(~mask, 0)
        left[end:].addmm_(root[start:end, end:].t(), lost, alpha=-1)
    return left.t().contiguous()


def inverse_root(moment: Tensor, damp: float) -> Tensor:
    """The upper triangular R with R' R the inverse of a moment (I, I) whose diagonal is damped.

    An input that is always zero counts as one of its own. Where rounding leaves the matrix not positive, damping grows.

    Raises:
        ValueError: it is not finite.
    """
    moment = moment.clone()
    diagonal = moment.diagonal()
    mean = diagonal.mean()
    diagonal[diagonal == 0] = 1
    while damp <= MOST_DAMP:
        diagonal += damp * mean
        lower, failed = torch.linalg.cholesky_ex(moment)
        if not failed:
            root, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return root
        damp *= 10
    raise ValueError("the moments of the inputs are not finite")


def _kept(scores: Tensor, share: float, per: Per, start: int, end: int) -> Tensor:
    """Which weights of columns start to end stay, so that the zeros of all columns up to there are as many as asked."""
    rows, columns = scores.shape
    size = rows if per == "tensor" else 1
    zeros = math.floor(share * size * end) - math.floor(share * size * start)
    exact = (zeros + 0.5) / (size * columns) if zeros else 0.0  # a share whose floor it is, whatever the rounding
    return chosen(scores.float(), exact, per)


def corrected(weight: Tensor, moment: Tensor, cross: Tensor, damp: float) -> Tensor:
    """The matrix (O, I) float32 that makes of its inputs in the pruned model what `weight` makes of the unpruned ones.

    The T with the least |W Y - T X|^2 + d |W - T|^2: where the two inputs are the same, W itself.

    Args:
        moment: 2 X X' / N.
        cross: 2 Y X' / N.
        damp: d, as a share of the mean of the moment's diagonal.
    """
    weight = weight.float()
    root = inverse_root(moment, damp)
    return weight + (weight @ (cross - moment)) @ root.t() @ root


def refit(target: Tensor, pruned: Tensor, moment: Tensor, damp: float, steps: int = 10) -> Tensor:
    """The weights that are not zero once more, now all together: those with the least error of outputs.

    SparseGPT lets a column's error go to the columns after it alone. These are steps of conjugate gradients, in all
    rows at a time, towards the least |(T - P) X|^2 + d |T - P|^2 that its zeros allow; ten come within 1 % of it.

    Args:
        target: T, (O, I) float32, what it should be like.
        pruned: P, (O, I) float32, to begin with.
        moment: 2 X X' / N, (I, I) float32.
        damp: d, as a share of the mean of the moment's diagonal.

    Returns:
        (O, I) float32, zero where `pruned` is.

    Source: Hestenes & Stiefel, 1952, with the diagonal as preconditioner; for pruned layers Meng et al.,
    arXiv:2406.07831, section 3.2.
    """
    mask = pruned != 0
    ridge = damp * moment.diagonal().mean()
    scale = 1 / (moment.diagonal() + ridge).clamp(min=torch.finfo(moment.dtype).tiny)  # (I,)

    def forces(matrix: Tensor) -> Tensor:
        return (matrix @ moment + ridge * matrix).mul_(mask)

    left = forces(target - pruned)  # what is still to be gained, (O, I)
    way = left * scale
    gain = (left * way).sum(1, keepdim=True)  # (O, 1)
    for _ in range(steps):
        pull = forces(way)
        length = gain / (way * pull).sum(1, keepdim=True)
        length = length.nan_to_num(0.0, 0.0, 0.0)  # a row that is as good as can be
        pruned = pruned + length * way
        left = left - length * pull
        straight = left * scale
        more = (left * straight).sum(1, keepdim=True)
        way = straight + (more / gain).nan_to_num(0.0, 0.0, 0.0) * way
        gain = more
    return pruned
