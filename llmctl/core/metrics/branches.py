"""Branches: texts that begin alike, and are to be scored, read so that what they share passes through the model once.

The choices of a question share its text, and questions share the examples that they are shown after: a stem of all,
a trunk of the neighbours in one group, and what differs.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from llmctl.core.decode.prefix import Prefix
from llmctl.core.decode.rows import common
from llmctl.core.metrics.scored import Asked, last_places, padded
from llmctl.core.model.cache import KVCache
from llmctl.core.model.slots import CHUNK, in_one_pass
from llmctl.core.model.transformer import Transformer

SHARED = 16  # tokens that are worth keeping keys and values for, rather than reading them again
SPARED = 4  # tokens fewer that a group shares where one more joins it: words split otherwise before another choice


class Trunk(NamedTuple):
    """Neighbours of a pool that are read together.

    Attributes:
        members: their numbers in the pool.
        shared: tokens that all of them begin with, before what is scored of any; 0: none worth it.
    """

    members: tuple[int, ...]
    shared: int = 0


def splits(model: Transformer, longest: int) -> bool:
    """Whether a model can read the ends of texts of so many tokens after their beginning, and more than once."""
    config = model.config
    dropped = config.window is not None and 2 * longest + model.virtual_tokens("decoder") > config.window + CHUNK
    return config.kind == "decoder" and config.attention == "softmax" and not in_one_pass(config) and not dropped


def trunks(pool: Sequence[Asked], batch_tokens: int, apart: bool = False) -> list[Trunk]:
    """The texts of a pool in groups of neighbours that begin alike, or that have one source; each fits a batch.

    Args:
        apart: group by sources alone, for a model that cannot be given the end of a text after its beginning.
    """
    found: list[Trunk] = []
    for number, one in enumerate(pool):
        if found:
            last = found[-1]
            first = pool[last.members[0]]
            longest = max(one.size, first.size)
            room = (len(last.members) + 1) * longest <= batch_tokens
            if room and one.encoder and one.encoder == first.encoder:
                found[-1] = Trunk((*last.members, number))
                continue
            shared = 0 if apart or not room else branching(first, one)
            least = max(SHARED, last.shared - SPARED)  # the next question is not to spoil what choices share
            if shared >= least:
                found[-1] = Trunk((*last.members, number), min(shared, last.shared or shared))
                continue
        found.append(Trunk((number,)))
    return found


def branching(one: Asked, other: Asked) -> int:
    """How many tokens two texts share before the last that is read before what is scored of either.

    That last one is read with the rest, for what stands there predicts the first scored token.
    """
    return common((one.ids, other.ids), min(len(one.ids) - one.scored, len(other.ids) - other.scored) - 1)


def stem_of(pool: Sequence[Asked], groups: Sequence[Trunk]) -> list[int]:
    """What all groups of a pool begin with, where that is worth reading once; else nothing."""
    heads = [pool[group.members[0]] for group in groups]
    if len(heads) < 2:
        return []
    length = min((group.shared or len(one.context) - 1) for group, one in zip(groups, heads, strict=True))
    for one, other in pairwise(heads):
        length = common((one.ids, other.ids), length)
    return list(heads[0].ids[:length]) if length >= SHARED else []


@torch.inference_mode()
def read_stem(model: Transformer, ids: Sequence[int]) -> Prefix:
    """A beginning and its keys and values."""
    cache = _cache(model, 1, len(ids))
    _read(model, cache, [ids])
    end = cache.lengths[0]
    pairs = [cache.held(0, layer) for layer in range(len(cache.keys))]
    return Prefix(tuple(ids), [(k[:, :end], v[:, :end]) for k, v in pairs])


@torch.inference_mode()
def branched(
    model: Transformer, texts: Sequence[Sequence[Asked]], shared: Sequence[int], stem: Prefix | None
) -> Tensor:
    """What a model makes of the places where the scored tokens are predicted, of all texts in a row: (N, D).

    Args:
        texts: groups of texts that begin alike.
        shared: how many tokens of each group do: all more than the stem's, or all 0, for groups of one.
        stem: what all begin with.
    """
    begun = 0 if stem is None else len(stem.ids)
    flat = [one for group in texts for one in group]
    read = [max(count, begun) for count in shared]
    rest = [one.ids[count:-1] for group, count in zip(texts, read, strict=True) for one in group]
    cache = _cache(model, len(texts), max(read) + max(map(len, rest)))
    if stem is not None:
        for row in range(len(texts)):
            cache.fill(row, stem.pairs, begun + model.virtual_tokens("decoder"))
    if any(count > begun for count in read):
        _read(model, cache, [group[0].ids[begun:count] for group, count in zip(texts, read, strict=True)])
    if len(flat) > len(texts):
        cache.keep([row for row, group in enumerate(texts) for _ in group])
    hidden = _read(model, cache, rest)  # (B, T, D)
    return last_places(hidden, list(map(len, rest)), [one.scored for one in flat])


def _cache(model: Transformer, rows: int, tokens: int) -> KVCache:
    weight = next(model.parameters())
    return KVCache(model.config, rows, model.virtual_tokens("decoder") + tokens, weight.device, weight.dtype)


def _read(model: Transformer, cache: KVCache, news: Sequence[Sequence[int]]) -> Tensor:
    """Read new tokens of each row, one or more, of unequal number: (B, T, D)."""
    virtual, counts = model.virtual_tokens("decoder"), list(map(len, news))
    tokens, segments = padded(news, next(model.parameters()).device)
    positions = None
    if segments is not None:  # padding is nowhere: the table of learned positions may end before it
        starts = torch.tensor([max(0, length - virtual) for length in cache.lengths], device=tokens.device)
        positions = starts[:, None] + segments.cumsum(1) - 1  # (B, T)
    cache.expect([count + (0 if cache.length else virtual) for count in counts])
    return model(tokens, positions, segments, cache)
