"""Recompute and compile, attached to a model from outside."""

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from llmctl.core.model.transformer import Transformer


def recompute(model: Transformer) -> None:
    """Have each layer keep its input only, and compute the rest anew in the backward pass.

    Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
    """
    for layer in model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(model: Transformer) -> None:
    """Compile the layers with torch.compile: one compilation serves them all; names stay as they are."""
    torch._dynamo.config.cache_size_limit = max(64, len(model.layers))
    for layer in model.layers:
        layer.compile()
