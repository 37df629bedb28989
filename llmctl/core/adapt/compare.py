"""compare: the scores of base and adapter beside those of the merged model, and what rounding makes of them."""

from pathlib import Path

import torch
from torch import Tensor

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.checkpoint.write import DTYPES
from llmctl.core.compress.frozen import freeze
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.spec.adapt import AdaptConfig
from llmctl.spec.families import read_config
from llmctl.spec.merge_plan import MergePlan

ROWS, TOKENS, SEED = 2, 64, 0
SLACK = 4  # how many times the difference that one rounding makes is allowed
FLOOR = 64  # and how many last places of the largest score, for the sums of the arithmetic


@torch.no_grad()
def compare(plan: MergePlan, merged: Path) -> dict[str, float]:
    """How the scores of random tokens differ; arithmetic is in float32.

    What rounding explains is measured: each weight of the merged model is moved by at most half of a last place of the
    type it is stored in, at random, as the one cast of merging does, and SLACK times the difference that this makes is
    allowed, and FLOOR last places of the largest score.

    Args:
        plan: of one adapter of weight 1.
        merged: directory of the merged checkpoint.

    Returns:
        max_difference and mean_difference, max_allowed and mean_allowed, and largest_logit.

    Raises:
        UserError: the adapter does not fit the base.
    """
    opened = Checkpoint.open(merged)
    made = opened.model(dtype=torch.float32, writable=True)
    found = _scores(made)
    shape = read_config(plan.base)
    shape = shape if shape.labels == opened.config.labels else opened.config  # a head that the adapter brings
    beside = Checkpoint(plan.given[0].path, shape, plan.base).model(dtype=torch.float32)
    if plan.precision != "stored":
        freeze(beside, AdaptConfig("qlora", double_quant=plan.precision == "nf4-dq"), torch.float32)
    wanted = _scores(beside)
    del beside
    chance = torch.Generator().manual_seed(SEED)
    eps = max(torch.finfo(DTYPES[one.dtype]).eps for one in plan.tensors)
    for parameter in made.parameters():
        parameter.mul_(1 + (torch.rand(parameter.shape, generator=chance) - 0.5) * eps)
    noise, gaps, largest = (_scores(made) - found).abs(), (found - wanted).abs(), float(wanted.abs().max())
    sums = FLOOR * torch.finfo(torch.float32).eps * largest
    return {
        "max_difference": float(gaps.max()),
        "max_allowed": SLACK * float(noise.max()) + sums,
        "mean_difference": float(gaps.mean()),
        "mean_allowed": SLACK * float(noise.mean()) + sums,
        "largest_logit": largest,
    }


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
