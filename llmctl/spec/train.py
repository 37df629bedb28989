"""Learning and TrainConfig: how a model is trained: optimizer, schedule and its arithmetic; length and batch."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError

Schedule = Literal["cosine", "wsd", "linear", "constant"]
Optimizer = Literal["adamw", "muon"]


@dataclass(frozen=True)
class Learning:
    """Optimizer and schedule.

    What one training loop needs, however long it is and whatever its steps are made of.

    Raises:
        UserError: a value out of range.
    """

    optimizer: Annotated[Optimizer, "adamw, or muon for matrices with adamw for the rest."] = "adamw"
    lr: Annotated[float, "Peak learning rate of AdamW."] = 1.5e-3
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

    def __post_init__(self) -> None:
        lengths = [name for name in ("steps", "epochs", "tokens") if getattr(self, name, None) is not None]
        if len(lengths) > 1:
            raise UserError(f"--{' and --'.join(lengths)} both say how long to train.", "Keep one of them.", Exit.USAGE)
        bad = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, wanted {wanted}"
            for name, good, wanted in self._wanted()
            if not good
        ]
        if bad:
            raise UserError("; ".join(bad) + ".", code=Exit.USAGE)

    def _wanted(self) -> list[tuple[str, bool, str]]:
        """What is asked of each field: its name, whether it is so, and what is wanted."""
        return [
            ("lr", self.lr is None or self.lr > 0, "more than 0"),
            ("min_lr", 0 <= self.min_lr <= 1, "from 0 to 1"),
            ("warmup", self.warmup >= 0, "0 or more"),
            ("decay", 0 <= self.decay <= 1, "from 0 to 1"),
            ("clip", self.clip >= 0, "0 or more"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
        ]

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


@dataclass(frozen=True)
class TrainConfig(Learning):
    """Training.

    Training on a stream of tokens, cut into rows.

    Raises:
        UserError: a value out of range, or not exactly one length.
    """

    steps: Annotated[int | None, "Optimizer steps to take."] = None
    epochs: Annotated[float | None, "Passes over the training tokens."] = None
    tokens: Annotated[int | None, "Training tokens to see."] = None
    batch_tokens: Annotated[int, "Tokens of one optimizer step."] = 4096
    block: Annotated[int | None, "Tokens of one training row; default: the model's context."] = None
    micro_batch: Annotated[int, "Rows of one forward pass; 0: found automatically."] = 0
    cross_document: Annotated[
        bool,
        "Let tokens attend to earlier documents packed in their row. Keeping them apart is free in rows of up to "
        "1024 tokens on a CPU; in longer ones attention takes about 1.7 times as long.",
    ] = False

    def _wanted(self) -> list[tuple[str, bool, str]]:
        return [
            ("steps", self.steps is None or self.steps >= 0, "0 or more"),
            ("epochs", self.epochs is None or self.epochs > 0, "more than 0"),
            ("tokens", self.tokens is None or self.tokens > 0, "more than 0"),
            ("batch_tokens", self.batch_tokens > 0, "more than 0"),
            ("block", self.block is None or self.block > 1, "2 or more"),
            ("micro_batch", self.micro_batch >= 0, "0 or more"),
            *super()._wanted(),
        ]

    def rows(self, block: int) -> int:
        """Rows of `block` tokens in one optimizer step: as many as fit in batch_tokens, at least one."""
        return max(1, self.batch_tokens // block)

    def length(self, tokens: int, block: int) -> int:
        """Optimizer steps of the whole run over a split of `tokens` tokens; without a length, those of one epoch."""
        rows = self.rows(block)
        if self.steps is not None:
            return self.steps
        if self.tokens is not None:
            return math.ceil(self.tokens / (rows * block))
        return math.ceil((self.epochs or 1.0) * rows_per_epoch(tokens, block) / rows)


@dataclass(frozen=True)
class Watch:
    """Evaluation and records.

    Raises:
        UserError: a value out of range.
    """

    eval_every: Annotated[int | None, "Steps between evaluations on held-out text; default: a tenth of the run."] = None
    eval_tokens: Annotated[int, "Held-out tokens that one evaluation reads, at most."] = 100_000
    save_every: Annotated[float, "Seconds between saved states, from which an interrupted run goes on."] = 60.0
    tensorboard: Annotated[bool, "Write events for TensorBoard into OUT/tensorboard."] = False

    def __post_init__(self) -> None:
        bad = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, wanted {wanted}"
            for name, good, wanted in (
                ("eval_every", self.eval_every is None or self.eval_every > 0, "1 or more"),
                ("eval_tokens", self.eval_tokens >= 0, "0 or more"),
                ("save_every", self.save_every > 0, "more than 0"),
            )
            if not good
        ]
        if bad:
            raise UserError("; ".join(bad) + ".", code=Exit.USAGE)

    def every(self, steps: int) -> int:
        """Steps between evaluations of a run of `steps`."""
        return self.eval_every or max(1, steps // 10)


def check_seed(seed: int) -> None:
    """Whether a seed is one that numpy and torch take, each step's number beside it.

    Raises:
        UserError: it is not.
    """
    if not 0 <= seed < 2**31:
        raise UserError(f"--seed is {seed}, wanted 0 to {2**31 - 1}.", code=Exit.USAGE)


def rows_per_epoch(tokens: int, block: int) -> int:
    """Whole rows that one pass takes from a split of `tokens` tokens, whatever offset it begins at."""
    return max(1, (tokens - 1) // block - 1)
