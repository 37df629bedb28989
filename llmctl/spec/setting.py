"""Setting: how a model is trained or run, as far as memory and operations depend on it."""

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.adapt import AdaptConfig, Method
from llmctl.spec.model import ModelConfig
from llmctl.spec.noise import NoiseConfig
from llmctl.spec.quantized import Quantized

Mode = Literal["training", "inference"]
Dtype = Literal["fp32", "bf16", "fp16"]
Precision = Literal["autocast", "mixed", "pure"]
Device = Literal["cuda", "cpu"]
Implementation = Literal["llmctl", "hf", "megatron"]
States = Literal["adamw", "adamw8bit", "sgd", "sgd-momentum", "adafactor", "muon"]

ELEMENT = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes of one number
TARGETS = ("q", "k", "v", "out", "gate", "up", "down")


@dataclass(frozen=True)
class Setting:
    """Training or running.

    How a model is trained or run: everything besides its config that memory and operations depend on. `batch` is
    the rows of one forward pass on one device.

    Raises:
        UserError: a value out of range, or two that exclude each other.
    """

    mode: Annotated[Mode, "training, or inference with a KV cache."] = "training"
    batch: Annotated[int, "Rows of one forward pass on one device (the micro-batch)."] = 1
    sequence: Annotated[int | None, "Tokens of a row; default: the model's context."] = None
    source: Annotated[
        int | None, "Beside an encoder --sequence is of the decoder's row, and this of the encoder's; default: as many."
    ] = None
    scored: Annotated[
        float | None, "Share of the tokens that the model is asked for; default: 0.15 of an encoder's, else all."
    ] = None
    dtype: Annotated[Dtype, "Numbers of the arithmetic; of the weights too, unless autocast."] = "bf16"
    precision: Annotated[
        Precision,
        "Training in 16 bits: autocast (weights and all states fp32, as pretrain does), "
        "mixed (16-bit weights and gradients, fp32 master weights and moments), pure (16 bits throughout).",
    ] = "autocast"
    gradients_fp32: Annotated[bool, "With mixed: accumulate gradients in fp32."] = False
    optimizer: Annotated[States, "Whose states are held for every trained parameter."] = "adamw"
    device: Annotated[
        Device, "Whose kernels: on a CPU llmctl keeps the attention weights of rows up to 1024 tokens."
    ] = "cuda"
    packed: Annotated[bool, "Rows hold several documents that do not see each other, as in pretrain."] = False
    recompute: Annotated[bool, "Keep each layer's input only and compute the rest again in the backward pass."] = False
    fused_attention: Annotated[bool, "Attention that never writes the (sequence, sequence) scores."] = True
    loss_chunk: Annotated[
        int | None, "Tokens whose logits exist at once; 0: all; default: as many as llmctl takes."
    ] = None
    lora_rank: Annotated[int, "Train adapters of this rank on a frozen model; 0: train everything."] = 0
    lora_targets: Annotated[tuple[str, ...], f"Matrices with an adapter, of {' '.join(TARGETS)}."] = TARGETS
    quantize: Annotated[
        Quantized, "Format of the frozen weights; the embedding and the head stay in 16 bits, except in GGUF's q*."
    ] = "none"
    zero: Annotated[
        int, "Shared out over data parallel devices: 1 optimizer, 2 and gradients, 3 and weights (FSDP)."
    ] = 0
    data_parallel: Annotated[int, "Devices with different rows."] = 1
    tensor_parallel: Annotated[int, "Devices that split each matrix."] = 1
    sequence_parallel: Annotated[bool, "With tensor parallel: split what lies between the matrices, too."] = False
    pipeline_parallel: Annotated[int, "Devices that split the layers."] = 1
    implementation: Annotated[
        Implementation, "Whose activations: llmctl, transformers' Llama (hf), or Megatron's GPT."
    ] = "llmctl"

    def __post_init__(self) -> None:
        problems = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, wanted {wanted}"
            for name, good, wanted in (
                ("batch", self.batch >= 1, "1 or more"),
                ("sequence", self.sequence is None or self.sequence >= 1, "1 or more"),
                ("source", self.source is None or self.source >= 1, "1 or more"),
                ("scored", self.scored is None or 0 < self.scored <= 1, "more than 0, at most 1"),
                ("loss_chunk", self.loss_chunk is None or self.loss_chunk >= 0, "0 or more"),
                ("lora_rank", self.lora_rank >= 0, "0 or more"),
                ("zero", 0 <= self.zero <= 3, "0, 1, 2 or 3"),
                ("data_parallel", self.data_parallel >= 1, "1 or more"),
                ("tensor_parallel", self.tensor_parallel >= 1, "1 or more"),
                ("pipeline_parallel", self.pipeline_parallel >= 1, "1 or more"),
            )
            if not good
        ]
        unknown = [name for name in self.lora_targets if name not in TARGETS]
        if unknown:
            problems.append(f"--lora-targets has {', '.join(unknown)}, wanted {' '.join(TARGETS)}")
        if problems:
            raise UserError("; ".join(problems) + ".", "See --help for what each option takes.", Exit.USAGE)
        if self.mode == "training" and self.quantize != "none" and not self.lora_rank:
            raise UserError(
                f"--quantize {self.quantize}: weights in few bits cannot be trained.",
                "Add --lora-rank 16 to train adapters beside them, or --mode inference.",
                Exit.USAGE,
            )
        if self.implementation == "hf" and self.mode == "training" and self.autocast:
            raise UserError(
                "--implementation hf describes a model held in one dtype, but --precision is autocast.",
                "Add --precision mixed or --precision pure.",
                Exit.USAGE,
            )

    @property
    def tuning(self) -> AdaptConfig:
        """What is trained."""
        if not self.lora_rank:
            return AdaptConfig(method="full")
        targets = tuple(f"layers.*.{name}" for name in self.lora_targets) or ("nothing",)
        return AdaptConfig(rank=self.lora_rank, targets=targets)

    @property
    def base(self) -> Dtype:
        """In which the frozen tensors outside the layers are held, and so the stream between the layers."""
        return self.dtype

    @property
    def matrices(self) -> Quantized | Dtype:
        """How the frozen matrices of the layers are held."""
        return self.dtype if self.quantize == "none" else self.quantize

    @property
    def beside(self) -> int:
        """Bytes of a number of a frozen tensor beside matrices that are held in few bits."""
        return 2

    @property
    def autocast(self) -> bool:
        """The stream between the layers is in fp32, and 16-bit copies of it enter the products."""
        return self.casts and (not self.tuning.makes_adapter or self.base == "fp32")

    @property
    def casts(self) -> bool:
        """Trained weights are in fp32, and 16-bit copies of them enter the products."""
        return self.mode == "training" and self.dtype != "fp32" and self.precision == "autocast"

    @property
    def devices(self) -> int:
        """Devices that work together."""
        return self.data_parallel * self.tensor_parallel * self.pipeline_parallel

    def changed(self, name: str, value: int) -> "Setting":
        """The same with another value of a field."""
        return replace(self, **{name: value})

    def lengths(self, config: ModelConfig) -> dict[str, int]:
        """Tokens of a row, by stack: what an encoder beside a decoder reads may be longer or shorter."""
        own = self.sequence or config.context
        return {stack: own if stack == config.last_stack else self.source or own for stack in config.stacks}

    def share(self, config: ModelConfig) -> float:
        """Share of the last stack's tokens whose scores are asked for."""
        if self.scored is not None:
            return self.scored
        return NoiseConfig().mask_rate if config.kind == "encoder" else 1.0

    def check(self, config: ModelConfig) -> None:
        """Raises UserError (code MISMATCH) unless the kind of the model and the degrees of parallelism fit it."""
        if self.source is not None and config.kind != "encoder-decoder":
            raise UserError(
                f"--source is {self.source}, but the model has no encoder beside a decoder.",
                "Give the tokens of its rows by --sequence.",
                Exit.MISMATCH,
            )
        t, problems = self.tensor_parallel, []
        if config.heads % t or config.ff % t:
            problems.append(
                f"--tensor-parallel {t} does not divide the model's {config.heads} heads and ff {config.ff}"
            )
        if config.kv_heads % t and t % config.kv_heads:
            problems.append(
                f"--tensor-parallel {t} and the model's {config.kv_heads} kv heads do not divide each other"
            )
        if self.pipeline_parallel > 1 and config.kind == "encoder-decoder":
            problems.append(f"--pipeline-parallel {self.pipeline_parallel} splits one stack of layers, not two")
        elif self.pipeline_parallel > config.layers:
            problems.append(f"--pipeline-parallel {self.pipeline_parallel} exceeds the model's {config.layers} layers")
        if problems:
            raise UserError("; ".join(problems) + ".", "Take degrees that divide the model evenly.", Exit.MISMATCH)


@dataclass(frozen=True)
class Tuned(Setting):
    """A fine-tuning as `finetune` does it: frozen tensors outside the layers stay as they are stored.

    Attributes:
        adapt: what is trained.
        stored: in which numbers the frozen tensors are stored; None: in those of the arithmetic.
    """

    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    stored: Dtype | None = None

    @property
    def tuning(self) -> AdaptConfig:
        """What is trained."""
        return self.adapt

    @property
    def base(self) -> Dtype:
        """As in `Setting`; arithmetic in fp32 takes numbers in fp32, and so does what will be a whole checkpoint."""
        return "fp32" if self.dtype == "fp32" or not self.adapt.makes_adapter else self.stored or self.dtype

    @property
    def matrices(self) -> Quantized | Dtype:
        """How the frozen matrices of the layers are held."""
        if self.adapt.nf4:
            return "nf4-dq" if self.adapt.double_quant else "nf4"
        if not self.adapt.makes_adapter:
            return "fp32"
        return self.dtype if self.adapt.base_dtype == "auto" else self.adapt.base_dtype

    @property
    def beside(self) -> int:
        """As in `Setting`."""
        return ELEMENT[self.base]

    def changed(self, name: str, value: int) -> "Tuned":
        """The same with another value of a field; the rank is the adapter's."""
        if name == "lora_rank":
            return replace(self, adapt=replace(self.adapt, rank=value))
        return replace(self, **{name: value})


@dataclass(frozen=True)
class Tuning(AdaptConfig):
    """Fine-tuning.

    What of a model is trained, as `finetune` takes it, without what memory does not depend on.
    """

    method: Annotated[Method, "What is trained, as with finetune; full: everything."] = "full"
    alpha: None = field(default=None, init=False)
    lora_plus: float = field(default=1.0, init=False)
    prompt_text: None = field(default=None, init=False)

    def applied(self, setting: Setting, stored: Dtype | None) -> Setting:
        """The setting of a fine-tuning; itself where everything is trained, or what --lora-rank says.

        Args:
            stored: in which numbers the frozen tensors outside the layers are held; None: those of the arithmetic.

        Raises:
            UserError: options of both ways to say it, or of one that runs the model.
        """
        if self == Tuning():
            return setting
        other = [
            flag
            for flag, given in (
                ("--lora-rank", setting.lora_rank > 0),
                ("--quantize", setting.quantize != "none"),
                ("--mode inference", setting.mode == "inference"),
                ("--implementation", setting.implementation != "llmctl"),
            )
            if given
        ]
        if other:
            raise UserError(
                f"--method {self.method} and {', '.join(other)} do not go together.",
                "Keep --method, with --rank, --targets and --base-dtype of its own, or leave it out.",
                Exit.USAGE,
            )
        values = {part.name: getattr(setting, part.name) for part in fields(setting)}
        own = {part.name: getattr(self, part.name) for part in fields(AdaptConfig)}
        return Tuned(**values, adapt=AdaptConfig(**own), stored=stored)
