"""GPTQ: the same codes as the definition gives, whatever the blocks, and fewer errors than rounding."""

import pytest
import torch

from llmctl.core.compress.quant.gptq import curve, gptq
from llmctl.core.compress.quant.grid import Codes, dense, nearest, quantise, scales
from llmctl.spec.calibration import Rounding
from llmctl.spec.quant import Grid

GRIDS = {
    "int4 in groups": Grid("int", 4, 32),
    "int3 by rows": Grid("int", 3),
    "int4 with zero points": Grid("int", 4, 32, symmetric=False),
    "int2 in wide groups": Grid("int", 2, 96),
    "fp8": Grid("fp8", 8),
    "mxfp4": Grid("mxfp4", 4, 32),
}
ORDERS = {"as they lie": Rounding(act_order=False), "largest first": Rounding(act_order=True)}


def drawn(rows: int = 24, columns: int = 192, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and second moments of inputs that hang together; float64."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=draw, dtype=torch.float64) * torch.logspace(0, -2, columns)
    x = torch.randn(4 * columns, columns, generator=draw, dtype=torch.float64) @ mix.double()
    return torch.randn(rows, columns, generator=draw, dtype=torch.float64), 2 * x.t() @ x / len(x)


def by_definition(weight, moment, grid, order, damp):
    """Optimal brain quantization in a fixed order: the inverse anew for what is left after each column."""
    columns = weight.shape[1]
    moment = moment + damp * moment.diagonal().mean() * torch.eye(columns, dtype=moment.dtype)
    scale, zero = scales(weight, grid, torch.float32)
    weight, codes = weight.clone(), torch.zeros(weight.shape)
    for place, column in enumerate(order):
        left = order[place:]
        inverse = torch.linalg.inv(moment[left][:, left])
        group = column * scale.shape[1] // columns
        part = scale[:, group : group + 1], None if zero is None else zero[:, group : group + 1]
        code = nearest(weight[:, column : column + 1], *part, grid)
        codes[:, column] = code[:, 0].float()
        wrong = weight[:, column] - dense(Codes(code, *part), grid, torch.float64)[:, 0]
        weight[:, left] -= wrong[:, None] / inverse[0, 0] * inverse[0]
    return codes


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", ORDERS)
def test_inputs_that_have_nothing_to_do_with_each_other_make_it_rounding(grid, order):
    weight = torch.randn(24, 192, generator=torch.Generator().manual_seed(1))
    wanted = quantise(weight, GRIDS[grid], torch.bfloat16)
    found = gptq(weight, curve(torch.eye(192), ORDERS[order]), GRIDS[grid], torch.bfloat16)
    for one, other in zip(found, wanted, strict=True):
        assert one is other is None or torch.equal(one.float(), other.float())


@pytest.mark.parametrize("grid", GRIDS)
def test_codes_are_those_of_the_definition(grid):
    weight, moment = drawn(8, 96)
    bend = curve(moment, Rounding(damp=0.01))
    found = gptq(weight, bend, GRIDS[grid], torch.float32)
    assert torch.equal(found.codes.float(), by_definition(weight, moment, GRIDS[grid], bend.order, 0.01))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("order", ORDERS)
def test_blocks_of_any_size_give_the_same_codes(grid, order):
    weight, moment = drawn()
    bend = curve(moment, ORDERS[order])
    wanted = gptq(weight, bend, GRIDS[grid], torch.float32, block=1)
    for block in (32, 50, 128, 1000):
        found = gptq(weight, bend, GRIDS[grid], torch.float32, block=block)
        assert torch.equal(found.codes.float(), wanted.codes.float()) and torch.equal(found.scale, wanted.scale)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_outputs_err_less_than_after_rounding(order, bits):
    weight, moment = drawn()
    grid, errors = Grid("int", bits, 32), []
    for codes in (
        gptq(weight, curve(moment, ORDERS[order]), grid, torch.float32),
        quantise(weight, grid, torch.float32),
    ):
        wrong = dense(codes, grid, torch.float64) - weight
        errors.append((wrong @ moment * wrong).sum())
    assert errors[0] < 0.5 * errors[1]


def test_scales_that_move_are_those_of_columns_as_errors_have_left_them():
    weight, moment = drawn(8, 96)
    grid, bend = Grid("int", 3, 32), curve(moment, ORDERS["as they lie"])
    found = gptq(weight, bend, grid, torch.float32)
    first = gptq(weight[:, :32], curve(moment, ORDERS["as they lie"])._replace(
        order=torch.arange(32), upper=bend.upper[:32, :32]), grid, torch.float32)  # fmt: skip
    wrong = weight[:, :32] - dense(first, grid, torch.float64)
    inverse = bend.upper.t() @ bend.upper
    rest = weight[:, 32:] - torch.linalg.solve(inverse[:32, :32], wrong.t()).t() @ inverse[:32, 32:]
    assert torch.equal(found.scale[:, 1:2], scales(rest[:, :32], Grid("int", 3), torch.float32)[0])
    assert not torch.equal(found.scale, scales(weight, grid, torch.float32)[0])


def test_columns_of_inputs_that_are_always_zero_are_rounded_as_they_are():
    weight, moment = drawn()
    moment[:, 5] = moment[5] = 0
    grid = Grid("int", 4, 32)
    found, wanted = gptq(weight, curve(moment, Rounding()), grid, torch.float32), quantise(weight, grid, torch.float32)
    assert torch.equal(found.codes[:, 5], wanted.codes[:, 5])


def test_fewer_tokens_than_inputs_are_enough_to_round_by():
    weight, _ = drawn()
    x = torch.randn(3, 192, dtype=torch.float64)
    codes = gptq(weight, curve((x.t() @ x).float(), Rounding(damp=1e-9)), Grid("int", 4, 32), torch.float32)
    assert codes.codes.unique().numel() == 16
