"""TunePlan: what a fine-tuning will train, do and need, worked out from its options before it starts."""

from dataclasses import dataclass
from math import ceil
from typing import Any

from llmctl.spec.adapt import AdaptConfig
from llmctl.spec.memory import Memory, estimate, gib
from llmctl.spec.model import ModelConfig
from llmctl.spec.plan import MOST_TOKENS, SHARE, machine_memory
from llmctl.spec.setting import Dtype, Tuned
from llmctl.spec.sizes import parameters
from llmctl.spec.spent import spent_flops
from llmctl.spec.trained import own_shapes, total_parameters, trained_parameters
from llmctl.spec.tune import TuneConfig


@dataclass(frozen=True)
class TunePlan:
    """The sizes of a fine-tuning.

    Attributes:
        model: its shape.
        adapt: what is trained.
        steps: optimizer steps.
        batch_size: examples of a step.
        micro_tokens: of one forward pass, padding included, unless one row is longer.
        examples: of one epoch.
        mean: tokens of an example.
        longest: tokens of the longest row; of an encoder-decoder, of its decoder's.
        source_longest: tokens of the encoder's longest row; None: the model has none beside a decoder.
        scored: share of the tokens that the model is asked for.
        trained: parameters that are trained.
        memory: bytes at the peak, estimated.
        setting: what the estimate is of.
    """

    model: ModelConfig
    adapt: AdaptConfig
    steps: int
    batch_size: int
    micro_tokens: int
    examples: float
    mean: float
    longest: int
    source_longest: int | None
    scored: float
    trained: int
    memory: Memory
    setting: Tuned

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        adapt: AdaptConfig,
        tune: TuneConfig,
        examples: float,
        longest: int,
        mean: float,
        scored: float,
        packed: bool,
        dtype: Dtype,
        memory: int | None = None,
        source_longest: int | None = None,
        most_tokens: int | None = MOST_TOKENS,
        stored: Dtype = "fp32",
    ) -> "TunePlan":
        """Work out the sizes.

        Args:
            config: the model's shape, with its fresh heads.
            examples: of one epoch.
            longest: tokens of the longest row.
            mean: tokens of an example, those of its source included.
            scored: share of the tokens that the model is asked for, more than 0.
            packed: rows hold several examples.
            dtype: of the arithmetic.
            memory: bytes of the GPU; None: on the CPU, with the memory of this machine.
            source_longest: tokens of the longest row that an encoder beside a decoder reads.
            most_tokens: of a forward pass that is picked here; None: as many as fit.
            stored: in which numbers the frozen tensors outside the layers are held.
        """
        budget = SHARE * (machine_memory() if memory is None else memory)
        row = longest + (source_longest or 0)
        if "embed.tokens.weight" in own_shapes(config, adapt):
            stored = "fp32"  # what is trained is, and so is the stream that begins with it

        def setting(tokens: int) -> Tuned:
            return Tuned(
                batch=max(1, tokens // row),
                sequence=longest,
                source=source_longest,
                scored=min(1.0, scored) if config.lm_head else None,
                dtype=dtype,
                optimizer=tune.optimizer,
                recompute=tune.recompute,
                device="cpu" if memory is None else "cuda",
                packed=True,  # padded rows have positions and segments of their own, too
                adapt=adapt,
                stored=stored,
            )

        tokens = tune.micro_tokens or max(row, ceil(tune.batch_size * (mean if packed else row)))
        while not tune.micro_tokens and tokens > row:
            if (most_tokens is None or tokens <= most_tokens) and estimate(config, setting(tokens)).total <= budget:
                break
            tokens = max(row, -(-tokens // 2))
        return cls(
            model=config,
            adapt=adapt,
            steps=tune.length(examples),
            batch_size=tune.batch_size,
            micro_tokens=tokens,
            examples=examples,
            mean=mean,
            longest=longest,
            source_longest=source_longest,
            scored=scored,
            trained=trained_parameters(config, adapt),
            memory=estimate(config, setting(tokens)),
            setting=setting(tokens),
        )

    @property
    def tokens(self) -> int:
        """Tokens that the run sees."""
        return round(self.steps * self.batch_size * self.mean)

    @property
    def epochs(self) -> float:
        """Passes over the examples."""
        return self.steps * self.batch_size / self.examples if self.examples else 0.0

    @property
    def total(self) -> int:
        """Parameters of the model and its adapter."""
        return total_parameters(self.model, self.adapt)

    @property
    def adapter_bytes(self) -> int | None:
        """Size of what is saved beside the base, about; None: a whole checkpoint is."""
        return 4 * self.trained if self.adapt.makes_adapter else None

    @property
    def flops_per_token(self) -> int:
        """Operations of training for each token that passes through the model."""
        return spent_flops(self.model, self.setting)

    @property
    def flops(self) -> int:
        """Operations of the whole run."""
        return self.tokens * self.flops_per_token

    def facts(self) -> dict[str, Any]:
        """The plan in numbers, for a report."""
        adapter = {} if self.adapter_bytes is None else {"adapter_bytes": self.adapter_bytes}
        return {
            "parameters": parameters(self.model),
            "trained_parameters": self.trained,
            "trained_share": self.trained / self.total,
            **adapter,
            "steps": self.steps,
            "epochs": self.epochs,
            "examples": self.examples,
            "tokens": self.tokens,
            "batch_size": self.batch_size,
            "micro_tokens": self.micro_tokens,
            "longest": self.longest,
            "bytes": self.memory.bytes() | {"total": self.memory.total},
            "flops": self.flops,
        }

    def __str__(self) -> str:
        share = f"{self.trained / self.total:.3%}"
        what = f"{self.adapt.method} trains {self.trained:,} of {self.total:,} parameters ({share})"
        if self.adapter_bytes is not None:
            what += f", an adapter of about {gib(self.adapter_bytes)}"
        return (
            f"{what}; {self.steps:,} steps of {self.batch_size:,} examples ({self.epochs:.2f} epochs, {self.tokens:,} "
            f"tokens), up to {self.micro_tokens:,} tokens at a time, about {gib(self.memory.total)} of memory, "
            f"{self.flops:.2e} FLOP"
        )
