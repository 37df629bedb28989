"""watch: what attention computes in a model, step by step, recorded while it runs; `pooled` draws it together."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from llmctl.core.model.attend import Mask, attend_naively
from llmctl.core.model.layers import Attention, LinearAttention, Side
from llmctl.core.model.linear import Features, parallel
from llmctl.core.model.transformer import Transformer


class View(NamedTuple):
    """What some heads of one layer computed in one pass, of n heads, T queries and S keys.

    Attributes:
        layer: its number in its stack.
        scores: (B, n, T, S) float32: q k' scale, or of linear attention phi(q) . phi(k).
        masked: (B, n, T, S) float32, what the softmax takes: capped, with biases, and -inf where a key is not seen;
            of linear attention 0 there.
        weights: (B, n, T, S) float32, what values are multiplied by. Rows sum to 1; where rotary positions turn
            linear attention, they need not, and weights below 0 occur.
    """

    layer: int
    scores: Tensor
    masked: Tensor
    weights: Tensor


@contextmanager
def watch(
    model: Transformer,
    side: Side,
    cross: bool = False,
    layers: Collection[int] | None = None,
    heads: Collection[int] | None = None,
) -> Iterator[list[View]]:
    """Record a model's attention within the block; what the model computes stays what it is, bit for bit.

    Tokens that linear attention reads through a cache are not recorded.

    Args:
        side: which stack.
        cross: attention to the source, in place of that of a stack's tokens to each other.
        layers: numbers of layers; None: all.
        heads: numbers of heads; None: all. Others cost nothing.

    Yields:
        A list that gets a View whenever one of the layers attends.

    Raises:
        ValueError: the model has no such stack, layer or head, or no source to attend to.
    """
    found = attentions(model, side, cross)
    wanted = list(found) if layers is None else sorted(set(layers))
    chosen = list(range(model.config.heads)) if heads is None else sorted(set(heads))
    if unknown := [layer for layer in wanted if layer not in found]:
        raise ValueError(f"the {side} has no layers {unknown}")
    if unknown := [head for head in chosen if not 0 <= head < model.config.heads]:
        raise ValueError(f"the {side} has no heads {unknown}")
    views: list[View] = []
    before = {layer: found[layer].attend for layer in wanted}
    try:
        for layer in wanted:
            found[layer].attend = _recorder(found[layer], chosen, views)
        yield views
    finally:
        for layer, attend in before.items():
            found[layer].attend = attend


def attentions(model: Transformer, side: Side, cross: bool = False) -> dict[int, Attention]:
    """The attention of each layer of a stack, by its number.

    Raises:
        ValueError: the model has no such stack, or no source to attend to.
    """
    stack = {"encoder": model.encoder, "decoder": model.decoder}[side]
    if stack is None or (cross and (side == "encoder" or model.encoder is None)):
        raise ValueError(f"a model of kind {model.config.kind} has no {'cross-' if cross else ''}attention of {side}s")
    blocks = stack.layers.items()
    return {int(name): block.cross_attention if cross else block.attention for name, block in blocks}


def _recorder(attention: Attention, heads: list[int], views: list[View]):
    """Stands where the layer's `attend` did: calls it, and notes the reference's view of the same."""
    before, layer = attention.attend, attention.layer

    def softmax(q, k, v, mask, scale, dropout=0.0, softcap=None):
        with torch.no_grad():
            seen = attend_naively(*_of_heads(q, k, v, mask, heads), scale, 0.0, softcap)
            views.append(View(layer, seen.scores, seen.masked, seen.weights))
        return before(q, k, v, mask, scale, dropout, softcap)

    def linear(f, v, segments, causal):
        with torch.no_grad():
            own = [head // f.group for head in heads]
            q, k = f.q[:, heads], f.k[:, own]
            turned = (f.turned_q[:, heads], f.turned_k[:, own]) if f.turned else (q, k)
            seen = parallel(Features(q, k, *turned), v[:, own], segments, causal)
            views.append(View(layer, seen.scores, seen.masked, seen.weights))
        return before(f, v, segments, causal)

    return linear if isinstance(attention, LinearAttention) else softmax


def _of_heads(q: Tensor, k: Tensor, v: Tensor, mask: Mask, heads: list[int]) -> tuple[Tensor, Tensor, Tensor, Mask]:
    """Some heads only, each with keys and values of its own."""
    own = [head // (q.shape[1] // k.shape[1]) for head in heads]

    def some(x: Tensor | None) -> Tensor | None:
        return x if x is None or x.shape[1] == 1 else x[:, heads]

    return q[:, heads], k[:, own], v[:, own], mask._replace(seen=some(mask.seen), bias=some(mask.bias))


def pooled(weights: Tensor, queries: int, keys: int) -> Tensor:
    """A map whose cells hold so many queries and keys each: the queries' mean of the keys' sums.

    Rows go on to sum to what they did.

    Args:
        weights: (..., T, S).

    Returns:
        (..., ceil(T / queries), ceil(S / keys)).
    """
    weights = torch.stack([part.sum(-1) for part in weights.split(keys, dim=-1)], dim=-1)
    return torch.stack([part.mean(-2) for part in weights.split(queries, dim=-2)], dim=-2)
