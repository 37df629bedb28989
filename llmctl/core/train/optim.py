"""Optimizers: which tensors decay, which take Muon, and the rate of a step."""

import torch
from torch import nn

from llmctl.spec.train import Learning


def optimizers(model: nn.Module, config: Learning, b_rate: float = 1.0) -> list[torch.optim.Optimizer]:
    """The optimizers of a training run; together they hold each trainable parameter once.

    adamw: one AdamW; matrices decay, vectors (norms, biases) do not. muon: the matrices of the layers go to Muon,
    and embeddings, head and vectors stay with AdamW. Each group's peak rate is kept under "peak".

    Args:
        b_rate: the rate of LoRA's second matrices, as a multiple of the others'.

    Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101; Jordan et al., "Muon",
    2024, in torch's own implementation; b_rate: Hayou et al., "LoRA+", arXiv:2402.12354.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    orthogonal = [
        p for name, p in trainable.items() if config.optimizer == "muon" and p.ndim == 2 and ".layers." in name
    ]
    taken = {id(p) for p in orthogonal}
    second = {id(p) for name, p in trainable.items() if name.endswith(".adapter.b")} if b_rate != 1 else set()
    rest = [p for p in trainable.values() if id(p) not in taken]
    usual, faster = {"peak": config.lr}, {"peak": config.lr * b_rate}
    decayed, plain = {"weight_decay": config.weight_decay}, {"weight_decay": 0.0}
    groups = [
        {"params": [p for p in rest if p.ndim >= 2 and id(p) not in second], **decayed, **usual},
        {"params": [p for p in rest if id(p) in second], **decayed, **faster},
        {"params": [p for p in rest if p.ndim < 2], **plain, **usual},
    ]
    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [group for group in groups if group["params"]],
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
