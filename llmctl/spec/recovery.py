"""Recovery: how a model that has lost weights learns again, by text or from the model that it was."""

from dataclasses import dataclass
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.train import TrainConfig, Watch

Teaching = Literal["teacher", "text"]


@dataclass(frozen=True)
class Recovery:
    """Recovery.

    Training after pruning; what was pruned stays so.

    Raises:
        UserError: a number out of range.
    """

    recover_steps: Annotated[int, "Steps of training after pruning, in which what was pruned stays so; 0: none."] = 0
    recover_data: Annotated[
        str | None, "Text to train on, or a directory of tokens (its training part); default: that of --calibration."
    ] = None
    recover_by: Annotated[
        Teaching, "What is learned: teacher: what the model before pruning says of the text; text: the text itself."
    ] = "teacher"
    recover_lr: Annotated[float, "Peak learning rate."] = 5e-4
    recover_batch_tokens: Annotated[int, "Tokens of one step."] = 4096
    recover_block: Annotated[int | None, "Tokens of one row; default: the model's context, at most 512."] = None

    def __post_init__(self) -> None:
        wrong = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, wanted {wanted}"
            for name, good, wanted in (
                ("recover_steps", self.recover_steps >= 0, "0 or more"),
                ("recover_lr", self.recover_lr > 0, "more than 0"),
                ("recover_batch_tokens", self.recover_batch_tokens > 1, "2 or more"),
                ("recover_block", self.recover_block is None or self.recover_block > 1, "2 or more"),
            )
            if not good
        ]
        if wrong:
            raise UserError("; ".join(wrong) + ".", code=Exit.USAGE)

    def learning(self, context: int) -> TrainConfig:
        """The options of the loop, for a model of that context."""
        return TrainConfig(
            steps=self.recover_steps,
            lr=self.recover_lr,
            min_lr=0.0,
            weight_decay=0.0,
            batch_tokens=self.recover_batch_tokens,
            block=self.recover_block or min(context, 512),
        )

    @property
    def watch(self) -> Watch:
        """How it is evaluated: before and after."""
        return Watch(eval_every=max(1, self.recover_steps), eval_tokens=10_000)
