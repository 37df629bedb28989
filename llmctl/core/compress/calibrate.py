"""calibrate: a walk through a model block by block, on text, that shows each block what its matrices are given."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmctl.core.data.batch import Batch
from llmctl.core.model.layers import Block, Linear, Shared, Side
from llmctl.core.model.memory import Memory
from llmctl.core.model.transformer import Transformer


class Pass(NamedTuple):
    """One batch on its way through the blocks.

    Attributes:
        x: what the next block is given, (B, T, width).
        shared: what the blocks of its stack share.
        real: which places are text and not padding, (B, T) bool; None: all.
    """

    x: Tensor
    shared: Shared
    real: Tensor | None

    def rows(self, x: Tensor) -> Tensor:
        """The places of text of what a module within a block is given: (B, T, I) to (N, I)."""
        memory = self.shared.memory
        real = self.real
        if memory is not None and x is memory.hidden:  # cross-attention reads the source
            real = _real(memory.segments)
        return x.flatten(0, -2) if real is None else x[real]


class Visited(NamedTuple):
    """A block, and what it is given.

    Attributes:
        path: of the block in the model: "decoder.layers.3".
        number: of the block among all, from 0.
        block: whose weights the visitor may change in place: `block(one.x, one.shared)` runs it as it is by then.
        linears: its matrices by their path in the block: "attention.q".
        passes: what it is given, batch by batch.
    """

    path: str
    number: int
    block: Block
    linears: dict[str, Linear]
    passes: Sequence[Pass]


@torch.no_grad()
def walk(model: Transformer, batches: Sequence[Batch], visit: Callable[[Visited], None]) -> None:
    """Visit every block in the order in which they run; of what a visitor changes, the next block is given the effect.

    Beyond the model, memory holds what one block is given for all batches. Embeddings, head and the norm after the last
    block are not visited. Of an encoder-decoder the encoder comes first, and the decoder reads what it then makes.

    Args:
        model: in eval mode, without a prompt.
        batches: calibration text, on the model's device.

    Source: Frantar et al., arXiv:2210.17323, section 4: each block on what those before it, already changed, give it.
    """
    number = 0
    memories: list[Memory | None] = [None] * len(batches)
    for side in model.config.stacks:
        stack = {"encoder": model.encoder, "decoder": model.decoder}[side]
        passes = [_entered(model, side, batch, memory) for batch, memory in zip(batches, memories, strict=True)]
        for name, block in stack.layers.items():
            linears = {path: module for path, module in block.named_modules() if isinstance(module, Linear)}
            visit(Visited(f"{side}.layers.{name}", number, block, linears, tuple(passes)))
            for i, one in enumerate(passes):
                passes[i] = one._replace(x=block(one.x, one.shared))
            number += 1
        if side != model.config.last_stack:
            ends = [one.x if stack.norm is None else stack.norm(one.x) for one in passes]
            memories = [Memory(x, one.shared.segments) for x, one in zip(ends, passes, strict=True)]


@contextmanager
def watched(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Meanwhile, show the input of each module under its name whenever it is called."""
    handles = [
        module.register_forward_pre_hook(lambda _, given, name=name: see(name, given[0]))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def inputs(visited: Visited, take: Callable[[tuple[str, ...], Tensor], None], linears: Mapping[str, Linear]) -> None:
    """Run a block on all its batches and show what its matrices are given.

    Args:
        take: told the names of matrices that are given the same tensor, and its places of text, (N, I).
        linears: some of `visited.linears`.
    """
    for one in visited.passes:
        seen: list[tuple[Tensor, list[str]]] = []

        def see(name: str, x: Tensor, seen: list[tuple[Tensor, list[str]]] = seen) -> None:
            for known, names in seen:
                if known is x:
                    names.append(name)
                    return
            seen.append((x, [name]))

        with watched(linears, see):
            visited.block(one.x, one.shared)
        for x, names in seen:
            take(tuple(names), one.rows(x))


def moments(visited: Visited, linears: Mapping[str, Linear] | None = None) -> dict[str, Tensor]:
    """2 X X' / N of what each matrix is given over all N places of text: (I, I) float32 by the matrix's name.

    Matrices that are given the same (q, k and v; gate and up) share one tensor.

    Args:
        linears: some of `visited.linears`; None: all.
    """
    sums: dict[tuple[str, ...], Tensor] = {}
    counts: dict[tuple[str, ...], int] = {}

    def take(names: tuple[str, ...], x: Tensor) -> None:
        x = x.float()
        if names not in sums:
            sums[names], counts[names] = torch.zeros(x.shape[1], x.shape[1], device=x.device), 0
        sums[names].addmm_(x.t(), x, alpha=2.0)
        counts[names] += len(x)

    inputs(visited, take, visited.linears if linears is None else linears)
    means = {names: total / max(1, counts[names]) for names, total in sums.items()}
    return {name: mean for names, mean in means.items() for name in names}


def _entered(model: Transformer, side: Side, batch: Batch, memory: Memory | None) -> Pass:
    """A batch before the first block of a stack."""
    source = batch.encoder if side == "encoder" and batch.encoder is not None else batch
    kinds = {"types": batch.types, "prefix": batch.prefix} if source is batch else {}
    x, shared = model.enter(side, source.tokens, source.positions, source.segments, memory=memory, **kinds)
    return Pass(x, shared, _real(source.segments))


def _real(segments: Tensor | None) -> Tensor | None:
    """Which places are text, or None where all are."""
    if segments is None:
        return None
    real = segments != 0
    return None if bool(real.all()) else real
