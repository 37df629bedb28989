"""compare: the scores of base and adapter beside those of the merged model, and what rounding makes of them."""

from pathlib import Path

import torch
from torch import Tensor

from llmctl.core.adapt.head import rehead
from llmctl.core.adapt.stored import load_adapter
from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.spec.merge_plan import MergePlan

ROWS, TOKENS, SEED = 2, 64, 0
SLACK = 8  # how many times the difference that one rounding makes is allowed


@torch.no_grad()
def compare(plan: MergePlan, merged: Path) -> dict[str, float]:
    """How the scores of random tokens differ; arithmetic is in float32.

    What rounding explains is measured: each weight of the merged model is moved by at most half of a last place of the
    type it is stored in, at random, as the one cast of merging does, and SLACK times the difference that this makes is
    allowed.

    Args:
        plan: of one adapter of weight 1.
        merged: directory of the merged checkpoint.

    Returns:
        max_difference, mean_difference, largest_logit, allowed.

    Raises:
        UserError: the adapter does not fit the base.
    """
    opened = Checkpoint.open(merged)
    made = opened.model(dtype=torch.float32, writable=True)
    found = _scores(made)
    base = Checkpoint.open(plan.base).model(dtype=torch.float32)
    if base.config.labels != opened.config.labels:
        base, _ = rehead(base, opened.config, SEED)
    load_adapter(base, plan.given[0].path)
    wanted = _scores(base.eval())
    del base
    chance = torch.Generator().manual_seed(SEED)
    eps = max(torch.finfo(dtype).eps for dtype in _dtypes(plan))
    for parameter in made.parameters():
        parameter.mul_(1 + (torch.rand(parameter.shape, generator=chance) - 0.5) * eps)
    noise = (_scores(made) - found).abs().max()
    gaps = (found - wanted).abs()
    return {
        "max_difference": float(gaps.max()),
        "mean_difference": float(gaps.mean()),
        "largest_logit": float(wanted.abs().max()),
        "allowed": float(SLACK * noise),
    }


def _dtypes(plan: MergePlan) -> set[torch.dtype]:
    from llmctl.core.checkpoint.write import DTYPES

    return {DTYPES[made.dtype] for made in plan.tensors}


def _scores(model: Transformer) -> Tensor:
    """Scores of tokens or of labels, or the hidden states of a model that has no head, for random rows."""
    config = model.config
    length = min(TOKENS, config.context)
    chance = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(config.vocab, (ROWS, length), generator=chance)
    source = None
    if config.kind == "encoder-decoder":
        source = EncoderInput(torch.randint(config.vocab, (ROWS, length), generator=chance))
    hidden = model(tokens, encoder=source)
    if config.labels:
        return model.classify(hidden)
    return model.head(hidden) if config.lm_head else hidden
