"""Attention whose weights are kept for the backward pass."""

import pytest
import torch

from llmctl.core.model import attend as module
from llmctl.core.model.attend import attend, attend_naively, cross_mask, self_mask
from llmctl.core.model.explicit import QUERIES, kept_weights
from llmctl.core.model.position import alibi_slopes


def case(tokens: int, kind: str, keys: int | None = None):
    """Leaves q, k, v, and the bias that is learned or None; a mask of some kind."""
    torch.manual_seed(tokens)
    keys = keys or tokens
    q = torch.randn(2, 4, tokens, 8, requires_grad=True)
    k, v = (torch.randn(2, 2, keys, 8, requires_grad=True) for _ in range(2))
    segments = torch.sort(torch.randint(1, 4, (2, tokens)), dim=1).values
    seen = torch.sort(torch.randint(1, 4, (2, keys)), dim=1).values
    seen[:, 0], segments[:, 0] = 1, 1
    bias = torch.randn(1, 4, tokens, keys, requires_grad=True) if "learned" in kind else None
    mask = {
        "causal": lambda: self_mask(tokens, tokens),
        "window": lambda: self_mask(tokens, tokens, window=5),
        "segments": lambda: self_mask(tokens, tokens, segments=segments),
        "alibi": lambda: self_mask(tokens, tokens, slopes=alibi_slopes(4)),
        "prefix": lambda: self_mask(tokens, tokens, prefix=torch.arange(tokens).expand(2, -1) < tokens // 3),
        "both ways": lambda: self_mask(tokens, tokens, causal=False),
        "both ways, segments, learned": lambda: self_mask(tokens, tokens, causal=False, segments=segments),
        "both ways, learned": lambda: self_mask(tokens, tokens, causal=False),
        "causal, learned": lambda: self_mask(tokens, tokens),
        "cross, segments": lambda: cross_mask(torch.ones_like(segments), seen),
    }[kind]()
    return q, k, v, mask._replace(bias=bias)


KINDS = ["causal", "window", "segments", "alibi", "prefix", "both ways", "causal, learned", "both ways, learned"]
CROSSED = ["cross, segments", "both ways, segments, learned"]


@pytest.mark.parametrize("kind", KINDS + CROSSED)
@pytest.mark.parametrize("tokens", [1, 7, 256, 300, 600])
def test_it_equals_the_naive_attention_in_value_and_gradient(tokens, kind):
    compare(*case(tokens, kind, tokens + 3 if kind.startswith("cross") else None))


@pytest.mark.parametrize("tokens, keys", [(5, 300), (300, 5), (1, 7)])
def test_a_decoder_that_reads_a_longer_or_shorter_source(tokens, keys):
    compare(*case(tokens, "cross, segments", keys))


def compare(q, k, v, mask):
    leaves = [q, k, v] + ([] if mask.bias is None else [mask.bias])
    ours = attend(q, k, v, mask, 8**-0.5)
    assert ours.grad_fn is not None
    naive = attend_naively(q, k, v, mask, 8**-0.5).out
    torch.testing.assert_close(ours, naive, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, mask, 8**-0.5), naive, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(naive)
    for got, wanted in zip(
        torch.autograd.grad(ours, leaves, weight), torch.autograd.grad(naive, leaves, weight), strict=True
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


@pytest.mark.parametrize("kind", ["causal", "both ways", "causal, learned", "both ways, segments, learned"])
@pytest.mark.parametrize("tokens", [7, 256, 600])
def test_weights_are_dropped_by_torchs_generator_and_the_gradient_knows_which(tokens, kind):
    q, k, v, mask = case(tokens, kind)
    leaves, share = [q, k, v] + ([] if mask.bias is None else [mask.bias]), 0.25
    torch.manual_seed(3)
    ours = attend(q, k, v, mask, 8**-0.5, share)
    torch.manual_seed(3)
    again = attend(q, k, v, mask, 8**-0.5, share)
    assert torch.equal(ours, again)
    torch.manual_seed(3)
    kept = torch.zeros(8, tokens, tokens)
    for start in range(0, tokens, QUERIES):  # a block of queries after the other
        end = min(tokens, start + QUERIES)
        seen = end if mask.causal else tokens
        kept[:, start:end, :seen] = kept_weights((8, end - start, seen), share, q.device).float()
    weights = attend_naively(q, k, v, mask, 8**-0.5).weights
    dropped = weights * kept.view_as(weights) / (1 - share)
    naive = dropped @ v.repeat_interleave(2, dim=1)
    torch.testing.assert_close(ours, naive, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(naive)
    for got, wanted in zip(
        torch.autograd.grad(ours, leaves, weight), torch.autograd.grad(naive, leaves, weight), strict=True
    ):
        torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)  # sums of up to 600 terms in fp32


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_is_the_one_asked_for(share):
    torch.manual_seed(0)
    kept = kept_weights((100, 333, 33), share, torch.device("cpu"))
    n = kept.numel()
    assert abs(1 - kept.float().mean().item() - share) <= 4 * (share * (1 - share) / n) ** 0.5  # 4 standard errors
    pairs = (kept.flatten()[:-1] & kept.flatten()[1:]).float().mean().item()  # numbers beside each other are apart
    assert abs(pairs - (1 - share) ** 2) <= 8 * (share * (1 - share) / n) ** 0.5


def test_attention_without_weights_dropped_is_its_mean():
    q, k, v, mask = case(9, "causal")
    mean = sum(attend(q, k, v, mask, 8**-0.5, 0.1).detach() for _ in range(3000)) / 3000
    torch.testing.assert_close(mean, attend(q, k, v, mask, 8**-0.5).detach(), atol=0.05, rtol=0)  # 1 / root of 3000, x2
