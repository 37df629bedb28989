"""First weights: the same for a seed whatever else happens, and of the deviations that GPT-2 prescribes."""

import math

import torch

from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig
from tests.core.variants import VARIANTS


def test_a_seed_gives_the_same_weights_whatever_the_global_generator():
    torch.manual_seed(1)
    one = initialise(Transformer(VARIANTS["gpt2"]), 7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    other = initialise(Transformer(VARIANTS["gpt2"]), 7)
    assert torch.equal(before, torch.get_rng_state())
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    another = initialise(Transformer(VARIANTS["gpt2"]), 8)
    assert not torch.equal(one.embed.tokens.weight, another.embed.tokens.weight)


def test_a_dtype_rounds_the_same_weights():
    one = initialise(Transformer(VARIANTS["llama"]), 7)
    half = initialise(Transformer(VARIANTS["llama"], dtype=torch.bfloat16), 7)
    for (name, a), (_, b) in zip(one.named_parameters(), half.named_parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b), name


def test_a_layer_more_leaves_the_other_layers_matrices_as_they_were():
    few, more = (initialise(Transformer(VARIANTS["llama"].resized(layers=n)), 0) for n in (1, 2))
    assert torch.equal(few.decoder.layers["0"].attention.q.weight, more.decoder.layers["0"].attention.q.weight)


def test_deviations_are_as_asked_and_smaller_where_the_stream_is_added_to():
    config = ModelConfig(vocab=512, width=128, layers=8, heads=4, ff=256, context=8, init_std=0.1, tie=False)
    model = initialise(Transformer(config), 0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == 1).all(), name
            continue
        wanted = 0.1 / (math.sqrt(16) if name.endswith(("out.weight", "down.weight")) else 1)
        assert abs(parameter.std().item() / wanted - 1) < 0.03, name  # 16384 draws: 3 % is over 5 deviations
        assert abs(parameter.mean().item()) < 0.03 * wanted


def test_biases_are_zero_and_norms_one():
    for name, parameter in initialise(Transformer(VARIANTS["bloom"]), 0).named_parameters():
        if parameter.dim() == 1:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name
