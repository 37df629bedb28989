"""Masks: which weights of a matrix stay, by a score; and weights that are pruned kept at zero while others learn."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from llmctl.core.model.layers import Linear
from llmctl.core.model.transformer import Transformer


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
