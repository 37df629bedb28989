"""attend: queries, keys and values to outputs; the one place where an attention kernel is chosen."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llmctl.core.model.explicit import attend_explicitly, explicit_is_faster


class Mask(NamedTuple):
    """Which keys each query sees, made once a forward pass and shared by its layers.

    Attributes:
        causal: queries and keys are the same T tokens, and none sees one after itself; `seen` says so too.
        seen: (B or 1, H or 1, T or 1, S): bool, True where a key is seen, or float in the dtype of the queries,
            added to the scaled scores (ALiBi; -inf where not seen). None: every key is seen, or all that `causal`
            allows. Every query sees one key at least, so no row is empty.
        bias: (1, H, T, S) in the dtype of the queries, added to the scaled scores: learned, so gradients flow into it.
        added: `causal`, `seen` and `bias` as one sum without a gradient, where layers share it; None: not made yet.
    """

    causal: bool = False
    seen: Tensor | None = None
    bias: Tensor | None = None
    added: Tensor | None = None

    def hidden(self, queries: int, keys: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """`causal` and `seen` as numbers to add to the scores, -inf where a key is not seen; None: all are seen."""
        if self.seen is None and not self.causal:
            return None
        if self.seen is not None and self.seen.dtype != torch.bool:
            return self.seen.to(dtype)
        hidden = torch.full((queries, keys), float("-inf"), dtype=dtype, device=device)
        return hidden.triu_(1) if self.seen is None else hidden.new_zeros(()).where(self.seen, hidden)

    def summed(self, queries: int, keys: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """`added`: broadcastable to (B, H, T, S); None: every key is seen as it is."""
        if self.added is not None:
            return self.added
        hidden, bias = self.hidden(queries, keys, dtype, device), None if self.bias is None else self.bias.detach()
        if hidden is None or bias is None:
            return bias if hidden is None else hidden
        return hidden + bias

    def fused(self, q: Tensor, k: Tensor) -> Tensor | None:
        """What torch's fused kernels take besides `causal`: (B or 1, H or 1, T, S), bool or the dtype of q."""
        if self.bias is None:
            return self.seen
        hidden = self.hidden(q.shape[2], k.shape[2], q.dtype, q.device)
        return self.bias if hidden is None else self.bias + hidden


def self_mask(
    queries: int,
    keys: int,
    causal: bool = True,
    window: int | None = None,
    segments: Tensor | None = None,
    slopes: Tensor | None = None,
    prefix: Tensor | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Mask:
    """The mask of `queries` tokens that are the last of `keys` tokens.

    Args:
        queries: T, tokens of this pass.
        keys: S >= T, tokens of this pass and of the cache before it.
        causal: no token sees one after itself.
        window: a query sees itself and the keys less than so many places away; None: all.
        segments: (B, S) int64, the document of each key in a packed row, 0 for padding; a query sees only keys of
            its own document. Padding sees padding, which keeps its rows finite.
        slopes: (H,) float32, ALiBi's slope of each head; distances count slots, so rows that are padded on the
            left or packed need no positions.
        prefix: (B, S) bool, keys that are seen by queries before them too.
        device: where the mask is made.
        dtype: of the queries; only a mask with slopes needs it.

    Returns:
        A mask without a tensor wherever that says the same.
    """
    if window is not None and window >= keys:
        window = None
    if window is None and segments is None and slopes is None and prefix is None:
        if not causal or queries == 1:
            return Mask()
        if queries == keys:
            return Mask(causal=True)
    slots = torch.arange(keys, device=device)
    distance = (slots[keys - queries :, None] - slots)[None]  # (1, T, S)
    same = None if segments is None else segments[:, keys - queries :, None] == segments[:, None, :]  # (B, T, S)
    seen = _seen(distance, causal, window, prefix, same, slopes, dtype)
    return Mask(causal and prefix is None and queries == keys, seen)


def placed_mask(
    queries: Tensor, keys: Tensor, window: int | None, slopes: Tensor | None, dtype: torch.dtype = torch.float32
) -> Mask:
    """The mask of tokens at some places on tokens at others: none sees one after itself.

    Args:
        queries: (B or 1, T) int64.
        keys: (B or 1, S) int64.
        window, slopes, dtype: as in `self_mask`.
    """
    distance = queries[:, :, None] - keys[:, None, :]  # (B or 1, T, S)
    return Mask(seen=_seen(distance, True, window, None, None, slopes, dtype))


def _seen(
    distance: Tensor,
    causal: bool,
    window: int | None,
    prefix: Tensor | None,
    same: Tensor | None,
    slopes: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """`Mask.seen` of the distances (B or 1, T, S) of keys before queries."""
    seen = (distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool))[:, None]  # (B or 1, 1, T, S)
    if prefix is not None:
        seen = seen | prefix[:, None, None]  # (B, 1, T, S)
    if window is not None:
        seen = seen & (distance.abs() < window)[:, None]
    if same is not None:
        seen = seen & same[:, None]  # (B, 1, T, S)
    if slopes is not None:
        bias = -slopes[:, None, None] * distance.abs()[:, None]  # (B or 1, H, T, S)
        seen = torch.where(seen, bias, float("-inf")).to(dtype)  # (B or 1, H, T, S)
    return seen


def cross_mask(segments: Tensor | None, source: Tensor | None) -> Mask:
    """The mask of a decoder's tokens on its encoder's.

    Args:
        segments: (B, T) int64 of the decoder's tokens, or None: one document a row.
        source: (B, S) int64 of the encoder's tokens, 0 for padding, or None: all are seen.

    Returns:
        A mask in which segment i sees segment i, and padding of the decoder sees all.
    """
    if source is None:
        return Mask()
    if segments is None:
        return Mask(seen=(source != 0)[:, None, None])  # (B, 1, 1, S)
    same = (segments[:, :, None] == source[:, None]) | (segments == 0)[:, :, None]  # (B, T, S)
    return Mask(seen=same[:, None])


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, dropout: float = 0.0, softcap: float | None = None
) -> Tensor:
    """softmax(q k' scale, masked) v, by torch's fused kernels or, where it is faster, `attend_explicitly`.

    Args:
        q: (B, H, T, D).
        k: (B, Hkv, S, D); H is a multiple of Hkv, and each run of H / Hkv query heads shares one head of k and v.
        v: (B, Hkv, S, D).
        mask: which keys are seen.
        scale: multiplies the scores; usually D ** -0.5.
        dropout: probability that a weight is dropped.
        softcap: scaled scores become softcap * tanh(scores / softcap); no fused kernel does that.

    Returns:
        (B, H, T, D), in the dtype of q.
    """
    if softcap is not None:
        return attend_naively(q, k, v, mask, scale, dropout, softcap).out
    shared, explicit = q.shape[1] // k.shape[1], explicit_is_faster(q, k)
    if shared > 1 and q.shape[2] == 1:
        return _attend_in_groups(q, k, v, mask, scale, dropout)
    masked = mask.seen is not None or mask.bias is not None
    if shared > 1 and (explicit or (q.is_cuda and masked)):  # no fused kernel there does both
        k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    if explicit:
        added = mask.summed(q.shape[2], k.shape[2], v.dtype, v.device)
        return attend_explicitly(q.to(v.dtype), k.to(v.dtype), v, added, mask.bias, scale, mask.causal, dropout)
    grouped, seen = q.shape[1] != k.shape[1], mask.fused(q, k)
    causal = mask.causal and seen is None
    return F.scaled_dot_product_attention(q, k, v, seen, dropout, causal, scale=scale, enable_gqa=grouped)


def _attend_in_groups(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, dropout: float) -> Tensor:
    """One query, several heads to each head of k and v: the heads of a group stand in a row like tokens.

    k and v are then read once a group: on a CPU in bf16 5 to 17 times faster than the kernel's own sharing.
    """
    groups = k.shape[1]
    seen = mask.fused(q, k)
    if seen is not None and seen.shape[1] > 1:  # a bias for each head
        seen = seen.unflatten(1, (groups, -1)).squeeze(3)  # (B or 1, Hkv, H / Hkv, S)
    rows = q.view(q.shape[0], groups, -1, q.shape[3])  # (B, Hkv, H / Hkv, D)
    y = F.scaled_dot_product_attention(rows, k, v, seen, dropout, scale=scale)
    return y.flatten(1, 2).unsqueeze(2)  # (B, H, 1, D)


class Attended(NamedTuple):
    """What attention computed, step by step.

    Attributes:
        out: (B, H, T, D) in the dtype of q.
        scores: (B, H, T, S) float32, scaled, before anything is added.
        masked: (B, H, T, S) float32, capped, with biases, -inf where a key is not seen.
        weights: (B, H, T, S) float32, before dropout: rows sum to 1.
    """

    out: Tensor
    scores: Tensor
    masked: Tensor
    weights: Tensor


def attend_naively(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, dropout: float = 0.0, softcap: float | None = None
) -> Attended:
    """What `attend` computes, written out with every score in memory: the reference, and the view of the weights.

    Under autocast its two products are in autocast's dtype, else in float32.

    Source: Vaswani et al., "Attention Is All You Need", arXiv:1706.03762, equation 1; shared key and value heads:
    Ainslie et al., arXiv:2305.13245; capped scores: Gemma 2, arXiv:2408.00118, section 2.
    """
    shared = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(shared, dim=1).float() for x in (k, v))  # (B, H, S, D)
    scores = q.float() @ k.transpose(-1, -2) * scale  # (B, H, T, S)
    masked = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    if mask.bias is not None:
        masked = masked + mask.bias
    hidden = mask.hidden(*scores.shape[-2:], torch.float32, q.device)
    masked = masked if hidden is None else masked + hidden
    weights = masked.softmax(dim=-1)
    return Attended((F.dropout(weights, dropout) @ v).to(q.dtype), scores, masked, weights)
