"""combine: whole checkpoints of one shape into one, a tensor in memory at a time."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from math import acos, sin
from pathlib import Path

import torch
from torch import Tensor

from llmctl.core.checkpoint.directory import SHARD_BYTES
from llmctl.core.checkpoint.names import join, split
from llmctl.core.checkpoint.stream import Stream
from llmctl.core.checkpoint.write import DTYPES, Item, write_shards
from llmctl.errors import UserError
from llmctl.spec.combine import Blend, Combine, CombinePlan
from llmctl.spec.sizes import shapes

BLOCK = 1 << 16  # elements that are summed at once: few enough to stay in a cache
PARALLEL = 0.9995  # cosine from which two tensors are one direction
_FEW = 1e-8  # sums of weights that are taken as none
Flat = list[Tensor]


@torch.no_grad()
def combine(plan: CombinePlan, directory: Path, progress: Callable[[int], None] = lambda done: None) -> None:
    """Write the tensors of a combined checkpoint into an existing directory.

    Sums of 16-bit tensors are in float32, of others in float64, and are cast once to what is stored. Memory: the
    tensor of each model, as it is read, the one that is written, and blocks of BLOCK elements.

    Args:
        progress: told the bytes written, after each tensor.

    Raises:
        UserError: a weight is not finite, though the models' are.
        OSError: the disk is full.
    """
    streams, done = [Stream(path) for path in plan.places], 0

    def item(blend: Blend) -> Item:
        def make() -> Tensor:
            nonlocal done
            for stream in streams:
                stream.release()
            progress(done)
            done += blend.bytes
            return _blended(plan, blend, [_whole(plan, blend, number, one) for number, one in enumerate(streams)])

        return Item(blend.rule.theirs, blend.shape, DTYPES[blend.dtype], make)

    write_shards(directory, [item(blend) for blend in plan.tensors], SHARD_BYTES)
    progress(done)


def _whole(plan: CombinePlan, blend: Blend, number: int, stream: Stream) -> Tensor:
    """One directory's tensor, laid out as it will be written."""
    rule, parts = blend.rule, blend.sources[number]
    if len(parts) == 1 and parts[0].rule.ours == rule.ours:
        one = parts[0].rule
        if (one.transposed, one.fusion, one.row) == (rule.transposed, rule.fusion, rule.row):
            return stream.tensor(parts[0].info)
    wanted, heads = shapes(plan.config), plan.config.heads
    ours: dict[str, Tensor] = {}
    for part in parts:
        rows = [wanted[name][0] for name in part.rule.ours]
        ours |= dict(zip(part.rule.ours, split(part.rule, stream.tensor(part.info), rows, heads), strict=True))
    return join(rule, [ours[name] for name in rule.ours], heads)


def _blended(plan: CombinePlan, blend: Blend, tensors: list[Tensor]) -> Tensor:
    flat = [tensor.reshape(-1) for tensor in tensors]
    result = torch.empty(blend.shape, dtype=DTYPES[blend.dtype])
    wide = any(tensor.dtype.itemsize > 2 for tensor in tensors)
    work = torch.float64 if wide else torch.float32
    blocks = METHODS[plan.how.method](plan, blend, flat)
    written = result.view(-1)
    for place in _places(len(written)):
        read = [tensor[place].to(work) for tensor in flat]
        written[place] = blocks(place, read)
        if not written[place].isfinite().all() and all(one.isfinite().all() for one in read):
            raise UserError(f"{blend.rule.theirs} does not stay finite as {blend.dtype}.", "Use --dtype bf16 or fp32.")
    return result


def _places(count: int) -> Iterator[slice]:
    for start in range(0, count, BLOCK):
        yield slice(start, min(count, start + BLOCK))


# What makes a block of the result of those of the models (and of the base, which is last), in the order of the blocks.
Blocks = Callable[[slice, Flat], Tensor]


def linear(plan: CombinePlan, blend: Blend, flat: Flat) -> Blocks:
    """The sum of weight times tensor, over the sum of the weights; equal tensors stay what they are.

    Source: Wortsman et al., "Model soups", arXiv:2203.05482, section 2.
    """
    weights = list(plan.weights)
    total = sum(weights)

    def block(place: slice, read: Flat) -> Tensor:
        if not plan.how.shares:
            return sum(weight * one for weight, one in zip(weights, read, strict=True))
        counting = [(weight, one) for weight, one in zip(weights, read, strict=True) if weight]
        first = counting[0][1]
        return sum((weight / total * (one - first) for weight, one in counting[1:]), start=first)

    return block


def slerp(plan: CombinePlan, blend: Blend, flat: Flat) -> Blocks:
    """Along the arc between two tensors, taken as vectors; along the line where they point the same way.

    Source: Shoemake, "Animating rotation with quaternion curves", 1985; on whole tensors, as mergekit does.
    """
    t = 0.5 if plan.how.t is None else plan.how.t
    if t in (0, 1):
        return lambda place, read: read[int(t)]
    products = torch.zeros(3, dtype=torch.float64)  # of a and b, a and a, b and b
    for place in _places(len(flat[0])):
        a, b = (one[place].double() for one in flat)
        products += torch.stack((a @ b, a @ a, b @ b))
    ab, aa, bb = products.tolist()
    cosine = ab / (aa * bb) ** 0.5 if aa and bb else 1.0
    if abs(cosine) > PARALLEL:
        return lambda place, read: read[0] + t * (read[1] - read[0])
    angle = acos(cosine)
    first, second = sin((1 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)
    return lambda place, read: first * read[0] + second * read[1]


def changes(plan: CombinePlan, blend: Blend, flat: Flat, keep: str | None = None, elect: bool = False) -> Blocks:
    """The base, and scale times the sum of weight times change, as much of each change as is kept.

    Args:
        keep: "largest": the largest of each tensor's changes; "random": any, divided by the share that is kept; None:
            all.
        elect: leave out changes whose sign is not that of the weighted sum of all.

    Source: Ilharco et al., arXiv:2212.04089, section 2; TIES: Yadav et al., arXiv:2306.01708, algorithm 1; DARE: Yu et
    al., arXiv:2311.03099, section 3.2. As mergekit does, weights count in the election, and with `normalize` each
    element is divided by the sum of the weights of the changes that are summed there.
    """
    scale = 1.0 if plan.how.scale is None else plan.how.scale
    base, models = flat[-1], flat[:-1]
    kept = [KEPT[keep](plan, blend, number, one, base) for number, one in enumerate(models)]

    def block(place: slice, read: Flat) -> Tensor:
        found = read[-1]
        weighted = [
            weight * chosen(one - found) for weight, chosen, one in zip(plan.weights, kept, read[:-1], strict=True)
        ]
        taken = [torch.ones_like(found, dtype=torch.bool)] * len(weighted)
        if elect:
            sign = torch.where(sum(weighted) >= 0, 1.0, -1.0)
            taken = [one.sign() == sign for one in weighted]
        total = sum(one * here for one, here in zip(weighted, taken, strict=True))
        if plan.how.shares:
            share = sum(weight * here for weight, here in zip(plan.weights, taken, strict=True))
            total = total / torch.where(share.abs() < _FEW, 1.0, share)
        return found + scale * total

    return block


def _all(plan: CombinePlan, blend: Blend, number: int, model: Tensor, base: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda change: change


def _largest(plan: CombinePlan, blend: Blend, number: int, model: Tensor, base: Tensor) -> Callable[[Tensor], Tensor]:
    """Keeps exactly the share of a tensor's changes that is asked for; of equal ones those that come first."""
    density = plan.densities[number]
    if density >= 1:
        return lambda change: change
    wanted = int(density * len(model))
    least, more = threshold(model, base, wanted) if wanted else (float("inf"), 0)
    left = wanted - more  # of those that are as large as the least that is kept

    def kept(change: Tensor) -> Tensor:
        nonlocal left
        size = change.float().abs()
        chosen, even = size > least, size == least
        if left > 0:
            first = even & (even.cumsum(0) <= left)
            left -= int(first.sum())
            chosen |= first
        return change * chosen

    return kept


def threshold(model: Tensor, base: Tensor, wanted: int) -> tuple[float, int]:
    """The size of the wanted-th largest change, and how many are larger; nothing is sorted or held.

    The bits of floats that are not negative are in their order, so that two counts of 15 and 16 bits find it.

    Args:
        model, base: (N,) floats.
        wanted: 1 to N.
    """
    high, above = _nth(_bits(model, base), lambda bits: bits >> 16, wanted, 1 << 15)
    low, more = _nth(
        (bits[bits >> 16 == high] for bits in _bits(model, base)), lambda bits: bits & 0xFFFF, wanted - above, 1 << 16
    )
    value = torch.tensor([(high << 16) + low], dtype=torch.int32).view(torch.float32)
    return float(value), above + more


def _bits(model: Tensor, base: Tensor) -> Iterator[Tensor]:
    """The sizes of the changes as int32, block by block."""
    wide = model.dtype.itemsize > 2 or base.dtype.itemsize > 2
    work = torch.float64 if wide else torch.float32
    for place in _places(len(model)):
        yield (model[place].to(work) - base[place].to(work)).float().abs().view(torch.int32)


def _nth(blocks: Iterator[Tensor], part: Callable[[Tensor], Tensor], wanted: int, bins: int) -> tuple[int, int]:
    """The part of the wanted-th largest, and how many have a larger one."""
    counts = torch.zeros(bins, dtype=torch.int64)
    for bits in blocks:
        counts += torch.bincount(part(bits), minlength=bins)
    reached = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(reached, wanted))
    found = bins - 1 - place
    return found, int(reached[place] - counts[found])


def _random(plan: CombinePlan, blend: Blend, number: int, model: Tensor, base: Tensor) -> Callable[[Tensor], Tensor]:
    """Keeps each change with a chance, and divides it by that; drawn from (seed, tensor, number of the model)."""
    density = plan.densities[number]
    if density >= 1:
        return lambda change: change
    digest = hashlib.sha256(f"{plan.how.seed}/{'+'.join(blend.rule.ours)}/{number}".encode()).digest()
    chance = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return lambda change: (
        change * (torch.rand(len(change), generator=chance) < density) / density if density else change * 0
    )


KEPT = {None: _all, "largest": _largest, "random": _random}
METHODS: dict[Combine, Callable[[CombinePlan, Blend, Flat], Blocks]] = {
    "linear": linear,
    "slerp": slerp,
    "task-arithmetic": changes,
    "ties": partial(changes, keep="largest", elect=True),
    "dare-linear": partial(changes, keep="random"),
    "dare-ties": partial(changes, keep="random", elect=True),
}
