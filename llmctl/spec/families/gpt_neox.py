"""gpt_neox (pythia): LayerNorm, rotary positions in a part of each head, attention and MLP side by side."""

from llmctl.spec.families.decoder import ACTIVATIONS, SPELLED, classes_of
from llmctl.spec.families.family import Family, pair, tokens_json
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

_CLASSES = classes_of("GPTNeoX")
_ROPE = Spelling(theta_key="rotary_emb_base", share=0.25, share_keys=("rotary_pct",))
_DROPS = ("attention_dropout", "hidden_dropout")


def to_config(json: dict) -> ModelConfig:
    """Source: GPTNeoXConfig of transformers."""
    fields = Fields(json, "gpt_neox")
    fields.refuse_foreign()
    width, heads = fields.count("hidden_size"), fields.count("num_attention_heads")
    fields.refuse("num_key_value_heads", heads)
    fields.refuse("head_dim", width // heads)
    context = fields.count("max_position_embeddings", default=2048)
    biased = fields.flag("attention_bias", True)
    config = {
        "vocab": fields.count("vocab_size"),
        "width": width,
        "layers": fields.count("num_hidden_layers"),
        "heads": heads,
        "ff": fields.count("intermediate_size"),
        "context": context,
        "norm_eps": fields.number("layer_norm_eps", default=1e-5),
        "parallel": fields.flag("use_parallel_residual", True),
        "activation": fields.one_of("hidden_act", ACTIVATIONS, "gelu"),
        **read_rope(fields, context, _ROPE, width // heads),
        "qkv_bias": biased,
        "out_bias": biased,
        "tie": fields.flag("tie_word_embeddings", False),
        "dropout": max(fields.number(key, default=0.0) for key in _DROPS),
        "init_std": fields.number("initializer_range", default=0.02),
        "bos": fields.token("bos_token_id", 0),
        "eos": fields.tokens("eos_token_id", (2,)),
        "pad": fields.token("pad_token_id"),
        **read_decoder_heads(fields, _CLASSES),
    }
    fields.check()
    return ModelConfig(**config, norm="layer", gated=False, mlp_bias=True, model_type="gpt_neox")


def to_json(config: ModelConfig) -> dict:
    """The inverse of `to_config`."""
    return {
        **decoder_heads_json(config, _CLASSES),
        "model_type": "gpt_neox",
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.ff,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.context,
        "layer_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        **dict.fromkeys(_DROPS, config.dropout),
        "hidden_act": SPELLED[config.activation],
        "use_parallel_residual": config.parallel,
        "attention_bias": config.qkv_bias,
        **rope_json(config, _ROPE),
        "tie_word_embeddings": config.tie,
        "use_cache": True,
        **tokens_json(config),
    }


def names(config: ModelConfig) -> list[Name]:
    """Rename rules."""
    theirs, ours = "gpt_neox.layers.{i}", "decoder.layers.{i}"
    kinds = ("weight", "bias") if config.qkv_bias else ("weight",)
    return [
        Name("gpt_neox.embed_in.weight", ("embed.tokens.weight",)),
        *pair(f"{theirs}.input_layernorm", f"{ours}.attention_norm", bias=True),
        *pair(f"{theirs}.post_attention_layernorm", f"{ours}.mlp_norm", bias=True),
        *(
            Name(
                f"{theirs}.attention.query_key_value.{kind}",
                tuple(f"{ours}.attention.{part}.{kind}" for part in "qkv"),
                fusion="heads",
            )
            for kind in kinds
        ),
        *pair(f"{theirs}.attention.dense", f"{ours}.attention.out", config.out_bias),
        *pair(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.mlp.up", bias=True),
        *pair(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.mlp.down", bias=True),
        *pair("gpt_neox.final_layer_norm", "decoder.norm", bias=True),
        *decoder_head_names(config, head="embed_out", tokens="classifier"),
    ]


FAMILY = Family(
    model_types=("gpt_neox",),
    to_config=to_config,
    to_json=to_json,
    names=names,
    prefixes=("gpt_neox.",),
    ignored=(r"layers\.\d+\.attention\.(masked_)?bias", r"layers\.\d+\.attention\.rotary_emb\.inv_freq"),
    renamed=((r"^lm_head\.", "embed_out."),),
    classes=((r"^embed_out\b", "lm_head"),),
    classifiers=lambda config: decoder_classifiers(_CLASSES),
)
