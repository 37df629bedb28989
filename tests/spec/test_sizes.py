"""Parameters and operations of released models."""

import pytest

from llmctl.spec.sizes import chinchilla_tokens, flops_per_token, forward_flops, matrix_parameters, parameters, six_n
from tests.spec.configs import GPT_3, RELEASED, bert, llama, plain, t5


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


def test_an_encoder_sees_both_ways_and_its_head_meets_the_tokens_that_are_asked_for():
    model = bert(100, 8, 3, 2)
    layers, head = 3 * (4 * 8 * 8 + 2 * 8 * 32), 100 * 8 + 8 * 8  # the head's own layer before its matrix
    attention = 3 * 2 * (2 * 8 * 16)
    assert forward_flops(model, 16, scored=0.5) == 2 * layers + head + attention
    assert forward_flops(model, 16, causal=True, scored=0.5) == forward_flops(model, 16, scored=0.5)
    assert forward_flops(model, 16) == round(2 * layers + 0.15 * 2 * head + attention)
    windowed = model.resized(window=4)  # 3 tokens before, itself and 3 after, fewer at the ends
    met = sum(min(15, i + 3) - max(0, i - 3) + 1 for i in range(16)) / 16
    assert forward_flops(windowed, 16, scored=0.5) == 2 * layers + head + round(3 * 4 * 8 * met)


def test_each_matrix_of_an_encoder_decoder_counts_for_the_tokens_that_pass_through_it():
    model, wide = t5(8, 2, 1, 24).resized(encoder_layers=3), 64  # one head of 64
    mlp, four = 2 * 8 * 24, 4 * 8 * wide
    source, target = 20, 5
    encoder = 3 * (four + mlp) * source + 2 * (2 * 8 * wide) * source  # and keys and values for the decoder
    decoder = 2 * (four + 2 * 8 * wide + mlp) * target + 32128 * 8 * target
    attention = 2 * wide * (3 * source * source + 2 * target * target + 2 * target * source)
    row = 2 * (encoder + decoder + attention)
    assert forward_flops(model, target, source=source) == round(row / (source + target))
    assert matrix_parameters(model) == 3 * (four + mlp) + 2 * (2 * four + mlp) + 32128 * 8


def test_linear_attention_costs_the_same_for_each_token_of_any_row():
    model = llama(100, 64, 2, 4, 2, 176, 8192, attention="linear", position="none")
    first, later = (forward_flops(model, length) for length in (64, 8192))
    assert first == later
    chunk, state = 4 * (4 * 64 * 16), 2 * 4 * 16 * 16 + 2 * 2 * 16 * 16  # read by 4 heads, added to by 2
    assert first - 2 * matrix_parameters(model) == 2 * (chunk + state)


def test_chinchilla_asks_for_twenty_tokens_a_parameter():
    config, count = RELEASED["Llama-2 7B"]
    assert chinchilla_tokens(config) == 20 * count
