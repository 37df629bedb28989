"""gemma: scaled embeddings, norms times 1 + weight, tanh GELU: model types gemma, gemma2, gemma3_text."""

from llmctl.spec.families.decoder import (
    ACTIVATIONS,
    IGNORED,
    SPELLED,
    Defaults,
    classes_of,
    layer_names,
    layer_types_json,
    need_whole_heads,
    read_layer_types,
    read_shape,
    read_windows,
    shape_json,
)
from llmctl.spec.families.family import Family
from llmctl.spec.families.fields import Fields
from llmctl.spec.families.heads import decoder_classifiers, decoder_heads_json, read_decoder_heads
from llmctl.spec.families.rope import Spelling, layered_rope_json, read_layered_rope, read_rope, rope_json
from llmctl.spec.model import Classifier, ModelConfig
from llmctl.spec.names import Name

_CLASSES: dict[str, dict[Classifier, str]] = {
    "gemma": classes_of("Gemma"),
    "gemma2": classes_of("Gemma2"),
    "gemma3_text": {"none": "Gemma3ForCausalLM", "sequence": "Gemma3TextForSequenceClassification"},
}
_SHARED = {"head_dim": 256, "tie": True, "bos": 2, "eos": (1,), "pad": 0}
_DEFAULTS = {
    "gemma": Defaults(context=8192, kv_heads=16, **_SHARED),
    "gemma2": Defaults(context=8192, kv_heads=4, **_SHARED),
    "gemma3_text": Defaults(context=131072, kv_heads=4, **_SHARED),
}
_ROPE = Spelling(theta=1_000_000.0)  # of gemma3_text
_LOCAL_THETA = 10000.0
_TANH = {**ACTIVATIONS, "gelu": "gelu_tanh"}  # gemma's first files say gelu and mean this
_PATTERN = 6  # gemma3_text: each sixth layer sees everything


def to_config(json: dict) -> ModelConfig:
    """Source: GemmaConfig, Gemma2Config and Gemma3TextConfig of transformers."""
    kind = json["model_type"]
    fields = Fields(json, kind)
    fields.refuse_foreign()
    fields.refuse("use_bidirectional_attention", False)
    shape = read_shape(fields, _DEFAULTS[kind])
    rest = {**_READ[kind](fields, shape), **read_decoder_heads(fields, _CLASSES[kind])}
    biased = fields.flag("attention_bias", False)
    fields.check()
    return ModelConfig(
        **shape,
        **rest,
        norm_plus_one=True,
        qkv_bias=biased,
        out_bias=biased,
        embed_scale=True,
        model_type=kind,
    )


def to_json(config: ModelConfig) -> dict:
    """The inverse of `to_config`."""
    kind = config.model_type
    json = {
        **decoder_heads_json(config, _CLASSES[kind]),
        "model_type": kind,
        **shape_json(config),
        "attention_bias": config.qkv_bias,
        "hidden_activation": SPELLED[config.activation],
    }
    if kind == "gemma":
        return {**json, "hidden_act": SPELLED[config.activation], **rope_json(config)}
    json |= {
        "query_pre_attn_scalar": config.head_dim if config.attention_scale is None else _scalar(config.attention_scale),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": config.window or 4096,
        "layer_types": layer_types_json(config),
    }
    if kind == "gemma2":
        return {**json, **rope_json(config)}
    every = json["layer_types"].index("full_attention") + 1 if "full_attention" in json["layer_types"] else 0
    if every and _sliding(config.layers, every) == _windowed(config):
        json["sliding_window_pattern"] = every  # all that readers before layer_types know
    return {**json, **layered_rope_json(config, _LOCAL_THETA)}


def _gemma(fields: Fields, shape: dict) -> dict:
    activation = fields.one_of("hidden_act", _TANH, "gelu_pytorch_tanh")
    fields.refuse("hidden_activation", *(theirs for theirs, ours in ACTIVATIONS.items() if ours == activation))
    read_layer_types(fields, shape["layers"], "full_attention")
    return {"activation": activation, **read_rope(fields, shape["context"])}


def _gemma2(fields: Fields, shape: dict) -> dict:
    need_whole_heads(fields)
    return {
        **_later(fields, shape, 2),
        "attention_softcap": _cap(fields, "attn_logit_softcapping", 50.0),
        "logit_softcap": _cap(fields, "final_logit_softcapping", 30.0),
        **read_rope(fields, shape["context"]),
    }


def _gemma3(fields: Fields, shape: dict) -> dict:
    need_whole_heads(fields)
    fields.refuse("attn_logit_softcapping")  # a key that transformers has and does not use
    every = fields.count("sliding_window_pattern", "_sliding_window_pattern", default=_PATTERN)
    later = _later(fields, shape, every)
    rope = read_layered_rope(fields, shape["context"], _ROPE, _LOCAL_THETA)
    if later["window"] is None:
        rope["rope_local_theta"] = None
    return {**later, "qk_norm": True, "logit_softcap": _cap(fields, "final_logit_softcapping", None), **rope}


_READ = {"gemma": _gemma, "gemma2": _gemma2, "gemma3_text": _gemma3}


def _later(fields: Fields, shape: dict, every: int) -> dict:
    """What gemma2 and gemma3_text have in common; where layer_types is absent, one layer of `every` has no window."""
    given = "sliding_window" in fields.json
    size = fields.count("sliding_window", default=None if given else 4096)
    window, window_layers = read_windows(fields, shape["layers"], size, _sliding(shape["layers"], every))
    if size is None and not fields.has("layer_types") and _sliding(shape["layers"], every):
        fields.wrong.append("sliding_window is null, but layers have one")
    scalar = fields.count("query_pre_attn_scalar", default=256)
    return {
        "activation": fields.one_of("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        "norm_place": "sandwich",
        "attention_scale": None if scalar == shape["head_dim"] else scalar**-0.5,
        "window": window,
        "window_layers": window_layers,
    }


def _cap(fields: Fields, key: str, default: float | None) -> float | None:
    return fields.number(key, default=None if key in fields.json else default)


def _sliding(layers: int, every: int) -> tuple[int, ...]:
    return tuple(i for i in range(layers) if (i + 1) % every)


def _windowed(config: ModelConfig) -> tuple[int, ...]:
    return tuple(i for i in range(config.layers) if config.window_of(i) is not None)


def _scalar(scale: float) -> int:
    """What readers want is a whole number; a scale that none of them gives is not gemma's (`fitted` asks)."""
    return max(1, round(min(1 / scale / scale, 1 << 31)))


def names(config: ModelConfig) -> list[Name]:
    """Rename rules; one name means another norm in gemma than in those after it."""
    norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
    if config.norm_place == "sandwich":
        norms = {
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "attention_out_norm",
            "pre_feedforward_layernorm": "mlp_norm",
            "post_feedforward_layernorm": "mlp_out_norm",
        }
    return layer_names(config, norms)


FAMILY = Family(
    model_types=("gemma", "gemma2", "gemma3_text"),
    to_config=to_config,
    to_json=to_json,
    names=names,
    prefixes=("model.",),
    ignored=IGNORED,
    classifiers=lambda config: decoder_classifiers(_CLASSES[config.model_type]),
)
