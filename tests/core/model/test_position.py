"""Positions: angles, slopes and sinusoids against hand-computed values and identities."""

import math

import pytest
import torch

from llmctl.core.model.position import Rotary, alibi_slopes, rope_frequencies, rotate, sinusoids
from llmctl.spec.model import ModelConfig, RopeScaling


def config(scaling: RopeScaling | None = None, context: int = 64) -> ModelConfig:
    return ModelConfig(
        vocab=9, width=32, layers=1, heads=2, ff=8, context=context, rope_theta=100.0, rope_scaling=scaling
    )


def test_rotation_by_hand():
    frequencies, factor = rope_frequencies(ModelConfig(vocab=9, width=4, layers=1, heads=1, ff=8, context=8))
    assert frequencies.tolist() == pytest.approx([1.0, 0.01]) and factor == 1.0
    angles = Rotary(ModelConfig(vocab=9, width=4, layers=1, heads=1, ff=8, context=8))(
        torch.tensor([[2]]), torch.float32
    )
    turned = rotate(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), angles)[0, 0, 0]
    expected = [
        math.cos(2) - 3 * math.sin(2),  # channel 0 turns with channel 2, by 2 x 1 radians
        2 * math.cos(0.02) - 4 * math.sin(0.02),
        3 * math.cos(2) + math.sin(2),
        4 * math.cos(0.02) + 2 * math.sin(0.02),
    ]
    assert turned.tolist() == pytest.approx(expected)


def test_rotated_scores_depend_on_distance_alone():
    rotary = Rotary(config())
    q, k = torch.randn(2, 1, 2, 7, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def scores(shift: int) -> torch.Tensor:
        angles = rotary(torch.arange(7)[None] + shift, torch.float64)
        return rotate(q, angles) @ rotate(k, angles).transpose(-1, -2)

    torch.testing.assert_close(scores(0), scores(40), atol=1e-4, rtol=1e-4)  # the angles themselves are float32


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_a_factor_of_one_changes_nothing(kind):
    plain, _ = rope_frequencies(config())
    found, factor = rope_frequencies(config(RopeScaling(kind, 1.0, original_context=32)))
    torch.testing.assert_close(found, plain)
    assert factor == 1.0


def test_llama3_presses_slow_channels_and_leaves_fast_ones():
    plain, _ = rope_frequencies(config())
    found, _ = rope_frequencies(config(RopeScaling("llama3", 8.0, original_context=64)))
    turns = 64 * plain / (2 * math.pi)
    torch.testing.assert_close(found[turns > 4], plain[turns > 4])
    torch.testing.assert_close(found[turns < 1], plain[turns < 1] / 8)
    middle = (turns > 1) & (turns < 4)
    assert middle.any() and (found[middle] < plain[middle]).all() and (found[middle] > plain[middle] / 8).all()


def test_yarn_sharpens_attention_by_the_logarithm_of_its_factor():
    assert rope_frequencies(config(RopeScaling("yarn", 4.0)))[1] == pytest.approx(0.1 * math.log(4) + 1)
    assert rope_frequencies(config(RopeScaling("yarn", 4.0, attention_factor=0.5)))[1] == 0.5


def test_dynamic_scaling_begins_where_the_context_ends():
    rotary, plain = Rotary(config(RopeScaling("dynamic", 2.0), context=8)), Rotary(config(context=8))
    inside, beyond = torch.arange(8)[None], torch.arange(9)[None]
    for one, other in zip(rotary(inside, torch.float32), plain(inside, torch.float32), strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(rotary(beyond, torch.float32)[1], plain(beyond, torch.float32)[1])


def test_slopes_halve_for_eight_heads_and_interleave_for_others():
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(1).tolist() == [2.0**-8]
    assert alibi_slopes(6).tolist() == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])


def test_sinusoids_by_hand_and_for_an_odd_width():
    found = sinusoids(torch.tensor([[0, 3]]), 4, torch.float32)[0]
    assert found[0].tolist() == [0, 1, 0, 1]
    assert found[1].tolist() == pytest.approx([math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)])
    assert sinusoids(torch.tensor([[0, 3]]), 5, torch.bfloat16).shape == (1, 2, 5)


def test_frequencies_stay_float32_when_the_model_is_cast():
    rotary = Rotary(config())
    assert rotary(torch.tensor([[5]]), torch.bfloat16)[0].dtype == torch.bfloat16
    assert rotary.frequencies.dtype == torch.float32


def long(context: int = 64, **changes) -> ModelConfig:
    scaling = RopeScaling("longrope", 4.0, 8, short_factor=(1.0,) * 8, long_factor=(2.0,) * 4 + (5.0,) * 4, **changes)
    return config(scaling, context)


def test_longrope_takes_the_long_factors_of_rows_beyond_the_original_context():
    rotary, plain = Rotary(long()), Rotary(config())
    attention = math.sqrt(1 + math.log(4) / math.log(8))
    for length, factors in ((8, [1.0] * 8), (9, [2.0] * 4 + [5.0] * 4)):
        places = torch.arange(length)[None]
        angles = places[:, None, :, None].float() * (plain.frequencies / torch.tensor(factors))  # (1, 1, T, 8)
        cos, sin = rotary(places, torch.float32)
        torch.testing.assert_close(cos, torch.cat((angles.cos(), angles.cos()), -1) * attention)
        torch.testing.assert_close(sin, torch.cat((-angles.sin(), angles.sin()), -1) * attention)
    assert rope_frequencies(long(attention_factor=0.5))[1] == 0.5


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_scaling_by_length_gives_a_row_the_same_in_every_batch(kind):
    rotary = Rotary(long() if kind == "longrope" else config(RopeScaling("dynamic", 2.0), context=8))
    rows = torch.stack([torch.arange(20), torch.arange(20).clamp(max=5)])
    together = rotary(rows, torch.float32)
    for i in range(2):
        for one, other in zip(together, rotary(rows[i : i + 1], torch.float32), strict=True):
            assert torch.equal(one[i : i + 1], other)


def test_channels_after_the_rotary_ones_stay_as_they_are():
    whole, part = config().resized(head_dim=6, heads=2), config().resized(head_dim=16, heads=2, rotary_dim=6)
    x, places = torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(0)), torch.arange(5)[None]
    turned = rotate(x, Rotary(part)(places, torch.float32))
    assert torch.equal(turned[..., 6:], x[..., 6:])
    torch.testing.assert_close(turned[..., :6], rotate(x[..., :6], Rotary(whole)(places, torch.float32)))


def test_local_angles_have_their_own_base_and_no_scaling():
    both = config(RopeScaling("linear", 8.0)).resized(rope_local_theta=7.0)
    assert torch.equal(Rotary(both, "local").frequencies, rope_frequencies(config().resized(rope_theta=7.0))[0])
    assert torch.equal(Rotary(both).frequencies, rope_frequencies(config())[0] / 8)
