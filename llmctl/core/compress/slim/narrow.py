"""narrow: a model without the channels of its stream that matter least."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmctl.core.compress.calibrate import Visited, walk, watched
from llmctl.core.compress.slim.cut import cut, over, scale_norm
from llmctl.core.compress.slim.rank import CHANNELS, chosen
from llmctl.core.compress.slim.repair import moments_of, refit
from llmctl.core.data.batch import Batch
from llmctl.core.model.layers import Linear
from llmctl.core.model.norms import LayerNorm, RMSNorm
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.objectives import hidden_of
from llmctl.spec.model import ModelConfig
from llmctl.spec.slim import SlimConfig


def narrow(
    model: Transformer, how: SlimConfig, target: ModelConfig, batches: Sequence[Batch], seed: int
) -> Transformer:
    """The model with `target.width` channels, its other sizes as they are.

    What reads the stream is repaired block by block. Norms are told by how much more or less they now divide, and what
    follows from the width (scales of embeddings and of logits) is made up for, so that channels that are always zero
    go without a trace.

    Args:
        model: whose parameters may be replaced, but not written to.
        batches: calibration text; [] where none is needed.
        seed: of what is drawn by chance.
    """
    config, device = model.config, next(model.parameters()).device
    stays = chosen(
        CHANNELS[how.ranking(False, model.head is not None)](model, batches, seed), target.width, how.reverse
    )
    if batches and how.repair:

        def visit(visited: Visited) -> None:
            readers = [name for name in visited.linears if over(name, config)[1] == ("width", "")]
            found = moments_of(visited, readers)
            for name in readers:
                refit(visited.linears[name], stays, found[name], True)

        walk(model, batches, visit)
    ratios = _ratios(model, stays, batches)
    cuts = {("width", ""): stays} | _inner(model, target.width, how.reverse, device)
    resized = config.resized(width=target.width, logit_scale=target.logit_scale)
    smaller = cut(model, resized, cuts)
    for path, ratio in ratios.items():
        scale_norm(smaller.get_submodule(path), ratio)
    _rescale(smaller, config)
    return smaller


def _ratios(model: Transformer, stays: Tensor, batches: Sequence[Batch]) -> dict[str, float]:
    """By what each norm of the stream divides with these channels alone, over what it does with all, on the text."""
    norms = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (RMSNorm, LayerNorm)) and over(path, model.config)[0] == ("width", "")
    }
    sums: dict[str, list[float]] = {path: [] for path in norms}

    def see(path: str, x: Tensor) -> None:
        spread = _deviation if isinstance(norms[path], LayerNorm) else _root
        sums[path].append(float((spread(x.float()[..., stays]) / spread(x.float()).clamp(min=1e-12)).mean()))

    with watched(norms, see):
        for batch in batches:
            hidden = hidden_of(model, batch)
            if model.head is not None:
                model.head.features(hidden)
    return {path: sum(found) / len(found) for path, found in sums.items() if found}


def _root(x: Tensor) -> Tensor:
    return x.square().mean(-1).sqrt()


def _deviation(x: Tensor) -> Tensor:
    return x.var(-1, correction=0).sqrt()


def _inner(model: Transformer, count: int, reverse: bool, device: torch.device) -> dict[tuple[str, str], Tensor]:
    """The outputs that stay of heads that are as wide as the stream inside: those with the largest weights."""
    found: dict[tuple[str, str], Tensor] = {}
    for name, module, after in (
        ("pooled", model.pooler, model.next_sentence),
        ("dense", model.classifier and model.classifier.dense, model.classifier and model.classifier.out),
    ):
        if isinstance(module, Linear):
            scores = module.weight.float().square().sum(1)
            scores = scores if after is None else scores * after.weight.float().square().sum(0)
            found[name, ""] = chosen(scores, count, reverse).to(device)
    return found


def _rescale(model: Transformer, before: ModelConfig) -> None:
    """Make up for factors that follow from the width: of the embedding, and of what meets the head."""
    config = model.config
    grown = math.sqrt(before.width / config.width) if model.embed.scaled else 1.0
    if grown != 1:
        table = model.embed.tokens
        table.weight = nn.Parameter((table.weight.float() * grown).to(table.weight.dtype))
    factor = before.logit_scale / config.logit_scale / (grown if config.tie else 1.0)
    if model.head is None or factor == 1:
        return
    if not config.tie:
        model.head.weight = nn.Parameter((model.head.weight.float() * factor).to(model.head.weight.dtype))
    elif model.head.norm is not None:
        scale_norm(model.head.norm, factor, bias=True)
    else:
        last = model.last_stack
        scale_norm(model.layers[-1].mlp_norm if last.norm is None else last.norm, factor, bias=True)
