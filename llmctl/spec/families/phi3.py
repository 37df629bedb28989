"""phi3: as llama, with q k v in one matrix and the MLP's two in one; phi-4-mini turns a part of each head."""

from llmctl.spec.families.decoder import (
    ACTIVATIONS,
    IGNORED,
    SPELLED,
    Defaults,
    classes_of,
    read_layer_types,
    read_shape,
    shape_json,
)
from llmctl.spec.families.family import Family, pair
from llmctl.spec.families.fields import Fields
from llmctl.spec.families.heads import (
    decoder_classifiers,
    decoder_head_names,
    decoder_heads_json,
    read_decoder_heads,
)
from llmctl.spec.families.rope import Spelling, read_rope, rope_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name

_CLASSES = classes_of("Phi3")
_DEFAULTS = Defaults(context=4096, norm_eps=1e-5, bos=1, eos=(32000,), pad=32000)
_ROPE = Spelling(share_keys=("partial_rotary_factor",), original=4096, kinds=("longrope",))
_DROPS = ("attention_dropout", "resid_pdrop", "embd_pdrop")


def to_config(json: dict) -> ModelConfig:
    """Source: Phi3Config of transformers."""
    fields = Fields({**json, **_renamed(json)}, "phi3")
    fields.refuse_foreign()
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
        fields.refuse(key, False)
    shape = read_shape(fields, _DEFAULTS)
    shape["dropout"] = max(fields.number(key, default=0.0) for key in _DROPS)
    head_dim = shape["head_dim"] or shape["width"] // shape["heads"]
    rope = read_rope(fields, shape["context"], _ROPE, head_dim)
    window = fields.count("sliding_window", default=None)
    read_layer_types(fields, shape["layers"], "full_attention" if window is None else "sliding_attention")
    activation = fields.one_of("hidden_act", ACTIVATIONS, "silu")
    rest = {"activation": activation, "window": window, **read_decoder_heads(fields, _CLASSES)}
    fields.check()
    return ModelConfig(**shape, **rope, **rest, model_type="phi3")


def to_json(config: ModelConfig) -> dict:
    """The inverse of `to_config`."""
    return {
        **decoder_heads_json(config, _CLASSES),
        "model_type": "phi3",
        **shape_json(config),
        **dict.fromkeys(_DROPS, config.dropout),
        "hidden_act": SPELLED[config.activation],
        "sliding_window": config.window,
        **rope_json(config, _ROPE),
    }


def _renamed(json: dict) -> dict:
    """Its first files call longrope su, or yarn."""
    found = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = json.get(key)
        if isinstance(value, dict) and value.get("rope_type", value.get("type")) in ("su", "yarn"):
            found[key] = {**value, "rope_type": "longrope"}
    return found


def names(config: ModelConfig) -> list[Name]:
    """Rename rules; k and v may have fewer rows than q."""
    theirs, ours = "model.layers.{i}", "decoder.layers.{i}"
    qkv = tuple(f"{ours}.attention.{part}.weight" for part in "qkv")
    return [
        Name("model.embed_tokens.weight", ("embed.tokens.weight",)),
        *pair(f"{theirs}.input_layernorm", f"{ours}.attention_norm", bias=False),
        Name(f"{theirs}.self_attn.qkv_proj.weight", qkv),
        *pair(f"{theirs}.self_attn.o_proj", f"{ours}.attention.out", bias=False),
        *pair(f"{theirs}.post_attention_layernorm", f"{ours}.mlp_norm", bias=False),
        Name(f"{theirs}.mlp.gate_up_proj.weight", (f"{ours}.mlp.gate.weight", f"{ours}.mlp.up.weight")),
        *pair(f"{theirs}.mlp.down_proj", f"{ours}.mlp.down", bias=False),
        *pair("model.norm", "decoder.norm", bias=False),
        *decoder_head_names(config),
    ]


FAMILY = Family(
    model_types=("phi3",),
    to_config=to_config,
    to_json=to_json,
    names=names,
    prefixes=("model.",),
    ignored=IGNORED,
    classifiers=lambda config: decoder_classifiers(_CLASSES),
)
