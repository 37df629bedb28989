"""config.json of encoders and encoder-decoders: released ones as they are, heads, labels, and what is refused."""

import json

import pytest

from llmctl.errors import Exit, UserError
from llmctl.spec.families import FAMILIES, config_of, family_for, fitted
from llmctl.spec.model import ModelConfig
from llmctl.spec.presets import shape
from llmctl.spec.sizes import parameters

BERT = {
    "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": False,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
    "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0, "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0", "type_vocab_size": 2, "use_cache": True, "vocab_size": 30522,
}  # fmt: skip
MINILM = {
    **BERT, "_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "architectures": ["BertModel"], "hidden_size": 384,
    "intermediate_size": 1536, "num_hidden_layers": 6,
}  # fmt: skip
ROBERTA = {
    "architectures": ["RobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1, "bos_token_id": 0,
    "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
    "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 514,
    "model_type": "roberta", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
    "type_vocab_size": 1, "vocab_size": 50265,
}  # fmt: skip
XLM_ROBERTA = {
    **ROBERTA, "architectures": ["XLMRobertaForMaskedLM"], "model_type": "xlm-roberta", "output_past": True,
    "position_embedding_type": "absolute", "vocab_size": 250002,
}  # fmt: skip
DISTILBERT = {
    "activation": "gelu", "architectures": ["DistilBertForMaskedLM"], "attention_dropout": 0.1, "dim": 768,
    "dropout": 0.1, "hidden_dim": 3072, "initializer_range": 0.02, "max_position_embeddings": 512,
    "model_type": "distilbert", "n_heads": 12, "n_layers": 6, "pad_token_id": 0, "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": False, "tie_weights_": True, "vocab_size": 30522,
}  # fmt: skip
T5_SMALL = {
    "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
    "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
    "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "model_type": "t5", "n_positions": 512, "num_heads": 8,
    "num_layers": 6, "output_past": True, "pad_token_id": 0, "relative_attention_num_buckets": 32,
    "task_specific_params": {"summarization": {"num_beams": 4, "prefix": "summarize: "}}, "vocab_size": 32128,
}  # fmt: skip
FLAN_T5 = {
    **T5_SMALL, "d_model": 768, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 12, "num_heads": 12,
    "num_layers": 12, "relative_attention_max_distance": 128, "tie_word_embeddings": False,
}  # fmt: skip
MT5_SMALL = {
    **FLAN_T5, "architectures": ["MT5ForConditionalGeneration"], "d_ff": 1024, "d_model": 512, "model_type": "mt5",
    "num_decoder_layers": 8, "num_heads": 6, "num_layers": 8, "tokenizer_class": "T5Tokenizer", "vocab_size": 250112,
}  # fmt: skip
BART_BASE = {
    "activation_dropout": 0.1, "activation_function": "gelu", "add_bias_logits": False,
    "add_final_layer_norm": False, "architectures": ["BartModel"], "attention_dropout": 0.1, "bos_token_id": 0,
    "classif_dropout": 0.1, "classifier_dropout": 0.0, "d_model": 768, "decoder_attention_heads": 12,
    "decoder_ffn_dim": 3072, "decoder_layerdrop": 0.0, "decoder_layers": 6, "decoder_start_token_id": 2,
    "dropout": 0.1, "early_stopping": True, "encoder_attention_heads": 12, "encoder_ffn_dim": 3072,
    "encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_token_id": 2, "forced_bos_token_id": 0,
    "forced_eos_token_id": 2, "gradient_checkpointing": False, "init_std": 0.02, "is_encoder_decoder": True,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, "max_position_embeddings": 1024,
    "model_type": "bart", "no_repeat_ngram_size": 3, "normalize_before": False, "normalize_embedding": True,
    "num_beams": 4, "num_hidden_layers": 6, "pad_token_id": 1, "scale_embedding": False, "use_cache": True,
    "vocab_size": 50265,
}  # fmt: skip
BART_LARGE_CNN = {
    **BART_BASE, "_num_labels": 3, "architectures": ["BartForConditionalGeneration"], "activation_dropout": 0.0,
    "attention_dropout": 0.0, "d_model": 1024, "decoder_attention_heads": 16, "decoder_ffn_dim": 4096,
    "decoder_layers": 12, "encoder_attention_heads": 16, "encoder_ffn_dim": 4096, "encoder_layers": 12,
    "force_bos_token_to_be_generated": True, "length_penalty": 2.0, "max_length": 142, "min_length": 56,
    "num_hidden_layers": 12, "output_past": True, "prefix": " ", "vocab_size": 50264,
}  # fmt: skip


def headed(json_: dict, *architectures: str) -> dict:
    return {**json_, "architectures": list(architectures)}


RELEASED = {  # and their published parameter counts
    "bert-base-uncased": (BERT, 109_514_298),
    "bert-base-uncased, all of it": (headed(BERT, "BertForPreTraining"), 110_106_428),
    "bert-base-uncased, bare": (headed(BERT, "BertModel"), 109_482_240),
    "all-MiniLM-L6-v2": (MINILM, 22_713_216),
    "roberta-base": (ROBERTA, 124_697_433),
    "roberta-base, bare": (headed(ROBERTA, "RobertaModel"), 124_645_632),
    "xlm-roberta-base, bare": (headed(XLM_ROBERTA, "XLMRobertaModel"), 278_043_648),
    "distilbert-base-uncased": (DISTILBERT, 66_985_530),
    "distilbert-base-uncased, bare": (headed(DISTILBERT, "DistilBertModel"), 66_362_880),
    "t5-small": (T5_SMALL, 60_506_624),
    "flan-t5-base": (FLAN_T5, 247_577_856),
    "mt5-small": (MT5_SMALL, 300_176_768),
    "bart-base": (BART_BASE, 139_420_416),
    "bart-large-cnn": (BART_LARGE_CNN, 406_290_432),
}


def without(json_: dict, *keys: str) -> dict:
    return {key: value for key, value in json_.items() if key not in keys}


def again(config: ModelConfig) -> ModelConfig:
    """Written and read."""
    return config_of(json.loads(json.dumps(family_for(config).to_json(config))))


@pytest.mark.parametrize("name", RELEASED)
def test_released_configs_give_the_parameters_they_are_known_for_and_are_written_as_they_were(name):
    json_, count = RELEASED[name]
    config = config_of(json_)
    assert parameters(config) == count
    assert again(config) == config and fitted(config) == config


def test_positions_of_roberta_and_bart_begin_after_the_rows_that_padding_has():
    roberta, bart = config_of(ROBERTA), config_of(BART_BASE)
    assert (roberta.context, roberta.position_offset) == (512, 2)
    assert (bart.context, bart.position_offset) == (1024, 2)
    assert config_of({**ROBERTA, "pad_token_id": 5}).context == 508


def test_t5_of_the_first_release_scales_what_its_tied_head_reads_and_the_next_does_neither():
    first, flan, mt5 = config_of(T5_SMALL), config_of(FLAN_T5), config_of({**MT5_SMALL, "tie_word_embeddings": True})
    assert (first.tie, first.logit_scale, first.activation, first.gated) == (True, 512**-0.5, "relu", False)
    assert (flan.tie, flan.logit_scale, flan.activation, flan.gated) == (False, 1.0, "gelu_tanh", True)
    assert (mt5.tie, mt5.logit_scale) == (True, 1.0)
    assert (first.encoder_layers, first.layers, first.attention_scale, first.decoder_start) == (6, 6, 1.0, 0)
    by_transformers_5 = {**FLAN_T5, "tie_word_embeddings": True, "scale_decoder_outputs": False}
    assert config_of(by_transformers_5) == flan.resized(tie=True) == again(flan.resized(tie=True))
    assert config_of(by_transformers_5, ["shared.weight", "lm_head.weight"]) == flan
    assert config_of(FLAN_T5, ["shared.weight"]) == flan.resized(tie=True)
    assert config_of(T5_SMALL, ["shared.weight", "lm_head.weight"]) == first  # a copy, which must be equal


def test_a_shallower_decoder_and_a_lone_encoder_of_t5_are_told_apart():
    both = config_of({**T5_SMALL, "num_decoder_layers": 2})
    assert (both.encoder_layers, both.layers) == (6, 2)
    lone = config_of(headed({**T5_SMALL, "num_decoder_layers": 2}, "T5EncoderModel"))
    assert (lone.kind, lone.layers, lone.encoder_layers, lone.lm_head) == ("encoder", 6, 0, False)
    assert again(both) == both and again(lone) == lone


def test_absent_keys_take_the_defaults_of_transformers():
    bare = ("layer_norm_eps", "pad_token_id", "type_vocab_size", "max_position_embeddings", "hidden_act")
    assert config_of(without(BERT, *bare)) == config_of(BERT)
    assert config_of(without(ROBERTA, "pad_token_id", "bos_token_id", "eos_token_id")) == config_of(ROBERTA)
    assert config_of(without(T5_SMALL, "pad_token_id", "eos_token_id", "decoder_start_token_id")) == config_of(T5_SMALL)
    assert config_of(without(MT5_SMALL, "feed_forward_proj", "tie_word_embeddings")).gated
    assert config_of(without(BART_BASE, "decoder_start_token_id", "scale_embedding")) == config_of(BART_BASE)


HEADS = [
    (BERT, "BertModel", ("pooler",)),
    (BERT, "BertForNextSentencePrediction", ("pooler", "next_sentence")),
    (BERT, "BertForPreTraining", ("lm_head", "pooler", "next_sentence")),
    (BERT, "BertForSequenceClassification", ("pooler",)),
    (BERT, "BertForTokenClassification", ()),
    (ROBERTA, "RobertaForSequenceClassification", ()),
    (DISTILBERT, "DistilBertModel", ()),
    (DISTILBERT, "DistilBertForMaskedLM", ("lm_head",)),
    (T5_SMALL, "T5WithLMHeadModel", ("lm_head",)),
    (T5_SMALL, "T5Model", ()),
    (BART_BASE, "BartModel", ("lm_head",)),
    (BART_BASE, "BartForSequenceClassification", ()),
]


@pytest.mark.parametrize(("base", "name", "heads"), HEADS, ids=[name for _, name, _ in HEADS])
def test_the_class_says_which_heads_there_are(base, name, heads):
    config = config_of(headed(base, name))
    assert tuple(flag for flag in ("lm_head", "pooler", "next_sentence") if getattr(config, flag)) == heads
    assert again(config) == config
    if "Classification" in name:
        assert config.classifier == ("token" if "Token" in name else "sequence")
        assert config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")[: len(config.labels)]
        assert len(config.labels) == (3 if "Bart" in name else 2)


EMBED = ("embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.bias")


def test_stored_tensors_decide_on_heads_that_the_class_leaves_out_or_asks_for():
    stored = [*EMBED, "pooler.dense.weight", "cls.predictions.bias", "cls.seq_relationship.bias"]
    full = config_of(headed(BERT, "BertForPreTraining"))
    assert config_of(BERT, stored) == config_of(headed(BERT, "BertModel"), stored) == full
    assert config_of(without(BERT, "architectures"), stored) == full
    assert config_of(headed(BERT, "BertForPreTraining"), [*EMBED, "cls.predictions.bias"]) == config_of(BERT)
    assert not config_of(MINILM, EMBED).pooler and config_of(MINILM, stored[:3]).pooler
    assert config_of(BART_LARGE_CNN, ["model.shared.weight", "final_logits_bias"]).head_bias
    assert not config_of(BART_LARGE_CNN, ["model.shared.weight"]).head_bias


def test_labels_come_in_the_order_of_their_numbers_with_what_they_are_for():
    base = headed(BERT, "BertForSequenceClassification")
    named = config_of({**base, "id2label": {"1": "yes", "0": "no", "2": "perhaps"}})
    assert (named.labels, named.problem) == (("no", "yes", "perhaps"), "single_label")
    assert config_of({**base, "num_labels": 1}).problem == "single_label"  # one probability
    assert config_of({**base, "num_labels": 1, "problem_type": "regression"}).problem == "regression"
    assert config_of({**base, "problem_type": "multi_label_classification"}).problem == "multi_label"
    written = FAMILIES["bert"].to_json(named)
    assert written["id2label"] == {"0": "no", "1": "yes", "2": "perhaps"} and written["label2id"]["yes"] == 1


REFUSED = [
    (BERT, {"architectures": ["BertForQuestionAnswering"]}, r"architectures BertForQuestionAnswering \(known: BertM"),
    (BERT, {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
    (BERT, {"is_decoder": True}, "is_decoder True"),
    (BERT, {"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu'"),
    (BERT, {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    (BERT, {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    (ROBERTA, {"hidden_act": "relu"}, "hidden_act 'relu'"),
    (DISTILBERT, {"architectures": ["DistilBertForQuestionAnswering"]}, "DistilBertForQuestionAnswering"),
    (T5_SMALL, {"architectures": ["T5ForQuestionAnswering"]}, "T5ForQuestionAnswering"),
    (T5_SMALL, {"feed_forward_proj": "gated-mish"}, "feed_forward_proj 'gated-mish'"),
    (BART_BASE, {"architectures": ["BartForCausalLM"]}, "BartForCausalLM"),
    (BART_BASE, {"normalize_before": True}, "normalize_before"),
    (BART_BASE, {"add_final_layer_norm": True}, "add_final_layer_norm"),
    (BART_BASE, {"tie_word_embeddings": False}, "tie_word_embeddings"),
    (BART_BASE, {"decoder_ffn_dim": 1024}, "decoder_ffn_dim 1024 beside an encoder's 3072"),
    (BART_BASE, {"decoder_attention_heads": 6}, "decoder_attention_heads 6 beside an encoder's 12"),
]


@pytest.mark.parametrize(("base", "change", "named"), REFUSED, ids=[named for _, _, named in REFUSED])
def test_what_would_change_the_function_is_refused_by_name(base, change, named):
    with pytest.raises(UserError, match=named) as caught:
        config_of({**base, **change})
    assert caught.value.code == Exit.MISMATCH and caught.value.hint


WRONG = [
    (BERT, {"architectures": "BertModel"}, "architectures is 'BertModel'"),
    (headed(BERT, "BertForTokenClassification"), {"id2label": {"0": "a", "2": "b"}}, "id2label is"),
    (headed(BERT, "BertForTokenClassification"), {"id2label": ["a", "b"]}, "id2label is"),
    (headed(BERT, "BertForTokenClassification"), {"num_labels": 1 << 30}, "num_labels is 1073741824"),
    (ROBERTA, {"pad_token_id": None}, "pad_token_id is null"),
    (ROBERTA, {"max_position_embeddings": 2}, "max_position_embeddings is 2"),
    (T5_SMALL, {"relative_attention_num_buckets": 2}, "relative_attention_num_buckets is 2"),
    (T5_SMALL, {"relative_attention_max_distance": 16}, "relative_attention_max_distance, 16"),
    (T5_SMALL, {"scale_decoder_outputs": "no"}, "scale_decoder_outputs is 'no'"),
    (BERT, {"num_attention_heads": 7}, "does not divide"),
]


@pytest.mark.parametrize(("base", "change", "said"), WRONG, ids=[said for _, _, said in WRONG])
def test_absurd_values_are_refused_with_what_was_found(base, change, said):
    with pytest.raises(UserError, match=said) as caught:
        config_of({**base, **change})
    assert caught.value.code == Exit.MISMATCH


def test_missing_keys_are_named_all_at_once_as_the_family_spells_them():
    with pytest.raises(UserError, match="lacks dim, n_layers, n_heads, hidden_dim, vocab_size"):
        config_of({"model_type": "distilbert"})
    with pytest.raises(UserError, match="lacks d_model, num_layers, vocab_size, num_heads, d_ff"):
        config_of({"model_type": "t5"})
    with pytest.raises(UserError, match="lacks vocab_size, d_model, decoder_layers, encoder_layers"):
        config_of({"model_type": "bart"})


FITTING = [
    ("bert", {}, "bert"),
    ("bert", {"token_types": 0}, "distilbert"),
    ("bert", {"tie": False}, "bert"),
    ("bert", {"position_offset": 2, "pad": 1}, "roberta"),
    ("bert", {"head_transform": False}, "llmctl"),
    ("bert", {"position": "rope"}, "llmctl"),
    ("bert", {"norm_place": "pre"}, "llmctl"),
    ("t5", {}, "t5"),
    ("t5", {"tie": True}, "t5"),
    ("t5", {"tie": False, "logit_scale": 0.5}, "llmctl"),
    ("t5", {"gated": False, "activation": "relu"}, "t5"),
    ("t5", {"norm": "layer"}, "llmctl"),
    ("bart", {}, "bart"),
    ("bart", {"layers": 2, "encoder_layers": 3}, "bart"),
    ("bart", {"tie": False}, "llmctl"),
    ("bart", {"position_offset": 0}, "llmctl"),
]


@pytest.mark.parametrize(("family", "changes", "model_type"), FITTING)
def test_a_config_is_written_as_a_model_type_that_can_say_all_of_it(family, changes, model_type):
    config = fitted(shape("1m", 100, family, changes))
    assert config.model_type == model_type
    names = {rule.theirs for rule in family_for(config).names(config)}
    written = json.loads(json.dumps(family_for(config).to_json(config)))
    assert config_of(written, names) == config
