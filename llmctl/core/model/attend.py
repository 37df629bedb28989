"""attend: queries, keys and values to outputs; the one place where an attention kernel is chosen."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llmctl.core.model.explicit import attend_explicitly, explicit_is_faster


class Mask(NamedTuple):
    """Which keys each query sees, made once a forward pass and shared by its layers.

    Attributes:
        causal: queries and keys are the same T tokens and each sees itself and all before it; `seen` is None.
        seen: what else restricts the view, (B or 1, H or 1, T, S): bool, True where a key is seen, or
            float in the dtype of the queries, added to the scaled scores (ALiBi; -inf where not seen). None:
            every key is seen, or `causal` says all. Every query sees one key at least, so no row is empty.
    """

    causal: bool = False
    seen: Tensor | None = None

    def bias(self, v: Tensor) -> Tensor:
        """What to add to the scores of T queries on themselves, broadcastable to (B, H, T, T), in the dtype of v."""
        if self.seen is not None and self.seen.dtype != torch.bool:
            return self.seen.to(v.dtype)
        tokens = v.shape[2]
        hidden = torch.full((tokens, tokens), float("-inf"), dtype=v.dtype, device=v.device)
        return hidden.triu_(1) if self.seen is None else hidden.new_zeros(()).where(self.seen, hidden)


def causal_mask(
    queries: int,
    keys: int,
    window: int | None = None,
    segments: Tensor | None = None,
    slopes: Tensor | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Mask:
    """The mask of `queries` tokens that are the last of `keys` tokens, each seeing none after itself.

    Args:
        queries: T, tokens of this pass.
        keys: S >= T, tokens of this pass and of the cache before it.
        window: a query sees itself and the window - 1 keys before it; None: all before it.
        segments: (B, S) int64, the document of each key in a packed row, 0 for padding; a query sees only keys of
            its own document. Padding sees padding, which keeps its rows finite.
        slopes: (H,) float32, ALiBi's slope of each head; distances count slots, so rows that are padded on the
            left or packed need no positions.
        device: where the mask is made.
        dtype: of the queries; only a mask with slopes needs it.

    Returns:
        A mask without a tensor wherever that says the same.
    """
    if window is not None and window >= keys:
        window = None
    if window is None and segments is None and slopes is None:
        if queries == 1:
            return Mask()
        if queries == keys:
            return Mask(causal=True)
    slots = torch.arange(keys, device=device)
    distance = slots[keys - queries :, None] - slots  # (T, S)
    seen = distance >= 0
    if window is not None:
        seen = seen & (distance < window)
    seen = seen[None, None]  # (1, 1, T, S)
    if segments is not None:
        same = segments[:, keys - queries :, None] == segments[:, None, :]  # (B, T, S)
        seen = seen & same[:, None]  # (B, 1, T, S)
    if slopes is not None:
        bias = -slopes[:, None, None] * distance  # (H, T, S)
        seen = torch.where(seen, bias, float("-inf")).to(dtype)  # (B or 1, H, T, S)
    return Mask(seen=seen)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, dropout: float = 0.0) -> Tensor:
    """softmax(q k' scale, masked) v, by torch's fused kernels or, where it is faster, `attend_explicitly`.

    Args:
        q: (B, H, T, D).
        k: (B, Hkv, S, D); H is a multiple of Hkv, and each run of H / Hkv query heads shares one head of k and v.
        v: (B, Hkv, S, D).
        mask: which keys are seen.
        scale: multiplies the scores; usually D ** -0.5.
        dropout: probability that a weight is dropped.

    Returns:
        (B, H, T, D), in the dtype of q.
    """
    shared, explicit = q.shape[1] // k.shape[1], not dropout and explicit_is_faster(q, k)
    if shared > 1 and q.shape[2] == 1:
        return _attend_in_groups(q, k, v, mask, scale, dropout)
    if shared > 1 and (explicit or (q.is_cuda and mask.seen is not None)):  # no fused kernel there does both
        k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    if explicit:
        return attend_explicitly(q.to(v.dtype), k.to(v.dtype), v, mask.bias(v), scale)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask.seen, dropout, mask.causal, scale=scale, enable_gqa=grouped)


def _attend_in_groups(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, dropout: float) -> Tensor:
    """One query, several heads to each head of k and v: the heads of a group stand in a row like tokens.

    k and v are then read once a group: on a CPU in bf16 5 to 17 times faster than the kernel's own sharing.
    """
    groups = k.shape[1]
    seen = mask.seen
    if seen is not None and seen.shape[1] > 1:  # a bias for each head
        seen = seen.unflatten(1, (groups, -1)).squeeze(3)  # (B or 1, Hkv, H / Hkv, S)
    rows = q.unflatten(1, (groups, -1)).squeeze(3)  # (B, Hkv, H / Hkv, D)
    y = F.scaled_dot_product_attention(rows, k, v, seen, dropout, scale=scale)
    return y.flatten(1, 2).unsqueeze(2)  # (B, H, 1, D)


def attend_naively(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """What `attend` computes, written out with every score in memory: the reference, and the view of the weights.

    Returns:
        (B, H, T, D) in the dtype of q, and the weights (B, H, T, S) in float32 before dropout: rows sum to 1.

    Source: Vaswani et al., "Attention Is All You Need", arXiv:1706.03762, equation 1; shared key and value heads:
    Ainslie et al., arXiv:2305.13245.
    """
    shared = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(shared, dim=1).float() for x in (k, v))  # (B, H, S, D)
    scores = q.float() @ k.transpose(-1, -2) * scale  # (B, H, T, S)
    if mask.causal:
        after = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(after, float("-inf"))
    elif mask.seen is not None and mask.seen.dtype == torch.bool:
        scores = scores.masked_fill(~mask.seen, float("-inf"))
    elif mask.seen is not None:
        scores = scores + mask.seen
    weights = scores.softmax(dim=-1)
    return (F.dropout(weights, dropout) @ v).to(q.dtype), weights
