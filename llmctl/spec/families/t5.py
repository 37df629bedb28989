"""t5: encoder-decoders with relative positions, RMSNorm, scores unscaled: model types t5 (v1.0, v1.1, flan) and mt5."""

from llmctl.errors import Exit, UserError
from llmctl.spec.families.family import Family, pair, tokens_json
from llmctl.spec.families.fields import Fields
from llmctl.spec.families.heads import SEQUENCE, TOKEN, classifier_dropout, heads_json, read_heads
from llmctl.spec.model import Level, ModelConfig
from llmctl.spec.names import Name

_CLASSES = {"t5": "T5", "mt5": "MT5"}
_PROJECTIONS = {  # feed_forward_proj: activation, gated
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "gelu_new": ("gelu_tanh", False),
    "silu": ("silu", False),
    "gated-gelu": ("gelu_tanh", True),  # not what it says: transformers takes gelu_new for it
    "gated-gelu_new": ("gelu_tanh", True),
    "gated-gelu_python": ("gelu", True),
    "gated-silu": ("silu", True),
    "gated-relu": ("relu", True),
}
_BOTH, _ENCODER = {"kind": "encoder-decoder"}, {"kind": "encoder", "lm_head": False}
_SEQUENCE = {"classifier": "sequence", "classifier_dense": "tanh", "classifier_pool": "last", "lm_head": False}
_HEAD_DROPOUT = ("classifier_dropout", 0.0)
_HEADS = {
    "ForConditionalGeneration": _BOTH,
    "WithLMHeadModel": _BOTH,  # what the first release called it
    "Model": {**_BOTH, "lm_head": False},
    "EncoderModel": _ENCODER,
    "ForSequenceClassification": {**_BOTH, **_SEQUENCE},
    "ForTokenClassification": {**_ENCODER, "classifier": "token"},
}


def to_config(json: dict) -> ModelConfig:
    """Source: T5Config and MT5Config of transformers, whose defaults absent keys take.

    A v1.0 model ties its head and scales what it reads; v1.1 does neither. tie_word_embeddings, or in files that
    transformers 5 wrote scale_decoder_outputs, says which; the stored tensors have the last word on tying.
    """
    kind = json["model_type"]
    fields = Fields(json, kind)
    fields.refuse_foreign()
    fields.refuse("is_decoder", False)
    width, layers = fields.count("d_model", "hidden_size"), fields.count("num_layers", "num_hidden_layers")
    decoder_layers = fields.count("num_decoder_layers", default=layers)
    projections = {name: name for name in _PROJECTIONS}
    projection = fields.one_of("feed_forward_proj", projections, "relu" if kind == "t5" else "gated-gelu")
    activation, gated = _PROJECTIONS[projection]
    tie = fields.flag("tie_word_embeddings", True)
    scaled = kind == "t5" and fields.flag("scale_decoder_outputs", tie)
    pad = fields.token("pad_token_id", 0)
    rest = {
        "vocab": fields.count("vocab_size"),
        "heads": fields.count("num_heads", "num_attention_heads"),
        "head_dim": fields.count("d_kv", default=64),
        "ff": fields.count("d_ff"),
        "context": fields.count("n_positions", default=512),
        "norm_eps": fields.number("layer_norm_epsilon", default=1e-6),
        "relative_buckets": fields.count("relative_attention_num_buckets", default=32),
        "relative_distance": fields.count("relative_attention_max_distance", default=128),
        "dropout": fields.number("dropout_rate", default=0.1),
        "init_std": fields.number("initializer_range", default=0.02),
        "bos": fields.token("bos_token_id"),
        "eos": fields.tokens("eos_token_id", (1,)),
        "pad": pad,
        "decoder_start": fields.token("decoder_start_token_id", pad),
        **read_heads(fields, _CLASSES[kind], _HEADS, "ForConditionalGeneration", dropout=_HEAD_DROPOUT),
    }
    if not fields.wrong and not 4 <= rest["relative_buckets"] < 2 * rest["relative_distance"]:
        fields.wrong.append(
            f"relative_attention_num_buckets is {rest['relative_buckets']}, wanted 4 or more, and less than twice "
            f"relative_attention_max_distance, {rest['relative_distance']}"
        )
    if rest["kind"] == "encoder-decoder":
        rest["encoder_layers"], layers = layers, decoder_layers
    fields.check()
    return ModelConfig(
        **rest,
        width=width,
        layers=layers,
        activation=activation,
        gated=gated,
        tie=tie,
        logit_scale=width**-0.5 if scaled else 1.0,
        norm="rms",
        position="relative",
        attention_scale=1.0,
        model_type=kind,
    )


def to_json(config: ModelConfig) -> dict:
    """The inverse of `to_config`.

    Raises:
        UserError: an MLP or a head that no T5 has.
    """
    spelled = {ours: theirs for theirs, ours in reversed(_PROJECTIONS.items())}
    projection = spelled.get((config.activation, config.gated))
    scaled = config.logit_scale != 1
    if projection is None or (scaled and config.lm_head and not config.tie):
        raise UserError("No config.json of model_type t5 says this MLP or this head.", code=Exit.MISMATCH)
    both = config.kind == "encoder-decoder"
    json = {
        "architectures": [_CLASSES[config.model_type] + _class(config)],
        "model_type": config.model_type,
        "vocab_size": config.vocab,
        "d_model": config.width,
        "d_kv": config.head_dim,
        "d_ff": config.ff,
        "num_layers": config.encoder_layers if both else config.layers,
        "num_decoder_layers": config.layers,
        "num_heads": config.heads,
        "n_positions": config.context,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_distance,
        "feed_forward_proj": projection,
        "dropout_rate": config.dropout,
        "classifier_dropout": classifier_dropout(config),
        "layer_norm_epsilon": config.norm_eps,
        "initializer_factor": 1.0,
        "initializer_range": config.init_std,
        "is_encoder_decoder": both,
        "tie_word_embeddings": config.tie,
        "use_cache": True,
        **heads_json(config),
        **tokens_json(config),
        "decoder_start_token_id": config.decoder_start,
    }
    if scaled != config.tie and config.model_type == "t5":
        json["scale_decoder_outputs"] = scaled
    return json


def _class(config: ModelConfig) -> str:
    if config.classifier != "none":
        return f"For{config.classifier.capitalize()}Classification"
    if config.kind == "encoder":
        return "EncoderModel"
    return "ForConditionalGeneration" if config.lm_head else "Model"


def names(config: ModelConfig) -> list[Name]:
    """Rename rules; a scaled head is always tied."""
    model = "transformer." if config.labels else ""
    own = config.lm_head and not config.tie and config.logit_scale == 1
    return [
        Name(f"{model}shared.weight", ("embed.tokens.weight",)),
        *(rule for stack in config.stacks for rule in _stack_names(config, stack, f"{model}{stack}")),
        *([Name("lm_head.weight", ("head.weight",))] if own else []),
        *_classifier_names(config),
    ]


def _stack_names(config: ModelConfig, ours: str, theirs: str) -> list[Name]:
    block, layer = f"{theirs}.block.{{i}}.layer", f"{ours}.layers.{{i}}"
    halves = [("SelfAttention", "attention")]
    if ours == "decoder":
        halves.append(("EncDecAttention", "cross_attention"))
    last = len(halves)
    mlp = f"{block}.{last}.DenseReluDense"
    up = [("wi_0", "gate"), ("wi_1", "up")] if config.gated else [("wi", "up")]
    rules = []
    for number, (half, mine) in enumerate(halves):
        for part in ("q", "k", "v", "o"):
            rules += pair(f"{block}.{number}.{half}.{part}", f"{layer}.{mine}.{'out' if part == 'o' else part}", False)
        rules += pair(f"{block}.{number}.layer_norm", f"{layer}.{mine}_norm", bias=False)
    for part, mine in (*up, ("wo", "down")):
        rules += pair(f"{mlp}.{part}", f"{layer}.mlp.{mine}", bias=False)
    relative = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return [
        *rules,
        *pair(f"{block}.{last}.layer_norm", f"{layer}.mlp_norm", bias=False),
        Name(relative, (f"{ours}.relative.weight",)),
        *pair(f"{theirs}.final_layer_norm", f"{ours}.norm", bias=False),
    ]


def _classifier_names(config: ModelConfig) -> list[Name]:
    if config.classifier == "sequence":
        head = "classification_head"
        dense, out = pair(f"{head}.dense", "classifier.dense", True), pair(f"{head}.out_proj", "classifier.out", True)
        return [*dense, *out]
    return pair("classifier", "classifier.out", bias=True) if config.labels else []


def _classifiers(config: ModelConfig) -> dict[Level, dict[str, object]]:
    """Words are labelled by the encoder alone; an encoder alone does not label texts."""
    fresh = {"classifier_dropout": _HEAD_DROPOUT[1]}
    if config.kind == "encoder":
        return {"token": {**_HEADS[TOKEN], **fresh}}
    alone = {"layers": config.encoder_layers, "encoder_layers": 0}
    return {"sequence": {**_HEADS[SEQUENCE], **fresh}, "token": {**_HEADS[TOKEN], **alone, **fresh}}


_TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
FAMILY = Family(
    model_types=tuple(_CLASSES),
    to_config=to_config,
    to_json=to_json,
    names=names,
    prefixes=("transformer.",),
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    aliases={f"{model}{one}": f"{model}shared.weight" for model in ("", "transformer.") for one in _TABLES},
    settled=("tie",),
    touched=True,
    wide=("wo",),
    classifiers=_classifiers,
)
