"""merge: adapters into the weights of their base, one tensor in memory at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf, isfinite, prod
from pathlib import Path

import torch
from torch import Tensor

from llmctl.core.checkpoint.directory import SHARD_BYTES
from llmctl.core.checkpoint.names import join, split
from llmctl.core.checkpoint.stream import Stream
from llmctl.core.checkpoint.write import DTYPES, Item, write_shards
from llmctl.core.compress.nf4 import pack, unpack
from llmctl.errors import UserError
from llmctl.spec.edits import Edit, EditKind, Made
from llmctl.spec.merge_plan import MergePlan
from llmctl.spec.names import Name
from llmctl.spec.peft import weights_of
from llmctl.spec.sizes import shapes

BLOCK = 1 << 18  # elements that are summed at once: few enough to stay in a cache
Parts = dict[str, Tensor]


@dataclass
class Merged:
    """What merging did to the tensors that were changed.

    Attributes:
        elements: of them.
        zeros_before: of these in the base.
        zeros_after: of these in the merged model, in rows that had any.
        largest: the largest absolute change of a weight.
    """

    elements: int = 0
    zeros_before: int = 0
    zeros_after: int = 0
    largest: float = 0.0

    def note(self, made: Made, before: Tensor, summed: Tensor, after: Tensor) -> None:
        """Takes in some rows of a tensor: of the base, merged, and as they are stored.

        Raises:
            UserError: they are not finite, though the base's are.
        """
        change = float(torch.dist(summed, before, p=inf)) if before.numel() else 0.0
        fits = isfinite(change) and (made.dtype != "F16" or after.isfinite().all())
        if not fits and before.isfinite().all():
            hint = "Use --dtype bf16 or fp32, whose range is larger; or the adapter is broken."
            raise UserError(f"{made.name} does not stay finite as {made.dtype}.", hint)
        zeros = before.numel() - int(before.count_nonzero())
        self.elements += before.numel()
        self.zeros_before += zeros
        self.zeros_after += zeros and after.numel() - int(after.count_nonzero())
        self.largest = max(self.largest, change)


@torch.no_grad()
def merge(plan: MergePlan, directory: Path, progress: Callable[[int], None] = lambda done: None) -> Merged:
    """Write the tensors of a merged checkpoint into an existing directory.

    An adapter is a function f of the base's weights: W + scale B A (LoRA), magnitude times the direction of that
    (DoRA), rows or columns times factors (IA3), other numbers altogether. One adapter of weight 1 makes f(W); others
    W + sum of weight (f(W) - W). Sums are in float32 (float64 where the base is), and cast once to what is stored.

    Memory: one tensor as it is read, one as it is written, and a block of BLOCK elements for each step between.

    Args:
        progress: told the bytes written, after each tensor.

    Raises:
        UserError: a merged weight is not finite, though the base's are.
        OSError: the disk is full.

    Source: Hu et al., arXiv:2106.09685, section 4.1; Liu et al., arXiv:2402.09353, equation 5; Liu et al.,
    arXiv:2205.05638, section 3.3; sums of several: Ilharco et al., arXiv:2212.04089.
    """
    base = Stream(plan.base)
    given = [Stream(weights_of(one.path).parent) for one in plan.given]
    weights = [one.weight for one in plan.given]
    seen, done = Merged(), 0

    def item(made: Made) -> Item:
        def make() -> Tensor:
            nonlocal done
            for stream in (base, *given):
                stream.release()
            stored = None if made.source is None else base.tensor(made.source)
            edits = [(edit, _parts(edit, given)) for edit in made.edits]
            if made.packed is not None:
                stored = _in_four_bits(plan, made.packed, stored)
            progress(done)
            done += made.bytes
            return _merged(made, stored, edits, weights, seen)

        return Item(made.name, made.shape, DTYPES[made.dtype], make)

    write_shards(directory, [item(made) for made in plan.tensors], SHARD_BYTES)
    progress(done)
    return seen


def _parts(edit: Edit, given: list[Stream]) -> Parts:
    return {name: given[edit.given].tensor(info) for name, info in edit.parts.items()}


def _in_four_bits(plan: MergePlan, rule: Name, stored: Tensor) -> Tensor:
    """What NF4 leaves of the matrices that a tensor holds, each packed by itself as in training; float32."""
    wanted, heads = shapes(plan.config), plan.config.heads
    parts = split(rule, stored, [wanted[name][0] for name in rule.ours], heads)
    double = plan.precision == "nf4-dq"
    return join(rule, [unpack(pack(part, double), tuple(part.shape), torch.float32) for part in parts], heads)


def _merged(
    made: Made, stored: Tensor | None, edits: list[tuple[Edit, Parts]], weights: list[float], seen: Merged
) -> Tensor:
    """One tensor of the merged model, as it is stored."""
    dtype = DTYPES[made.dtype]
    if stored is None:
        return edits[0][1]["whole"].to(dtype)
    if not edits and made.scale == 1:
        return stored.to(dtype)
    work = torch.promote_types(stored.dtype, torch.float32)
    result = torch.empty(made.shape, dtype=dtype)
    before, after = (stored.t(), result.t()) if made.turned else (stored, result)
    edits = [(edit, _turned(edit, parts, made.turned, work)) for edit, parts in edits]
    for rows in _blocks(before):
        block = before[rows].to(work)
        summed = _summed(block, edits, weights, rows)
        if made.scale != 1:
            summed = summed * made.scale
        after[rows] = summed
        if edits:
            seen.note(made, block, summed, after[rows])
    return result


def _summed(block: Tensor, edits: list[tuple[Edit, Parts]], weights: list[float], rows: slice) -> Tensor:
    """W + sum of weight (f(W) - W) for some rows of W; f(W) itself of one adapter whose weight is 1."""
    numbers = dict.fromkeys(edit.given for edit, _ in edits)
    total = block
    for number in numbers:
        changed = block
        for edit, parts in edits:
            if edit.given == number:
                changed = APPLIED[edit.kind](changed, edit, parts, rows)
        whole = len(numbers) == 1 and weights[number] == 1
        total = changed if whole else torch.add(total, changed - block, alpha=weights[number])
    return total


def _turned(edit: Edit, parts: Parts, turned: bool, dtype: torch.dtype) -> Parts:
    """The parts in the type of the sums, rows being features that leave."""
    if edit.kind == "replace":
        whole = parts["whole"]
        return {"whole": whole.t() if turned else whole}
    return {name: part.to(dtype) for name, part in parts.items()}


def _replaced(block: Tensor, edit: Edit, parts: Parts, rows: slice) -> Tensor:
    return parts["whole"][rows].to(block.dtype)


def _low_rank(block: Tensor, edit: Edit, parts: Parts, rows: slice) -> Tensor:
    changed = torch.addmm(block, parts["b"][rows], parts["a"], alpha=edit.scale)
    if "magnitude" in parts:
        changed *= (parts["magnitude"][rows] / torch.linalg.vector_norm(changed, dim=1))[:, None]
    return changed


def _scaled(block: Tensor, edit: Edit, parts: Parts, rows: slice) -> Tensor:
    factor = parts["factor"] if edit.entering else parts["factor"][rows]  # (1, in) or (out, 1)
    return block * (factor if block.dim() == 2 else factor[:, 0])


def _shifted(block: Tensor, edit: Edit, parts: Parts, rows: slice) -> Tensor:
    return torch.add(block, parts["bias"][rows], alpha=edit.scale)


APPLIED: dict[EditKind, Callable[[Tensor, Edit, Parts, slice], Tensor]] = {
    "replace": _replaced,
    "low-rank": _low_rank,
    "factor": _scaled,
    "shift": _shifted,
}


def _blocks(tensor: Tensor) -> Iterator[slice]:
    """Runs of rows of about BLOCK elements."""
    step = max(1, BLOCK // max(1, prod(tensor.shape[1:])))
    for start in range(0, len(tensor), step):
        yield slice(start, start + step)
