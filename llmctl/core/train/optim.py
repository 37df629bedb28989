"""Optimizers: which tensors decay, which take Muon, and the rate of a step."""

import torch
from torch import nn

from llmctl.spec.train import Learning


def optimizers(model: nn.Module, config: Learning) -> list[torch.optim.Optimizer]:
    """The optimizers of a training run; together they hold each trainable parameter once.

    adamw: one AdamW; matrices decay, vectors (norms, biases) do not. muon: the matrices of the layers go to Muon,
    and embeddings, head and vectors stay with AdamW. Each group's peak rate is kept under "peak".

    Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101; Jordan et al., "Muon",
    2024, in torch's own implementation.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    orthogonal = [
        p for name, p in trainable.items() if config.optimizer == "muon" and p.ndim == 2 and ".layers." in name
    ]
    taken = {id(p) for p in orthogonal}
    rest = [p for p in trainable.values() if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [group | {"peak": config.lr} for group in groups if group["params"]],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.adam_eps,
            fused=True,
        )
    ]
    if orthogonal:
        made.append(
            torch.optim.Muon(
                [{"params": orthogonal, "peak": config.muon_lr}],
                lr=config.muon_lr,
                weight_decay=config.weight_decay,
            )
        )
    return made


def set_rate(made: list[torch.optim.Optimizer], share: float) -> float:
    """Set every group's learning rate to its peak times `share`; returns the first group's."""
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
    return made[0].param_groups[0]["lr"]
