"""bert: encoders, learned positions, norms after each sum: model types bert, roberta, xlm-roberta, distilbert."""

from llmctl.errors import Exit, UserError
from llmctl.spec.families.decoder import ACTIVATIONS, SPELLED
from llmctl.spec.families.family import Family, pair, tokens_json
from llmctl.spec.families.fields import Fields
from llmctl.spec.families.heads import SEQUENCE, TOKEN, classifier_dropout, heads_json, read_heads
from llmctl.spec.model import Level, ModelConfig
from llmctl.spec.names import Name

_CLASSES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "distilbert": "DistilBert"}
_ROBERTA = ("roberta", "xlm-roberta")
_DISTIL_DROPOUT = 0.2  # before the scores of texts, where nothing is said
_EXACT = {"gelu": "gelu", "gelu_python": "gelu"}  # RoBERTa's head has this activation whatever hidden_act says
_TOKENS = {"classifier": "token"}
_HEADS: dict[str, dict[str, dict]] = {
    "bert": {
        "Model": {"pooler": True},
        "ForMaskedLM": {"lm_head": True},
        "ForPreTraining": {"lm_head": True, "pooler": True, "next_sentence": True},
        "ForNextSentencePrediction": {"pooler": True, "next_sentence": True},
        "ForSequenceClassification": {"pooler": True, "classifier": "sequence"},
        "ForTokenClassification": _TOKENS,
    },
    "roberta": {
        "Model": {"pooler": True},
        "ForMaskedLM": {"lm_head": True},
        "ForSequenceClassification": {"classifier": "sequence", "classifier_dense": "tanh"},
        "ForTokenClassification": _TOKENS,
    },
    "distilbert": {
        "Model": {},
        "ForMaskedLM": {"lm_head": True},
        "ForSequenceClassification": {"classifier": "sequence", "classifier_dense": "relu"},
        "ForTokenClassification": _TOKENS,
    },
}
_HEADS["xlm-roberta"] = _HEADS["roberta"]
_SPECIAL = {  # bos, eos, pad where the keys are absent
    "bert": (None, (), 0),
    "roberta": (0, (2,), 1),
    "xlm-roberta": (0, (2,), 1),
    "distilbert": (None, (), 0),
}


def to_config(json: dict) -> ModelConfig:
    """Source: BertConfig, RobertaConfig and DistilBertConfig of transformers, whose defaults absent keys take."""
    kind = json["model_type"]
    fields = Fields(json, kind)
    fields.refuse_foreign()
    fields.refuse("is_decoder", False)
    fields.refuse("position_embedding_type", "absolute")
    fields.refuse("pruned_heads", {})
    bos, eos, pad = _SPECIAL[kind]
    shape = _distil_shape(fields) if kind == "distilbert" else _bert_shape(fields)
    rows = fields.count("max_position_embeddings", default=512)
    rest = {
        "vocab": fields.count("vocab_size"),
        "activation": fields.one_of(
            "activation" if kind == "distilbert" else "hidden_act", _EXACT if kind in _ROBERTA else ACTIVATIONS, "gelu"
        ),
        "tie": fields.flag("tie_word_embeddings", True),
        "init_std": fields.number("initializer_range", default=0.02),
        "bos": fields.token("bos_token_id", bos),
        "eos": fields.tokens("eos_token_id", eos),
        "pad": fields.token("pad_token_id", pad),
        "lm_head": False,
    }
    if kind in _ROBERTA and rest["pad"] is None:
        fields.wrong.append("pad_token_id is null, but positions are counted from it")
    offset = rest["pad"] + 1 if kind in _ROBERTA and rest["pad"] is not None else 0
    if rows <= offset:
        fields.wrong.append(f"max_position_embeddings is {rows}, but the first {offset} are those of padding")
    rest |= read_heads(fields, _CLASSES[kind], _HEADS[kind], "Model", dropout=_head_dropout(fields))
    fields.check()
    return ModelConfig(
        **shape,
        **rest,
        context=rows - offset,
        position_offset=offset,
        kind="encoder",
        norm="layer",
        norm_place="post",
        gated=False,
        position="learned",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        embed_norm=True,
        head_transform=True,
        head_bias=True,
        model_type=kind,
    )


def _bert_shape(fields: Fields) -> dict:
    drops = [fields.number(key, default=0.1) for key in ("hidden_dropout_prob", "attention_probs_dropout_prob")]
    return {
        "width": fields.count("hidden_size"),
        "layers": fields.count("num_hidden_layers"),
        "heads": fields.count("num_attention_heads"),
        "ff": fields.count("intermediate_size"),
        "token_types": fields.count("type_vocab_size", default=2),
        "norm_eps": fields.number("layer_norm_eps", default=1e-12),
        "dropout": max(drops),
    }


def _distil_shape(fields: Fields) -> dict:
    """Its norms have no key for what they add; sinusoidal_pos_embds says only how positions began."""
    drops = [fields.number(key, default=0.1) for key in ("dropout", "attention_dropout")]
    return {
        "width": fields.count("dim", "hidden_size"),
        "layers": fields.count("n_layers", "num_hidden_layers"),
        "heads": fields.count("n_heads", "num_attention_heads"),
        "ff": fields.count("hidden_dim"),
        "norm_eps": 1e-12,
        "dropout": max(drops),
    }


def _head_dropout(fields: Fields) -> tuple[str, float | None]:
    """The key of what is dropped before a classifier; in distilbert, one of texts has its own, one of tokens none."""
    if fields.kind != "distilbert":
        return "classifier_dropout", None
    tokens = str(fields.json.get("architectures")).count(TOKEN)
    return ("", None) if tokens else ("seq_classif_dropout", _DISTIL_DROPOUT)


def to_json(config: ModelConfig) -> dict:
    """The inverse of `to_config`.

    Raises:
        UserError: heads that no class of transformers has.
    """
    kind = config.model_type
    _need_pooler(config)
    json = {
        "architectures": [_CLASSES[kind] + _class(config)],
        "model_type": kind,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context + config.position_offset,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie,
        **heads_json(config),
        **tokens_json(config),
    }
    if kind == "distilbert":
        return json | {
            "dim": config.width,
            "n_layers": config.layers,
            "n_heads": config.heads,
            "hidden_dim": config.ff,
            "activation": SPELLED[config.activation],
            "dropout": config.dropout,
            "attention_dropout": config.dropout,
            "qa_dropout": config.dropout,
            "seq_classif_dropout": _DISTIL_DROPOUT if config.classifier == "none" else classifier_dropout(config),
            "sinusoidal_pos_embds": False,
        }
    return json | {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ff,
        "type_vocab_size": config.token_types,
        "hidden_act": SPELLED[config.activation],
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "layer_norm_eps": config.norm_eps,
        "position_embedding_type": "absolute",
        "use_cache": True,
        "classifier_dropout": config.classifier_dropout,
    }


def _class(config: ModelConfig) -> str:
    """The class that has these heads, or most of them: stored tensors say the rest."""
    if config.classifier != "none":
        return f"For{config.classifier.capitalize()}Classification"
    if config.next_sentence:
        return "ForPreTraining" if config.lm_head else "ForNextSentencePrediction"
    return "ForMaskedLM" if config.lm_head else "Model"


def _need_pooler(config: ModelConfig) -> None:
    """bert classifies sequences by its pooler; without it there would be another function under the same name."""
    if config.model_type == "bert" and config.classifier == "sequence" and not config.pooler:
        raise UserError("A classifier of sequences in a model of type bert needs the pooler.", code=Exit.MISMATCH)


def names(config: ModelConfig) -> list[Name]:
    """Rename rules.

    Raises:
        UserError: heads that no class of transformers has.
    """
    _need_pooler(config)
    if config.model_type == "distilbert":
        return _distil_names(config)
    model = "bert" if config.model_type == "bert" else "roberta"
    embed, theirs, ours = f"{model}.embeddings", f"{model}.encoder.layer.{{i}}", "encoder.layers.{i}"
    attention, inside = f"{theirs}.attention", f"{ours}.attention"
    return [
        Name(f"{embed}.word_embeddings.weight", ("embed.tokens.weight",)),
        Name(f"{embed}.position_embeddings.weight", ("embed.positions.weight",)),
        Name(f"{embed}.token_type_embeddings.weight", ("embed.types.weight",)),
        *pair(f"{embed}.LayerNorm", "embed.norm", bias=True),
        *pair(f"{attention}.self.query", f"{inside}.q", bias=True),
        *pair(f"{attention}.self.key", f"{inside}.k", bias=True),
        *pair(f"{attention}.self.value", f"{inside}.v", bias=True),
        *pair(f"{attention}.output.dense", f"{inside}.out", bias=True),
        *pair(f"{attention}.output.LayerNorm", f"{ours}.attention_norm", bias=True),
        *pair(f"{theirs}.intermediate.dense", f"{ours}.mlp.up", bias=True),
        *pair(f"{theirs}.output.dense", f"{ours}.mlp.down", bias=True),
        *pair(f"{theirs}.output.LayerNorm", f"{ours}.mlp_norm", bias=True),
        *(pair(f"{model}.pooler.dense", "pooler", bias=True) if config.pooler else []),
        *(_head_names(config) if config.lm_head else []),
        *(pair("cls.seq_relationship", "next_sentence", bias=True) if config.next_sentence else []),
        *_classifier_names(config, "classifier.dense", "classifier.out_proj"),
    ]


def _head_names(config: ModelConfig) -> list[Name]:
    """A head of its own has its own bias too, and the class keeps the one of a tied head beside it, without use."""
    if config.model_type == "bert":
        head, dense, norm = "cls.predictions", "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"
    else:
        head, dense, norm = "lm_head", "lm_head.dense", "lm_head.layer_norm"
    return [
        Name(f"{head}.bias", ("head.bias",)),
        *pair(dense, "head.transform", bias=True),
        *pair(norm, "head.norm", bias=True),
        *([] if config.tie else pair(f"{head}.decoder", "head", bias=True)),
    ]


def _distil_names(config: ModelConfig) -> list[Name]:
    embed, theirs, ours = "distilbert.embeddings", "distilbert.transformer.layer.{i}", "encoder.layers.{i}"
    head = [
        *pair("vocab_transform", "head.transform", bias=True),
        *pair("vocab_layer_norm", "head.norm", bias=True),
        *([] if config.tie else [Name("vocab_projector.weight", ("head.weight",))]),
        Name("vocab_projector.bias", ("head.bias",)),
    ]
    return [
        Name(f"{embed}.word_embeddings.weight", ("embed.tokens.weight",)),
        Name(f"{embed}.position_embeddings.weight", ("embed.positions.weight",)),
        *pair(f"{embed}.LayerNorm", "embed.norm", bias=True),
        *(rule for part in "qkv" for rule in pair(f"{theirs}.attention.{part}_lin", f"{ours}.attention.{part}", True)),
        *pair(f"{theirs}.attention.out_lin", f"{ours}.attention.out", bias=True),
        *pair(f"{theirs}.sa_layer_norm", f"{ours}.attention_norm", bias=True),
        *pair(f"{theirs}.ffn.lin1", f"{ours}.mlp.up", bias=True),
        *pair(f"{theirs}.ffn.lin2", f"{ours}.mlp.down", bias=True),
        *pair(f"{theirs}.output_layer_norm", f"{ours}.mlp_norm", bias=True),
        *(head if config.lm_head else []),
        *_classifier_names(config, "pre_classifier", "classifier"),
    ]


def _classifier_names(config: ModelConfig, dense: str, out: str) -> list[Name]:
    if config.classifier == "none":
        return []
    if config.classifier_dense == "none":
        return pair("classifier", "classifier.out", bias=True)
    return [*pair(dense, "classifier.dense", bias=True), *pair(out, "classifier.out", bias=True)]


def _classifiers(config: ModelConfig) -> dict[Level, dict[str, object]]:
    known, alone = _HEADS[config.model_type], {"pooler": False, "lm_head": False}
    fresh = {"classifier_dropout": _DISTIL_DROPOUT} if config.model_type == "distilbert" else {}
    return {"sequence": {**alone, **known[SEQUENCE], **fresh}, "token": {**alone, **known[TOKEN]}}


FAMILY = Family(
    model_types=tuple(_CLASSES),
    to_config=to_config,
    to_json=to_json,
    names=names,
    prefixes=("bert.", "roberta.", "distilbert."),
    ignored=(r"embeddings\.(position_ids|token_type_ids)",),
    renamed=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
    aliases={"cls.predictions.decoder.bias": "cls.predictions.bias", "lm_head.decoder.bias": "lm_head.bias"},
    settled=("lm_head", "pooler", "next_sentence", "pooler"),  # the pooler again, once nothing needs it
    classifiers=_classifiers,
)
