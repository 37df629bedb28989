"""ModelConfig: the shape of a transformer, in our own terms, and the sizes that follow from it."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from llmctl.errors import Exit, UserError

Kind = Literal["decoder"]
Norm = Literal["rms", "layer"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Position = Literal["rope", "learned", "alibi", "sinusoidal", "none"]
RopeKind = Literal["linear", "dynamic", "llama3", "yarn"]

_LARGEST = {"layers": 10_000}  # every other count ends at 2^31


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context that was trained.

    Field names follow the Hugging Face keys except `kind` (rope_type) and `original_context`
    (original_max_position_embeddings, positions).

    Raises:
        UserError: a value out of range.
    """

    kind: RopeKind
    factor: float
    original_context: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in get_args(RopeKind):
            raise _misfit(f"rope scaling {self.kind!r} is none of {', '.join(get_args(RopeKind))}.")
        numbers = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
        for name in numbers:
            if not _finite(getattr(self, name), more_than=0):
                raise _misfit(f"rope scaling's {name} is {getattr(self, name)!r}; it must be more than 0.")
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            if getattr(self, name) is not None and not _finite(getattr(self, name), more_than=0):
                raise _misfit(f"rope scaling's {name} is {getattr(self, name)!r}; it must be more than 0.")
        if self.original_context is not None and not _count(self.original_context, 1 << 31):
            raise _misfit(f"rope scaling's original_context is {self.original_context!r}; wanted a count of positions.")
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise _misfit(
                f"rope scaling's high_freq_factor {self.high_freq_factor:g} must be more than its low_freq_factor "
                f"{self.low_freq_factor:g}."
            )


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a transformer. Counts are in units (rows, heads, layers), never bytes.

    Raises:
        UserError: the numbers do not fit each other.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    ff: int
    context: int
    kv_heads: int = 0  # 0: as many as heads
    head_dim: int = 0  # 0: width // heads
    kind: Kind = "decoder"
    norm: Norm = "rms"
    norm_eps: float = 1e-5
    activation: Activation = "silu"
    gated: bool = True
    position: Position = "rope"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    window: int | None = None  # a query sees itself and window - 1 positions before it
    window_layers: tuple[int, ...] | None = None  # layers that have the window; None: all of them
    embed_norm: bool = False
    tie: bool = True
    dropout: float = 0.0
    init_std: float = 0.02
    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None
    model_type: str = "llama"  # what config.json calls it; only spec/families looks at it

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        for name in ("vocab", "width", "layers", "heads", "kv_heads", "ff", "context"):
            self._check_count(name)
        if not self.head_dim:
            if self.width % self.heads:
                raise _misfit(f"width {self.width} does not divide by heads {self.heads}.")
            object.__setattr__(self, "head_dim", self.width // self.heads)
        self._check_count("head_dim")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise _misfit(f"{name} is {getattr(self, name)!r}; wanted one of {', '.join(known)}.")
        for name in _FLAGS:
            if type(getattr(self, name)) is not bool:
                raise _misfit(f"{name} is {getattr(self, name)!r}; it must be true or false.")
        for name in ("bos", "pad"):
            if getattr(self, name) is not None and type(getattr(self, name)) is not int:
                raise _misfit(f"{name} is {getattr(self, name)!r}; it must be a token id or null.")
        if not _ints(self.eos):
            raise _misfit(f"eos is {self.eos!r}; it must be a list of token ids.")
        for name, more_than in (("norm_eps", None), ("init_std", None), ("dropout", None), ("rope_theta", 0)):
            if not _finite(getattr(self, name), more_than):
                at_least = "0 or more" if more_than is None else f"more than {more_than}"
                raise _misfit(f"{name} is {getattr(self, name)!r}; it must be a number, {at_least}.")
        if self.dropout >= 1:
            raise _misfit(f"dropout is {self.dropout:g}; it must be less than 1.")
        if self.heads % self.kv_heads:
            raise _misfit(f"heads {self.heads} does not divide by kv_heads {self.kv_heads}.")
        self._check_rope()
        if self.window is not None:
            self._check_count("window")
        layers = () if self.window_layers is None else self.window_layers
        if not _ints(layers) or not all(0 <= layer < self.layers for layer in layers):
            raise _misfit(f"window_layers {layers!r} are not all numbers of its {self.layers} layers.")

    def _check_rope(self) -> None:
        if self.position != "rope":
            return
        if self.head_dim % 2:
            raise _misfit(f"head_dim {self.head_dim} is odd; rotary positions turn pairs of channels.")
        if self.rope_scaling is None:
            return
        if self.rope_scaling.kind == "dynamic" and self.head_dim < 4:
            raise _misfit(f"head_dim {self.head_dim} is too small for dynamic rope scaling; wanted 4 or more.")
        if self.rope_scaling.kind == "yarn" and self.rope_theta <= 1:
            raise _misfit(f"rope_theta {self.rope_theta:g} is too small for yarn; wanted more than 1.")

    def _check_count(self, name: str) -> None:
        value, most = getattr(self, name), _LARGEST.get(name, 1 << 31)
        if not _count(value, most):
            raise _misfit(f"{name} is {value!r}; it must be a whole number from 1 to {most}.")

    def window_of(self, layer: int) -> int | None:
        """The sliding window of one layer, in positions, or None where it sees everything."""
        return self.window if self.window_layers is None or layer in self.window_layers else None

    def resized(self, **changes: object) -> "ModelConfig":
        """A copy with other numbers; kv_heads and head_dim stay unless they are named."""
        return replace(self, **changes)  # type: ignore[arg-type]


_CHOICES = {name: get_args(kind) for name, kind in
            (("kind", Kind), ("norm", Norm), ("activation", Activation), ("position", Position))}  # fmt: skip

_FLAGS = ("gated", "qkv_bias", "out_bias", "mlp_bias", "qk_norm", "embed_norm", "tie")


def _misfit(problem: str) -> UserError:
    return UserError(f"The model's shape: {problem}", code=Exit.MISMATCH)


def _count(value: object, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _ints(value: object) -> bool:
    return isinstance(value, tuple) and all(type(one) is int for one in value)


def _finite(value: object, more_than: float | None) -> bool:
    """Whether it is a finite number: more than `more_than`, or where that is None, 0 or more."""
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        return False
    return value >= 0 if more_than is None else value > more_than  # type: ignore[operator]
