"""What the config.json of llama and of the decoders that followed it have in common: keys, defaults, windows, names."""

from dataclasses import dataclass

from llmctl.spec.families.family import pair, tokens_json
from llmctl.spec.families.fields import Fields
from llmctl.spec.families.heads import SEQUENCE, TOKEN, decoder_head_names
from llmctl.spec.model import Classifier, ModelConfig
from llmctl.spec.names import Name

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
}
IGNORED = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"rotary_emb\.inv_freq")  # buffers in old files
SPELLED = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}


def classes_of(prefix: str, words: bool = True) -> dict[Classifier, str]:
    """The classes of transformers for a decoder, by their classifier; `words`: there is one that labels words."""
    classes: dict[Classifier, str] = {"none": f"{prefix}ForCausalLM", "sequence": prefix + SEQUENCE}
    return {**classes, "token": prefix + TOKEN} if words else classes


@dataclass(frozen=True)
class Defaults:
    """What absent keys mean, where the config classes of transformers differ. None: follows from other keys."""

    context: int
    kv_heads: int | None = None
    head_dim: int | None = None
    norm_eps: float = 1e-6
    tie: bool = False
    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None


def read_shape(fields: Fields, default: Defaults) -> dict:
    """Fields of ModelConfig that these families spell alike."""
    width, layers, heads = (fields.count(key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    return {
        "vocab": fields.count("vocab_size"),
        "width": width,
        "layers": layers,
        "heads": heads,
        "ff": fields.count("intermediate_size"),
        "context": fields.count("max_position_embeddings", default=default.context),
        "kv_heads": _kv_heads(fields, default.kv_heads, heads),
        "head_dim": fields.count("head_dim", default=default.head_dim) or 0,
        "norm_eps": fields.number("rms_norm_eps", default=default.norm_eps),
        "tie": fields.flag("tie_word_embeddings", default.tie),
        "dropout": fields.number("attention_dropout", default=0.0),
        "init_std": fields.number("initializer_range", default=0.02),
        "bos": fields.token("bos_token_id", default.bos),
        "eos": fields.tokens("eos_token_id", default.eos),
        "pad": fields.token("pad_token_id", default.pad),
    }


def shape_json(config: ModelConfig) -> dict:
    """The inverse of `read_shape`; special ids in the old spelling and in the new."""
    return {
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.ff,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tie,
        "use_cache": True,
        **tokens_json(config),
    }


def need_whole_heads(fields: Fields) -> None:
    """Some classes of transformers refuse a width that does not divide by the heads, even where head_dim is said."""
    width, heads = fields.json.get("hidden_size"), fields.json.get("num_attention_heads")
    if not fields.missing and not fields.wrong and width % heads:  # type: ignore[operator]
        fields.wrong.append(f"hidden_size {width} does not divide by num_attention_heads {heads}")


def read_layer_types(fields: Fields, layers: int, only: str | None = None) -> list[str] | None:
    """layer_types: full_attention or sliding_attention for each layer, or all of one kind; None where it is absent."""
    types = fields.json.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != layers:
        fields.wrong.append(f"layer_types is not a list of {layers} names")
        return None
    known = (only,) if only else ("full_attention", "sliding_attention")
    other = sorted({repr(one) for one in types if one not in known})
    if other:
        fields.refused.append(f"layer_types {', '.join(other)}")
        return None
    return types


def read_windows(
    fields: Fields, layers: int, window: int | None, otherwise: tuple[int, ...]
) -> tuple[int | None, tuple[int, ...] | None]:
    """The window, and the layers that have it: those that layer_types names, or where it is absent `otherwise`."""
    types = read_layer_types(fields, layers)
    chosen = otherwise
    if types is not None:
        chosen = tuple(i for i, one in enumerate(types) if one == "sliding_attention")
        if chosen and window is None:
            fields.wrong.append("layer_types names sliding_attention, but sliding_window is off")
    if window is None or not chosen:
        return None, None
    return window, None if len(chosen) == layers else chosen


def layer_types_json(config: ModelConfig) -> list[str]:
    """layer_types: of each layer, whether it has the window."""
    windows = [config.window_of(i) for i in range(config.layers)]
    return ["full_attention" if window is None else "sliding_attention" for window in windows]


def layer_names(config: ModelConfig, norms: dict[str, str]) -> list[Name]:
    """Rename rules of models whose tensors llama named; only their norms differ.

    Args:
        norms: of a layer, theirs: ours.
    """
    theirs, ours = "model.layers.{i}", "decoder.layers.{i}"
    attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"

    def normed(half: str) -> list[Name]:
        mine = {key: value for key, value in norms.items() if value.startswith(half)}
        return [rule for key in mine for rule in pair(f"{theirs}.{key}", f"{ours}.{mine[key]}", bias=False)]

    return [
        Name("model.embed_tokens.weight", ("embed.tokens.weight",)),
        *normed("attention"),
        *pair(f"{attention}.q_proj", f"{ours}.attention.q", config.qkv_bias),
        *pair(f"{attention}.k_proj", f"{ours}.attention.k", config.qkv_bias),
        *pair(f"{attention}.v_proj", f"{ours}.attention.v", config.qkv_bias),
        *pair(f"{attention}.o_proj", f"{ours}.attention.out", config.out_bias),
        *(pair(f"{attention}.q_norm", f"{ours}.attention.q_norm", bias=False) if config.qk_norm else []),
        *(pair(f"{attention}.k_norm", f"{ours}.attention.k_norm", bias=False) if config.qk_norm else []),
        *normed("mlp"),
        *pair(f"{mlp}.gate_proj", f"{ours}.mlp.gate", config.mlp_bias),
        *pair(f"{mlp}.up_proj", f"{ours}.mlp.up", config.mlp_bias),
        *pair(f"{mlp}.down_proj", f"{ours}.mlp.down", config.mlp_bias),
        *pair("model.norm", "decoder.norm", bias=False),
        *decoder_head_names(config),
    ]


def _kv_heads(fields: Fields, default: int | None, heads: int) -> int:
    """num_key_value_heads: absent, the class's default; null, as many as heads."""
    if "num_key_value_heads" not in fields.json and default is not None:
        return default
    return fields.count("num_key_value_heads", default=heads)
