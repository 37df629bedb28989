"""Channels scaled where they arise: the model computes what it did, whatever the family."""

import pytest
import torch

from llmctl.core.compress.quant.fold import fold, matrices, norms
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from tests.core.compress.test_calibrate import batch_of
from tests.core.variants import VARIANTS


def uneven(name: str, dtype: torch.dtype = torch.float32) -> Transformer:
    """A model whose norms and biases are not all ones and zeros."""
    model, draw = initialise(Transformer(VARIANTS[name]), 0).eval(), torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += torch.rand(parameter.shape, generator=draw) + 0.1
    return model.to(dtype).float()


def hidden(model: Transformer) -> torch.Tensor:
    batch = batch_of(model.config)
    given = {"positions": batch.positions, "segments": batch.segments, "encoder": batch.encoder}
    with torch.no_grad():
        return model(batch.tokens, **given)


def scaled(model: Transformer, kept: torch.dtype) -> dict[str, int]:
    """Fold at every place of every block, with factors from 1/8 to 8; how often each source was."""
    draw, sources = torch.Generator().manual_seed(2), {}
    for block in model.layers:
        linears = {name: module for name, module in block.named_modules() if isinstance(module, torch.nn.Linear)}
        weights = {name: linear.weight.detach() for name, linear in linears.items()}
        for at in [*norms(model.config, block), *matrices(model.config, block)]:
            size = weights[at.readers[0]].shape[1]
            factor = at.shared(torch.exp2(6 * torch.rand(size, generator=draw) - 3))
            fold(block, at, factor, weights, lambda _: kept)
            sources[at.source] = sources.get(at.source, 0) + 1
        for name, linear in linears.items():
            linear.weight = torch.nn.Parameter(weights[name])
    return sources


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_with_scaled_channels_computes_what_it_did(name):
    model = uneven(name)
    wanted = hidden(model)
    sources = scaled(model, torch.float32)
    torch.testing.assert_close(hidden(model), wanted, atol=1e-5, rtol=1e-4)
    assert sources["attention.v"] == len(model.layers)


def test_values_that_several_heads_read_and_gates_have_channels_to_scale_and_norms_in_the_stream_have_none():
    assert scaled(uneven("llama"), torch.float32) == dict.fromkeys(
        ("attention_norm", "mlp_norm", "attention.v", "mlp.up"), 2
    )
    assert scaled(uneven("bert"), torch.float32) == {"attention.v": 2}
    assert scaled(uneven("t5 of old"), torch.float32) == {
        "attention_norm": 4, "mlp_norm": 4, "cross_attention_norm": 2, "attention.v": 4, "cross_attention.v": 2,
        "mlp.up": 4,
    }  # fmt: skip
    assert "mlp.up" not in scaled(uneven("gpt2"), torch.float32)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_norms_rounded_to_sixteen_bits_are_made_up_for_by_the_weights(name):
    model = uneven(name, torch.bfloat16)
    wanted = hidden(model)
    scaled(model, torch.bfloat16)
    norm = model.layers[0].attention_norm.weight
    assert torch.equal(norm.bfloat16().float(), norm)
    torch.testing.assert_close(hidden(model), wanted, atol=1e-5, rtol=1e-4)
