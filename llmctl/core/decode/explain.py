"""Explained: how one token was chosen: the likeliest ones, with their chances before and after each filter."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmctl.core.decode.line import Line

if TYPE_CHECKING:
    from llmctl.core.decode.filters import Filter

CANDIDATES = 5  # that are shown where no other number is asked for


@dataclass(frozen=True)
class Stage:
    """The chances after one filter.

    Attributes:
        name: "model" for the model's own, else the filter's.
        setting: the filter's, for people; "" where it has none.
        left: how many tokens have a chance.
        chances: of the candidates, in their order.
    """

    name: str
    setting: str
    left: int
    chances: tuple[float, ...]


@dataclass(frozen=True)
class Explained:
    """How one token was chosen.

    Attributes:
        step: its number in its completion, from 0.
        chosen: its id.
        greedy: the likeliest was taken; else it was drawn by the last chances.
        candidates: ids: the likeliest of the model, the likeliest after all filters, and the chosen one; by their
            chances after all filters, then by the model's.
        stages: the model's own chances, then those after each filter that changed something at this step.
        alike: of a contrastive search, how like the state of each candidate is to one before it, the greatest cosine.
        worth: and what the candidates were chosen by.
    """

    step: int
    chosen: int
    greedy: bool
    candidates: tuple[int, ...]
    stages: tuple[Stage, ...]
    alike: tuple[float, ...] = ()
    worth: tuple[float, ...] = ()


@torch.inference_mode()
def explained(
    logits: Tensor, lines: Sequence[Line], ids: Sequence[int], filters: "Sequence[Filter]", greedy: bool, count: int
) -> list[Explained]:
    """How tokens were chosen; the lines are as they were before.

    Args:
        logits: (n, V) float32, the model's.
        ids: what was chosen.
        filters: all, in their order.
        greedy: the likeliest tokens were taken.
        count: likeliest tokens that are shown, before the filters and after.
    """
    passed = [("model", "", logits)]
    for filter in filters:
        passed.append((filter.name, filter.setting, filter.apply(passed[-1][2], lines)))
    count = min(count, logits.shape[1])
    shown = []
    for row, (line, token) in enumerate(zip(lines, ids, strict=True)):
        scores = [each[row] for *_, each in passed]
        first, last = scores[0].softmax(dim=-1), scores[-1].softmax(dim=-1)
        best = {token, *scores[0].topk(count).indices.tolist(), *scores[-1].topk(count).indices.tolist()}
        candidates = sorted(best, key=lambda one: (-float(last[one]), -float(first[one]), one))
        stages = [
            Stage(name, setting, int((each > -torch.inf).sum()), tuple(each.softmax(dim=-1)[candidates].tolist()))
            for place, ((name, setting, _), each) in enumerate(zip(passed, scores, strict=True))
            if place == 0 or not torch.equal(each, scores[place - 1])
        ]
        shown.append(Explained(line.step, token, greedy, tuple(candidates), tuple(stages)))
    return shown
