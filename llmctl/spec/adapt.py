"""AdaptConfig: which parameters a fine-tuning trains: all, some, or those of adapters beside frozen ones."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError

Method = Literal[
    "full", "bitfit", "last-n", "lora", "rslora", "dora", "qlora", "ia3", "adapter", "prefix", "prompt", "llama-adapter"
]
BaseDtype = Literal["auto", "fp32", "bf16", "nf4"]
WHOLE: tuple[Method, ...] = ("full", "bitfit", "last-n")  # what these make is a checkpoint
LOW_RANK: tuple[Method, ...] = ("lora", "rslora", "dora", "qlora")

# Peak learning rates when --lr is not given.
RATES: dict[Method, float] = {
    "full": 1e-4,
    "bitfit": 1e-3,
    "last-n": 2e-4,
    "lora": 1e-3,
    "rslora": 5e-4,
    "dora": 1e-3,
    "qlora": 1e-3,
    "ia3": 5e-3,
    "adapter": 1e-3,
    "prefix": 1e-2,
    "prompt": 3e-2,
    "llama-adapter": 1e-2,
}


@dataclass(frozen=True)
class AdaptConfig:
    """Method.

    What is trained. Patterns name parameters or modules as llmctl names them (`llmctl inspect --names ours`), each a
    shell pattern that matches a whole name or any run of its parts: `attention.q`, `mlp`, `decoder.layers.0`.

    Raises:
        UserError: a value out of range, or an option of another method.
    """

    method: Annotated[
        Method,
        "full: every parameter; bitfit: biases; last-n: the last layers; lora, rslora, dora: matrices of low rank "
        "beside the frozen ones; qlora: lora on weights held in 4 bits; ia3: factors of keys, values and features; "
        "adapter: a bottleneck after each half of a layer; prefix: keys and values before each row; prompt: vectors "
        "before each row; llama-adapter: gated vectors that the last layers look at.",
    ] = "lora"
    rank: Annotated[int, "lora: rank."] = 8
    alpha: Annotated[
        float | None, "lora: the product is scaled by alpha / rank (rslora: / root of rank). Default: twice the rank."
    ] = None
    dropout: Annotated[float, "lora, adapter: share of what enters it that is dropped in training."] = 0.0
    targets: Annotated[
        tuple[str, ...],
        "lora, ia3: pattern of the matrices to adapt, or several with commas; repeatable. Default: those of attention "
        "(ia3: keys, values, the last of each MLP); `layers` is all of them.",
    ] = ()
    train: Annotated[
        tuple[str, ...],
        "Pattern of parameters to train as they are, repeatable: with full these alone, with an adapter besides it.",
    ] = ()
    last: Annotated[int, "last-n: layers, counted from the end; the norm after them and the heads are trained too."] = 1
    lora_plus: Annotated[float, "lora: learning rate of B, as a multiple of A's (LoRA+); 16 is the paper's."] = 1.0
    virtual_tokens: Annotated[int, "prefix, prompt, llama-adapter: vectors before each row."] = 20
    prompt_text: Annotated[
        str | None, "prompt: begin with the vectors of this text, repeated or cut; default: of tokens drawn at random."
    ] = None
    bottleneck: Annotated[int, "adapter: width of the bottleneck."] = 64
    base_dtype: Annotated[
        BaseDtype,
        "Type in which frozen matrices are held; auto: nf4 for qlora, else that of the arithmetic.",
    ] = "auto"
    double_quant: Annotated[bool, "nf4: quantize the scales too."] = True

    def __post_init__(self) -> None:
        bad = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, wanted {wanted}"
            for name, good, wanted in (
                ("rank", self.rank >= 1, "1 or more"),
                ("alpha", self.alpha is None or self.alpha > 0, "more than 0"),
                ("dropout", 0 <= self.dropout < 1, "0 or more and less than 1"),
                ("last", self.last >= 1, "1 or more"),
                ("lora_plus", self.lora_plus > 0, "more than 0"),
                ("virtual_tokens", self.virtual_tokens >= 1, "1 or more"),
                ("bottleneck", self.bottleneck >= 1, "1 or more"),
            )
            if not good
        ]
        if bad:
            raise UserError("; ".join(bad) + ".", code=Exit.USAGE)
        if self.method in WHOLE and self.base_dtype not in ("auto", "fp32"):
            raise UserError(
                f"--base-dtype {self.base_dtype} is of weights that stay as they are, but --method {self.method} "
                "writes all of them.",
                "Leave it out, or use a method that makes an adapter.",
                Exit.USAGE,
            )

    @property
    def makes_adapter(self) -> bool:
        """Whether what is made is an adapter, beside a base that stays as it is; else it is a whole checkpoint."""
        return self.method not in WHOLE

    @property
    def low_rank(self) -> bool:
        """Whether matrices of low rank are trained."""
        return self.method in LOW_RANK

    @property
    def nf4(self) -> bool:
        """Whether the frozen matrices of the layers are held in 4 bits."""
        return self.base_dtype == "nf4" or (self.base_dtype == "auto" and self.method == "qlora")

    @property
    def places(self) -> int:
        """How many places of the context are taken by what stands before each row."""
        return self.virtual_tokens if self.method in ("prefix", "prompt") else 0

    @property
    def patterns(self) -> tuple[str, ...]:
        """`targets`, taken apart at commas."""
        return tuple(part for pattern in self.targets for part in pattern.split(",") if part)

    @property
    def scale(self) -> float:
        """What the product of B and A is multiplied by.

        Source: Hu et al., arXiv:2106.09685, section 4.1; rslora: Kalajdzievski, arXiv:2312.03732.
        """
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.method == "rslora" else self.rank)
