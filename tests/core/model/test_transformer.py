"""Transformer: names, packing, dropout, the tied head, and passes that never wait for the device."""

import copy
from typing import get_args

import pytest
import torch

from llmctl.core.model.cache import KVCache
from llmctl.core.model.init import initialise
from llmctl.core.model.layers import ACTIVATIONS, NORMS
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.model import Activation, Norm
from llmctl.spec.sizes import shapes
from tests.core.variants import VARIANTS


def built(name: str, seed: int = 0) -> Transformer:
    return initialise(Transformer(VARIANTS[name]), seed).eval()


def drawn(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_those_that_the_config_promises(name):
    model = Transformer(VARIANTS[name], device="meta")
    assert {name: tuple(one.shape) for name, one in model.named_parameters()} == shapes(VARIANTS[name])
    assert model.state_dict().keys() == shapes(VARIANTS[name]).keys()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_document_packed_with_others_has_the_hidden_states_it_has_alone(name):
    model, documents = built(name), [drawn(1, 7), drawn(1, 4), drawn(1, 9)]
    segments = torch.cat([torch.full((1, one.shape[1]), i + 1) for i, one in enumerate(documents)], dim=1)
    positions = torch.cat([torch.arange(one.shape[1])[None] for one in documents], dim=1)
    packed = model(torch.cat(documents, dim=1), positions=positions, segments=segments)
    alone = torch.cat([model(one) for one in documents], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_token_changes_nothing_before_itself(name):
    model, tokens = built(name), drawn(1, 12)
    changed = tokens.clone()
    changed[0, 8] = (changed[0, 8] + 1) % 61
    one, other = model(tokens), model(changed)
    assert torch.equal(one[:, :8], other[:, :8]) and not torch.allclose(one[:, 8], other[:, 8])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_pass_reads_no_value_back_from_the_device(name):
    """Tensors without data run through it: whatever would wait for a value raises there."""
    model = Transformer(VARIANTS[name], device="meta")
    tokens = torch.zeros(2, 9, dtype=torch.int64, device="meta")
    assert model.head(model(tokens, segments=tokens)).shape == (2, 9, 61)
    assert model.head(model(tokens)).shape == (2, 9, 61)
    cache = KVCache.allocate(VARIANTS[name], 2, 16, device="meta")
    for part in tokens.split([7, 1, 1], dim=1):
        assert model(part, segments=part, cache=cache).shape[:2] == part.shape


def test_no_positions_means_that_order_is_seen_by_the_mask_alone():
    model = built("none")
    tokens = torch.tensor([[5, 5, 5, 5]])
    hidden = model(tokens)
    torch.testing.assert_close(hidden[:, 0], hidden[:, 3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "sinusoidal"])
def test_with_positions_a_repeated_token_is_not_the_same_token(name):
    hidden = built(name)(torch.tensor([[5, 7, 5, 7]]))
    assert not torch.allclose(hidden[:, 1], hidden[:, 3], atol=1e-3)


def test_rows_beyond_learned_positions_are_refused():
    with pytest.raises(UserError, match=r"33 tokens .* end at 32"):
        built("gpt2")(drawn(1, 33))


def test_a_tied_head_is_the_embedding_itself_in_copies_too():
    model = copy.deepcopy(built("gpt2"))
    assert model.head.weight is model.embed.tokens.weight
    assert not list(model.head.parameters())
    hidden = model(drawn(1, 5))
    model.embed.tokens.weight.data.zero_()
    assert not model.head(hidden).any()


def test_gradients_of_a_tied_matrix_come_from_both_its_uses():
    model = built("gpt2").train()
    model.head(model(torch.tensor([[1, 2]]))).square().sum().backward()
    touched = model.embed.tokens.weight.grad.abs().sum(1)
    assert (touched > 0).all()  # every row as head; rows 1 and 2 as embedding besides


def test_dropout_acts_in_training_only():
    config = VARIANTS["gpt2"].resized(dropout=0.5)
    model, tokens = initialise(Transformer(config), 0), drawn(1, 8)
    assert not torch.equal(model.train()(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), model(tokens))
    torch.testing.assert_close(model(tokens), built("gpt2")(tokens))


def test_a_model_not_yet_initialised_is_zeros_and_finite():
    model = Transformer(VARIANTS["llama"])
    assert not any(parameter.any() for parameter in model.parameters())
    assert model.head(model(drawn(1, 4))).isfinite().all()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_autocast_gives_bf16_logits_near_those_of_fp32(name, train):
    model, tokens = built(name).train(train), drawn(2, 16)
    segments = torch.tensor([[1] * 9 + [2] * 7, [1] * 16])
    expected = model.head(model(tokens, segments=segments))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(train):
        found = model.head(model(tokens, segments=segments))
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.03 * expected.norm()  # seen: 0.006 to 0.012


def test_every_choice_of_the_config_has_its_implementation():
    assert tuple(ACTIVATIONS) == get_args(Activation)
    assert tuple(NORMS) == get_args(Norm)
