"""Random tiny encoders and encoder-decoders made by transformers: every family, every head, each way configs differ."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from transformers import MT5Config, PreTrainedModel, T5Config

VOCAB, PAD, EOS = 99, 1, 2
BERT = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 56, "max_position_embeddings": 64, "pad_token_id": PAD,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": VOCAB, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 56, "max_position_embeddings": 64,
    "pad_token_id": PAD,
}  # fmt: skip
T5 = {
    "vocab_size": VOCAB, "d_model": 32, "d_kv": 6, "d_ff": 56, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "pad_token_id": PAD,
    "eos_token_id": EOS, "decoder_start_token_id": PAD,
}  # fmt: skip
T5_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
BART = {
    "vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 56, "decoder_ffn_dim": 56, "max_position_embeddings": 64,
    "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": EOS,
}  # fmt: skip
NAMED = {"id2label": {0: "no", 1: "perhaps", 2: "yes"}}


class Case(NamedTuple):
    """One model: the class of transformers and its config."""

    kind: type[PreTrainedModel]
    config: Callable[[], object]


def case(name: str, shape: dict, **changes: object) -> Case:
    kind = getattr(transformers, name)
    return Case(kind, lambda: kind.config_class(**{**shape, **changes}))


CASES: dict[str, Case] = {
    "bert": case("BertModel", BERT),
    "bert-mlm": case("BertForMaskedLM", BERT, hidden_act="gelu_new", layer_norm_eps=1e-3),
    "bert-mlm-untied": case("BertForMaskedLM", BERT, tie_word_embeddings=False, hidden_act="relu"),
    "bert-pretraining": case("BertForPreTraining", BERT, type_vocab_size=3),
    "bert-nsp": case("BertForNextSentencePrediction", BERT),
    "bert-sequence": case("BertForSequenceClassification", BERT, **NAMED),
    "bert-regression": case("BertForSequenceClassification", BERT, num_labels=1),
    "bert-token": case("BertForTokenClassification", BERT, num_labels=5),
    "roberta": case("RobertaModel", BERT, type_vocab_size=1),
    "roberta-mlm": case("RobertaForMaskedLM", BERT, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=3),
    "roberta-mlm-untied": case("RobertaForMaskedLM", BERT, tie_word_embeddings=False),
    "roberta-sequence": case("RobertaForSequenceClassification", BERT, problem_type="multi_label_classification"),
    "roberta-token": case("RobertaForTokenClassification", BERT, **NAMED),
    "xlm-roberta-mlm": case("XLMRobertaForMaskedLM", BERT, type_vocab_size=1),
    "distilbert": case("DistilBertModel", DISTILBERT, sinusoidal_pos_embds=True),
    "distilbert-mlm": case("DistilBertForMaskedLM", DISTILBERT),
    "distilbert-mlm-untied": case("DistilBertForMaskedLM", DISTILBERT, tie_word_embeddings=False, activation="relu"),
    "distilbert-sequence": case("DistilBertForSequenceClassification", DISTILBERT, **NAMED),
    "distilbert-token": case("DistilBertForTokenClassification", DISTILBERT),
    "t5": case("T5ForConditionalGeneration", T5),
    "t5-deeper-encoder": case("T5ForConditionalGeneration", T5, num_layers=3, num_decoder_layers=1),
    "t5-1.1": case("T5ForConditionalGeneration", T5, **T5_1, layer_norm_epsilon=1e-3),
    "t5-1.1-tied": case("T5ForConditionalGeneration", T5, **T5_1),
    "t5-silu": case("T5ForConditionalGeneration", T5, feed_forward_proj="gated-silu"),
    "t5-model": case("T5Model", T5),
    "t5-encoder": case("T5EncoderModel", T5, **T5_1),
    "t5-sequence": case("T5ForSequenceClassification", T5, **NAMED),
    "t5-token": case("T5ForTokenClassification", T5, num_labels=4),
    "mt5": case("MT5ForConditionalGeneration", T5),
    "bart": case("BartForConditionalGeneration", BART),
    "bart-scaled": case("BartForConditionalGeneration", BART, scale_embedding=True, activation_function="relu"),
    "bart-deeper-decoder": case("BartForConditionalGeneration", BART, encoder_layers=1, decoder_layers=3),
    "bart-model": case("BartModel", BART),
    "bart-sequence": case("BartForSequenceClassification", BART),
}
OWN_HEADS = ("t5-1.1", "mt5")  # transformers ties them when it makes a model, and not when it reads one that does not


def make(name: str, seed: int = 0) -> PreTrainedModel:
    """The model, in fp32 and eval mode, every parameter and lasting buffer random, norms and biases too.

    T5 does not scale its scores; matrices as large as the others' would make every softmax a choice of one key, and
    fp32 then strays 1e-4 from the truth in both implementations.
    """
    kind, config = CASES[name]
    deviation = 0.2 if issubclass(kind.config_class, (T5Config, MT5Config)) else 0.3
    model = kind(config()).eval()
    if name in OWN_HEADS:
        model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCAB, 32))
        model.all_tied_weights_keys.pop("lm_head.weight")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in [*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())]:
            drawn = torch.randn(one.shape, generator=generator)
            one.copy_(drawn * deviation + (one.dim() == 1))
    return model


def saved(name: str, directory: Path) -> PreTrainedModel:
    """The model, once transformers has written it to `directory`."""
    model = make(name)
    model.save_pretrained(directory)
    return model


def rows(padded: bool = False, length: int = 24, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of random ids that end with EOS, (2, length) int64, and their mask, (2, length) int64, 0 for padding."""
    ids = torch.randint(4, VOCAB, (2, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    ids[:, -1] = EOS
    if padded:
        mask[0, length - 7 :] = 0
        ids[0, length - 8] = EOS
    return ids * mask + PAD * (1 - mask), mask
