"""Outliers as large models have them, put into a small one without changing what it computes."""

import torch

from llmctl.core.model.transformer import Transformer


@torch.no_grad()
def inject(model: Transformer, seed: int = 0, channels: int = 4, factor: float = 30.0) -> Transformer:
    """The model with some channels of each norm's output made larger, and the weights that meet them smaller.

    What matrices are given then differs, channel by channel, by as much as `factor`; what they make does not.

    Args:
        model: with norms before each half of a layer, whose parameters may be written to.
    """
    draw = torch.Generator().manual_seed(seed)
    for block in model.layers:
        attention, mlp = block.attention, block.mlp
        gates = [] if mlp.gate is None else [mlp.gate]
        halves = [
            (block.attention_norm, [attention.q, attention.k, attention.v]),
            (block.mlp_norm, [*gates, mlp.up]),
        ]
        for norm, readers in halves:
            at = torch.randperm(model.config.width, generator=draw)[:channels]
            one = 1.0 if norm.plus_one else 0.0
            norm.weight[at] = (norm.weight[at] + one) * factor - one
            if model.config.norm == "layer":
                norm.bias[at] *= factor
            for reader in readers:
                reader.weight[:, at] /= factor
    return model
