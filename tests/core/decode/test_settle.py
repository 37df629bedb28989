"""settle: the same numbers in another layout, whatever the family, the dtype and what sits on a matrix."""

import copy

import pytest
import torch

from llmctl.core.decode.settle import HalfLinear, PackedLinear, packs, settle
from llmctl.core.model.init import initialise
from llmctl.core.model.layers import Linear
from llmctl.core.model.norms import RMSNorm
from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig
from tests.core.variants import VARIANTS

DECODERS = [name for name, config in VARIANTS.items() if config.kind == "decoder"]
TOKENS = torch.tensor([[3, 5, 8, 13, 21, 34, 55]])
packed_here = packs(torch.zeros(1, dtype=torch.float32))


def model_of(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Transformer:
    return initialise(Transformer(config), 0).to(dtype).eval()


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_settled_model_computes_what_it_did(name):
    plain = model_of(VARIANTS[name])
    settled = copy.deepcopy(plain)
    settle(settled)
    for tokens in (TOKENS, TOKENS[:, :1], TOKENS.repeat(3, 1)):
        made, wanted = (model.head(model(tokens)) for model in (settled, plain))
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)  # sums in another order


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_in_few_bits_a_settled_model_is_as_near_to_the_exact_one_as_before(dtype):
    plain = model_of(VARIANTS["llama"], dtype)
    settled, exact = copy.deepcopy(plain), copy.deepcopy(plain).float()
    settle(settled)
    tokens = TOKENS.repeat(1, 5)  # more than are multiplied in half precision
    wanted = exact.head(exact(tokens))
    was, made = ((model.head(model(tokens)).float() - wanted).abs().mean() for model in (plain, settled))
    assert made <= 1.2 * was


@torch.no_grad()
def test_matrices_are_held_once_and_are_the_same_to_the_bit():
    config = ModelConfig(vocab=96, width=32, layers=2, heads=4, kv_heads=2, ff=48, context=32, qkv_bias=True, tie=False)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plain = model_of(config, dtype)
        settled = copy.deepcopy(plain)
        settle(settled)
        settle(settled)
        matrices = [name for name, one in plain.named_parameters() if ".layers." in name and one.dim() == 2]
        kind = PackedLinear if packs(plain.layers[0].attention.q.weight) else HalfLinear if packed_here else Linear
        for name in matrices:
            found, source = (model.get_submodule(name.removesuffix(".weight")) for model in (settled, plain))
            assert torch.equal(found.dense(), source.weight) and (type(found) is kind or dtype != torch.float16)
        if packs(plain.head.weight):
            assert not set(matrices) & dict(settled.named_parameters()).keys()
            assert torch.equal(settled.head.dense(), plain.head.weight) and settled.head.weight is None


@torch.no_grad()
def test_adapters_and_hooks_are_heard_whether_they_come_before_or_after():
    class Louder(torch.nn.Module):
        def forward(self, linear, x):
            return 3 * linear.plain(x)

    plain = model_of(VARIANTS["llama"])
    plain.layers[0].attention.q.adapter, plain.layers[1].mlp.up.adapter = Louder(), Louder()
    before, after, seen = copy.deepcopy(plain), model_of(VARIANTS["llama"]), []
    settle(before)
    settle(after)
    after.layers[0].attention.q.adapter, after.layers[1].mlp.up.adapter = Louder(), Louder()
    after.layers[0].mlp.gate.register_forward_hook(lambda *given: seen.append(given))
    wanted = plain(TOKENS)
    for model in (before, after):
        torch.testing.assert_close(model(TOKENS), wanted, rtol=1e-5, atol=1e-5)
    assert len(seen) == 1


def test_gradients_pass_through_a_settled_model():
    plain = model_of(VARIANTS["llama"])
    settled = copy.deepcopy(plain)
    settle(settled)
    for model in (plain, settled):
        model(TOKENS).square().sum().backward()
    made, wanted = (model.embed.tokens.weight.grad for model in (settled, plain))
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_one_row_is_normalised_like_many_and_what_is_not_a_number_stays_so(dtype, plus_one):
    norm = RMSNorm(64, 1e-6, plus_one, dtype=dtype)
    norm.weight.copy_(torch.randn(64, generator=torch.Generator().manual_seed(0)) / 4 + (not plus_one))
    rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).to(dtype) * torch.tensor([[1], [30], [0]])
    rows = rows.to(dtype)
    wanted = norm(rows)
    close = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    for row, want in zip(rows, wanted, strict=True):
        torch.testing.assert_close(norm(row[None, None])[0, 0], want, rtol=2 * close, atol=1e-6)
    for odd in (float("nan"), float("inf")):
        assert norm(torch.where(torch.arange(64) == 5, odd, rows[:1])).isnan().any()
