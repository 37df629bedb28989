"""Tuning: how a model is trained while its weights are rounded (--method qat)."""

from dataclasses import dataclass
from typing import Annotated

from llmctl.errors import Exit, UserError
from llmctl.spec.train import TrainConfig, Watch


@dataclass(frozen=True)
class Tuning:
    """Training with rounded weights (--method qat).

    Raises:
        UserError: a number out of range.
    """

    steps: Annotated[int, "Optimizer steps to take."] = 200
    lr: Annotated[float, "Peak learning rate."] = 3e-4
    batch_tokens: Annotated[int, "Tokens of one optimizer step."] = 4096
    block: Annotated[int | None, "Tokens of one row; default: the model's context, at most 512."] = None
    micro_batch: Annotated[int, "Rows of one forward pass; 0: found automatically."] = 0
    recompute: Annotated[bool, "Recompute activations in the backward pass to save memory."] = False
    save_every: Annotated[float, "Seconds between saved states, from which an interrupted run goes on."] = 60.0

    def __post_init__(self) -> None:
        wrong = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, wanted {wanted}"
            for name, good, wanted in (
                ("steps", self.steps >= 1, "1 or more"),
                ("lr", self.lr > 0, "more than 0"),
                ("batch_tokens", self.batch_tokens > 1, "2 or more"),
                ("block", self.block is None or self.block > 1, "2 or more"),
                ("micro_batch", self.micro_batch >= 0, "0 or more"),
                ("save_every", self.save_every > 0, "more than 0"),
            )
            if not good
        ]
        if wrong:
            raise UserError("; ".join(wrong) + ".", code=Exit.USAGE)

    def learning(self, context: int) -> TrainConfig:
        """The options of the loop, for a model of that context."""
        return TrainConfig(
            steps=self.steps,
            lr=self.lr,
            min_lr=0.0,
            weight_decay=0.0,
            beta2=0.99,
            batch_tokens=self.batch_tokens,
            block=self.block or min(context, 512),
            micro_batch=self.micro_batch,
            recompute=self.recompute,
        )

    @property
    def watch(self) -> Watch:
        """How it is watched: there is no best on the way, for OUT is the last."""
        return Watch(eval_tokens=0, save_every=self.save_every)
