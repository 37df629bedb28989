"""bart: encoder-decoders with learned positions and norms after each sum."""

from llmctl.errors import Exit, UserError
from llmctl.spec.families.decoder import ACTIVATIONS, SPELLED
from llmctl.spec.families.family import Family, pair, tokens_json
from llmctl.spec.families.fields import Fields
from llmctl.spec.families.heads import classifier_dropout, heads_json, read_heads
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name

_OFFSET = 2  # rows of the table of positions that nothing uses
_SEQUENCE = {"classifier": "sequence", "classifier_dense": "tanh", "classifier_pool": "last", "lm_head": False}
_HEAD_DROPOUT = ("classifier_dropout", 0.0)
_HEADS: dict[str, dict] = {
    "ForConditionalGeneration": {},
    "Model": {},  # bart-base is published as one; its head is the embedding, so it has one all the same
    "ForSequenceClassification": _SEQUENCE,
}


def to_config(json: dict) -> ModelConfig:
    """Source: BartConfig of transformers, whose defaults absent keys take.

    What `generate` is forced to say belongs to generation_config.json. Embeddings that are not tied are refused:
    transformers 5 then has three of them.
    """
    fields = Fields(json, "bart")
    fields.refuse_foreign()
    fields.refuse("is_decoder", False)
    fields.refuse("is_encoder_decoder", True)
    fields.refuse("tie_word_embeddings", True)
    for key, value in (("normalize_before", False), ("add_final_layer_norm", False), ("normalize_embedding", True)):
        fields.refuse(key, value)
    fields.refuse("static_position_embeddings", False)
    shape = {
        "vocab": fields.count("vocab_size"),
        "width": fields.count("d_model", "hidden_size"),
        "layers": fields.count("decoder_layers"),
        "encoder_layers": fields.count("encoder_layers", "num_hidden_layers"),
        "heads": fields.count("encoder_attention_heads", "num_attention_heads"),
        "ff": fields.count("encoder_ffn_dim"),
        "context": fields.count("max_position_embeddings", default=1024),
    }
    for key, ours in (("decoder_attention_heads", "heads"), ("decoder_ffn_dim", "ff")):
        if (found := fields.count(key)) != shape[ours] and key in json:
            fields.refused.append(f"{key} {found} beside an encoder's {shape[ours]}")
    drops = [fields.number("dropout", default=0.1), fields.number("attention_dropout", default=0.0)]
    rest = {
        "activation": fields.one_of("activation_function", ACTIVATIONS, "gelu"),
        "embed_scale": fields.flag("scale_embedding", False),
        "dropout": max(drops),
        "init_std": fields.number("init_std", default=0.02),
        "bos": fields.token("bos_token_id", 0),
        "eos": fields.tokens("eos_token_id", (2,)),
        "pad": fields.token("pad_token_id", 1),
        "decoder_start": fields.token("decoder_start_token_id", 2),
        **read_heads(fields, "Bart", _HEADS, "ForConditionalGeneration", 3, _HEAD_DROPOUT),
    }
    fields.check()
    return ModelConfig(
        **shape,
        **rest,
        kind="encoder-decoder",
        position_offset=_OFFSET,
        norm="layer",
        norm_place="post",
        gated=False,
        position="learned",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        embed_norm=True,
        model_type="bart",
    )


def to_json(config: ModelConfig) -> dict:
    """The inverse of `to_config`.

    Raises:
        UserError: a head of its own, which no such config.json says.
    """
    if not config.tie:
        raise UserError("No config.json of model_type bart gives the head a matrix of its own.", code=Exit.MISMATCH)
    head = "ForSequenceClassification" if config.labels else "ForConditionalGeneration" if config.lm_head else "Model"
    return {
        "architectures": [f"Bart{head}"],
        "model_type": "bart",
        "vocab_size": config.vocab,
        "d_model": config.width,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.layers,
        "num_hidden_layers": config.encoder_layers,
        "encoder_attention_heads": config.heads,
        "decoder_attention_heads": config.heads,
        "encoder_ffn_dim": config.ff,
        "decoder_ffn_dim": config.ff,
        "max_position_embeddings": config.context,
        "activation_function": SPELLED[config.activation],
        "scale_embedding": config.embed_scale,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "activation_dropout": 0.0,
        "classifier_dropout": classifier_dropout(config),
        "init_std": config.init_std,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "use_cache": True,
        **heads_json(config),
        **tokens_json(config),
        "decoder_start_token_id": config.decoder_start,
        "forced_eos_token_id": config.eos[0] if config.eos else None,
    }


def names(config: ModelConfig) -> list[Name]:
    """Rename rules."""
    head = [
        *([] if config.tie else [Name("lm_head.weight", ("head.weight",))]),
        *([Name("final_logits_bias", ("head.bias",), row=True)] if config.head_bias else []),
    ]
    classifier = [
        *pair("classification_head.dense", "classifier.dense", bias=True),
        *pair("classification_head.out_proj", "classifier.out", bias=True),
    ]
    return [
        Name("model.shared.weight", ("embed.tokens.weight",)),
        *_stack_names("encoder", "encoder_embed"),
        *_stack_names("decoder", "embed"),
        *(head if config.lm_head else []),
        *(classifier if config.labels else []),
    ]


def _stack_names(stack: str, embed: str) -> list[Name]:
    theirs, ours = f"model.{stack}.layers.{{i}}", f"{stack}.layers.{{i}}"
    halves = [("self_attn", "attention")]
    if stack == "decoder":
        halves.append(("encoder_attn", "cross_attention"))
    rules = []
    for half, mine in halves:
        for part, part_of_mine in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "out")):
            rules += pair(f"{theirs}.{half}.{part}", f"{ours}.{mine}.{part_of_mine}", bias=True)
        rules += pair(f"{theirs}.{half}_layer_norm", f"{ours}.{mine}_norm", bias=True)
    return [
        Name(f"model.{stack}.embed_positions.weight", (f"{embed}.positions.weight",)),
        *pair(f"model.{stack}.layernorm_embedding", f"{embed}.norm", bias=True),
        *rules,
        *pair(f"{theirs}.fc1", f"{ours}.mlp.up", bias=True),
        *pair(f"{theirs}.fc2", f"{ours}.mlp.down", bias=True),
        *pair(f"{theirs}.final_layer_norm", f"{ours}.mlp_norm", bias=True),
    ]


_TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
FAMILY = Family(
    model_types=("bart",),
    to_config=to_config,
    to_json=to_json,
    names=names,
    prefixes=("model.",),
    ignored=(r"(encoder|decoder)\.version",),
    aliases=dict.fromkeys(_TABLES, "model.shared.weight"),
    settled=("head_bias",),
    classifiers=lambda config: {"sequence": {**_SEQUENCE, "head_bias": False, "classifier_dropout": _HEAD_DROPOUT[1]}},
)
