"""trim: a model without the heads and the neurons of each block that matter least."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llmctl.core.compress.calibrate import Visited, walk, watched
from llmctl.core.compress.slim.cut import cut, rows_of, scale_norm
from llmctl.core.compress.slim.rank import ENDS, chosen, contributions, units_before
from llmctl.core.compress.slim.repair import Moments, moments_of, refit
from llmctl.core.data.batch import Batch
from llmctl.core.model.layers import Attention, Linear
from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig
from llmctl.spec.slim import SlimConfig, alike

UNITS = {"attention": "heads", "cross_attention": "cross_heads", "mlp": "neurons"}


def trim(
    model: Transformer, how: SlimConfig, target: ModelConfig, batches: Sequence[Batch], seed: int
) -> tuple[Transformer, list[dict[str, Any]]]:
    """The model with `target.heads` heads and `target.ff` neurons in each layer, its other sizes as they are.

    Block by block, what goes is first set to zero, which does to the blocks after it what its absence does.

    Args:
        model: whose parameters may be replaced, but not written to.
        batches: calibration text; [] where none is needed.
        seed: of what is drawn by chance.

    Returns:
        The smaller model, and a record a layer: how many units stay in each half that has lost some, and its error.
    """
    trimming = _Trimming(model, how, target, batches, seed)
    records = []
    if batches:
        walk(model, batches, lambda visited: records.append(trimming.block(visited.path, visited.block, visited)))
    else:
        for path in (f"{stack}.layers.{i}" for stack, count in model.config.stacks.items() for i in range(count)):
            records.append(trimming.block(path, model.get_submodule(path), None))
    return trimming.smaller(target), records


class _Trimming:
    """Which units stay in each half of each block, as a walk chooses them.

    Attributes:
        stays: heads in groups, or neurons, int64, by the path of a half of a block.
    """

    def __init__(self, model: Transformer, how: SlimConfig, target: ModelConfig, batches: Sequence[Batch], seed: int):
        config = model.config
        self.model, self.how, self.config = model, how, config
        self.group = config.heads // config.kv_heads
        self.there = {"attention": config.kv_heads, "cross_attention": config.kv_heads, "mlp": config.ff}
        left = target.heads // self.group
        self.count = {"attention": left, "cross_attention": left, "mlp": target.ff}
        self.size = {kind: 1 if kind == "mlp" else self.group * config.head_dim for kind in ENDS}
        self.known = units_before(
            model, batches, how.ranking(False, model.head is not None), self.there, self.size["attention"], seed
        )
        self.stays: dict[str, Tensor] = {}
        if left != config.kv_heads:
            self.stays |= self._in_common(batches, left)

    def block(self, path: str, block: nn.Module, visited: Visited | None) -> dict[str, Any]:
        """Zero what goes of a block; returns the record of it."""
        record: dict[str, Any] = {}
        for kind in ENDS:
            half = getattr(block, kind)
            if half is None or self.count[kind] == self.there[kind]:
                continue
            error = self._half(f"{path}.{kind}", half, kind, visited)
            record[UNITS[kind]] = self.count[kind] * (1 if kind == "mlp" else self.group)
            if error is not None:
                record[f"{kind}_error"] = error
        return record

    def smaller(self, target: ModelConfig) -> Transformer:
        """The model without what is zero."""
        config, cuts = self.config, {}
        for path, units in self.stays.items():
            if path.endswith("mlp"):
                cuts["neurons", path] = units
                continue
            cuts["queries", path] = rows_of(units, self.size["attention"])
            cuts["keys", path] = rows_of(units, config.head_dim)
            if path.endswith(".layers.0.attention"):
                cuts["heads", path.partition(".")[0]] = rows_of(units, self.group)
        left = {"heads": target.heads, "kv_heads": target.heads // self.group, "ff": target.ff}
        made = cut(self.model, config.resized(**left), cuts)
        if config.qk_norm_whole:
            for layer in made.layers:
                for norm in (layer.attention.q_norm, layer.attention.k_norm):
                    scale_norm(norm, math.sqrt(config.heads / target.heads))  # now the zeros do not count
        return made

    def _half(self, path: str, half: nn.Module, kind: str, visited: Visited | None) -> float | None:
        name, size = f"{kind}.{ENDS[kind]}", self.size[kind]
        moments = None if visited is None else moments_of(visited, [name])[name]
        end = getattr(half, ENDS[kind])
        if path not in self.stays:
            scores = self.known[path] if path in self.known else _lost(end, moments, size, self.how.repair)
            self.stays[path] = chosen(scores, self.count[kind], self.how.reverse)
        columns = rows_of(self.stays[path], size)
        if kind != "mlp" and self.config.qk_norm_whole:
            self._quiet(half, columns, rows_of(self.stays[path], self.config.head_dim), visited, kind)
        return refit(end, columns, moments, self.how.repair)

    def _quiet(self, half: Attention, queries: Tensor, keys: Tensor, visited: Visited | None, kind: str) -> None:
        """Queries and keys of heads that go become zero; the norm over all heads is told how much less it has."""
        for name, rows in (("q", queries), ("k", keys)):
            linear, norm = getattr(half, name), getattr(half, f"{name}_norm")
            ratio = math.sqrt(len(rows) / len(linear.weight))
            if visited is not None:
                ratio = _ratio(visited, f"{kind}.{name}_norm", rows)
            gone = torch.ones(len(linear.weight), dtype=torch.bool, device=rows.device)
            gone[rows] = False
            linear.weight = nn.Parameter(linear.weight.detach().masked_fill(gone[:, None], 0))
            if linear.bias is not None:
                linear.bias = nn.Parameter(linear.bias.detach().masked_fill(gone, 0))
            scale_norm(norm, ratio)

    def _in_common(self, batches: Sequence[Batch], left: int) -> dict[str, Tensor]:
        """Where each head has a place in a table of positions, the same ones stay in all layers of a stack."""
        config, stays = self.config, {}
        for stack, count in config.stacks.items():
            paths = [f"{stack}.layers.{i}.attention" for i in range(count)]
            if config.position == "alibi":
                units = torch.tensor(alike(config, left * self.group), device=next(self.model.parameters()).device)
            elif config.position == "relative":
                scores = self.known or _lost_alone(self.model, batches, self.size["attention"], self.how.repair)
                total = sum(scores[path] / scores[path].sum().clamp(min=1e-30) for path in paths)
                units = chosen(total, left, self.how.reverse)
            else:
                return {}
            stays |= dict.fromkeys(paths, units)
        return stays


def _lost(end: Linear, moments: Moments, size: int, repair: bool) -> Tensor:
    """What a half of a block loses with each unit."""
    second = moments.centred if repair and end.bias is not None else moments.second
    return contributions(end.weight, second, size, repair)


def _lost_alone(model: Transformer, batches: Sequence[Batch], size: int, repair: bool) -> dict[str, Tensor]:
    """What is lost with each group of heads, by the path of its attention, in the model as it is."""
    found: dict[str, Tensor] = {}

    def visit(visited: Visited) -> None:
        moments = moments_of(visited, ["attention.out"])["attention.out"]
        found[f"{visited.path}.attention"] = _lost(visited.linears["attention.out"], moments, size, repair)

    walk(model, batches, visit)
    return found


def _ratio(visited: Visited, path: str, rows: Tensor) -> float:
    """The length of what some heads give a norm over that of what all give, on the text."""
    shares: list[Tensor] = []

    def see(_: str, x: Tensor) -> None:
        squares = x.float().square()
        shares.append((squares[..., rows].sum(-1) / squares.sum(-1).clamp(min=1e-30)).sqrt().mean())

    with watched({path: visited.block.get_submodule(path)}, see):
        for one in visited.passes:
            visited.block(one.x, one.shared)
    return float(torch.stack(shares).mean())
