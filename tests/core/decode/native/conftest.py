"""Models for the native step, plain and in few bits, and what they should compute."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import Tensor

from llmctl.core.compress.quant.grid import dense, quantise
from llmctl.core.compress.quant.linear import CodedLinear, held
from llmctl.core.decode.native.build import library, wanted
from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig
from llmctl.spec.quant import Grid
from tests.core.variants import VARIANTS

SHAPE = {"vocab": 300, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ff": 128, "context": 512, "init_std": 0.2}
GRIDS = {
    "int8": Grid("int", 8),
    "int8 with zeros": Grid("int", 8, symmetric=False),
    "int8 in groups": Grid("int", 8, 64),
    "int4": Grid("int", 4, 32),
    "int4 with zeros": Grid("int", 4, 32, symmetric=False),
    "int4 in groups of 64": Grid("int", 4, 64),
    "int4 in groups of 16": Grid("int", 4, 16, symmetric=False),
    "int4 by row": Grid("int", 4),
    "int3": Grid("int", 3, 32),
}


@pytest.fixture(params=["best", "avx2"])
def target(request, monkeypatch) -> str:
    """Each way in which the native step is compiled, one after the other."""
    monkeypatch.setenv("LLMCTL_NATIVE", request.param)
    return request.param


def variant(name: str, dtype: torch.dtype = torch.float32) -> Transformer:
    """A tiny model of tests.core.variants whose norms and biases are not all ones and zeros."""
    model = initialise(Transformer(VARIANTS[name]), 0).eval()
    for number, parameter in enumerate(model.parameters()):
        if parameter.dim() == 1:
            chance = torch.Generator().manual_seed(number)
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=chance)
    return model.to(dtype)


def small(dtype: torch.dtype = torch.float32, **changes: object) -> Transformer:
    """A small Llama."""
    return initialise(Transformer(ModelConfig(**{**SHAPE, **changes})), 0).to(dtype).eval()


def in_few_bits(grid: Grid, dtype: torch.dtype, **changes: object) -> tuple[Transformer, Transformer]:
    """A small model in few bits, and the model in float32 whose weights are exactly those that the codes stand for."""
    model = small(dtype, **{"tie": False, **changes})
    exact = deepcopy(model).float()
    for layer, other in zip(model.layers, exact.layers, strict=True):
        for path in ("attention.q", "attention.k", "attention.v", "attention.out", "mlp.gate", "mlp.up", "mlp.down"):
            owner, name = path.split(".")
            linear = getattr(getattr(layer, owner), name)
            codes = quantise(linear.weight.detach(), grid, dtype)
            setattr(getattr(layer, owner), name, held(linear, codes, grid, dtype))
            wide = codes._replace(scale=codes.scale.float())
            weight = dense(wide, grid, torch.float32, tuple(linear.weight.shape))
            getattr(getattr(other, owner), name).weight.data = weight
    return model, exact


def as_rounded(model: Transformer, exact: Transformer) -> Transformer:
    """A copy of `exact` whose tokens are rounded as the native step rounds those that meet the model's four bits.

    Each 32 numbers that follow one another (16 where a group of weights is no multiple of 32) become whole ones of one
    byte: of the 127th part of the largest. Where the CPU is not fast at bytes, nothing is rounded.
    """
    exact = deepcopy(exact)
    for name, module in model.named_modules() if library(wanted()).llmctl_fast() else ():
        if isinstance(module, CodedLinear) and module.grid.bits <= 4:
            exact.get_submodule(name).register_forward_pre_hook(
                partial(_in_bytes, 16 if module.grid.group == 16 else 32)
            )
    return exact


def _in_bytes(span: int, _: object, given: tuple[Tensor]) -> tuple[Tensor]:
    spans = given[0].unflatten(-1, (-1, span))
    unit = spans.abs().amax(-1, keepdim=True) / 127
    return (((spans / unit).round() * unit).flatten(-2),)


def tokens(count: int, vocab: int = 300, seed: int = 1) -> list[int]:
    """Some ids."""
    return torch.randint(0, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def scores(model: Transformer, ids: list[int]) -> Tensor:
    """(T, V) float32, by the model's own pass without a cache."""
    return model.head(model(torch.tensor([ids])))[0].float()


def off(found: Tensor, wanted: Tensor) -> float:
    """The size of the difference over that of what is wanted; NaN is infinitely far."""
    far = float((found - wanted).norm() / wanted.norm())
    return far if far == far else float("inf")
