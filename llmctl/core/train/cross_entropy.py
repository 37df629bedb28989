"""Cross-entropy straight from hidden states, a chunk of rows at a time: (tokens, vocab) never exists."""

import torch
import torch.nn.functional as F
from torch import Tensor

from llmctl.core.data.batch import IGNORE

CHUNK_BYTES = 32 << 20  # of one chunk's float32 logits


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """The sum over scored tokens of -log softmax(hidden weight' + bias)[target], in nats.

    With gradients on, the gradients of `hidden` and `weight` are computed along with the loss, chunk by chunk,
    while each chunk's logits are at hand; the backward pass only scales them. Under autocast the products are in
    its dtype; the softmax is in float32 always.

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: (N,) int64, IGNORE where not scored.
        bias: (V,), or None.
        softcap: logits become softcap * tanh(logits / softcap).

    Returns:
        A float32 scalar.

    Source: the idea of gradients in the forward pass: Hsu et al., "Liger Kernel", arXiv:2410.10989, section 3.2.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    able = hidden.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad
    wanted = able if torch.is_grad_enabled() else (False, False, False)
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, dtype, softcap, wanted)


def chunk_rows(vocab: int) -> int:
    """Rows of one chunk: a power of two whose float32 logits take at most CHUNK_BYTES, 64 at least."""
    return max(64, 1 << (CHUNK_BYTES // (4 * vocab)).bit_length() - 1) if vocab * 4 * 64 < CHUNK_BYTES else 64


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, dtype, softcap, wanted):
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(dtype), weight.to(dtype)
            b = None if bias is None else bias.to(dtype)
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            d_hidden = torch.empty_like(h) if wanted[0] else None
            d_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
            d_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted[2] else None
            rows = chunk_rows(len(w))
            for start in range(0, len(h), rows):
                part = h[start : start + rows]
                target = targets[start : start + rows, None]
                scored = target != IGNORE
                at = target.clamp_min(0)
                logits = part @ w.t() if b is None else torch.addmm(b, part, w.t())  # (rows, V)
                slope = None
                if softcap is not None:
                    bent = torch.tanh(logits.float() / softcap)
                    logits, slope = bent * softcap, bent.square_().neg_().add_(1)
                logp = F.log_softmax(logits, dim=-1, dtype=torch.float32)
                del logits  # the gradients need the room
                total -= (logp.gather(1, at) * scored).sum()
                if not any(wanted):
                    continue
                d_logits = logp.exp_()
                d_logits.scatter_add_(1, at, torch.full_like(at, -1.0, dtype=torch.float32))
                if slope is not None:
                    d_logits *= slope
                d_logits = d_logits.to(dtype).mul_(scored)
                if d_hidden is not None:
                    torch.mm(d_logits, w, out=d_hidden[start : start + rows])
                if d_weight is not None:
                    d_weight += d_logits.t() @ part
                if d_bias is not None:
                    d_bias += d_logits.sum(0, dtype=torch.float32)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    def backward(ctx, grad):
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        if d_hidden is not None:
            d_hidden = (d_hidden * grad.to(d_hidden.dtype)).to(ctx.dtypes[0])
        if d_weight is not None:
            d_weight = (d_weight * grad).to(ctx.dtypes[1])
        if d_bias is not None:
            d_bias = (d_bias * grad).to(ctx.dtypes[2])
        return d_hidden, d_weight, d_bias, None, None, None, None
