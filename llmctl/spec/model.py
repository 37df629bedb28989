"""ModelConfig: the shape of a transformer, in our own terms, and the sizes that follow from it."""

from dataclasses import dataclass, replace
from typing import Literal

from llmctl.errors import Exit, UserError

Kind = Literal["decoder"]
Norm = Literal["rms", "layer"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Position = Literal["rope", "learned", "alibi", "sinusoidal", "none"]
RopeKind = Literal["linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the context that was trained.

    Field names follow the Hugging Face keys except `kind` (rope_type) and `original_context`
    (original_max_position_embeddings, positions).
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
            if getattr(self, name) < 1:
                raise self._misfit(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.head_dim:
            if self.width % self.heads:
                raise self._misfit(f"width {self.width} does not divide by heads {self.heads}.")
            object.__setattr__(self, "head_dim", self.width // self.heads)
        if self.heads % self.kv_heads:
            raise self._misfit(f"heads {self.heads} does not divide by kv_heads {self.kv_heads}.")
        if self.position == "rope" and self.head_dim % 2:
            raise self._misfit(f"head_dim {self.head_dim} is odd; rotary positions turn pairs of channels.")
        if self.window is not None and self.window < 1:
            raise self._misfit(f"window is {self.window}; it must be at least 1.")

    @staticmethod
    def _misfit(problem: str) -> UserError:
        return UserError(f"The model's shape: {problem}", code=Exit.MISMATCH)

    def window_of(self, layer: int) -> int | None:
        """The sliding window of one layer, in positions, or None where it sees everything."""
        return self.window if self.window_layers is None or layer in self.window_layers else None

    def resized(self, **changes: object) -> "ModelConfig":
        """A copy with other numbers; kv_heads and head_dim stay unless they are named."""
        return replace(self, **changes)  # type: ignore[arg-type]
