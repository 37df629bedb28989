"""Shapes of models with parts cut out: shares, what goes along, what cannot be."""

import pytest
import torch

from llmctl.core.model.position import alibi_slopes
from llmctl.errors import Exit, UserError
from llmctl.spec.families import fitted
from llmctl.spec.model import ModelConfig
from llmctl.spec.slim import SlimConfig, alike, renumbered, slimmed
from tests.core.variants import VARIANTS
from tests.spec.configs import RELEASED


def shape(config: ModelConfig, **how: object) -> tuple[int, ...]:
    made = slimmed(config, SlimConfig(**how)).config
    return made.heads, made.kv_heads, made.head_dim, made.ff, made.width, made.layers


def test_sizes_are_numbers_or_shares_and_neurons_stay_in_step_with_kernels():
    llama = RELEASED["Llama-3 8B"][0]
    assert shape(llama, heads=0.5, layers=24) == (16, 4, 128, 14336, 4096, 24)
    assert shape(llama, ff=0.7, width=0.75) == (32, 8, 128, 10048, 3072, 32)
    assert shape(llama, ff=10001) == (32, 8, 128, 10001, 4096, 32)
    assert shape(llama, heads=0.01) == (4, 1, 128, 14336, 4096, 32)


def test_where_heads_have_no_size_they_go_with_the_width_and_neurons_too_where_these_follow_from_it():
    made = slimmed(RELEASED["GPT-2"][0].resized(model_type="gpt2"), SlimConfig(width=0.5, ff=0.5))
    assert (made.config.width, made.config.heads, made.config.head_dim, made.config.ff) == (384, 6, 64, 1536)
    assert "heads 12 -> 6" in made.along
    made = slimmed(VARIANTS["bloom"], SlimConfig(width=0.5))
    assert (made.config.heads, made.config.ff, fitted(made.config).model_type) == (3, 48, "bloom")
    assert "heads" in made.along and "ff" in made.along


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("gpt2", {"heads": 0.5}, "has no size of a head"),
        ("bloom", {"ff": 0.5}, "has no number of neurons"),
        ("llama", {"heads": 3}, "multiple of 2"),
        ("llama", {"width": 25}, "24"),
        ("llama", {"encoder_layers": 1}, "Use --layers"),
        ("llama", {"drop_layers": ("2",)}, "there are 2 layers"),
        ("llama", {"drop_layers": ("0", "1")}, "without layers"),
        ("odd", {"heads": 2}, "ALiBi"),
        ("vaswani", {"width": 12}, "Sinusoidal"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(name, how, said):
    with pytest.raises(UserError) as caught:
        slimmed(VARIANTS[name], SlimConfig(**how))
    assert said in f"{caught.value} {caught.value.hint}" and caught.value.code == Exit.MISMATCH


@pytest.mark.parametrize(
    "how", [{"ff": 0}, {"ff": 1.5}, {"heads": -1}, {"drop_layers": ("x.1",)}, {"drop_layers": ("1",), "layers": 2}]
)
def test_what_makes_no_sense_is_a_wrong_option(how):
    with pytest.raises(UserError) as caught:
        SlimConfig(**how)
    assert caught.value.code == Exit.USAGE


def test_what_is_said_of_layers_by_number_moves_with_them():
    config = ModelConfig(vocab=9, width=8, layers=6, heads=2, ff=8, context=8, window=4, window_layers=(0, 2, 4),
                         rope_skip=(1, 5), rope_theta=1e6, rope_local_theta=1e4)  # fmt: skip
    made = renumbered(config, {"decoder": (1, 2, 5)})
    assert (made.layers, made.window_layers, made.rope_skip, made.window) == (3, (1,), (0, 2), 4)
    made = renumbered(config, {"decoder": (0, 2)})
    assert (made.window, made.window_layers, made.rope_skip) == (4, None, ())
    made = renumbered(config, {"decoder": (1, 3)})
    assert (made.window, made.window_layers, made.rope_local_theta) == (None, None, None)


def test_slopes_of_fewer_heads_are_found_among_those_there_are():
    config = VARIANTS["bloom"].resized(heads=8, kv_heads=8)
    assert alike(config, 4) == (1, 3, 5, 7)
    assert alike(config, 6) == (1, 3, 5, 7, 0, 2)
    assert alike(VARIANTS["bloom"], 4) == (0, 1, 2, 3)
    assert alike(config.resized(kv_heads=4), 4) is None
    for heads in range(2, 40):
        for fewer in range(1, heads):
            kept = alike(config.resized(heads=heads, kv_heads=heads), fewer)
            assert torch.equal(alibi_slopes(heads)[list(kept)], alibi_slopes(fewer))


@pytest.mark.parametrize("name", VARIANTS)
def test_half_of_the_layers_is_always_possible(name):
    config = VARIANTS[name]
    made = slimmed(config, SlimConfig(layers=0.5)).config
    assert made.layers == 1 and fitted(made).model_type == fitted(config).model_type


def test_encoder_layers_follow_those_of_the_decoder():
    assert slimmed(VARIANTS["t5"], SlimConfig(layers=1)).config.stacks == {"encoder": 1, "decoder": 1}
    assert slimmed(VARIANTS["t5"], SlimConfig(encoder_layers=1)).config.stacks == {"encoder": 1, "decoder": 2}
    assert slimmed(VARIANTS["t5"], SlimConfig(drop_layers=("encoder.0",))).config.stacks == {"encoder": 2, "decoder": 2}
