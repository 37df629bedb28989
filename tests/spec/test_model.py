"""ModelConfig: numbers that do not fit each other are refused by name, and what follows from them is right."""

import dataclasses

import pytest

from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig, RopeScaling

GOOD = {"vocab": 10, "width": 24, "layers": 3, "heads": 4, "ff": 40, "context": 16}


def test_heads_of_keys_and_their_size_follow_from_the_rest():
    config = ModelConfig(**GOOD)
    assert (config.kv_heads, config.head_dim) == (4, 6)
    assert config.resized(layers=1).layers == 1


def test_a_window_holds_in_all_layers_or_in_those_named():
    assert [ModelConfig(**GOOD, window=5).window_of(i) for i in range(3)] == [5, 5, 5]
    assert [ModelConfig(**GOOD, window=5, window_layers=(2,)).window_of(i) for i in range(3)] == [None, None, 5]
    assert ModelConfig(**GOOD).window_of(0) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab": 0}, "vocab is 0"),
        ({"layers": 20_000}, "layers is 20000"),
        ({"width": 2.5}, r"width is 2\.5"),
        ({"width": 25}, "width 25 does not divide by heads 4"),
        ({"kv_heads": 3}, "heads 4 does not divide by kv_heads 3"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"head_dim": -2}, "head_dim is -2"),
        ({"window": 0}, "window is 0"),
        ({"window": 4, "window_layers": (3,)}, "window_layers"),
        ({"norm": "batch"}, "norm is 'batch'; wanted one of rms, layer"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"norm_eps": float("inf")}, "norm_eps is inf"),
        ({"rope_theta": -1.0}, "rope_theta is -1"),
        ({"dropout": 1.0}, "dropout is 1"),
        ({"tie": 1}, "tie is 1"),
        ({"eos": 5}, "eos is 5"),
        ({"bos": "<s>"}, "bos is '<s>'"),
        ({"head_dim": 2, "rope_scaling": RopeScaling("dynamic", 2.0)}, "too small for dynamic"),
        ({"rope_theta": 1.0, "rope_scaling": RopeScaling("yarn", 2.0)}, "too small for yarn"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes, said):
    with pytest.raises(UserError, match=said) as caught:
        ModelConfig(**{**GOOD, **changes})
    assert caught.value.code == Exit.MISMATCH


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "ntk"}, "'ntk' is none of linear"),
        ({"factor": 0.0}, "factor is 0"),
        ({"kind": "llama3", "low_freq_factor": 4.0}, "must be more than its low_freq_factor"),
        ({"original_context": 0}, "original_context is 0"),
        ({"attention_factor": float("nan")}, "attention_factor is nan"),
    ],
)
def test_a_scaling_out_of_range_is_refused_by_name(changes, said):
    with pytest.raises(UserError, match=said):
        RopeScaling(**{"kind": "linear", "factor": 2.0, **changes})


def test_configs_are_values():
    assert ModelConfig(**GOOD) == ModelConfig(**GOOD) and hash(ModelConfig(**GOOD)) == hash(ModelConfig(**GOOD))
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig(**GOOD).width = 3
