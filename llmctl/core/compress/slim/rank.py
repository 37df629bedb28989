"""rank: how much heads, neurons, channels and layers matter, by activations, by the loss, by weights, or by chance."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl.core.compress.calibrate import Visited, walk, watched
from llmctl.core.compress.slim.cut import over
from llmctl.core.compress.slim.repair import DAMP
from llmctl.core.data.batch import IGNORE, Batch
from llmctl.core.model.layers import Linear
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.objectives import hidden_of, tokens_loss
from llmctl.spec.slim import Rank

ENDS = {"attention": "out", "cross_attention": "out", "mlp": "down"}  # halves of a block, and what reads their units


def chosen(scores: Tensor, count: int, reverse: bool = False) -> Tensor:
    """The `count` units that matter most, or with `reverse` least: (n,) to (count,) int64, in their own order."""
    return scores.topk(count, largest=not reverse).indices.sort().values


def drawn(count: int, seed: int, name: str, device: torch.device) -> Tensor:
    """Scores by chance, (count,) float32, the same for the same seed and name."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))  # of which the CPU takes 32 bits
    return torch.rand(count, generator=generator).to(device)


def contributions(weight: Tensor, second: Tensor, size: int, repair: bool = False) -> Tensor:
    """What the output of a matrix loses with each unit that it reads: the mean square over text.

    Args:
        weight: (O, I).
        second: (I, I) float32, E[x x'] of what it is given.
        size: columns of one unit, side by side.
        repair: what it loses where the other units make up for it as well as they can.

    Returns:
        (I / size,) float32.

    Source: of heads and neurons Muralidharan et al., arXiv:2407.14679, section 2.2, take the norm of what they are;
    this is the norm of what they do. With `repair`: Kurtic et al., ZipLM, arXiv:2302.04089, equation 3.
    """
    columns = weight.float().t().unflatten(0, (-1, size))  # (n, size, O)
    gram = columns @ columns.transpose(1, 2)  # (n, size, size)
    blocks = torch.linalg.inv(_diagonal(_inverse(second), size)).float() if repair else _diagonal(second, size)
    return (gram * blocks).sum((1, 2))


def _diagonal(matrix: Tensor, size: int) -> Tensor:
    """The square blocks on the diagonal: (n size, n size) to (n, size, size)."""
    blocks = matrix.unflatten(0, (-1, size)).unflatten(2, (-1, size))  # (n, size, n, size)
    units = torch.arange(len(blocks), device=matrix.device)
    return blocks[units, :, units]


def _inverse(second: Tensor) -> Tensor:
    """Of second moments, held off from being singular: float64."""
    among = second.double()
    among.diagonal().add_(DAMP * among.diagonal().mean().clamp(min=1e-12))
    return torch.cholesky_inverse(torch.linalg.cholesky(among))


def half_weights(half: nn.Module, kind: str, units: int) -> Tensor:
    """The mean square of all weights of each unit of a half of a block: (units,) float32."""
    rows = ("q", "k", "v") if kind != "mlp" else ("gate", "up")
    matrices = [getattr(half, name).weight for name in rows if getattr(half, name) is not None]
    matrices.append(getattr(half, ENDS[kind]).weight.t())
    return sum(matrix.float().square().mean(1).unflatten(0, (units, -1)).mean(1) for matrix in matrices)


def influences(model: Transformer, batches: Sequence[Batch]) -> dict[str, list[float]]:
    """How much each layer turns the stream: 1 - E[cos(x, y)] of what it is given and what it makes, by stack.

    Source: block influence, Men et al., ShortGPT, arXiv:2403.03853, equation 1.
    """
    found: dict[str, list[float]] = {stack: [] for stack in model.config.stacks}

    def visit(visited: Visited) -> None:
        total, count = 0.0, 0
        for one in visited.passes:
            y = visited.block(one.x, one.shared)
            cosines = F.cosine_similarity(one.rows(one.x).float(), one.rows(y).float(), dim=-1)
            total, count = total + float(cosines.sum()), count + len(cosines)
        found[visited.path.partition(".")[0]].append(1 - total / max(1, count))

    walk(model, batches, visit)
    return found


@torch.no_grad()
def mean_loss(model: Transformer, batches: Iterable[Batch]) -> float:
    """The loss on text, nats a token."""
    total, count = 0.0, 0
    for batch in batches:
        loss = tokens_loss(model, batch)
        total, count = total + float(loss.total), count + loss.count
    return total / max(1, count)


@contextmanager
def without(model: Transformer, dropped: Iterable[tuple[str, int]]) -> Iterator[None]:
    """Meanwhile, the model lacks some layers, by stack and number."""
    stacks = {"encoder": model.encoder, "decoder": model.decoder}
    whole = {side: stacks[side].layers for side in model.config.stacks}
    gone = set(dropped)
    try:
        for side, layers in whole.items():
            left = {name: layer for name, layer in layers.items() if (side, int(name)) not in gone}
            stacks[side].layers = nn.ModuleDict(left)
        yield
    finally:
        for side, layers in whole.items():
            stacks[side].layers = layers


def gates(model: Transformer, batches: Iterable[Batch], size: int) -> dict[str, Tensor]:
    """How much the loss depends on each unit: E |dL/dg| of a gate g = 1 that it passes, a row of text at a time.

    Args:
        size: columns of a group of heads.

    Returns:
        (units,) float32 by the path of a half of a block, and of the stream's channels under "".

    Source: Michel et al., arXiv:1905.10650, section 4.1, of heads; neurons and channels alike.
    """
    sums: dict[str, Tensor] = {}
    ends = {f"{kind}.{end}": kind for kind, end in ENDS.items()}
    places: list[tuple[nn.Module, str, int]] = []
    for path, module in model.named_modules():
        kind = next((kind for end, kind in ends.items() if path.endswith(f".{end}")), None)
        if kind is not None:
            places.append((module, path.rpartition(".")[0], 1 if kind == "mlp" else size))
        elif ".layers." in path and isinstance(module, Linear):
            places.append((module, "", 1))
    for batch in batches:
        known: dict[str, Tensor] = {}

        def gated(x: Tensor, path: str, per: int, known: dict[str, Tensor] = known) -> Tensor:
            made = torch.ones(len(x), x.shape[-1] // per, device=x.device, requires_grad=True)
            gate = known.setdefault(path, made)
            return x * gate.repeat_interleave(per, dim=1)[:, None].to(x.dtype)

        handles = [
            module.register_forward_pre_hook(lambda _, given, path=path, per=per, to=gated: to(given[0], path, per))
            for module, path, per in places
        ]
        handles.append(model.register_forward_hook(lambda *given, to=gated: to(given[-1], "", 1)))
        try:
            with torch.enable_grad():
                grads = torch.autograd.grad(tokens_loss(model, batch).total, list(known.values()))
        finally:
            for handle in handles:
                handle.remove()
        for path, grad in zip(known, grads, strict=True):
            sums[path] = sums.get(path, 0) + grad.abs().sum(0)
    return sums


def channels_read(model: Transformer, batches: Sequence[Batch]) -> Tensor:
    """Of what all matrices read from the stream, the share that comes from each channel: (width,) float32.

    Source: Muralidharan et al., arXiv:2407.14679, section 2.2, sum what norms give over the layers; here it counts as
    much as it is read, and each reader as much as any other.
    """
    readers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Linear) and over(path, model.config)[1] == ("width", "")
    }
    squares: dict[str, Tensor] = {}

    def see(path: str, x: Tensor) -> None:
        squares[path] = squares.get(path, 0) + x.float().square().flatten(0, -2).sum(0)

    with watched(readers, see), torch.no_grad():
        for batch in batches:
            hidden = hidden_of(model, batch)
            if model.head is not None:
                see("head", model.head.features(hidden[batch.targets != IGNORE]))
    weights = {path: module.weight for path, module in readers.items()}
    if model.head is not None:
        weights["head"] = model.head.weight
    reads = [squares[path] * weights[path].float().square().sum(0) for path in squares]
    return sum(read / read.sum().clamp(min=1e-30) for read in reads)


def channel_weights(model: Transformer) -> Tensor:
    """The mean square of all weights that read or write each channel: (width,) float32."""
    total = torch.zeros(model.config.width, device=next(model.parameters()).device)
    for path, module in model.named_modules():
        if not isinstance(getattr(module, "weight", None), nn.Parameter) or module.weight.dim() != 2:
            continue
        for axis, what in enumerate(over(path, model.config)):
            if what == ("width", ""):
                total += module.weight.float().square().mean(1 - axis)
    return total


Scorer = Callable[[Transformer, Sequence[Batch], int], Tensor]
CHANNELS: dict[Rank, Scorer] = {
    "activation": lambda model, batches, seed: channels_read(model, batches),
    "loss": lambda model, batches, seed: gates(model, batches, 1)[""],
    "weight": lambda model, batches, seed: channel_weights(model),
    "random": lambda model, batches, seed: drawn(model.config.width, seed, "width", next(model.parameters()).device),
}


def units_before(
    model: Transformer, batches: Sequence[Batch], rank: Rank, counts: Mapping[str, int], size: int, seed: int
) -> dict[str, Tensor]:
    """Scores of units by the path of their half of a block, where they are known before the walk; else {}.

    Args:
        counts: units of each half, by the last part of its path.
        size: columns of a group of heads.
    """
    if rank == "activation":
        return {}
    halves = {path: module for path, module in model.named_modules() if path.rpartition(".")[2] in counts}
    if rank == "loss":
        found = gates(model, batches, size)
        return {path: found[path] for path in halves}
    kinds = {path: path.rpartition(".")[2] for path in halves}
    device = next(model.parameters()).device
    if rank == "random":
        return {path: drawn(counts[kinds[path]], seed, path, device) for path in halves}
    return {path: half_weights(half, kinds[path], counts[kinds[path]]) for path, half in halves.items()}
