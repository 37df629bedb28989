"""slim: a model without its least important layers, channels, heads and neurons: a smaller one of a smaller config."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from llmctl.core.compress.slim.cut import cut
from llmctl.core.compress.slim.narrow import narrow
from llmctl.core.compress.slim.rank import chosen, drawn, influences, mean_loss, without
from llmctl.core.compress.slim.trim import trim
from llmctl.core.data.batch import Batch
from llmctl.core.model.layers import Linear
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.slim import SlimConfig, renumbered, slimmed

Record = dict[str, Any]
LOSS_TOKENS = 8192  # of the calibration text, on which the model is tried without each layer


@torch.no_grad()
def slim(
    model: Transformer, how: SlimConfig, batches: Sequence[Batch], seed: int = 0
) -> tuple[Transformer, list[Record]]:
    """A smaller model; the one given stays as it is, and shares with it what is not cut.

    Layers go first, then channels, then heads and neurons in a walk block by block, each ranked and repaired on what
    the blocks before it, already cut, give it.

    Args:
        model: in eval mode, without adapters.
        how: what to cut.
        batches: calibration text, on the model's device; [] where `how.calibrated` is false.
        seed: of what is drawn by chance.

    Returns:
        The model, in eval mode; and a record a layer of the old model, in order: `layer` (its path), `kept`, where it
        is known `influence` (of the layer), and of those kept what stays of what was cut: `channels`, `heads`,
        `cross_heads`, `neurons`; and `attention_error`, `cross_attention_error`, `mlp_error`: the mean square of the
        change of what the half adds, over its own, on the calibration text.

    Raises:
        UserError: sizes that the model cannot have; or `how.rank` is loss, and it has no head that scores tokens.
    """
    if how.rank == "loss" and model.head is None:
        raise UserError(
            "--rank loss needs a head that scores tokens, which this model has not.", "Use --rank activation."
        )
    target = slimmed(model.config, how).config
    layers, records = _layers(model, how, target, batches, seed)
    kept = [record for record in records if record["kept"]]
    smaller = cut(model, renumbered(model.config, layers), {}, layers)
    if target.width != model.config.width:
        smaller = narrow(smaller, how, target, batches, seed)
        for record in kept:
            record["channels"] = target.width
    if (target.heads, target.ff) != (model.config.heads, model.config.ff):
        smaller, found = trim(smaller, how, target, batches, seed)
        for record, more in zip(kept, found, strict=True):
            record |= more
    return smaller, records


def _layers(
    model: Transformer, how: SlimConfig, target: ModelConfig, batches: Sequence[Batch], seed: int
) -> tuple[dict[str, tuple[int, ...]], list[Record]]:
    """The layers of each stack that stay, and a record of each."""
    config = model.config
    turned, rank = influences(model, batches) if batches else {}, how.ranking(True, model.head is not None)
    kept = how.stays(config.stacks)
    for stack, count in target.stacks.items() if not kept else ():
        there = config.stacks[stack]
        if count == there:
            kept[stack] = tuple(range(there))
        elif rank == "loss":
            kept[stack] = _least_loss(model, stack, count, how.reverse, batches)
        else:
            scores = {
                "activation": lambda stack=stack: torch.tensor(turned[stack]),
                "weight": lambda stack=stack: _sizes(model, stack),
                "random": lambda stack=stack, there=there: drawn(there, seed, stack, torch.device("cpu")),
            }[rank]()
            kept[stack] = tuple(chosen(scores, count, how.reverse).tolist())
    records = []
    for stack, there in config.stacks.items():
        for layer in range(there):
            record: Record = {"layer": f"{stack}.layers.{layer}", "kept": layer in kept[stack]}
            if stack in turned:
                record["influence"] = turned[stack][layer]
            records.append(record)
    return kept, records


def _sizes(model: Transformer, stack: str) -> Tensor:
    """The mean square of the matrices of each layer."""
    layers = {"encoder": model.encoder, "decoder": model.decoder}[stack].layers.values()
    means = [[m.weight.float().square().mean() for m in layer.modules() if isinstance(m, Linear)] for layer in layers]
    return torch.tensor([float(sum(found)) for found in means])


def _least_loss(model: Transformer, stack: str, count: int, reverse: bool, batches: Sequence[Batch]) -> tuple[int, ...]:
    """One layer after another goes, the one without which the loss is lowest, or with `reverse` highest.

    Source: Kim et al., Shortened LLaMA, arXiv:2402.02834, section 3.1, drop them all at once.
    """
    left = list(range(model.config.stacks[stack]))
    gone: list[tuple[str, int]] = []
    read = list(accumulate(batch.scored for batch in batches))
    batches = [batch for batch, tokens in zip(batches, read, strict=True) if tokens - batch.scored < LOSS_TOKENS]
    while len(left) > count:
        losses = {}
        for layer in left:
            with without(model, [*gone, (stack, layer)]):
                losses[layer] = mean_loss(model, batches)
        worst = (max if reverse else min)(left, key=lambda layer: losses[layer])
        left.remove(worst)
        gone.append((stack, worst))
    return tuple(left)
