"""Masks: which weights of a matrix stay, by a score; and weights that are pruned kept at zero while others learn."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from llmctl.core.model.layers import Linear
from llmctl.core.model.transformer import Transformer
from llmctl.spec.prune import Per

PIECE = 1 << 22  # scores that are looked at at a time
HIGH = 16  # bits of a float32 that come after those that are counted first


def chosen(scores: Tensor, share: float, per: Per = "tensor", group: tuple[int, int] | None = None) -> Tensor:
    """Which weights stay: those with the larger scores; of equal ones those that come later.

    Args:
        scores: (O, I) float32, 0 or more.
        share: of zeros: floor(share O I) of the matrix, or floor(share I) of each row.
        per: what a score is compared with.
        group: N zeros in each run of M of a row, in place of `share` and `per`.

    Returns:
        (O, I) bool, True stays.

    Raises:
        ValueError: rows that do not divide by M.
    """
    if group is not None:
        return _of_runs(scores, *group)
    return AMONG[per](scores, share)


def magnitude(weight: Tensor) -> Tensor:
    """The score of a weight by itself: (O, I) float32."""
    return weight.float().abs()


def wanda(weight: Tensor, norm: Tensor) -> Tensor:
    """How much each weight moves the output: its magnitude times the norm of what it is multiplied with.

    Args:
        weight: (O, I).
        norm: (I,) float32, of each input over all tokens, times whatever is common to all.

    Returns:
        (O, I) float32.

    Source: Sun et al., arXiv:2306.11695, equation 1.
    """
    return weight.float().abs() * norm


def smallest(scores: Tensor, count: int) -> Tensor:
    """The `count` smallest of a vector, of equal ones the first: (N,) bool.

    Two counts of bit patterns find the threshold, since floats of one sign are ordered as whole numbers are: this takes
    a few passes and no memory, where sorting takes twenty bytes a number.

    Args:
        scores: (N,) float32, 0 or more.
    """
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    bits = scores.contiguous().view(torch.int32)
    pieces = bits.split(PIECE)
    tops = sum(torch.bincount(piece >> HIGH, minlength=1 << 15) for piece in pieces)
    top, before = _place(tops, count)
    lows = sum(torch.bincount(piece[piece >> HIGH == top] & 0xFFFF, minlength=1 << HIGH) for piece in pieces)
    low, less = _place(lows, count - before)
    threshold = (top << HIGH) | low
    found = bits < threshold
    equal = (bits == threshold).nonzero()[: count - before - less, 0]
    found[equal] = True
    return found


def _place(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the wanted-th item, counted from 1, and how many are in the bins before it."""
    sums = counts.cumsum(0)
    place = int(torch.searchsorted(sums, wanted))
    return place, int(sums[place] - counts[place])


def _of_tensor(scores: Tensor, share: float) -> Tensor:
    return ~smallest(scores.flatten(), math.floor(share * scores.numel())).view(scores.shape)


def _of_rows(scores: Tensor, share: float) -> Tensor:
    count = math.floor(share * scores.shape[1])
    mask = torch.ones_like(scores, dtype=torch.bool)
    step = max(1, PIECE // scores.shape[1])
    for part, kept in zip(scores.split(step), mask.split(step), strict=True):
        kept.scatter_(1, part.topk(count, dim=1, largest=False, sorted=False).indices, False)
    return mask


def _of_runs(scores: Tensor, zeros: int, run: int) -> Tensor:
    if scores.shape[1] % run:
        raise ValueError(f"{scores.shape[1]} columns do not divide by runs of {run}")
    parts = scores.unflatten(1, (-1, run)).unbind(2)  # M of (O, I / M)
    ranks = [torch.zeros(parts[0].shape, dtype=torch.int8, device=scores.device) for _ in parts]
    for i in range(run):
        for j in range(i):
            later = parts[i] < parts[j]  # of equal scores the first is the smaller
            ranks[j] += later
            ranks[i] += ~later
    return torch.stack([rank >= zeros for rank in ranks], dim=2).flatten(1)


AMONG: dict[Per, Callable[[Tensor, float], Tensor]] = {"tensor": _of_tensor, "row": _of_rows}


def matrices(model: Transformer) -> dict[str, Linear]:
    """What is pruned of a model: the matrices of its layers, by their path."""
    within = {id(module) for layer in model.layers for module in layer.modules()}
    return {
        path: module for path, module in model.named_modules() if isinstance(module, Linear) and id(module) in within
    }


def nonzero(model: Transformer) -> dict[str, Tensor]:
    """The masks of a model that was pruned before: bool (O, I) by path, of each matrix that has zeros."""
    masks = {path: module.weight != 0 for path, module in matrices(model).items()}
    return {path: mask for path, mask in masks.items() if not bool(mask.all())}


@torch.no_grad()
def keep(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set to zero what training has moved of pruned weights.

    Args:
        masks: bool (O, I) by the path of a matrix in the model: True stays.
    """
    for path, mask in masks.items():
        model.get_submodule(path).weight.masked_fill_(~mask, 0)  # a product would leave -0, or NaN


def hold(model: nn.Module, masks: Mapping[str, Tensor]) -> Callable[[int], None]:
    """Keep pruned weights at zero while others learn: what `train` is to call after each step.

    Their gradients are zeros from here on, so that they count neither for the norm that is clipped nor for the moments
    of the optimizers; and whatever these do all the same is undone after each step. Zeros stay zeros, bit for bit.

    Args:
        masks: as for `keep`; they may change in place.
    """
    for path, mask in masks.items():
        weight = model.get_submodule(path).weight

        def still(weight: nn.Parameter, mask: Tensor = mask) -> None:
            weight.grad.masked_fill_(~mask, 0)

        weight.register_post_accumulate_grad_hook(still)
    keep(model, masks)
    return lambda step: keep(model, masks)
