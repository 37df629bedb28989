"""gpt2: learned positions, LayerNorm, plain GELU; matrices stored (in, out), q k v in one."""

from llmctl.spec.families.family import Family, pair, tokens_json
from llmctl.spec.families.fields import Fields
from llmctl.spec.families.heads import (
    decoder_classifiers,
    decoder_head_names,
    decoder_heads_json,
    read_decoder_heads,
)
from llmctl.spec.model import Classifier, ModelConfig
from llmctl.spec.names import Name

_CLASSES: dict[Classifier, str] = {
    "none": "GPT2LMHeadModel",
    "sequence": "GPT2ForSequenceClassification",
    "token": "GPT2ForTokenClassification",
}
_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def to_config(json: dict) -> ModelConfig:
    """Source: GPT2Config of transformers, whose defaults absent keys take."""
    fields = Fields(json, "gpt2")
    width = fields.count("n_embd", "hidden_size")
    drops = [fields.number(key, default=0.1) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")]
    fields.refuse("scale_attn_by_inverse_layer_idx", False)
    fields.refuse("scale_attn_weights", True)
    fields.refuse_foreign()
    shape = {
        "vocab": fields.count("vocab_size"),
        "width": width,
        "layers": fields.count("n_layer", "num_hidden_layers"),
        "heads": fields.count("n_head", "num_attention_heads"),
        "ff": fields.count("n_inner", default=4 * width),
        "context": fields.count("n_positions", "n_ctx", "max_position_embeddings", default=1024),
    }
    rest = {
        "norm_eps": fields.number("layer_norm_epsilon", default=1e-5),
        "activation": fields.one_of("activation_function", _ACTIVATIONS, "gelu_new"),
        "tie": fields.flag("tie_word_embeddings", True),
        "dropout": max(drops),
        "init_std": fields.number("initializer_range", default=0.02),
        "bos": fields.token("bos_token_id", 50256),
        "eos": fields.tokens("eos_token_id", (50256,)),
        "pad": fields.token("pad_token_id"),
        **read_decoder_heads(fields, _CLASSES),
    }
    fields.check()
    return ModelConfig(
        **shape,
        **rest,
        norm="layer",
        gated=False,
        position="learned",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        model_type="gpt2",
    )


def to_json(config: ModelConfig) -> dict:
    """The inverse of `to_config`."""
    spelled = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    return {
        **decoder_heads_json(config, _CLASSES),
        "model_type": "gpt2",
        "vocab_size": config.vocab,
        "n_positions": config.context,
        "n_ctx": config.context,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.ff,
        "activation_function": spelled[config.activation],
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
        "scale_attn_weights": True,
        "tie_word_embeddings": config.tie,
        "use_cache": True,
        **tokens_json(config),
    }


def names(config: ModelConfig) -> list[Name]:
    """Rename rules; Conv1D's weights are transposed."""
    theirs, ours = "transformer.h.{i}", "decoder.layers.{i}"
    qkv = [f"{ours}.attention.{part}" for part in "qkv"]
    return [
        Name("transformer.wte.weight", ("embed.tokens.weight",)),
        Name("transformer.wpe.weight", ("embed.positions.weight",)),
        *pair(f"{theirs}.ln_1", f"{ours}.attention_norm", bias=True),
        Name(f"{theirs}.attn.c_attn.weight", tuple(f"{part}.weight" for part in qkv), transposed=True),
        Name(f"{theirs}.attn.c_attn.bias", tuple(f"{part}.bias" for part in qkv)),
        *pair(f"{theirs}.attn.c_proj", f"{ours}.attention.out", bias=True, transposed=True),
        *pair(f"{theirs}.ln_2", f"{ours}.mlp_norm", bias=True),
        *pair(f"{theirs}.mlp.c_fc", f"{ours}.mlp.up", bias=True, transposed=True),
        *pair(f"{theirs}.mlp.c_proj", f"{ours}.mlp.down", bias=True, transposed=True),
        *pair("transformer.ln_f", "decoder.norm", bias=True),
        *decoder_head_names(config, tokens="classifier"),
    ]


FAMILY = Family(
    model_types=("gpt2",),
    to_config=to_config,
    to_json=to_json,
    names=names,
    prefixes=("transformer.",),
    ignored=(r"h\.\d+\.attn\.(masked_)?bias",),
    classifiers=lambda config: decoder_classifiers(_CLASSES),
)
