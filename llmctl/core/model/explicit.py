"""Attention that keeps its weights for the backward pass: faster than the fused kernel on a CPU, for short rows."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST = 1024  # tokens of a row, beyond which the weights cost more memory than they save time
STEPS = 1 << 16  # of the probabilities with which weights are dropped
QUERIES = 256  # queries of one block; a causal block skips the keys that come after it


def explicit_is_faster(q: Tensor, k: Tensor) -> bool:
    """Whether `attend_explicitly` beats torch's fused kernel: in training on a CPU, over rows of at most LONGEST.

    There the fused kernel's backward pass computes the scores anew, in small tiles; two matrix products over
    weights that were kept took 0.36 of its time at 256 tokens and 0.5 at 1024 (bf16, AVX512).
    """
    learning = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    return learning and q.device.type == "cpu" and max(q.shape[2], k.shape[2]) <= LONGEST


def attend_explicitly(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    added: Tensor | None,
    bias: Tensor | None,
    scale: float,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q k' scale + added) v.

    Args:
        q: (B, H, T, D).
        k: (B, H, S, D).
        v: (B, H, S, D).
        added: broadcastable to (B, H, T, S), dtype of q, without a gradient; -inf where a key is not seen.
        bias: (1, H, T, S), the part of `added` that is learned, for its gradient; None: nothing is.
        scale: multiplies the scores.
        causal: S is T and `added` hides every key after its query, so such keys need not be computed.
        dropout: share of the weights that are dropped, by torch's own generator.

    Returns:
        (B, H, T, D).

    Source: Vaswani et al., arXiv:1706.03762, equation 1; the softmax's gradient is p * (dp - sum(p * dp)).
    """
    return _Explicit.apply(q, k, v, added, bias, scale, causal, dropout)


def kept_weights(shape: tuple[int, ...], dropout: float, device: torch.device) -> Tensor:
    """Which weights are not dropped, bool: each is dropped with the multiple of 2^-16 that `dropout` is nearest to.

    Four of them are made of each random number, an eighth of the time that F.dropout takes for its own.
    """
    count, lowest = math.prod(shape), torch.iinfo(torch.int64).min
    numbers = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(lowest, None)
    quarters = numbers.view(torch.int16)[:count].view(shape)
    return quarters >= torch.iinfo(torch.int16).min + _steps(dropout)


def _steps(dropout: float) -> int:
    return min(max(round(dropout * STEPS), 0), STEPS - 1)


class _Explicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, added, bias, scale, causal, dropout):
        shape, keys = q.shape, k.shape[2]
        grown = STEPS / (STEPS - _steps(dropout))  # of what is not dropped
        q = q * scale  # scaling the scores would take as many operations for each key
        v = v * grown if dropout else v
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))  # (B * H, T or S, D)
        added = None if added is None else added.expand(*added.shape[:-2], shape[2], keys)
        out, kept = torch.empty_like(q), []
        for start in range(0, shape[2], QUERIES):
            end = min(shape[2], start + QUERIES)
            seen = end if causal else keys
            scores = torch.bmm(q[:, start:end], k[:, :seen].transpose(1, 2))
            if added is not None:
                scores.view(*shape[:2], end - start, seen).add_(added[..., start:end, :seen])
            weights = F.softmax(scores, dim=-1)
            kept.append(weights)
            if dropout:
                kept.append(kept_weights(weights.shape, dropout, weights.device))
                weights = weights * kept[-1]
            torch.bmm(weights, v[:, :seen], out=out[:, start:end])
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale, ctx.biased = scale, bias is not None and bias.requires_grad
        ctx.dropped, ctx.grown = bool(dropout), grown
        return out.view(shape)

    @staticmethod
    def backward(ctx, grad):
        q, k, v, *kept = ctx.saved_tensors
        shape, grad = grad.shape, grad.reshape(q.shape)
        dq, dk, dv = torch.empty_like(q), None, None
        d_bias = q.new_zeros(1, shape[1], shape[2], k.shape[1]) if ctx.biased else None
        each = 2 if ctx.dropped else 1
        for block in reversed(range(len(kept) // each)):  # the last block sees every key, so it begins the sums
            start, weights = block * QUERIES, kept[each * block]
            end, seen = start + weights.shape[1], weights.shape[2]
            part = grad[:, start:end]
            d_weights = torch.bmm(part, v[:, :seen].transpose(1, 2))
            if ctx.dropped:
                d_weights *= kept[each * block + 1]
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            if ctx.dropped:
                weights = weights * kept[each * block + 1]
            if d_bias is not None:
                d_bias[0, :, start:end, :seen] = d_scores.view(*shape[:2], end - start, seen).sum(0)
            torch.bmm(d_scores, k[:, :seen], out=dq[:, start:end])
            block_dk = torch.bmm(d_scores.transpose(1, 2), q[:, start:end])
            block_dv = torch.bmm(weights.transpose(1, 2), part)
            if dk is None:
                dk, dv = block_dk, block_dv
            else:
                dk[:, :seen] += block_dk
                dv[:, :seen] += block_dv
        dk, dv = (x.view(*shape[:2], *x.shape[1:]) for x in (dk, dv))  # (B, H, S, D)
        dv = dv * ctx.grown if ctx.dropped else dv
        return dq.mul_(ctx.scale).view(shape), dk, dv, None, d_bias, None, None, None
