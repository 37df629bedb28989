"""TrainConfig: how a model is trained: length, batch, optimizer, schedule; and the schedule's arithmetic."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError

Schedule = Literal["cosine", "wsd", "linear", "constant"]
Optimizer = Literal["adamw", "muon"]


@dataclass(frozen=True)
class TrainConfig:
    """Options of the one training loop.

    Raises:
        UserError: a value out of range, or not exactly one length.
    """

    steps: Annotated[int | None, "Optimizer steps to take."] = None
    epochs: Annotated[float | None, "Passes over the training tokens."] = None
    tokens: Annotated[int | None, "Training tokens to see."] = None
    batch_tokens: Annotated[int, "Tokens of one optimizer step."] = 8192
    block: Annotated[int | None, "Tokens of one training row; default: the model's context."] = None
    micro_batch: Annotated[int, "Rows of one forward pass; 0: found automatically."] = 0
    optimizer: Annotated[Optimizer, "adamw, or muon for matrices with adamw for the rest."] = "adamw"
    lr: Annotated[float, "Peak learning rate."] = 3e-3
    min_lr: Annotated[float, "Learning rate at the end, as a share of --lr."] = 0.1
    muon_lr: Annotated[float, "Peak learning rate of Muon's matrices."] = 0.02
    schedule: Annotated[Schedule, "Shape of the learning rate after warm-up."] = "cosine"
    warmup: Annotated[float, "Warm-up: steps when 1 or more, a share of all steps when less."] = 0.05
    decay: Annotated[float, "wsd: share of all steps in which the rate falls at the end."] = 0.2
    beta1: Annotated[float, "AdamW: decay of the gradient's mean."] = 0.9
    beta2: Annotated[float, "AdamW: decay of the gradient's square."] = 0.95
    adam_eps: Annotated[float, "AdamW: added to the root of the square."] = 1e-8
    weight_decay: Annotated[float, "Decoupled weight decay of matrices; vectors have none."] = 0.1
    clip: Annotated[float, "Clip the gradient to this global norm; 0: never."] = 1.0
    recompute: Annotated[bool, "Recompute activations in the backward pass to save memory."] = False
    compile: Annotated[bool, "Compile the model with torch.compile."] = False
    cross_document: Annotated[bool, "Let tokens attend to earlier documents packed in their row."] = False

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "epochs", "tokens") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(
                f"--{' and --'.join(given)} both say how long to train.", "Keep one of them.", Exit.USAGE
            )
        bad = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, wanted {wanted}"
            for name, good, wanted in (
                ("steps", self.steps is None or self.steps >= 0, "0 or more"),
                ("epochs", self.epochs is None or self.epochs > 0, "more than 0"),
                ("tokens", self.tokens is None or self.tokens > 0, "more than 0"),
                ("batch_tokens", self.batch_tokens > 0, "more than 0"),
                ("block", self.block is None or self.block > 1, "2 or more"),
                ("micro_batch", self.micro_batch >= 0, "0 or more"),
                ("lr", self.lr > 0, "more than 0"),
                ("min_lr", 0 <= self.min_lr <= 1, "from 0 to 1"),
                ("warmup", self.warmup >= 0, "0 or more"),
                ("decay", 0 <= self.decay <= 1, "from 0 to 1"),
                ("clip", self.clip >= 0, "0 or more"),
                ("weight_decay", self.weight_decay >= 0, "0 or more"),
            )
            if not good
        ]
        if bad:
            raise UserError("; ".join(bad) + ".", code=Exit.USAGE)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 1..steps, as a share of the peak.

        Warm-up is linear; cosine and linear fall from 1 to min_lr over the rest; wsd stays at 1 and
        falls linearly to min_lr over its last `decay` of all steps; constant stays at 1.

        Source: cosine: Loshchilov & Hutter, arXiv:1608.03983, equation 5; wsd: Hu et al., MiniCPM,
        arXiv:2404.06395, section 4.
        """
        warmup = self.warmup if self.warmup >= 1 else self.warmup * steps
        if step < warmup:
            return step / warmup
        left = (steps - step) / max(1.0, steps - warmup)  # 1 after warm-up, 0 at the last step
        shape = {
            "constant": 1.0,
            "linear": left,
            "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left))),
            "wsd": min(1.0, (steps - step) / max(1.0, self.decay * steps)),
        }[self.schedule]
        return self.min_lr + (1 - self.min_lr) * shape
