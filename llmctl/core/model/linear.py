"""Linear attention: weights that are products of features, so that sums over the tokens before stand for all of them.

    y_i = sum_j phi(q_i) . phi(k_j) v_j / sum_j phi(q_i) . phi(k_j),    phi(x) = elu(x) + 1

over the tokens j of the same document, in a decoder no later than i. The same is computed in three forms: `parallel`
writes every weight out, `recurrent` reads one token after another, `chunked` does the first within chunks of tokens
and the second between them.

Source: Katharopoulos et al., "Transformers are RNNs", arXiv:2006.16236, equations 7 to 9 and 16 to 20. Rotary
positions turn the features after phi, and in the numerator alone, which keeps the denominator positive: Su et al.,
arXiv:2104.09864, equation 19. Scores are not scaled, and no weight is dropped in training.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64  # tokens
SMALLEST = 1e-12  # a normaliser; that of a token which sees nothing is 0


class Features(NamedTuple):
    """phi of queries and keys.

    Attributes:
        q: (B, H, T, D), not negative.
        k: (B, Hkv, T, D), not negative; each run of H / Hkv query heads shares one head of k and v. Both are 0
            where a token is padding, which then adds nothing and gets nothing.
        turned_q: what the numerator has in the place of q: the same, or turned by rotary positions.
        turned_k: what it has in the place of k.
    """

    q: Tensor
    k: Tensor
    turned_q: Tensor
    turned_k: Tensor

    @classmethod
    def of(
        cls, q: Tensor, k: Tensor, segments: Tensor | None = None, turn: Callable[[Tensor], Tensor] | None = None
    ) -> "Features":
        """The features of queries (B, H, T, D) and keys (B, Hkv, T, D); padding has segment 0 in `segments` (B, T)."""
        q, k = phi(q), phi(k)
        if segments is not None:
            real = (segments != 0)[:, None, :, None]  # (B, 1, T, 1)
            q, k = q * real, k * real
        return cls(q, k, q, k) if turn is None else cls(q, k, turn(q), turn(k))

    @property
    def turned(self) -> bool:
        """Whether numerator and denominator differ in their features."""
        return self.turned_q is not self.q

    @property
    def group(self) -> int:
        """Query heads to each head of keys and values."""
        return self.q.shape[1] // self.k.shape[1]


class Sums(NamedTuple):
    """What stands for all the tokens of one document that have been read; its size knows nothing of their number.

    Attributes:
        values: (B, Hkv, D, D) float32, the sum of phi(k) v', turned.
        keys: (B, Hkv, D) float32, the sum of phi(k).
    """

    values: Tensor
    keys: Tensor

    @classmethod
    def zero(cls, f: Features, v: Tensor) -> "Sums":
        """Those of no token."""
        values = torch.zeros(*v.shape[:2], f.k.shape[-1], v.shape[-1], dtype=torch.float32, device=v.device)
        return cls(values, values.new_zeros(values.shape[:3]))


class Weights(NamedTuple):
    """What linear attention has in the place of scores and weights.

    Attributes:
        out: (B, H, T, D).
        scores: (B, H, T, T) float32, the products of features, of all tokens.
        masked: (B, H, T, T) float32, 0 where a key is not seen.
        weights: (B, H, T, T) float32: over the normalisers. Rows sum to 1, unless positions turn.
    """

    out: Tensor
    scores: Tensor
    masked: Tensor
    weights: Tensor


def phi(x: Tensor) -> Tensor:
    """elu(x) + 1: x + 1 above 0, exp(x) below; more than 0, and computed so that it does not round to 0 early."""
    return _Phi.apply(x)


class _Phi(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        made = x.clamp(max=0).exp_().add_(x.clamp(min=0))
        ctx.save_for_backward(made)
        return made

    @staticmethod
    def backward(ctx, grad):
        (made,) = ctx.saved_tensors
        return grad * made.clamp(max=1)


def attend_linearly(f: Features, v: Tensor, segments: Tensor | None, causal: bool) -> Tensor:
    """Outputs (B, H, T, D) of T tokens, in the form that is fastest for many; arguments as for `chunked`."""
    return chunked(f, v, segments, causal)[0]


def parallel(f: Features, v: Tensor, segments: Tensor | None = None, causal: bool = True) -> Weights:
    """Every weight written out: T^2 of them. The reference, and the view of the weights.

    Args:
        f: of T tokens.
        v: (B, Hkv, T, D).
        segments: (B, T) int64, the document of each token, 0 for padding; None: each row is one document.
        causal: no token sees one after itself.
    """
    k, turned_k, v = (x.repeat_interleave(f.group, dim=1).float() for x in (f.k, f.turned_k, v))
    scores = f.turned_q.float() @ turned_k.transpose(-1, -2)  # (B, H, T, T)
    plain = f.q.float() @ k.transpose(-1, -2) if f.turned else scores
    tokens = v.shape[2]
    seen = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=v.device)
    if causal:
        seen = seen.tril()
    if segments is not None:
        seen = seen & (segments[:, None, :, None] == segments[:, None, None])  # (B, 1, T, T)
    masked = scores * seen
    weights = masked / (plain * seen).sum(-1, keepdim=True).clamp(min=SMALLEST)
    return Weights((weights @ v).to(f.q.dtype), scores, masked, weights)


def recurrent(f: Features, v: Tensor, segments: Tensor | None = None, start: Sums | None = None) -> tuple[Tensor, Sums]:
    """One token after another, each adding itself to the sums and then reading them.

    Args:
        f: of T tokens.
        v: (B, Hkv, T, D).
        segments: as for `parallel`; the sums of a document end where the next begins.
        start: of the tokens before, which belong to the document of the first token.

    Returns:
        (B, H, T, D), and the sums of the document that was read last.
    """
    values, keys = Sums.zero(f, v) if start is None else start
    documents = None if segments is None else _filled(segments)
    outputs = []
    for i in range(v.shape[2]):
        if documents is not None and i:
            same = (documents[:, i] == documents[:, i - 1]).to(values.dtype)[:, None, None]  # (B, 1, 1)
            values, keys = values * same[..., None], keys * same
        turned_k, k = f.turned_k[:, :, i].float(), f.k[:, :, i].float()  # (B, Hkv, D)
        values = values + turned_k[..., None] * v[:, :, i, None].float()
        keys = keys + k
        outputs.append(_read(f, i, values, keys))
    return torch.stack(outputs, dim=2).to(f.q.dtype), Sums(values, keys)


def step(f: Features, v: Tensor, sums: Sums) -> Tensor:
    """`recurrent` for one token: (B, H, 1, D), from sums that it is added to in place."""
    values, keys = sums
    values.addcmul_(f.turned_k.transpose(-1, -2).float(), v.float())
    keys.add_(f.k[:, :, 0])
    return _read(f, 0, values, keys).unsqueeze(2).to(f.q.dtype)


def _read(f: Features, i: int, values: Tensor, keys: Tensor) -> Tensor:
    """What token i makes of the sums: (B, H, D) float32."""
    q, turned_q = (x[:, :, i].unflatten(1, (-1, f.group)).float() for x in (f.q, f.turned_q))  # (B, Hkv, H / Hkv, D)
    normaliser = (q @ keys[..., None]).clamp(min=SMALLEST)  # (B, Hkv, H / Hkv, 1)
    return (turned_q @ values / normaliser).flatten(1, 2)


def chunked(
    f: Features,
    v: Tensor,
    segments: Tensor | None = None,
    causal: bool = True,
    start: Sums | None = None,
    size: int = CHUNK,
) -> tuple[Tensor, Sums]:
    """Every weight within chunks of `size` tokens, sums for the chunks before: time and memory grow with T.

    Args:
        f: of T tokens.
        v: (B, Hkv, T, D).
        segments: as for `parallel`; the tokens of one document stand together, padding anywhere.
        causal: no token sees one after itself.
        start: of the tokens before, which belong to the document of the first token; only if `causal`.
        size: of a chunk.

    Returns:
        (B, H, T, D) in the dtype of q, and the sums of the document that was read last (all of it, even where no
        token sees all).

    Source: the chunks are those of Hua et al., arXiv:2202.10447, section 3.2, and Yang et al., arXiv:2312.06635.
    """
    if not causal and segments is None:
        return _whole(f, v)
    tokens, group = v.shape[2], f.group
    size = min(size, tokens)
    v = _chunks(v, size)  # (B, Hkv, N, C, D)
    k, turned_k = _chunks(f.k, size), _chunks(f.turned_k, size) if f.turned else None
    q = _grouped(f.q, group, size)  # (B, Hkv, N, G C, D): the heads of a group stand below each other
    turned_q = _grouped(f.turned_q, group, size) if f.turned else None
    documents = None if segments is None else _chunks(_filled(segments)[:, None, :, None], size, True)[..., 0]
    inside = _inside(documents, size, causal, v)  # (B or 1, 1, N or 1, 1, C, C)

    def weighed(q: Tensor, k: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2)).unflatten(-2, (group, size))  # (B, Hkv, N, G, C, C)
        return (scores * inside).flatten(-3, -2)  # (B, Hkv, N, G C, C)

    one = q if turned_q is None else turned_q
    weights = weighed(one, k if turned_k is None else turned_k)
    out = weights @ v
    plain = weights if turned_q is None else weighed(q, k)
    total = plain.sum(-1, dtype=torch.float32)  # (B, Hkv, N, G C)
    for before in (True,) if causal else (False, True):
        mine = None
        if documents is None:
            carried, last = _carried(turned_k, k, v, start)
        else:
            carried, mine, last = _carried_documents(turned_k, k, v, documents, before, start)
        from_others = one @ carried.values.to(v.dtype)
        to_total = (q @ carried.keys.to(v.dtype)[..., None]).squeeze(-1).float()
        if mine is not None:  # (B, 1, N, C): whose document it is
            mine = mine.repeat(1, 1, 1, group)
            from_others, to_total = from_others * mine[..., None], to_total * mine
        out, total = out + from_others, total + to_total
    out = out / total.clamp(min=SMALLEST).to(out.dtype)[..., None]
    out = out.unflatten(-2, (group, size)).transpose(2, 3).flatten(1, 2).flatten(2, 3)  # (B, H, N C, D)
    return out[:, :, :tokens], last


def _whole(f: Features, v: Tensor) -> tuple[Tensor, Sums]:
    """Every token sees every token."""
    last = _sums(f.turned_k, f.k, v)
    q, turned_q = (x.unflatten(1, (-1, f.group)).flatten(2, 3) for x in (f.q, f.turned_q))  # (B, Hkv, G T, D)
    total = (q @ last.keys.to(v.dtype)[..., None]).float().clamp(min=SMALLEST)
    out = turned_q @ last.values.to(v.dtype) / total.to(v.dtype)
    return out.unflatten(2, (f.group, -1)).flatten(1, 2), last


def _carried(turned_k: Tensor | None, k: Tensor, v: Tensor, start: Sums | None) -> tuple[Sums, Sums]:
    """For each chunk the sums of all chunks before it, (B, Hkv, N, ...); and those of all tokens."""
    own = _sums(k if turned_k is None else turned_k, k, v)
    first = Sums(*(torch.zeros_like(x[:, :, 0]) for x in own)) if start is None else start
    through = Sums(*(torch.cat([a[:, :, None], x], 2).cumsum(2) for a, x in zip(first, own, strict=True)))
    return Sums(*(x[:, :, :-1] for x in through)), Sums(*(x[:, :, -1] for x in through))


def _carried_documents(
    turned_k: Tensor | None, k: Tensor, v: Tensor, documents: Tensor, before: bool, start: Sums | None
) -> tuple[Sums, Tensor, Sums]:
    """The same of the document that goes on from the chunk before (or into the one after); which tokens are of it.

    Args:
        documents: (B, 1, N, C).
    """
    edge = documents[..., -1:] if before else documents[..., :1]  # (B, 1, N, 1): the document that leaves the chunk
    own = (documents == edge).to(v.dtype)[..., None]  # (B, 1, N, C, 1)
    added = _sums((k if turned_k is None else turned_k) * own, k * own, v)
    chunks = range(v.shape[2]) if before else range(v.shape[2] - 1, -1, -1)
    values, keys = Sums(*(torch.zeros_like(x[:, :, 0]) for x in added)) if start is None or not before else start
    met = documents[:, :, 0, 0] if before else documents[:, :, -1, -1]  # (B, 1): the document of the sums at hand
    carried, mine = {}, {}
    for n in chunks:
        carried[n], mine[n] = (values, keys), documents[:, :, n] == met[..., None]
        same = (edge[:, :, n, 0] == met).to(values.dtype)[..., None]  # (B, 1, 1)
        met = edge[:, :, n, 0]
        values, keys = values * same[..., None] + added.values[:, :, n], keys * same + added.keys[:, :, n]
    order = range(v.shape[2])
    stacked = Sums(*(torch.stack([carried[n][part] for n in order], dim=2) for part in (0, 1)))
    return stacked, torch.stack([mine[n] for n in order], dim=2).to(v.dtype), Sums(values, keys)


def _sums(turned_k: Tensor, k: Tensor, v: Tensor) -> Sums:
    """Of each chunk: (B, Hkv, N, D, D) and (B, Hkv, N, D), float32."""
    return Sums((turned_k.transpose(-1, -2) @ v).float(), k.sum(-2, dtype=torch.float32))


def _inside(documents: Tensor | None, size: int, causal: bool, v: Tensor) -> Tensor:
    """1 where a token of a chunk sees one of the same chunk, else 0: (B or 1, 1, N or 1, 1, C, C)."""
    seen = torch.ones(1, 1, 1, 1, size, size, dtype=v.dtype, device=v.device)
    if causal:
        seen = seen.tril()
    if documents is None:
        return seen
    return seen * (documents[..., :, None] == documents[..., None, :])[:, :, :, None]


def _chunks(x: Tensor, size: int, repeat: bool = False) -> Tensor:
    """(B, H, T, D) to (B, H, N, size, D), filled up with zeros or with the last token."""
    lack = -x.shape[2] % size
    if lack:
        x = torch.cat([x, x[:, :, -1:].expand(-1, -1, lack, -1)], 2) if repeat else F.pad(x, (0, 0, 0, lack))
    return x.unflatten(2, (-1, size))


def _grouped(q: Tensor, group: int, size: int) -> Tensor:
    """(B, H, T, D) to (B, Hkv, N, G size, D)."""
    q = _chunks(q, size).unflatten(1, (-1, group))  # (B, Hkv, G, N, C, D)
    return q.transpose(2, 3).flatten(3, 4)


def _filled(segments: Tensor) -> Tensor:
    """The document of each token, where padding counts with the one before it, or with the first: (B, T)."""
    places = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    source = (places * (segments != 0)).cummax(dim=1).values
    first = (segments != 0).long().argmax(dim=1, keepdim=True)  # 0 in a row of padding
    return segments.gather(1, torch.maximum(source, first))
