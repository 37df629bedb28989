"""Presets: fresh models of each family, and what their options change."""

from typing import get_args

import pytest

from llmctl.errors import UserError
from llmctl.spec.families import FAMILIES, family_for, fitted
from llmctl.spec.model import ModelConfig
from llmctl.spec.presets import FRESH, PRESETS, FamilyName, PresetName, Shape, shape
from llmctl.spec.sizes import parameters


def test_the_flags_show_what_the_tables_hold():
    assert get_args(PresetName) == tuple(PRESETS)
    assert get_args(FamilyName) == tuple(FRESH)
    assert set(FRESH) <= set(FAMILIES)


def test_presets_are_the_models_they_are_named_after():
    assert parameters(shape("124m", 50257, "gpt2")) == 124_439_808
    assert parameters(shape("1b", 128256)) == 1_235_814_400
    assert parameters(shape("3b", 128256)) == 3_212_749_824
    assert parameters(shape("8b", 128256)) == 8_030_261_248


@pytest.mark.parametrize("family", ["llama", "bert", "bart"])
@pytest.mark.parametrize("name", ["1m", "5m", "15m", "30m", "60m", "124m", "350m"])
def test_small_presets_have_about_the_parameters_of_their_name(name, family):
    config = shape(name, 4096, family)
    assert parameters(config) / (float(name[:-1]) * 1e6) == pytest.approx(1, abs=0.55 if family == "bart" else 0.45)


@pytest.mark.parametrize("family", FRESH)
@pytest.mark.parametrize("name", PRESETS)
def test_every_family_can_say_its_fresh_models(name, family):
    config = shape(name, 4096, family)
    assert fitted(config) == config
    assert family_for(config) is FAMILIES[family]


def test_a_new_width_takes_the_mlp_along_and_new_heads_the_kv_heads():
    assert shape("5m", 4096, overrides={"width": 384, "heads": 6}).ff == 1024
    assert shape("5m", 4096, overrides={"heads": 2}).kv_heads == 2
    assert shape("5m", 4096, "gpt2", {"width": 128}).ff == 512
    assert shape("5m", 4096, "gpt2").kv_heads == 8
    kept = shape("5m", 4096, overrides={"width": 384, "heads": 6, "kv_heads": 3, "ff": 500})
    assert (kept.kv_heads, kept.ff) == (3, 500)


def test_bert_and_bart_at_124m_are_their_base_models():
    """Of bert-base-uncased with its masked LM head, and bart-base with a bias to its head."""
    assert parameters(shape("124m", 30522, "bert", {"context": 512})) == 109_514_298
    assert parameters(shape("124m", 50265, "bart")) == 139_420_416 + 50265


def test_an_encoder_and_a_decoder_share_the_layers_of_a_preset_and_options_set_either():
    t5 = shape("30m", 32128, "t5")
    assert t5.stacks == {"encoder": 5, "decoder": 5}
    assert shape("30m", 32128, "t5", {"layers": 3}).stacks == {"encoder": 3, "decoder": 3}
    assert Shape(preset="30m", family="bart", layers=2, encoder_layers=6).config().stacks == {
        "encoder": 6,
        "decoder": 2,
    }
    assert shape("30m", 32128, "bart", {"encoder_layers": 6}).stacks == {"encoder": 6, "decoder": 5}
    assert shape("30m", 32128, "t5", {"kind": "decoder"}).stacks == {"decoder": 10}


def test_a_native_model_is_of_any_kind_and_may_have_linear_attention():
    assert Shape(preset="5m", family="native", kind="encoder").config(100).kind == "encoder"
    both = Shape(preset="5m", family="native", kind="encoder-decoder", attention="linear").config(100)
    assert both.stacks == {"encoder": 3, "decoder": 3} and both.attention == "linear"
    assert family_for(both) is FAMILIES["native"]


def test_heads_of_relative_models_read_token_vectors_of_length_one():
    """T5's first weights: a tied head is scaled down, one of its own is small itself; scores are not scaled."""
    own, tied = shape("5m", 4096, "t5"), shape("5m", 4096, "t5", {"tie": True})
    assert (own.tie, own.logit_scale, own.attention_scale) == (False, 1.0, 1.0)
    assert (tied.tie, tied.logit_scale, tied.attention_scale) == (True, 256**-0.5, 1.0)
    assert own.kv_heads == own.heads and family_for(own) is family_for(tied) is FAMILIES["t5"]


def test_options_change_the_preset_and_absent_ones_do_not():
    config = Shape(preset="5m", layers=2, head="own", window=64).config(1000)
    assert (config.vocab, config.layers, config.width, config.tie, config.window) == (1000, 2, 256, False, 64)
    assert Shape(preset="5m").config() == shape("5m", 32000)
    assert Shape(preset="124m", family="gpt2").config().vocab == 50257
    assert isinstance(Shape(preset="1b", family="native", position="none").config(), ModelConfig)


@pytest.mark.parametrize(
    "wrong", [{"name": "7m"}, {"family": "elmo"}, {"overrides": {"depth": 3}}, {"overrides": {"heads": 7}}]
)
def test_what_is_unknown_or_does_not_fit_is_refused(wrong):
    with pytest.raises(UserError):
        shape(**{"name": "5m", "vocab": 4096} | wrong)
    with pytest.raises(UserError, match="--preset"):
        Shape().config()
