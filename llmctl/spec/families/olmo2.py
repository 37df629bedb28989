"""olmo2: as llama, with norms on what each half adds, and on all heads of q and of k together."""

from llmctl.spec.families.decoder import (
    ACTIVATIONS,
    IGNORED,
    SPELLED,
    Defaults,
    classes_of,
    layer_names,
    read_layer_types,
    read_shape,
    shape_json,
)
from llmctl.spec.families.family import Family
from llmctl.spec.families.fields import Fields
from llmctl.spec.families.heads import decoder_classifiers, decoder_heads_json, read_decoder_heads
from llmctl.spec.families.rope import read_rope, rope_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name

_CLASSES = classes_of("Olmo2", words=False)
_DEFAULTS = Defaults(context=2048, norm_eps=1e-5, eos=(50279,), pad=1)


def to_config(json: dict) -> ModelConfig:
    """Source: Olmo2Config of transformers."""
    fields = Fields(json, "olmo2")
    fields.refuse_foreign()
    fields.refuse("clip_qkv")
    shape = read_shape(fields, _DEFAULTS)
    rope = read_rope(fields, shape["context"])
    read_layer_types(fields, shape["layers"], "full_attention")
    biased = fields.flag("attention_bias", False)
    activation = fields.one_of("hidden_act", ACTIVATIONS, "silu")
    heads = read_decoder_heads(fields, _CLASSES)
    fields.check()
    return ModelConfig(
        **shape,
        **rope,
        **heads,
        activation=activation,
        norm_place="output",
        qkv_bias=biased,
        out_bias=biased,
        qk_norm=True,
        qk_norm_whole=True,
        model_type="olmo2",
    )


def to_json(config: ModelConfig) -> dict:
    """The inverse of `to_config`."""
    return {
        **decoder_heads_json(config, _CLASSES),
        "model_type": "olmo2",
        **shape_json(config),
        "hidden_act": SPELLED[config.activation],
        "attention_bias": config.qkv_bias,
        **rope_json(config),
    }


def names(config: ModelConfig) -> list[Name]:
    """Rename rules."""
    norms = {"post_attention_layernorm": "attention_norm", "post_feedforward_layernorm": "mlp_norm"}
    return layer_names(config, norms)


FAMILY = Family(
    model_types=("olmo2",),
    to_config=to_config,
    to_json=to_json,
    names=names,
    prefixes=("model.",),
    ignored=IGNORED,
    classifiers=lambda config: decoder_classifiers(_CLASSES),
)
