"""Parameters and operations of released models."""

import pytest

from llmctl.spec.sizes import chinchilla_tokens, flops_per_token, forward_flops, matrix_parameters, parameters, six_n
from tests.spec.configs import GPT_3, RELEASED, llama, plain


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_have_the_parameters_that_their_authors_counted(name):
    config, count = RELEASED[name]
    assert parameters(config) == count


@pytest.mark.parametrize(
    ("layers", "width", "heads", "billions"),
    [
        (24, 2304, 24, 1.7), (30, 3072, 32, 3.6), (36, 4096, 32, 7.5), (40, 6144, 48, 18.4), (48, 8192, 64, 39.1),
        (60, 10240, 80, 76.1), (80, 12288, 96, 145.6), (96, 16384, 128, 310.1), (105, 20480, 128, 529.6),
        (128, 25600, 160, 1008.0),
    ],
)  # fmt: skip
def test_the_ten_gpts_of_the_megatron_paper_come_out(layers, width, heads, billions):
    """Source: Narayanan et al., arXiv:2104.04473, table 1 (vocabulary 51200, 2048 positions)."""
    config = plain(51200, width, layers, heads, 2048, position="learned")
    assert round(parameters(config) / 1e9, 1) == billions


def test_operations_are_two_for_every_weight_in_a_product_and_the_backward_pass_costs_twice_the_forward_pass():
    config = llama(100, 8, 3, 2, 1, 24, 64)
    weights = 3 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 24) + 100 * 8  # q and out; k and v; the MLP; the head
    assert matrix_parameters(config) == weights
    scores_and_values = 3 * 2 * (2 * 8 * 16)  # layers, two products, 16 keys of 2 heads of 4
    assert forward_flops(config, 16) == 2 * weights + scores_and_values
    assert flops_per_token(config, 16) == 3 * forward_flops(config, 16)


def test_six_n_agrees_with_the_published_totals():
    """GPT-3: 3.14e23 (Brown et al., table D.1), 300e9 tokens."""
    assert six_n(GPT_3) == 6 * parameters(GPT_3)
    assert parameters(GPT_3) == pytest.approx(174.6e9, rel=1e-3)
    assert six_n(GPT_3) * 300e9 == pytest.approx(3.14e23, rel=2e-3)


def test_a_causal_mask_halves_attention_and_a_window_bounds_it():
    full, window = llama(100, 8, 2, 2, 2, 24, 64), llama(100, 8, 2, 2, 2, 24, 64, window=4)
    linear = 2 * matrix_parameters(full)
    met = sum(range(1, 17)) / 16  # keys that a query meets on average
    assert forward_flops(full, 16, causal=True) - linear == 2 * 4 * 8 * met
    assert forward_flops(window, 16) - linear == 2 * 4 * 8 * 4
    met = sum(min(i, 4) for i in range(1, 17)) / 16
    assert forward_flops(window, 16, causal=True) - linear == 2 * 4 * 8 * met


def test_chinchilla_asks_for_twenty_tokens_a_parameter():
    config, count = RELEASED["Llama-2 7B"]
    assert chinchilla_tokens(config) == 20 * count
