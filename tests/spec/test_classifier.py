"""Fresh heads: which shape they give, what a decoder pads with, and what no class of transformers can say."""

import pytest

from llmctl.errors import UserError
from llmctl.spec.classifier import with_classifier
from llmctl.spec.families import FAMILIES, config_of, family_for, fitted
from llmctl.spec.model import ModelConfig
from llmctl.spec.presets import shape
from llmctl.spec.sizes import parameters, shapes
from tests.core.variants import VARIANTS

NAMES = ("no", "yes")


def test_a_decoders_classifier_of_texts_is_a_matrix_alone_and_one_of_words_has_a_bias():
    base = shape("1m", 100, "llama", {"eos": (7,)})
    texts, words = with_classifier(base, "classify", NAMES), with_classifier(base, "tag", NAMES)
    assert not texts.lm_head and texts.classifier_pool == "last"
    heads = {name: dims for name, dims in shapes(texts).items() if "layers" not in name and "embed" not in name}
    assert heads == {"decoder.norm.weight": (base.width,), "classifier.out.weight": (2, base.width)}
    assert parameters(words) == parameters(texts) + 2
    assert words.classifier_dropout == 0.1 and texts.classifier_dropout is None  # where transformers has 0.1, and none


@pytest.mark.parametrize(("pad", "eos", "wanted"), [(3, (7,), 3), (None, (7, 8), 7), (None, (), None), (400, (7,), 7)])
def test_a_decoder_pads_with_its_pad_token_or_else_with_what_ends_a_text(pad, eos, wanted):
    base = shape("1m", 100, "gpt2", {"pad": pad, "eos": eos})
    assert with_classifier(base, "classify", NAMES).pad == wanted


def test_every_family_keeps_its_name_where_transformers_has_such_a_class():
    for name, base in VARIANTS.items():
        if fitted(base).model_type == "llmctl":
            continue
        for task in ("classify", "tag"):
            if (base.kind, base.model_type, task) == ("encoder-decoder", "bart", "tag"):
                continue
            config = with_classifier(base, task, NAMES)
            lacks = task == "tag" and base.model_type in ("olmo2", "gemma3_text")
            assert fitted(config).model_type == ("llmctl" if lacks else base.model_type), (name, task)
            assert config_of(family_for(config).to_json(config)) == fitted(config)


def test_a_t5_that_labels_words_is_its_encoder_alone():
    base = VARIANTS["t5"]
    words = with_classifier(base, "tag", NAMES)
    assert (words.kind, words.layers, words.encoder_layers) == ("encoder", 3, 0)
    assert shapes(words).keys() - {"classifier.out.weight", "classifier.out.bias"} < shapes(base).keys()


def test_another_head_leaves_nothing_of_the_one_before():
    base = VARIANTS["roberta"]
    words = with_classifier(base, "tag", ("O", "B-X", "I-X"))
    assert (words.classifier_dense, words.pooler, words.lm_head) == ("none", False, False)
    assert with_classifier(words, "classify", NAMES) == base.resized(labels=NAMES)
    assert with_classifier(VARIANTS["bert"], "classify", NAMES).pooler
    assert not with_classifier(VARIANTS["bert"], "tag", NAMES).pooler


def test_models_of_our_own_type_have_classifiers_too():
    for name in ("sinusoidal", "both ways", "vaswani", "prefix", "linear"):
        config = with_classifier(VARIANTS[name], "classify", NAMES)
        assert config.labels == NAMES and fitted(config) == config.resized(model_type="llmctl")


@pytest.mark.parametrize("name", ["bart", "vaswani"])
def test_an_encoder_decoder_that_has_no_form_for_words_is_refused(name):
    with pytest.raises(UserError, match="no form that labels words"):
        with_classifier(VARIANTS[name], "tag", NAMES)


@pytest.mark.parametrize("labels", [(), ("a", "a")])
def test_labels_must_be_there_and_differ(labels):
    with pytest.raises(UserError, match="labels that differ"):
        with_classifier(VARIANTS["llama"], "classify", labels)


SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
DROPS = [
    ({"model_type": "distilbert", "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}, "DistilBert", (0.2, 0.1)),
    ({"model_type": "bert", "hidden_size": 32}, "Bert", (0.1, 0.1)),
    ({"model_type": "gpt_neox", "hidden_size": 32}, "GPTNeoX", (0, 0.1)),
    ({"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 2}, "Bloom", (0.0, 0.0)),
    ({"model_type": "t5", "d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 8}, "T5", (0.0, 0.0)),
]  # fmt: skip


@pytest.mark.parametrize(("json", "prefix", "wanted"), DROPS, ids=[prefix for _, prefix, _ in DROPS])
def test_what_is_dropped_before_a_head_is_what_its_class_drops_where_the_file_says_nothing(json, prefix, wanted):
    for level, share in zip(("Sequence", "Token"), wanted, strict=True):
        said = {**json, "vocab_size": 9, **SIZES, "architectures": [f"{prefix}For{level}Classification"]}
        config = config_of(said)
        found = 0.0 if config.classifier_bare else config.classifier_dropout
        assert (config.dropout if found is None else found) == share
        written = FAMILIES["bert" if "bert" in json["model_type"] else json["model_type"]].to_json(config)
        assert config_of(written) == config
        if prefix == "Bert":
            assert config_of({**said, "classifier_dropout": 0.3}).classifier_dropout == 0.3


def test_a_class_that_transformers_does_not_have_is_refused():
    json = {"model_type": "olmo2", "vocab_size": 9, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(UserError, match=r"Olmo2ForTokenClassification \(known: Olmo2ForCausalLM, Olmo2ForSequence"):
        config_of({**json, "intermediate_size": 8, "architectures": ["Olmo2ForTokenClassification"]})


def test_a_share_that_cannot_be_dropped_is_refused():
    with pytest.raises(UserError, match="classifier_dropout is 1"):
        ModelConfig(vocab=9, width=8, layers=1, heads=1, ff=8, context=8, classifier_dropout=1.0)
