"""repair: least squares by which a matrix makes up for what it no longer reads."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmctl.core.compress.calibrate import Visited, inputs
from llmctl.core.model.layers import Linear

DAMP = 0.01  # of the mean of the squares, added to each


class Moments(NamedTuple):
    """What a matrix is given on text.

    Attributes:
        second: (I, I) float32, E[x x'].
        mean: (I,) float32.
    """

    second: Tensor
    mean: Tensor

    @property
    def centred(self) -> Tensor:
        """(I, I) float32, the covariance: all that counts where a bias makes up for the mean."""
        return self.second - torch.outer(self.mean, self.mean)


def moments_of(visited: Visited, names: list[str]) -> dict[str, Moments]:
    """Of some matrices of a block; those that are given the same share one."""
    sums: dict[tuple[str, ...], list] = {}

    def take(names: tuple[str, ...], x: Tensor) -> None:
        x = x.float()
        if names not in sums:
            size = x.shape[1]
            sums[names] = [torch.zeros(size, size, device=x.device), torch.zeros(size, device=x.device), 0]
        sums[names][0].addmm_(x.t(), x)
        sums[names][1] += x.sum(0)
        sums[names][2] += len(x)

    inputs(visited, take, {name: visited.linears[name] for name in names})
    found = {group: Moments(second / max(1, n), mean / max(1, n)) for group, (second, mean, n) in sums.items()}
    return {name: made for group, made in found.items() for name in group}


def refit(linear: Linear, kept: Tensor, moments: Moments | None, repair: bool) -> float | None:
    """Let a matrix read some of its columns alone; the others become zeros, and a bias takes part.

    With `repair`, W' and b' are those that minimise E |W x + b - W' x - b'|^2 with W' zero elsewhere, lightly held
    back to W and b. Columns that read nothing of weight change nothing.

    Args:
        kept: columns that stay, int64.
        moments: of what it is given; None: unknown, and then there is no repair.

    Returns:
        The mean square of the change of the output over that of the output; None without moments.
    """
    weight = linear.weight.detach().float()
    gone = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    gone[kept] = False
    fitted, bias = weight.masked_fill(gone, 0.0), linear.bias
    if moments is None:
        _replace(linear, fitted, None)
        return None
    columns = torch.cat((kept, kept.new_tensor([len(gone)]))) if bias is not None else kept
    whole = _with_one(moments) if bias is not None else moments.second
    if repair and bool(gone.any()):
        among, across = whole[columns][:, columns].double(), whole[columns][:, : len(gone)][:, gone].double()
        among.diagonal().add_(DAMP * among.diagonal()[: len(kept)].mean().clamp(min=1e-12))
        made = torch.cholesky_solve(across, torch.linalg.cholesky(among))  # (K, gone)
        change = weight[:, gone].double() @ made.t()  # (O, K)
        fitted[:, kept] += change[:, : len(kept)].float()
        _replace(linear, fitted, None if bias is None else bias.detach().float() + change[:, -1].float())
    else:
        _replace(linear, fitted, None)
    off = weight - linear.weight.detach().float()
    lost, total = _energy(off, moments.second), _energy(weight, moments.second)
    if bias is not None and repair:
        shift = bias.detach().float() - linear.bias.detach().float()
        lost += float(2 * shift @ (off @ moments.mean) + shift @ shift)
    return max(0.0, lost) / max(total, 1e-30)


def _energy(weight: Tensor, second: Tensor) -> float:
    """E |W x|^2."""
    return float(((weight @ second) * weight).sum())


def _with_one(moments: Moments) -> Tensor:
    """E[x x'] of x with a 1 after it: (I + 1, I + 1)."""
    mean = moments.mean[:, None]
    return torch.cat((torch.cat((moments.second, mean), 1), torch.cat((mean.t(), mean.new_ones(1, 1)), 1)))


def _replace(linear: Linear, weight: Tensor, bias: Tensor | None) -> None:
    """New parameters in the place of those, which others may share."""
    linear.weight = nn.Parameter(weight.to(linear.weight.dtype), requires_grad=linear.weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(linear.bias.dtype), requires_grad=linear.bias.requires_grad)
