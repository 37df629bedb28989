"""Attention: the fast kernel equals the one written out, and masks say who sees whom."""

import pytest
import torch

from llmctl.core.model.attend import Mask, attend, attend_naively, self_mask
from llmctl.core.model.position import alibi_slopes

SEGMENTS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2, 2, 3], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
MASKS = {
    "causal": {},
    "window": {"window": 3},
    "segments": {"segments": SEGMENTS},
    "alibi": {"slopes": alibi_slopes(6)},
    "all": {"window": 4, "segments": SEGMENTS, "slopes": alibi_slopes(6)},
}


def drawn(heads: int, kv_heads: int, queries: int, keys: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(0)

    def one(count: int, length: int) -> torch.Tensor:
        return torch.randn(2, count, length, 8, generator=generator).to(dtype)

    return one(heads, queries), one(kv_heads, keys), one(kv_heads, keys)


@pytest.mark.parametrize("queries", [10, 4, 1], ids=["whole", "chunk", "one"])
@pytest.mark.parametrize("kv_heads", [6, 2, 1])
@pytest.mark.parametrize("how", MASKS)
def test_the_fused_kernel_equals_attention_written_out(how, kv_heads, queries):
    q, k, v = drawn(6, kv_heads, queries, 10)
    mask = self_mask(queries, 10, **MASKS[how])
    expected, _, _, weights = attend_naively(q, k, v, mask, 0.3)
    torch.testing.assert_close(attend(q, k, v, mask, 0.3), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6, queries), atol=1e-6, rtol=0)


@pytest.mark.parametrize("how", MASKS)
def test_in_bf16_the_kernels_differ_by_roundings_only(how):
    mask = self_mask(10, 10, **MASKS[how], dtype=torch.bfloat16)
    q, k, v = drawn(6, 2, 10, 10, torch.bfloat16)
    found, expected = attend(q, k, v, mask, 0.3), attend_naively(q, k, v, mask, 0.3).out
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)  # bf16 has 8 bits: 0.4 % a rounding


def test_who_sees_whom_is_as_drawn_by_hand():
    seen = self_mask(6, 6, window=2, segments=torch.tensor([[0, 1, 1, 1, 2, 2]])).seen
    assert seen[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],  # padding sees itself: a row without keys would be NaN
        [0, 1, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],  # the window ends before the first of its document
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]


def test_a_chunk_sees_what_the_last_rows_of_the_whole_see():
    whole = self_mask(10, 10, window=4, segments=SEGMENTS, slopes=alibi_slopes(6)).seen
    chunk = self_mask(3, 10, window=4, segments=SEGMENTS, slopes=alibi_slopes(6)).seen
    assert torch.equal(chunk, whole[:, :, -3:])


def test_no_mask_is_made_where_the_kernel_needs_none():
    assert self_mask(5, 5) == Mask(causal=True)
    assert self_mask(5, 5, window=5) == Mask(causal=True)
    assert self_mask(1, 9) == self_mask(1, 9, window=9) == Mask()
    assert self_mask(1, 9, window=8).seen is not None
    assert self_mask(2, 9).seen is not None


def test_alibi_lowers_scores_by_distance_times_slope():
    bias = self_mask(3, 3, slopes=torch.tensor([0.5, 0.25])).seen
    never = float("-inf")
    assert bias[0, 0].tolist() == [[0, never, never], [-0.5, 0, never], [-1.0, -0.5, 0]]
    assert bias[0, 1, 2].tolist() == [-0.5, -0.25, 0]


def test_gradients_of_the_fused_kernel_equal_those_written_out():
    ways = (attend, lambda *given: attend_naively(*given)[0])
    found = []
    for way in ways:
        q, k, v = (x.requires_grad_() for x in drawn(6, 2, 10, 10))
        way(q, k, v, self_mask(10, 10, segments=SEGMENTS), 0.3).square().sum().backward()
        found.append((q.grad, k.grad, v.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
