"""NoiseConfig and which objective suits which kind of model."""

from typing import get_args

import pytest

from llmctl.errors import Exit, UserError
from llmctl.spec.model import Kind
from llmctl.spec.noise import SUITS, USUAL, NoiseConfig, Objective, suited


def test_every_kind_has_a_usual_objective_that_suits_it():
    assert SUITS.keys() == set(get_args(Objective)) and USUAL.keys() == set(get_args(Kind))
    for kind in get_args(Kind):
        assert suited(None, kind) == USUAL[kind] and kind in SUITS[USUAL[kind]]


@pytest.mark.parametrize("objective", get_args(Objective))
@pytest.mark.parametrize("kind", get_args(Kind))
def test_an_objective_that_does_not_suit_is_refused_with_those_that_do(objective, kind):
    if kind in SUITS[objective]:
        assert suited(objective, kind) == objective
        return
    with pytest.raises(
        UserError, match=rf"--objective {objective.replace('+', '.')} trains .* model is an? {kind}\."
    ) as caught:
        suited(objective, kind)
    assert caught.value.code == Exit.USAGE
    assert USUAL[kind] in caught.value.hint and objective not in caught.value.hint.split()


def test_defaults_are_those_of_the_papers():
    noise = NoiseConfig()
    assert (noise.mask_rate, noise.random_share, noise.keep_share) == (0.15, 0.1, 0.1)
    assert (noise.noise_density, noise.mean_span, noise.denoise_rate) == (0.15, 3.0, 0.3)
    assert noise.text_infilling and noise.sentence_permutation
    assert not (noise.token_masking or noise.token_deletion or noise.document_rotation)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("mask_rate", 0.0), ("mask_rate", 1.1), ("random_share", -0.1), ("keep_share", 1.5), ("noise_density", 1.0)],
        *[("noise_density", 0.0), ("mean_span", 0.5), ("denoise_rate", 1.0), ("fim_rate", 1.1), ("spm_rate", -1.0)],
        *[("mask_rate", float("nan")), ("mean_span", float("inf"))],
    ],
)
def test_a_value_out_of_range_is_refused_by_its_flag(name, value):
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is {value}, wanted") as caught:
        NoiseConfig(**{name: value})
    assert caught.value.code == Exit.USAGE


def test_shares_of_what_is_asked_for_are_at_most_all_of_it():
    with pytest.raises(UserError, match=r"0\.6 and --keep-share 0\.5 are more than 1"):
        NoiseConfig(random_share=0.6, keep_share=0.5)
    NoiseConfig(random_share=0.5, keep_share=0.5)


def test_denoising_without_noise_is_refused():
    with pytest.raises(UserError, match="no noise left") as caught:
        NoiseConfig(text_infilling=False, sentence_permutation=False)
    assert "--token-deletion" in caught.value.hint
    NoiseConfig(text_infilling=False, sentence_permutation=False, token_deletion=True)
