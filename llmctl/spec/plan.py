"""TrainPlan: what a training run will do and need, worked out from its options before it starts."""

import os
from dataclasses import dataclass
from typing import Any

from llmctl.errors import Exit, UserError
from llmctl.spec.memory import Memory, estimate, gib
from llmctl.spec.model import ModelConfig
from llmctl.spec.noise import NoiseConfig, Objective, suited
from llmctl.spec.setting import Dtype, Setting
from llmctl.spec.sizes import flops_per_token, parameters
from llmctl.spec.train import TrainConfig

SHARE = 0.6  # of the device's memory, which a run may fill when it picks its own micro-batch
MOST_TOKENS = 16384  # of a micro-batch that a run picks on a CPU: larger ones are no faster


@dataclass(frozen=True)
class TrainPlan:
    """The sizes of a training run.

    Attributes:
        model: its shape.
        block: tokens of a row.
        rows: rows of an optimizer step.
        micro: rows of one forward pass.
        steps: optimizer steps.
        corpus: training tokens there are.
        memory: bytes at the peak, estimated.
        source: tokens that an encoder beside a decoder reads of a row's; None: the model has none.
        target: tokens that the last stack reads of them.
        scored: share of those that it is asked for.
    """

    model: ModelConfig
    block: int
    rows: int
    micro: int
    steps: int
    corpus: int
    memory: Memory
    source: int | None
    target: int
    scored: float

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        config: TrainConfig,
        corpus: int,
        dtype: Dtype,
        memory: int | None = None,
        most_tokens: int | None = MOST_TOKENS,
        objective: Objective | None = None,
        noise: NoiseConfig = NoiseConfig(),
    ) -> "TrainPlan":
        """Work out the sizes.

        Args:
            corpus: training tokens there are.
            dtype: of the arithmetic.
            objective: what is learned; None: what is usual for the kind.
            noise: how it corrupts text.
            memory: bytes of the GPU; None: on the CPU, with the memory of this machine.
            most_tokens: of a micro-batch that is picked here; None: as many as fit.

        Raises:
            UserError: the rows are longer than the model's context, there is nothing to train on, or tokens would see
                what they are asked for.
        """
        if config.cross_document and objective == "prefix" and model.kind == "decoder":
            raise UserError(
                "--cross-document does not go with --objective prefix in a decoder: beginnings are seen by all tokens "
                "before them, so one document's tokens would see the next document.",
                "Leave --cross-document out.",
                Exit.USAGE,
            )
        block = config.block or model.context
        if block > model.context:
            raise UserError(
                f"--block is {block}, but the model's context is {model.context} tokens.", "Lower it.", Exit.MISMATCH
            )
        if corpus < 2:
            raise UserError(f"There are {corpus} training tokens.", "Tokenize more text.", Exit.MISMATCH)
        rows = config.rows(block)
        source, target = None, block
        if model.kind == "encoder-decoder":
            source, target = noise.lengths(suited(objective, model.kind), block)
        scored = noise.mask_rate if model.kind == "encoder" else 1.0
        budget = SHARE * (machine_memory() if memory is None else memory)

        def needed(micro: int) -> Memory:
            setting = Setting(
                batch=micro,
                sequence=target,
                source=source,
                scored=scored,
                dtype=dtype,
                optimizer=config.optimizer,
                recompute=config.recompute,
                device="cpu" if memory is None else "cuda",
                packed=not config.cross_document,
            )
            return estimate(model, setting)

        micro = min(config.micro_batch, rows) or rows
        while not config.micro_batch and micro > 1:
            if needed(micro).total <= budget and (most_tokens is None or micro * block <= most_tokens):
                break
            micro = -(-micro // 2)
        return cls(
            model, block, rows, micro, config.length(corpus, block), corpus, needed(micro), source, target, scored
        )

    @property
    def tokens(self) -> int:
        """Training tokens that the run sees."""
        return self.steps * self.rows * self.block

    @property
    def flops_per_token(self) -> int:
        """Operations of training for each token that passes through the model."""
        return flops_per_token(self.model, self.target, source=self.source, scored=self.scored)

    @property
    def flops(self) -> int:
        """Operations of the whole run."""
        return self.steps * self.rows * (self.target + (self.source or 0)) * self.flops_per_token

    def facts(self) -> dict[str, Any]:
        """The plan in numbers, for a report."""
        return {
            "parameters": parameters(self.model),
            "steps": self.steps,
            "tokens": self.tokens,
            "epochs": self.tokens / self.corpus,
            "block": self.block,
            "rows": self.rows,
            "micro_batch": self.micro,
            "bytes": self.memory.bytes() | {"total": self.memory.total},
            "flops": self.flops,
        }

    def __str__(self) -> str:
        facts = self.facts()
        return (
            f"{facts['parameters']:,} parameters, {self.steps:,} steps of {self.rows} x {self.block} tokens = "
            f"{self.tokens:,} tokens ({facts['epochs']:.2f} epochs), {self.micro} rows at a time, "
            f"about {gib(self.memory.total)} of memory, {facts['flops']:.2e} FLOP"
        )


def machine_memory() -> int:
    """Bytes of memory in this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
