"""llama: rotary positions, RMSNorm, gated MLP: model types llama (smollm, tinyllama), mistral, qwen2, qwen3."""

from llmctl.spec.families.family import Family, pair, tokens_json
from llmctl.spec.families.fields import Fields
from llmctl.spec.families.rope import read_rope, rope_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name

_ACTIVATIONS = {
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
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# What absent keys mean, where the config classes of transformers differ. `None`: follows from other keys.
_DEFAULTS: dict[str, dict] = {
    "llama": {"kv_heads": None, "head_dim": None, "context": 2048, "bos": 1, "eos": (2,)},
    "mistral": {"kv_heads": 8, "head_dim": None, "context": 131072, "bos": 1, "eos": (2,)},
    "qwen2": {"kv_heads": 32, "head_dim": None, "context": 32768, "bos": None, "eos": ()},
    "qwen3": {"kv_heads": 32, "head_dim": 128, "context": 32768, "bos": None, "eos": ()},
}


def to_config(json: dict) -> ModelConfig:
    """Source: LlamaConfig, MistralConfig, Qwen2Config and Qwen3Config of transformers."""
    kind = json["model_type"]
    fields, default = Fields(json, kind), _DEFAULTS[kind]
    fields.refuse_foreign()
    width, layers, heads = (fields.count(key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    if kind == "llama" and not fields.missing and not fields.wrong and width % heads:
        fields.wrong.append(f"hidden_size {width} does not divide by num_attention_heads {heads}")
    context = fields.count("max_position_embeddings", default=default["context"])
    theta, scaling = read_rope(fields, context)
    window, window_layers = _WINDOWS[kind](fields, layers)
    biased = kind in ("llama", "qwen3") and fields.flag("attention_bias", False)
    config = {
        "vocab": fields.count("vocab_size"),
        "width": width,
        "layers": layers,
        "heads": heads,
        "ff": fields.count("intermediate_size"),
        "context": context,
        "kv_heads": _heads(fields, default["kv_heads"], heads),
        "head_dim": fields.count("head_dim", default=default["head_dim"]) or 0,
        "norm_eps": fields.number("rms_norm_eps", default=1e-6),
        "activation": fields.one_of("hidden_act", _ACTIVATIONS, "silu"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "qkv_bias": biased or kind == "qwen2",
        "out_bias": biased,
        "mlp_bias": kind == "llama" and fields.flag("mlp_bias", False),
        "qk_norm": kind == "qwen3",
        "window": window,
        "window_layers": window_layers,
        "tie": fields.flag("tie_word_embeddings", False),
        "dropout": fields.number("attention_dropout", default=0.0),
        "init_std": fields.number("initializer_range", default=0.02),
        "bos": fields.token("bos_token_id", default["bos"]),
        "eos": fields.tokens("eos_token_id", default["eos"]),
        "pad": fields.token("pad_token_id"),
    }
    fields.check()
    return ModelConfig(**config, model_type=kind)


def to_json(config: ModelConfig) -> dict:
    """The inverse of `to_config`; rope and special ids in the old spelling and in the new."""
    kind = config.model_type
    spelled = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    json = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.ff,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": spelled[config.activation],
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "attention_dropout": config.dropout,
        **rope_json(config),
        "tie_word_embeddings": config.tie,
        "use_cache": True,
        **tokens_json(config),
    }
    if kind in ("llama", "qwen3"):
        json["attention_bias"] = config.qkv_bias
    if kind == "llama":
        json["mlp_bias"] = config.mlp_bias
    elif kind == "mistral":
        json["sliding_window"] = config.window
    else:
        json |= _windows_json(config)
    return json


def _heads(fields: Fields, default: int | None, heads: int) -> int:
    """num_key_value_heads: absent, the class's default; null, as many as heads."""
    if "num_key_value_heads" not in fields.json and default is not None:
        return default
    return fields.count("num_key_value_heads", default=heads)


def _no_window(fields: Fields, layers: int) -> tuple[None, None]:
    """llama: sliding_window means nothing there; layer_types must not ask for one."""
    _layer_types(fields, layers, "full_attention")
    return None, None


def _one_window(fields: Fields, layers: int) -> tuple[int | None, None]:
    """mistral: in every layer."""
    given = "sliding_window" in fields.json
    window = fields.count("sliding_window", default=None if given else 4096)
    _layer_types(fields, layers, "full_attention" if window is None else "sliding_attention")
    return window, None


def _some_windows(fields: Fields, layers: int) -> tuple[int | None, tuple[int, ...] | None]:
    """qwen2 and qwen3: in the layers that layer_types names, else from max_window_layers on."""
    given = "sliding_window" in fields.json
    window = fields.count("sliding_window", default=None if given else 4096)
    if not fields.flag("use_sliding_window", False):
        window = None
    first = fields.json.get("max_window_layers")
    if first is None:
        first = 28
    elif type(first) is not int or first < 0:
        fields.wrong.append(f"max_window_layers is {first!r}, wanted a whole number from 0 up")
        first = 0
    types = _layer_types(fields, layers)
    if types is None:
        chosen = tuple(range(first, layers))
    else:
        chosen = tuple(i for i, one in enumerate(types) if one == "sliding_attention")
        if chosen and window is None:
            fields.wrong.append("layer_types names sliding_attention, but sliding_window is off")
    if window is None or not chosen:
        return None, None
    return window, None if len(chosen) == layers else chosen


_WINDOWS = {"llama": _no_window, "mistral": _one_window, "qwen2": _some_windows, "qwen3": _some_windows}


def _layer_types(fields: Fields, layers: int, only: str | None = None) -> list[str] | None:
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


def _windows_json(config: ModelConfig) -> dict:
    layers = [i for i in range(config.layers) if config.window_of(i) is not None]
    return {
        "use_sliding_window": bool(layers),
        "sliding_window": config.window if layers else None,
        "max_window_layers": layers[0] if layers else config.layers,  # all that readers before layer_types know
        "layer_types": ["sliding_attention" if i in layers else "full_attention" for i in range(config.layers)],
    }


def names(config: ModelConfig) -> list[Name]:
    """Rename rules."""
    theirs, ours = "model.layers.{i}", "decoder.layers.{i}"
    attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
    return [
        Name("model.embed_tokens.weight", ("embed.tokens.weight",)),
        *pair(f"{theirs}.input_layernorm", f"{ours}.attention_norm", bias=False),
        *pair(f"{attention}.q_proj", f"{ours}.attention.q", config.qkv_bias),
        *pair(f"{attention}.k_proj", f"{ours}.attention.k", config.qkv_bias),
        *pair(f"{attention}.v_proj", f"{ours}.attention.v", config.qkv_bias),
        *pair(f"{attention}.o_proj", f"{ours}.attention.out", config.out_bias),
        *(pair(f"{attention}.q_norm", f"{ours}.attention.q_norm", bias=False) if config.qk_norm else []),
        *(pair(f"{attention}.k_norm", f"{ours}.attention.k_norm", bias=False) if config.qk_norm else []),
        *pair(f"{theirs}.post_attention_layernorm", f"{ours}.mlp_norm", bias=False),
        *pair(f"{mlp}.gate_proj", f"{ours}.mlp.gate", config.mlp_bias),
        *pair(f"{mlp}.up_proj", f"{ours}.mlp.up", config.mlp_bias),
        *pair(f"{mlp}.down_proj", f"{ours}.mlp.down", config.mlp_bias),
        *pair("model.norm", "decoder.norm", bias=False),
        *([] if config.tie else [Name("lm_head.weight", ("head.weight",))]),
    ]


FAMILY = Family(
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    to_config=to_config,
    to_json=to_json,
    names=names,
    prefix="model.",
    ignored=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"rotary_emb\.inv_freq"),
)
