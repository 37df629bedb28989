"""ModelConfig: the shape of a transformer, in our own terms, and the sizes that follow from it."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from llmctl.errors import Exit, UserError

Kind = Literal["decoder", "encoder", "encoder-decoder"]
AttentionKind = Literal["softmax", "linear"]
Norm = Literal["rms", "layer"]
NormPlace = Literal["pre", "post", "output", "sandwich"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
Position = Literal["rope", "learned", "alibi", "sinusoidal", "relative", "none"]
RopeKind = Literal["linear", "dynamic", "llama3", "yarn", "longrope"]
Rotation = Literal["global", "local"]
Level = Literal["sequence", "token"]  # what a label is about: a text, or one of its words
Classifier = Literal["none", "sequence", "token"]
ClassifierDense = Literal["none", "tanh", "relu"]
Pool = Literal["first", "last"]
Problem = Literal["single_label", "multi_label", "regression"]

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
    short_factor: tuple[float, ...] = ()  # longrope: of each pair of channels, rows within original_context
    long_factor: tuple[float, ...] = ()  # longrope: longer rows

    def __post_init__(self) -> None:
        if self.kind not in get_args(RopeKind):
            raise _misfit(f"rope scaling {self.kind!r} is none of {', '.join(get_args(RopeKind))}.")
        numbers = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
        for name in numbers:
            if not _finite(getattr(self, name), more_than=0):
                raise _misfit(f"rope scaling's {name} is {getattr(self, name)!r}; it must be more than 0.")
        for name in ("short_factor", "long_factor"):
            if not isinstance(getattr(self, name), tuple) or not all(_finite(one, 0) for one in getattr(self, name)):
                raise _misfit(f"rope scaling's {name} is {getattr(self, name)!r}; wanted numbers, all more than 0.")
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
    encoder_layers: int = 0  # of an encoder-decoder, whose `layers` are its decoder's; 0: as many
    norm: Norm = "rms"
    norm_eps: float = 1e-5
    norm_place: NormPlace = "pre"  # before each half of a layer; post: after its sum; output: on what it adds; or both
    norm_plus_one: bool = False  # norms multiply by 1 + weight
    parallel: bool = False  # attention and MLP read the same stream, and both add to it
    activation: Activation = "silu"
    gated: bool = True
    position: Position = "rope"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_local_theta: float | None = None  # layers with a window turn by this base, unscaled
    rope_skip: tuple[int, ...] = ()  # layers that turn nothing
    rotary_dim: int = 0  # channels of a head that turn, the first ones; 0: all
    position_offset: int = 0  # learned: rows of the table before that of position 0
    relative_buckets: int = 32  # relative: rows of the table of biases
    relative_distance: int = 128  # relative: distances from here on share a bucket
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    qk_norm_whole: bool = False  # over all heads together, not in each
    attention: AttentionKind = "softmax"
    attention_scale: float | None = None  # None: head_dim ** -0.5
    attention_softcap: float | None = None  # scores become cap * tanh(scores / cap)
    window: int | None = None  # a query sees itself and window - 1 positions before it
    window_layers: tuple[int, ...] | None = None  # layers that have the window; None: all of them
    embed_norm: bool = False
    embed_scale: bool = False  # token vectors times the root of the width
    token_types: int = 0  # kinds of tokens that have a vector of their own
    tie: bool = True
    lm_head: bool = True  # scores of tokens
    head_transform: bool = False  # a dense layer, the activation and a norm before the scores
    head_bias: bool = False
    logit_scale: float = 1.0  # hidden states are multiplied by it before the scores
    logit_softcap: float | None = None
    pooler: bool = False  # a dense layer and tanh on the first token
    next_sentence: bool = False  # two scores from the pooler
    classifier: Classifier = "none"
    classifier_dense: ClassifierDense = "none"  # a dense layer with this activation before the classifier's scores
    classifier_pool: Pool = "first"  # which token stands for a sequence, where there is no pooler
    classifier_dropout: float | None = None  # before the classifier's matrices; None: as everywhere
    problem: Problem = "single_label"
    labels: tuple[str, ...] = ()  # of the classifier's scores
    prefix_lm: bool = False  # the tokens of a prompt see each other both ways
    dropout: float = 0.0
    init_std: float = 0.02
    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None
    decoder_start: int | None = None  # what an encoder-decoder's decoder begins with
    model_type: str = "llama"  # what config.json calls it; only spec/families looks at it

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        if self.kind == "encoder-decoder":
            object.__setattr__(self, "encoder_layers", self.encoder_layers or self.layers)
            self._check_count("encoder_layers")
        elif self.encoder_layers:
            raise _misfit(f"encoder_layers is {self.encoder_layers!r}, but its kind is {self.kind}.")
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
        for name in ("bos", "pad", "decoder_start"):
            if getattr(self, name) is not None and type(getattr(self, name)) is not int:
                raise _misfit(f"{name} is {getattr(self, name)!r}; it must be a token id or null.")
        if not _ints(self.eos):
            raise _misfit(f"eos is {self.eos!r}; it must be a list of token ids.")
        for name, more_than in _NUMBERS.items():
            if not _finite(getattr(self, name), more_than):
                at_least = "0 or more" if more_than is None else f"more than {more_than}"
                raise _misfit(f"{name} is {getattr(self, name)!r}; it must be a number, {at_least}.")
        for name in ("rope_local_theta", "attention_scale", "attention_softcap", "logit_softcap"):
            if getattr(self, name) is not None and not _finite(getattr(self, name), more_than=0):
                raise _misfit(f"{name} is {getattr(self, name)!r}; it must be more than 0, or null.")
        for name in ("dropout", "classifier_dropout"):
            share = getattr(self, name)
            if share is not None and not (_finite(share, None) and share < 1):
                raise _misfit(f"{name} is {share!r}; it must be 0 or more, and less than 1.")
        if self.classifier == "none" or self.classifier_bare or self.classifier_dropout == self.dropout:
            object.__setattr__(self, "classifier_dropout", None)
        if self.heads % self.kv_heads:
            raise _misfit(f"heads {self.heads} does not divide by kv_heads {self.kv_heads}.")
        self._check_rope()
        if self.window is not None:
            self._check_count("window")
        for name in ("window_layers", "rope_skip"):
            layers = getattr(self, name) or ()
            if not _ints(layers) or not all(0 <= layer < self.layers for layer in layers):
                raise _misfit(f"{name} {layers!r} are not all numbers of its {self.layers} layers.")
        for name in ("position_offset", "token_types"):
            if getattr(self, name) and not _count(getattr(self, name), 1 << 31):
                raise _misfit(f"{name} is {getattr(self, name)!r}; it must be a whole number, 0 or more.")
        for name in ("relative_buckets", "relative_distance"):
            self._check_count(name)
        if self.relative_buckets < 4 or self.relative_distance <= self.relative_buckets // 2:
            raise _misfit(
                f"relative_buckets is {self.relative_buckets} and relative_distance {self.relative_distance}; wanted 4 "
                "buckets or more, and a distance of more than half of them."
            )
        self._check_linear()
        self._check_heads()

    def _check_linear(self) -> None:
        """What needs a score for each pair of tokens; linear attention has none."""
        if self.attention != "linear":
            return
        if self.position in ("alibi", "relative"):
            raise _misfit(
                f"linear attention has no {self.position} positions; wanted rope, learned, sinusoidal or none."
            )
        for name in ("window", "attention_scale", "attention_softcap", "prefix_lm"):
            if getattr(self, name):
                raise _misfit(f"linear attention has no {name}, which is {getattr(self, name)!r}.")

    def _check_heads(self) -> None:
        if not isinstance(self.labels, tuple) or not all(isinstance(label, str) for label in self.labels):
            raise _misfit(f"labels are {self.labels!r}; they must be a list of names.")
        if bool(self.labels) != (self.classifier != "none"):
            raise _misfit(f"it has {len(self.labels)} labels, but its classifier is {self.classifier}.")
        if self.next_sentence and not self.pooler:
            raise _misfit("next_sentence needs the pooler.")
        for name in ("pooler", "next_sentence"):
            if getattr(self, name) and self.kind != "encoder":
                raise _misfit(f"{name} belongs to an encoder, but its kind is {self.kind}.")
        if self.prefix_lm and self.kind != "decoder":
            raise _misfit(f"prefix_lm belongs to a decoder, but its kind is {self.kind}.")

    def _check_rope(self) -> None:
        if self.position != "rope":
            return
        if self.rotary_dim and (not _count(self.rotary_dim, self.head_dim)):
            raise _misfit(f"rotary_dim is {self.rotary_dim!r}; it must be at most head_dim, {self.head_dim}.")
        name, turned = ("rotary_dim", self.rotary_dim) if self.rotary_dim else ("head_dim", self.head_dim)
        if turned % 2:
            raise _misfit(f"{name} {turned} is odd; rotary positions turn pairs of channels.")
        if self.rope_scaling is None:
            return
        if self.rope_scaling.kind == "dynamic" and turned < 4:
            raise _misfit(f"{name} {turned} is too small for dynamic rope scaling; wanted 4 or more.")
        if self.rope_scaling.kind == "longrope":
            for part in ("short_factor", "long_factor"):
                if (found := len(getattr(self.rope_scaling, part))) != turned // 2:
                    raise _misfit(f"rope scaling's {part} has {found} numbers; wanted {turned // 2}, one a pair.")
            if (self.rope_scaling.original_context or self.context) < 2:
                raise _misfit("rope scaling's original_context 1 is too small for longrope; wanted 2 or more.")
        if self.rope_scaling.kind == "yarn" and self.rope_theta <= 1:
            raise _misfit(f"rope_theta {self.rope_theta:g} is too small for yarn; wanted more than 1.")

    def _check_count(self, name: str) -> None:
        value, most = getattr(self, name), _LARGEST.get(name, 1 << 31)
        if not _count(value, most):
            raise _misfit(f"{name} is {value!r}; it must be a whole number from 1 to {most}.")

    @property
    def stacks(self) -> dict[str, int]:
        """The layers of each stack there is: "encoder", "decoder", or both, in the order in which they run."""
        if self.kind == "encoder-decoder":
            return {"encoder": self.encoder_layers, "decoder": self.layers}
        return {self.kind: self.layers}

    @property
    def last_stack(self) -> str:
        """The stack whose hidden states meet the heads."""
        return "encoder" if self.kind == "encoder" else "decoder"

    @property
    def opens(self) -> int | None:
        """What a decoder beside an encoder begins with: decoder_start, or where none is named, bos."""
        return self.bos if self.decoder_start is None else self.decoder_start

    @property
    def classifier_bare(self) -> bool:
        """Whether the classifier is a matrix alone, with no bias and no dropout before it: of texts, in a decoder."""
        return self.kind == "decoder" and self.classifier == "sequence"

    def window_of(self, layer: int) -> int | None:
        """The sliding window of one layer, in positions, or None where it sees everything."""
        return self.window if self.window_layers is None or layer in self.window_layers else None

    def rotation_of(self, layer: int) -> Rotation | None:
        """By which angles a layer turns queries and keys: "global", "local" (rope_local_theta), or None."""
        if self.position != "rope" or layer in self.rope_skip:
            return None
        return "global" if self.rope_local_theta is None or self.window_of(layer) is None else "local"

    def resized(self, **changes: object) -> "ModelConfig":
        """A copy with other numbers; kv_heads and head_dim stay unless they are named."""
        return replace(self, **changes)  # type: ignore[arg-type]


_CHOICES = {
    "kind": get_args(Kind),
    "norm": get_args(Norm),
    "norm_place": get_args(NormPlace),
    "activation": get_args(Activation),
    "position": get_args(Position),
    "attention": get_args(AttentionKind),
    "classifier": get_args(Classifier),
    "classifier_dense": get_args(ClassifierDense),
    "classifier_pool": get_args(Pool),
    "problem": get_args(Problem),
}
_FLAGS = (
    *("gated", "qkv_bias", "out_bias", "mlp_bias", "qk_norm", "qk_norm_whole", "parallel", "norm_plus_one"),
    *("embed_norm", "embed_scale", "tie", "lm_head", "head_transform", "head_bias", "pooler", "next_sentence"),
    "prefix_lm",
)
_NUMBERS = {"norm_eps": None, "init_std": None, "dropout": None, "rope_theta": 0, "logit_scale": 0}  # more than


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
