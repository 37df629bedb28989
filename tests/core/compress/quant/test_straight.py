"""Bytes that lie row after row: near to the exact product of any number of tokens; parts hold nothing twice."""

import pytest
import torch

from llmctl.core.compress.quant.grid import quantise
from llmctl.core.compress.quant.kernels import TOKENS, Bytes, bytes_are_fast
from llmctl.core.compress.quant.linear import packed_bytes
from llmctl.core.compress.quant.straight import FEW, Straight
from llmctl.spec.quant import Grid

ROWS, COLUMNS = 90, 192
INT8 = Grid("int", 8)


def codes(dtype: torch.dtype = torch.bfloat16, columns: int = COLUMNS, grid: Grid = INT8):
    chance = torch.Generator().manual_seed(0)
    return quantise((0.02 * torch.randn(ROWS, columns, generator=chance)).to(dtype), grid, dtype)


def straight() -> tuple[Straight, torch.Tensor]:
    """A matrix, and exactly what it stands for."""
    held = codes()
    return Straight(held.codes, held.scale[:, 0]), held.codes.double() * held.scale.double()


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, TOKENS + 3])
def test_products_lose_no_more_than_their_own_rounding(count):
    matrix, exact = straight()
    x = torch.randn(count, COLUMNS, generator=torch.Generator().manual_seed(1))
    x[:, 7] *= 50  # what ruins activations of one byte
    x, bias = x.bfloat16(), torch.ones(ROWS, dtype=torch.bfloat16)
    wanted = x.double() @ exact.t()
    lost = float((wanted.bfloat16().double() - wanted).norm() / wanted.norm())
    found = matrix.product(x, None)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - wanted).norm() / wanted.norm()) < 1.02 * lost
    assert torch.equal(matrix.product(x, bias), found + bias)


def test_one_token_has_a_shorter_way_to_the_same():
    matrix, _ = straight()
    x, bias = torch.randn(1, COLUMNS).bfloat16(), torch.randn(ROWS).bfloat16()
    for added in (None, bias):
        assert torch.equal(matrix.single(torch.bfloat16, added, False)(x), matrix.product(x, added))
    assert matrix.single(torch.float32, None, False) is None


def test_float32_is_multiplied_in_three_bytes():
    matrix, exact = straight()
    x = torch.randn(3, COLUMNS)
    wanted = x.double() @ exact.t()
    assert float((matrix.product(x, None).double() - wanted).norm() / wanted.norm()) < 3e-6


def test_parts_are_views_of_the_same_bytes():
    matrix, _ = straight()
    x = torch.randn(20, COLUMNS).bfloat16()
    parts = matrix.parts([32, 8, 50])
    assert torch.equal(torch.cat([part.product(x, None) for part in parts], 1), matrix.product(x, None))
    ends = [part.codes.data_ptr() - matrix.codes.data_ptr() for part in parts]
    assert ends == [0, 32 * COLUMNS, 40 * COLUMNS]
    assert sum(part.nbytes for part in parts) == matrix.nbytes == ROWS * COLUMNS


def test_what_is_not_a_number_stays_none():
    matrix, _ = straight()
    for count in (1, FEW + 1):
        x = torch.ones(count, COLUMNS).bfloat16()
        x[0, 3] = float("nan")
        found = matrix.product(x, None)
        assert found[0].isnan().all() and not found[1:].isnan().any()


def test_only_what_torchs_kernel_is_right_and_fast_for_is_held_so():
    if not bytes_are_fast():
        return
    assert type(packed_bytes([codes()] * 2, False)) is Straight
    others = ((codes(torch.float32), False), (codes(columns=200), False), (codes(), True),
              (codes(grid=Grid("int", 8, symmetric=False)), False))  # fmt: skip
    assert all(type(packed_bytes([one], dynamic)) is Bytes for one, dynamic in others)
