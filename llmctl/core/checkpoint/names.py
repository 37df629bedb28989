"""Applies a family's rename rules: one tensor on disk to ours, and ours to the one on disk."""

import torch
from torch import Tensor

from llmctl.spec.names import Name


def split(rule: Name, stored: Tensor, rows: list[int], heads: int) -> list[Tensor]:
    """Our tensors out of one on disk, as views of it wherever their rows lie at one stride.

    Args:
        rule: says how they are fused and whether they are transposed.
        stored: as read.
        rows: output rows of each of ours, in the rule's order.
        heads: H, of the model; fusion "heads" needs it.

    Returns:
        One tensor for each of `rule.ours`. Only fusion "heads" copies, for there the rows take turns.
    """
    if rule.row:
        stored = stored[0]
    if rule.transposed:
        stored = stored.t()
    if len(rule.ours) == 1:
        return [stored]
    if rule.fusion == "blocks":
        return list(stored.split(rows))
    turns = stored.unflatten(0, (heads, len(rule.ours), -1))  # (H, 3, D, ...)
    return [turn.flatten(0, 1) for turn in turns.unbind(1)]


def join(rule: Name, ours: list[Tensor], heads: int) -> Tensor:
    """The tensor on disk out of ours, contiguous: the inverse of `split`."""
    if len(ours) == 1:
        stored = ours[0]
    elif rule.fusion == "blocks":
        stored = torch.cat(ours)
    else:
        stored = torch.stack([tensor.unflatten(0, (heads, -1)) for tensor in ours], dim=1).flatten(0, 2)
    stored = stored.t() if rule.transposed else stored
    return (stored[None] if rule.row else stored).contiguous()
