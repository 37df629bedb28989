"""bf16 in 12 bits gives every weight back, is given up where too much is rare, and multiplies as 16 bits do."""

import pytest
import torch

from llmctl.core.decode.native.build import library
from llmctl.core.decode.native.engine import engine_of
from llmctl.core.decode.native.layout import BRIEF
from llmctl.core.decode.native.pack import Packed, _brief, _padded, packed
from llmctl.core.decode.native.rows import NativeRows
from tests.core.decode.native.conftest import off, scores, small, tokens

BF16 = 1
WIDE = {"width": 192, "ff": 200, "heads": 6, "kv_heads": 3, "vocab": 301}  # panels and steps that are not full


def usual() -> int:
    """How the native step holds bf16 on this CPU."""
    return BRIEF if library().llmctl_fast() else BF16


def brief(weight: torch.Tensor) -> Packed | None:
    """A matrix in 12 bits, whatever the CPU."""
    return _brief(library(), _padded(weight), weight.shape[1])


def matrix(rows: int, columns: int, spread: float = 1.0) -> torch.Tensor:
    """Normal weights in bf16; those of each row are of another size."""
    chance = torch.Generator().manual_seed(rows + columns)
    sizes = torch.exp(spread * torch.randn(rows, 1, generator=chance))
    return (0.02 * sizes * torch.randn(rows, columns, generator=chance)).bfloat16()


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether they are equal bit by bit."""
    return torch.equal(found.view(torch.int16), wanted.view(torch.int16))


@pytest.mark.parametrize("shape", [(1, 1), (5, 16), (32, 64), (61, 70), (300, 575)], ids=str)
def test_every_weight_comes_back_bit_by_bit(shape):
    weight = matrix(*shape)
    held = brief(weight)
    assert packed(library(), weight).kind == usual()
    assert same(held.dense(), weight)
    assert torch.equal(held.vectors(torch.arange(shape[0])), weight)


def test_it_takes_three_quarters_of_the_bytes():
    weight = matrix(640, 512, spread=0)
    assert brief(weight).nbytes < 0.76 * weight.nbytes


def test_what_is_rare_comes_back_too():
    weight = matrix(96, 256)
    odd = [float("inf"), float("-inf"), 3e38, -1e38, 1e-38, -1e-40, 2.0**-133, 0.0, -0.0, 1e4, -1e-20]
    for number, value in enumerate(odd):
        weight[7 * number + 3, 23 * number] = value
    held = brief(weight)
    assert len(held.brief[1]) >= 6
    assert same(held.dense(), weight)
    assert torch.equal(held.vectors(torch.arange(96)), weight)
    weight[50, 60] = float("nan")
    found = brief(weight).dense()
    assert found.isnan().nonzero().tolist() == [[50, 60]]


def test_a_matrix_of_zeros_has_nothing_rare():
    held = brief(torch.zeros(40, 32, dtype=torch.bfloat16))
    assert not len(held.brief[1])
    assert not held.dense().any()


def test_where_too_much_is_rare_16_bits_stay():
    chance = torch.Generator().manual_seed(0)
    weight = matrix(64, 256, spread=0)
    spread = torch.exp2(torch.randint(-40, 40, weight.shape, generator=chance)).bfloat16() * weight
    assert brief(spread) is None
    held = packed(library(), spread)
    assert held.kind == BF16
    assert same(held.dense(), spread)
    some = torch.rand(weight.shape, generator=chance)
    assert brief(torch.where(some < 1 / 512, spread, weight)) is not None
    assert brief(torch.where(some < 1 / 64, spread, weight)) is None


def in_16_bits(monkeypatch):
    """Have matrices that are packed from here on stay in 16 bits."""
    monkeypatch.setattr("llmctl.core.decode.native.pack._brief", lambda *_: None)


def without_small(model):
    """The model, with 0 in place of weights that are too small for 12 bits."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[parameter.abs() < 2.0**-10] = 0
    return model


def outlying(model):
    """The model, with outliers in every matrix that a panel has no code for."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter[1::7, 5] *= 2.0**-30
                parameter[2::11, 3] *= 2.0**9
    return model


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("outliers", [False, True], ids=["plain", "outliers"])
def test_a_model_computes_as_in_16_bits(outliers, threads, monkeypatch):
    ids, before = tokens(130), torch.get_num_threads()
    models = [small(torch.bfloat16, **WIDE) for _ in range(2)]
    models = [(outlying if outliers else without_small)(model) for model in models]
    try:
        torch.set_num_threads(threads)
        brief = NativeRows(models[0])
        in_16_bits(monkeypatch)
        whole = NativeRows(models[1])
        kinds = [{m.packed.kind for m in model.modules() if hasattr(m, "packed")} for model in models]
        assert kinds == [{usual()}, {BF16}]
        for read in (lambda rows: rows.add([ids[:5]]), lambda rows: rows.step([9]), lambda rows: rows.read([ids[:6]]),
                     lambda rows: rows.read([ids[6:17]]), lambda rows: rows.read([ids[17:130]])):  # fmt: skip
            found, wanted = read(brief), read(whole)
            assert torch.equal(found, wanted) if not outliers else off(found, wanted) < 2e-3
    finally:
        torch.set_num_threads(before)


def test_a_model_in_12_bits_is_read_by_the_portable_way_as_well(monkeypatch):
    model, ids = outlying(small(torch.bfloat16, **WIDE)), tokens(30)
    engine_of(model)
    assert model.embed.tokens.packed.kind == usual()
    wanted = scores(model.float(), ids)
    monkeypatch.setenv("LLMCTL_NATIVE", "avx2")
    rows = NativeRows(model)
    found = torch.cat((rows.add([ids[:20]]), rows.step(ids[20:21]), rows.read([ids[21:]])[0]))
    assert off(found, wanted[19:]) < 2e-2  # keys and values in bf16


def test_matrices_with_and_without_12_bits_multiply_the_same_tokens(monkeypatch):
    ids, model = tokens(40), small(torch.bfloat16, **WIDE)
    exact = scores(small(torch.bfloat16, **WIDE).float(), ids)
    wide = torch.exp2(torch.arange(-60.0, 0.0).repeat(WIDE["width"] * 4)[: WIDE["width"] * WIDE["ff"]])
    gate = wide.view(WIDE["ff"], WIDE["width"]).bfloat16()
    model.layers[0].mlp.gate.weight.data = gate
    other = small(torch.bfloat16, **WIDE)
    other.layers[0].mlp.gate.weight.data = gate.clone()
    wanted = scores(other.float(), ids)
    rows = NativeRows(model)
    assert model.layers[0].mlp.gate.packed.kind == BF16
    assert model.layers[0].mlp.up.packed.kind == usual()
    assert off(rows.add([ids]), wanted[-1:]) < 2e-2
    assert off(wanted, exact) > 0.1
