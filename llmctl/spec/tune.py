"""TuneConfig: how long and how fast a fine-tuning learns; its steps are made of examples."""

import math
from dataclasses import dataclass, replace
from typing import Annotated

from llmctl.errors import Exit, UserError
from llmctl.spec.adapt import RATES, Method
from llmctl.spec.train import Learning


@dataclass(frozen=True)
class Keeping:
    """What the model knew before.

    Raises:
        UserError: a share out of range.
    """

    retain: Annotated[
        tuple[str, ...],
        "Text of the old kind, or a directory of tokens (its held-out part): its perplexity is measured before and "
        "after, which shows what is forgotten; repeatable.",
    ] = ()
    retain_task: Annotated[
        tuple[str, ...], "Records of another kind, read as DATA is: measured before and after; repeatable."
    ] = ()
    mix_pretrain: Annotated[
        str | None,
        "FILE:SHARE: such a share of the tokens that are read are rows of old text, or of a directory of tokens. They "
        "weigh more than that, since all of them are trained on, and of an example only its answer.",
    ] = None

    def __post_init__(self) -> None:
        if self.mix_pretrain is not None and not 0 < self.replayed[1] < 1:
            raise UserError(
                f"--mix-pretrain is {self.mix_pretrain!r}, wanted FILE:SHARE with a share of more than 0, less than 1.",
                "Such as --mix-pretrain old.jsonl:0.1",
                Exit.USAGE,
            )

    @property
    def replayed(self) -> tuple[str, float]:
        """The text of `mix_pretrain`, and its share; 0 where that is no number."""
        path, _, share = (self.mix_pretrain or "").rpartition(":")
        try:
            return path, float(share)
        except ValueError:
            return path, 0.0


@dataclass(frozen=True)
class TuneConfig(Learning):
    """Training.

    Fine-tuning on examples. Source of what differs from pre-training: small data is passed over several times, and
    weights that are good already are neither decayed nor moved far.

    Raises:
        UserError: a value out of range, or two lengths.
    """

    lr: Annotated[float | None, "Peak learning rate of AdamW; default: what suits the method."] = None
    min_lr: Annotated[float, "Learning rate at the end, as a share of --lr."] = 0.0
    beta2: Annotated[float, "AdamW: decay of the gradient's square."] = 0.999
    weight_decay: Annotated[float, "Decoupled weight decay of matrices; vectors have none."] = 0.0
    steps: Annotated[int | None, "Optimizer steps to take."] = None
    epochs: Annotated[float | None, "Passes over the examples; default: 3."] = None
    batch_size: Annotated[int, "Examples of one optimizer step."] = 16
    micro_tokens: Annotated[
        int, "Tokens of one forward pass, padding included, unless one row is longer; 0: found automatically."
    ] = 0

    def _wanted(self) -> list[tuple[str, bool, str]]:
        return [
            ("steps", self.steps is None or self.steps >= 0, "0 or more"),
            ("epochs", self.epochs is None or self.epochs > 0, "more than 0"),
            ("batch_size", self.batch_size >= 1, "1 or more"),
            ("micro_tokens", self.micro_tokens >= 0, "0 or more"),
            *super()._wanted(),
        ]

    def length(self, examples: float) -> int:
        """Optimizer steps of the whole run, an epoch being so many examples."""
        if self.steps is not None:
            return self.steps
        return math.ceil((self.epochs or 3.0) * examples / self.batch_size)

    def fitted(self, method: Method) -> "TuneConfig":
        """The same with a learning rate."""
        return self if self.lr is not None else replace(self, lr=RATES[method])
