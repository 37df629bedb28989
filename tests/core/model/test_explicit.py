"""Attention whose weights are kept for the backward pass."""

import pytest
import torch

from llmctl.core.model import attend as module
from llmctl.core.model.attend import attend, attend_naively, causal_mask
from llmctl.core.model.position import alibi_slopes


def case(tokens: int, kind: str):
    torch.manual_seed(tokens)
    q = torch.randn(2, 4, tokens, 8, requires_grad=True)
    k, v = (torch.randn(2, 2, tokens, 8, requires_grad=True) for _ in range(2))
    segments = torch.sort(torch.randint(1, 4, (2, tokens)), dim=1).values if kind == "segments" else None
    slopes = alibi_slopes(4) if kind == "alibi" else None
    return q, k, v, causal_mask(tokens, tokens, 5 if kind == "window" else None, segments, slopes)


@pytest.mark.parametrize("kind", ["causal", "window", "segments", "alibi"])
@pytest.mark.parametrize("tokens", [1, 7, 256, 300, 600])
def test_it_equals_the_naive_attention_in_value_and_gradient(tokens, kind):
    q, k, v, mask = case(tokens, kind)
    ours = attend(q, k, v, mask, 8**-0.5)
    assert tokens == 1 or ours.grad_fn is not None
    naive, _ = attend_naively(q, k, v, mask, 8**-0.5)
    torch.testing.assert_close(ours, naive, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(naive)
    for got, wanted in zip(
        torch.autograd.grad(ours, (q, k, v), weight), torch.autograd.grad(naive, (q, k, v), weight), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)  # sums of up to 600 terms in fp32


def test_training_takes_it_and_inference_does_not(monkeypatch):
    taken = []
    explicit = module.attend_explicitly
    monkeypatch.setattr(module, "attend_explicitly", lambda *args: taken.append(1) or explicit(*args))
    q, k, v, mask = case(16, "causal")
    attend(q, k, v, mask, 1.0)
    with torch.no_grad():
        attend(q, k, v, mask, 1.0)
    attend(q.detach(), k.detach(), v.detach(), mask, 1.0)
    assert len(taken) == 1
