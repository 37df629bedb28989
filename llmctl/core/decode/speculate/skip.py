"""Skipping: the model itself without some of its layers, over the same weights and the same keys and values."""

import copy

import torch
from torch import Tensor, nn

from llmctl.core.model.transformer import Transformer


def without_layers(model: Transformer, skipped: frozenset[int]) -> Transformer:
    """The model without these layers of its decoder.

    It shares all else, and its layers go by their own numbers, so that it reads and writes the places in a cache that
    are theirs; what is put in the place of a weight of either, is in both.
    """
    view = copy.copy(model)
    view._modules = dict(model._modules)
    stack = copy.copy(model.decoder)
    stack._modules = dict(stack._modules)
    stack.layers = nn.ModuleDict({n: layer for n, layer in model.decoder.layers.items() if int(n) not in skipped})
    view.decoder = stack
    return view


@torch.inference_mode()
def least_layers(model: Transformer, tokens: Tensor, count: int) -> frozenset[int]:
    """The `count` layers that turn what goes through them least; never the first or the last.

    Args:
        tokens: (B, T) int64 to look at.

    Source: the influence of a block, one minus the cosine of its input and its output, of Men et al., "ShortGPT",
    arXiv:2403.03853, section 3.1.
    """
    x, shared = model.enter("decoder", tokens)
    turned = []
    for layer in model.decoder.layers.values():
        y = layer(x, shared)
        turned.append(1 - torch.cosine_similarity(x.float(), y.float(), dim=-1).mean().item())
        x = y
    inner = sorted(range(1, len(turned) - 1), key=lambda number: turned[number])
    return frozenset(inner[:count])
