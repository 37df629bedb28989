"""bloom: ALiBi, a norm after the embedding, q k v in one matrix that takes turns head by head."""

from llmctl.spec.families.decoder import classes_of
from llmctl.spec.families.family import Family, pair, tokens_json
from llmctl.spec.families.fields import Fields
from llmctl.spec.families.heads import (
    decoder_classifiers,
    decoder_head_names,
    decoder_heads_json,
    read_decoder_heads,
)
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name

_CLASSES = classes_of("Bloom")


def to_config(json: dict) -> ModelConfig:
    """Source: BloomConfig of transformers, whose defaults absent keys take."""
    fields = Fields(json, "bloom")
    width = fields.count("n_embed", "hidden_size")
    fields.refuse("apply_residual_connection_post_layernorm", False)
    fields.refuse("slow_but_exact", False)
    fields.refuse_foreign()
    drops = [fields.number(key, default=0.0) for key in ("hidden_dropout", "attention_dropout")]
    shape = {
        "vocab": fields.count("vocab_size"),
        "width": width,
        "layers": fields.count("n_layer", "num_hidden_layers"),
        "heads": fields.count("n_head", "num_attention_heads"),
        "context": fields.count("seq_length", default=2048),
    }
    rest = {
        "norm_eps": fields.number("layer_norm_epsilon", default=1e-5),
        "tie": fields.flag("tie_word_embeddings", True),
        "dropout": max(drops),
        "init_std": fields.number("initializer_range", default=0.02),
        "bos": fields.token("bos_token_id", 1),
        "eos": fields.tokens("eos_token_id", (2,)),
        "pad": fields.token("pad_token_id"),
        **read_decoder_heads(fields, _CLASSES, None),
    }
    fields.check()
    return ModelConfig(
        **shape,
        **rest,
        ff=4 * width,
        norm="layer",
        activation="gelu_tanh",
        gated=False,
        position="alibi",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        embed_norm=True,
        model_type="bloom",
    )


def to_json(config: ModelConfig) -> dict:
    """The inverse of `to_config`."""
    return {
        **decoder_heads_json(config, _CLASSES),
        "model_type": "bloom",
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "n_embed": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "seq_length": config.context,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.dropout,
        "apply_residual_connection_post_layernorm": False,
        "slow_but_exact": False,
        "pretraining_tp": 1,
        "tie_word_embeddings": config.tie,
        "use_cache": True,
        **tokens_json(config),
    }


def names(config: ModelConfig) -> list[Name]:
    """Rename rules."""
    theirs, ours = "transformer.h.{i}", "decoder.layers.{i}"
    fused = f"{theirs}.self_attention.query_key_value"
    return [
        Name("transformer.word_embeddings.weight", ("embed.tokens.weight",)),
        *pair("transformer.word_embeddings_layernorm", "embed.norm", bias=True),
        *pair(f"{theirs}.input_layernorm", f"{ours}.attention_norm", bias=True),
        *(
            Name(f"{fused}.{kind}", tuple(f"{ours}.attention.{part}.{kind}" for part in "qkv"), fusion="heads")
            for kind in ("weight", "bias")
        ),
        *pair(f"{theirs}.self_attention.dense", f"{ours}.attention.out", bias=True),
        *pair(f"{theirs}.post_attention_layernorm", f"{ours}.mlp_norm", bias=True),
        *pair(f"{theirs}.mlp.dense_h_to_4h", f"{ours}.mlp.up", bias=True),
        *pair(f"{theirs}.mlp.dense_4h_to_h", f"{ours}.mlp.down", bias=True),
        *pair("transformer.ln_f", "decoder.norm", bias=True),
        *decoder_head_names(config, tokens="classifier"),
    ]


FAMILY = Family(
    model_types=("bloom",),
    to_config=to_config,
    to_json=to_json,
    names=names,
    prefixes=("transformer.",),
    classifiers=lambda config: decoder_classifiers(_CLASSES, None),
)
