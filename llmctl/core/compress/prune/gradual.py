"""Gradual: a run whose matrices lose a growing share of their weights while it trains, and keep their zeros."""

import math

import torch

from llmctl.core.compress.prune.masks import hold, magnitude, matrices, smallest
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.run import Run
from llmctl.errors import Exit, UserError
from llmctl.spec.gradual import Gradual

SPARSE = 0.1  # share of zeros from which a model is said to be sparse


def prune_gradually(run: Run, model: Transformer, config: Gradual) -> None:
    """Have a run prune the matrices of the layers that it trains, and keep zeros that are there, as the config says.

    After some steps the smallest weights of each matrix become zeros, floor(share numel) of it, and those that are
    zeros already are the smallest of all. Masks are part of the run's state, so that it resumes bit for bit; the best
    model is looked for where all is pruned.

    Args:
        run: not begun; its model is `model`, or holds it.

    Raises:
        UserError: it trains no matrix, or would not be pruned to the end.
    """
    trained = {path: module.weight for path, module in matrices(model).items() if module.weight.requires_grad}
    if not trained:
        raise UserError("This run trains no matrix of a layer, so there is nothing to prune.", code=Exit.USAGE)
    masks = {
        path: weight.detach() != 0 if config.keep_zeros else torch.ones_like(weight, dtype=torch.bool)
        for path, weight in trained.items()
    }
    steps = run.steps
    if config.prune_to is not None:
        run.settled = config.span(steps)[1]

    @torch.no_grad()
    def narrow(share: float) -> None:
        for path, weight in trained.items():
            scores = magnitude(weight).masked_fill_(~masks[path], 0).flatten()
            count = max(math.floor(share * weight.numel()), weight.numel() - int(masks[path].count_nonzero()))
            masks[path].copy_(~smallest(scores, count).view_as(weight))

    keep = hold(model, masks)

    def after(step: int) -> None:
        if config.changes(step, steps):
            narrow(config.share(step, steps))
        keep(step)

    run.after, run.beside = after, masks


def zeros(model: Transformer) -> float:
    """The share of zeros in the matrices of the layers."""
    weights = [module.weight for module in matrices(model).values()]
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / max(
        1, sum(weight.numel() for weight in weights)
    )
