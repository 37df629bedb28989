"""llama: rotary positions, RMSNorm, gated MLP: types llama (smollm, tinyllama), mistral, qwen2, qwen3, smollm3."""

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
from llmctl.spec.families.rope import Spelling, read_rope, rope_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name

_CLASSES = {
    "llama": classes_of("Llama"),
    "mistral": classes_of("Mistral"),
    "qwen2": classes_of("Qwen2"),
    "qwen3": classes_of("Qwen3"),
    "smollm3": classes_of("SmolLM3"),
}
_DEFAULTS = {
    "llama": Defaults(context=2048, bos=1, eos=(2,)),
    "mistral": Defaults(context=131072, kv_heads=8, bos=1, eos=(2,)),
    "qwen2": Defaults(context=32768, kv_heads=32),
    "qwen3": Defaults(context=32768, kv_heads=32, head_dim=128),
    "smollm3": Defaults(context=32768, kv_heads=4, tie=True, bos=128000, eos=(128001,), pad=128004),
}
_ROPE = {"smollm3": Spelling(theta=2000000.0)}
_BIASED = ("llama", "qwen3", "smollm3")  # may have biases in attention
_MLP_BIASED = ("llama", "smollm3")


def to_config(json: dict) -> ModelConfig:
    """Source: LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config and SmolLM3Config of transformers."""
    kind = json["model_type"]
    fields = Fields(json, kind)
    fields.refuse_foreign()
    shape = read_shape(fields, _DEFAULTS[kind])
    if kind == "llama":
        need_whole_heads(fields)
    rope = read_rope(fields, shape["context"], _ROPE.get(kind, Spelling()))
    skipped = _skipped(fields, shape["layers"]) if kind == "smollm3" else ()
    window, window_layers = _WINDOWS[kind](fields, shape["layers"], skipped)
    biased = kind in _BIASED and fields.flag("attention_bias", False)
    rest = {
        "activation": fields.one_of("hidden_act", ACTIVATIONS, "silu"),
        "qkv_bias": biased or kind == "qwen2",
        "out_bias": biased,
        "mlp_bias": kind in _MLP_BIASED and fields.flag("mlp_bias", False),
        "qk_norm": kind == "qwen3",
        "window": window,
        "window_layers": window_layers,
        "rope_skip": skipped,
        **read_decoder_heads(fields, _CLASSES[kind]),
    }
    fields.check()
    return ModelConfig(**shape, **rope, **rest, model_type=kind)


def to_json(config: ModelConfig) -> dict:
    """The inverse of `to_config`; rope in the old spelling and in the new."""
    kind = config.model_type
    json = {
        **decoder_heads_json(config, _CLASSES[kind]),
        "model_type": kind,
        **shape_json(config),
        "hidden_act": SPELLED[config.activation],
        **rope_json(config, _ROPE.get(kind, Spelling())),
    }
    if kind in _BIASED:
        json["attention_bias"] = config.qkv_bias
    if kind in _MLP_BIASED:
        json["mlp_bias"] = config.mlp_bias
    if kind == "mistral":
        json["sliding_window"] = config.window
    elif kind != "llama":
        json |= _windows_json(config)
    if kind == "smollm3":
        json["no_rope_layers"] = [int(i not in config.rope_skip) for i in range(config.layers)]
    return json


def _no_window(fields: Fields, layers: int, skipped: tuple[int, ...]) -> tuple[None, None]:
    """llama: sliding_window means nothing there; layer_types must not ask for one."""
    read_layer_types(fields, layers, "full_attention")
    return None, None


def _one_window(fields: Fields, layers: int, skipped: tuple[int, ...]) -> tuple[int | None, None]:
    """mistral: in every layer."""
    given = "sliding_window" in fields.json
    window = fields.count("sliding_window", default=None if given else 4096)
    read_layer_types(fields, layers, "full_attention" if window is None else "sliding_attention")
    return window, None


def _last_windows(fields: Fields, layers: int, skipped: tuple[int, ...]) -> tuple[int | None, tuple[int, ...] | None]:
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
    return read_windows(fields, layers, window, tuple(range(first, layers)))


def _skipped_windows(
    fields: Fields, layers: int, skipped: tuple[int, ...]
) -> tuple[int | None, tuple[int, ...] | None]:
    """smollm3: in the layers that layer_types names, else in those without rotary positions."""
    window = fields.count("sliding_window", default=None)
    if not fields.flag("use_sliding_window", False):
        window = None
    return read_windows(fields, layers, window, skipped)


_WINDOWS = {
    "llama": _no_window,
    "mistral": _one_window,
    "qwen2": _last_windows,
    "qwen3": _last_windows,
    "smollm3": _skipped_windows,
}


def _skipped(fields: Fields, layers: int) -> tuple[int, ...]:
    """smollm3: the layers without rotary positions, 0 in no_rope_layers; where it is absent, each fourth."""
    every = fields.count("no_rope_layer_interval", default=4)
    turned = fields.json.get("no_rope_layers")
    if turned is None:
        return tuple(range(every - 1, layers, every))
    if not isinstance(turned, list) or len(turned) < layers or not all(one in (0, 1) for one in turned):
        fields.wrong.append(f"no_rope_layers is not a list of {layers} numbers, each 0 or 1")
        return ()
    return tuple(i for i in range(layers) if not turned[i])


def _windows_json(config: ModelConfig) -> dict:
    layers = [i for i in range(config.layers) if config.window_of(i) is not None]
    return {
        "use_sliding_window": bool(layers),
        "sliding_window": config.window if layers else None,
        "max_window_layers": layers[0] if layers else config.layers,  # all that readers before layer_types know
        "layer_types": layer_types_json(config),
    }


def names(config: ModelConfig) -> list[Name]:
    """Rename rules."""
    return layer_names(config, {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"})


FAMILY = Family(
    model_types=("llama", "mistral", "qwen2", "qwen3", "smollm3"),
    to_config=to_config,
    to_json=to_json,
    names=names,
    prefixes=("model.",),
    ignored=IGNORED,
    classifiers=lambda config: decoder_classifiers(_CLASSES[config.model_type]),
)
