"""What `prune` does to single weights: of the files one by one, or of a model block by block on calibration text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmctl.core.compress.calibrate import Visited, walk
from llmctl.core.compress.prune.files import rewrite
from llmctl.core.compress.prune.masks import chosen, magnitude, wanda
from llmctl.core.compress.prune.sparsegpt import corrected, refit, sparsegpt
from llmctl.core.compress.prune.turns import AtOnce, Given, InTurn
from llmctl.core.data.batch import Batch
from llmctl.core.model.transformer import Transformer
from llmctl.errors import UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.prune import PruneConfig, Score

# (O, I) weights, what they are given, how; to (O, I) with zeros.
Pruner = Callable[[Tensor, Given, PruneConfig], Tensor]
PIECE = 1 << 20  # weights whose squares are summed at a time


def prune_files(
    source: Path,
    directory: Path,
    config: ModelConfig,
    prune: PruneConfig,
    targets: Sequence[str],
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Prune by magnitude into an existing directory, one tensor in memory at a time.

    Args:
        targets: our paths of the matrices to prune.
        progress: told how many matrices are done.

    Returns:
        A record a matrix: name, shape, sparsity, pattern, and of its weights the share of squares that is gone.
    """
    records = {}

    def change(name: str, weight: Tensor) -> Tensor:
        path = name.removesuffix(".weight")
        pruned = _kept(weight, chosen(magnitude(weight), prune.share, prune.among, prune.group))
        records[path] = _record(path, pruned, prune) | {"weights_lost": _lost(weight, pruned)}
        progress(len(records))
        return pruned

    rewrite(source, directory, config, [f"{path}.weight" for path in targets], change)
    return [records[path] for path in targets]


def prune_model(
    model: Transformer,
    batches: Sequence[Batch],
    prune: PruneConfig,
    targets: Sequence[str],
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Prune a model in place, block by block, each on what the blocks before it, already pruned, give it.

    Args:
        model: in eval mode, its parameters writable.
        batches: calibration text, on the model's device.
        targets: paths of the matrices to prune.
        progress: told how many matrices are done.

    Returns:
        A record a matrix: name, shape, sparsity, pattern, and of its outputs on that text the relative squared error.
    """
    wanted, records = set(targets), []
    turns = InTurn() if prune.mends else AtOnce()

    def visit(visited: Visited) -> None:
        paths = {name: f"{visited.path}.{name}" for name in visited.linears}
        linears = {name: linear for name, linear in visited.linears.items() if paths[name] in wanted}
        for turn in turns(visited, linears):
            for name, given in turn.items():
                weight, path = linears[name].weight, paths[name]
                try:
                    made = PRUNERS[prune.score](weight, given, prune).to(weight.dtype)
                except ValueError as error:
                    raise UserError(
                        f"{path} cannot be pruned: {error}.", "Look for NaN: llmctl verify MODEL --values."
                    ) from error
                lost = _error(weight, made, given.moment)
                weight.copy_(made)
                records.append(_record(path, weight, prune) | {"output_error": lost})
                progress(len(records))

    walk(model, batches, visit)
    order = {path: number for number, path in enumerate(targets)}
    return sorted(records, key=lambda record: order[record["name"]])


def _by_magnitude(weight: Tensor, given: Given, prune: PruneConfig) -> Tensor:
    return _kept(weight, chosen(magnitude(weight), prune.share, prune.among, prune.group))


def _by_wanda(weight: Tensor, given: Given, prune: PruneConfig) -> Tensor:
    scores = wanda(weight, given.moment.diagonal().sqrt())
    return _kept(weight, chosen(scores, prune.share, prune.among, prune.group))


def _by_sparsegpt(weight: Tensor, given: Given, prune: PruneConfig) -> Tensor:
    target = corrected(weight, given.moment, given.cross, prune.damp)
    pruned = sparsegpt(target, given.moment, prune.share, prune.among, prune.group, prune.damp)
    return refit(target, pruned, given.moment, prune.damp)


PRUNERS: dict[Score, Pruner] = {"magnitude": _by_magnitude, "wanda": _by_wanda, "sparsegpt": _by_sparsegpt}


def _kept(weight: Tensor, mask: Tensor) -> Tensor:
    return torch.zeros_like(weight, memory_format=torch.contiguous_format).copy_(weight).masked_fill_(~mask, 0)


def _record(path: str, pruned: Tensor, prune: PruneConfig) -> dict[str, Any]:
    zeros = 1 - int(pruned.count_nonzero()) / max(1, pruned.numel())
    return {"name": path, "shape": list(pruned.shape), "pattern": prune.pattern or "free", "sparsity": zeros}


def _lost(before: Tensor, after: Tensor) -> float:
    """The sum of squares of what is gone, as a share of all."""
    step = max(1, PIECE // before.shape[1])
    whole = gone = 0.0
    for one, other in zip(before.split(step), after.split(step), strict=True):
        one = one.float()
        whole += float(one.square().sum(dtype=torch.float64))
        gone += float((one - other.float()).square().sum(dtype=torch.float64))
    return gone / whole if whole else 0.0


def _error(before: Tensor, after: Tensor, moment: Tensor) -> float:
    """tr(D H D') / tr(W H W'): the squared error of the outputs, as a share of their squares."""
    gone, whole = before.float() - after.float(), before.float()
    lost, all_ = (float(((matrix @ moment) * matrix).sum(dtype=torch.float64)) for matrix in (gone, whole))
    return lost / all_ if all_ else 0.0
