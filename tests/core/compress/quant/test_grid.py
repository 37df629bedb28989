"""Codes: the nearest values of each grid, in blocks as at once, against cases worked by hand."""

from itertools import pairwise

import pytest
import torch

from llmctl.core.compress.nf4 import pack as pack_nf4
from llmctl.core.compress.quant import grid as module
from llmctl.core.compress.quant.grid import E2M1, dense, fake, measured, quantise
from llmctl.spec.quant import GRIDS, Grid

SIZES = [Grid("int", 4, 32), Grid("int", 3, 0, symmetric=False), Grid("int", 8, 64, symmetric=False), *GRIDS.values()]


def weights(rows=96, columns=256, seed=0):
    torch.manual_seed(seed)
    return torch.randn(rows, columns) * torch.rand(rows, 1)


def test_scales_without_zero_points_are_twice_the_largest_over_the_steps_there_are():
    codes = quantise(torch.tensor([[-0.8, 0.1, 0.4, 1.5]]), Grid("int", 4), torch.float32)
    assert codes.scale.tolist() == [[pytest.approx(2 * 1.5 / 15)]]
    assert codes.codes.tolist() == [[-4, 0, 2, 7]]  # 7.5 is out of reach
    assert codes.zero is None


def test_zero_points_use_the_whole_range_and_keep_zero_exact():
    codes = quantise(torch.tensor([[-0.5, 0.0, 1.0, 2.5]]), Grid("int", 4, symmetric=False), torch.float32)
    assert codes.scale.tolist() == [[pytest.approx(3.0 / 15)]]
    assert codes.codes[0, 1] == codes.zero[0, 0]
    made = dense(codes, Grid("int", 4, symmetric=False), torch.float32)
    assert made[0, 1] == 0
    assert (made - torch.tensor([[-0.5, 0.0, 1.0, 2.5]])).abs().max() <= 0.1 + 1e-6


def test_of_two_values_of_mxfp4_that_are_as_near_the_even_code_wins():
    middles = [(low + high) / 2 for low, high in pairwise(E2M1)]
    codes = quantise(torch.tensor([[6.0, *middles, *[0.0] * 24]]), GRIDS["mxfp4"], torch.float32)
    assert codes.codes[0, 1:8].tolist() == [0, 2, 2, 4, 4, 6, 6]
    assert codes.scale.tolist() == [[127]]


@pytest.mark.parametrize("grid", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_are_rounded_in_blocks_as_all_at_once_and_the_error_is_that_of_the_whole(grid, dtype, monkeypatch):
    weight = weights(rows=200).to(dtype)
    whole = quantise(weight, grid, dtype)
    error = (
        dense(whole, grid, torch.float32, (200, 256)) - weight.float()
    ).square().sum() / weight.float().square().sum()
    monkeypatch.setattr(module, "BLOCK", 64 * 256)
    for made in (quantise(weight, grid, dtype), measured(lambda rows: quantise(rows, grid, dtype), weight, grid)[0]):
        for one, other in zip(whole, made, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)
    found = measured(lambda rows: quantise(rows, grid, dtype), weight, grid)[1]
    assert found == pytest.approx(float(error), rel=1e-4)
    if grid.kind == "nf4":
        assert torch.equal(whole.codes, pack_nf4(weight, double=False).codes)


@pytest.mark.parametrize("grid", [one for one in SIZES if not (one.kind == "int" and one.symmetric)], ids=str)
def test_a_matrix_on_the_grid_stays_what_it_is(grid):  # without zero points the largest is cut off each time
    once = fake(weights(), grid, torch.float32)
    assert (fake(once, grid, torch.float32) - once).norm() / once.norm() <= 1e-6


def test_a_group_of_zeros_is_zeros_and_no_number_becomes_none():
    weight = torch.zeros(4, 64)
    for grid in SIZES:
        if not grid.group or 64 % grid.group == 0:
            made = fake(weight, grid, torch.float16)
            assert torch.equal(made, weight)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_search_for_a_range_lowers_the_error_of_every_group(bits, symmetric):
    grid, weight = Grid("int", bits, 32, symmetric), weights()

    def wrong(clip):
        return (fake(weight, grid, torch.float32, clip) - weight).unflatten(1, (-1, 32)).abs().pow(2.4).sum(2)

    assert (wrong("mse") <= wrong("none") + 1e-6).all()
    assert wrong("mse").sum() < 0.95 * wrong("none").sum()


def test_normal_weights_fit_nf4_better_than_whole_numbers_of_as_many_bits():
    weight = weights()
    errors = {
        grid.kind: measured(lambda rows, grid=grid: quantise(rows, grid, torch.float32), weight, grid)[1]
        for grid in (GRIDS["nf4"], Grid("int", 4, 64))
    }
    assert errors["nf4"] < errors["int"]
