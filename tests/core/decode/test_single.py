"""single: one token of one row through a settled model, as its modules compute it; when those are asked after all."""

import copy

import pytest
import torch
from torch import Tensor

from llmctl.core.decode.rows import Rows
from llmctl.core.decode.settle import settle
from llmctl.core.model.init import initialise
from llmctl.core.model.look import watch
from llmctl.core.model.transformer import Transformer
from tests.core.compress.quant.test_linear import GRIDS, quantised
from tests.core.variants import VARIANTS

DECODERS = [name for name, config in VARIANTS.items() if config.kind == "decoder"]
TOKENS = [3, 5, 8, 13, 21, 34, 55, 2, 3, 9, 4, 7]


def settled(name: str, dtype: torch.dtype = torch.float32) -> tuple[Transformer, Transformer]:
    """A model, and the same settled."""
    plain = initialise(Transformer(VARIANTS[name]), 0).to(dtype).eval()
    made = copy.deepcopy(plain)
    settle(made)
    return plain, made


def read(model: Transformer, tokens: list[int] = TOKENS) -> Tensor:
    """(T, V), the scores after each token but the first four, read one by one."""
    rows = Rows(model)
    return torch.cat([rows.add([tokens[:4]]), *(rows.step([token]) for token in tokens[4:])])


def taken(model: Transformer) -> list[bool]:
    """Gets whether each pass from now on is taken in one go."""
    found, swift = [], model.decoder.swift

    def told(names, x, shared):
        made = swift(names, x, shared)
        found.append(made is not None)
        return made

    model.decoder.swift = told
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", DECODERS)
def test_a_step_computes_what_the_modules_do(name, dtype):
    plain, made = settled(name, dtype)
    exact = copy.deepcopy(plain).float()
    found, wanted, was = read(made), read(exact), read(plain)
    if dtype == torch.float32:
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (found - wanted).abs().mean() <= 1.3 * (was - wanted).abs().mean() + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["int8", "int8 with zeros", "int4", "w8a8", "fp8"])
@torch.no_grad()
def test_so_do_matrices_in_few_bits(name, dtype):
    for changes in ({}, {"qkv_bias": True, "out_bias": True, "mlp_bias": True}):
        plain, made = (quantised(GRIDS[name], dtype, **changes) for _ in range(2))
        for one in (plain, made):
            for parameter in one.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn(len(parameter), generator=torch.Generator().manual_seed(0)) / 4)
        settle(made)
        close = 1e-4 if dtype == torch.float32 and name != "int4" else 0.3  # products of 4 bits are bf16
        torch.testing.assert_close(read(made), read(plain), rtol=0, atol=close)


def test_only_one_token_of_one_row_after_others_is_read_so():
    _, model = settled("llama")
    found, rows = taken(model), Rows(model)
    rows.add([TOKENS])
    assert found == [False]
    rows.step([3])
    rows.read([[4]])
    assert found == [False, True, True]
    rows.read([[4, 5]])
    rows.add([TOKENS[:3]])
    rows.step([3, 4])
    assert found == [False, True, True, False, False, False]
    rows.keep([1])
    rows.step([3])
    assert found[-1]


def test_who_stands_or_looks_in_between_is_heard():
    class Louder(torch.nn.Module):
        def forward(self, linear, x):
            return 3 * linear.plain(x)

    plain, model = settled("llama")
    found, seen = taken(model), []
    hook = model.layers[1].mlp.down.register_forward_hook(lambda *given: seen.append(given))
    read(model)
    assert len(seen) == len(found) and not any(found)
    hook.remove()
    with torch.inference_mode(), watch(model, "decoder") as views:
        rows = Rows(model)
        rows.add([TOKENS[:4]])
        rows.step([3])
    assert len(views) == 2 * len(model.layers) and not any(found)
    read(model)
    assert any(found)
    for one in (plain, model):
        one.layers[0].attention.out.adapter = Louder()
    torch.testing.assert_close(read(model), read(plain), rtol=1e-4, atol=1e-4)


def test_a_copy_of_a_settled_model_has_no_part_in_it():
    _, model = settled("llama")
    other = copy.deepcopy(model)
    other.layers[0].mlp_norm.weight.data.mul_(2)
    assert other.decoder.swift is None and not torch.equal(read(other), read(model))
