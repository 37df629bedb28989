"""Turns: what matrices of a block are given, group after group, beside what the unpruned model gives them there."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor

from llmctl.core.compress.calibrate import Pass, Visited, moments, watched
from llmctl.core.model.layers import Linear


class Given(NamedTuple):
    """What a matrix is given on N places of text.

    Attributes:
        moment: 2 X X' / N, (I, I) float32, of its inputs X in the model as it is by now.
        cross: 2 Y X' / N, (I, I) float32, Y being its inputs in the model as it was; None: not known.
    """

    moment: Tensor
    cross: Tensor | None = None


class AtOnce:
    """All matrices of a block in one turn, each by what the block gives it before any of them changes."""

    def __call__(self, visited: Visited, linears: Mapping[str, Linear]) -> Iterator[dict[str, Given]]:
        """What each of some of a block's matrices is given."""
        if linears:
            yield {name: Given(moment) for name, moment in moments(visited, linears).items()}


class InTurn:
    """Matrices of a block that read the same in one turn, and those that run later in a later one, when they are given
    what the changed ones make; beside it runs the model as it was.

    Besides what `walk` holds, memory holds what the unpruned block gives its matrices, and the next block, for all
    batches; and a copy of the block.
    """

    def __init__(self) -> None:
        self._stack = ""
        self._stream: list[Tensor] = []  # what the unpruned model gives the block, batch by batch

    def __call__(self, visited: Visited, linears: Mapping[str, Linear]) -> Iterator[dict[str, Given]]:
        """What each of some of a block's matrices is given, turn by turn; between turns they may change in place."""
        stack = visited.path.partition(".")[0]
        if stack != self._stack:  # a decoder begins beside what the pruned encoder made
            self._stack, self._stream = stack, [one.x for one in visited.passes]
        before = deepcopy(visited.block)
        twins = {name: before.get_submodule(name) for name in linears}
        kept: list[dict[tuple[str, ...], Tensor]] = []
        for i, one in enumerate(visited.passes):
            seen, self._stream[i] = _seen(before, self._stream[i], one, twins)
            kept.append(seen)
        for group in list(kept[0]) if kept else []:
            first = group[0]
            moment = cross = None
            count = 0
            for one, seen in zip(visited.passes, kept, strict=True):
                now = next(iter(_seen(visited.block, one.x, one, {first: linears[first]})[0].values())).float()
                then = seen.pop(group).float()
                if moment is None or cross is None:
                    moment, cross = (torch.zeros(now.shape[1], now.shape[1], device=now.device) for _ in range(2))
                moment.addmm_(now.t(), now, alpha=2.0)
                cross.addmm_(then.t(), now, alpha=2.0)
                count += len(now)
            made = Given(moment / max(1, count), cross / max(1, count))
            yield dict.fromkeys(group, made)


def _seen(
    block: torch.nn.Module, x: Tensor, one: Pass, linears: Mapping[str, torch.nn.Module]
) -> tuple[dict[tuple[str, ...], Tensor], Tensor]:
    """What matrices are given at places of text, (N, I), by those that are given the same; and what the block makes."""
    found: list[tuple[Tensor, list[str]]] = []

    def see(name: str, given: Tensor) -> None:
        for known, names in found:
            if known is given:
                names.append(name)
                return
        found.append((given, [name]))

    with watched(linears, see):
        made = block(x, one.shared)
    return {tuple(names): one.rows(given) for given, names in found}, made
