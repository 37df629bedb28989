"""calibrated: quantize the matrices of a model by what they are given: gptq, awq, smoothquant on one walk."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import isfinite

import torch
from torch import Tensor, nn

from llmctl.core.compress.calibrate import Visited, inputs, walk
from llmctl.core.compress.quant.awq import clipped, search
from llmctl.core.compress.quant.fold import Fold, Given, fold, matrices, norms
from llmctl.core.compress.quant.gptq import curve, gptq
from llmctl.core.compress.quant.grid import Codes, dense, nearest, quantise
from llmctl.core.compress.quant.smooth import smoothing
from llmctl.core.data.batch import Batch
from llmctl.core.model.layers import Block, Linear
from llmctl.core.model.transformer import Transformer
from llmctl.errors import Exit, UserError
from llmctl.spec.calibration import Rounding
from llmctl.spec.model import ModelConfig
from llmctl.spec.quant import Grid, QuantConfig

Record = dict[str, str | float]
Store = Callable[[str, Codes], None]
Plain = Callable[[str, Tensor], None]
Factor = Callable[[Fold, Sequence[tuple[Tensor, Grid]], Given, Rounding, torch.dtype], Tensor]

# Where each method scales channels, in the order in which it does.
FOLDS: dict[str, Callable[[ModelConfig, Block], list[Fold]]] = {
    "gptq": lambda config, block: [],
    "awq": lambda config, block: [*norms(config, block), *matrices(config, block)],
    "smoothquant": norms,
}
# By how much, of the methods that do.
FACTORS: dict[str, Factor] = {"awq": search, "smoothquant": smoothing}


def calibrated(
    model: Transformer,
    batches: Sequence[Batch],
    quant: QuantConfig,
    store: Store,
    plain: Plain,
    *,
    grids: Mapping[str, Grid] | None = None,
    rounding: Rounding = Rounding(),
    dtype: torch.dtype | None = None,
    kept: Callable[[str], torch.dtype] | None = None,
) -> list[Record]:
    """Quantize the matrices of all blocks, in the order in which they run, each on what those before it now give it.

    Matrices of one block are looked at together: one after another ("true sequential") moved KL by 0.99 to 1.03 times,
    and takes two to three times as long.
    The model becomes what is stored: its parameters are replaced, not written to. Embeddings and heads stay.

    Args:
        model: in eval mode, dense, without adapter or prompt.
        batches: calibration text, on the model's device.
        quant: its method is one of CALIBRATED.
        store: told the path of each quantized matrix ("decoder.layers.0.attention.q") and its codes.
        plain: told the path of each other parameter that has changed ("decoder.layers.0.mlp_norm.weight"), and it.
        grids: of the matrices to be quantized, by path; those that it lacks stay. None: all in blocks, on quant.grid.
        dtype: of scales, as they are stored; None: each weight's own.
        kept: tells of norms and biases in which dtype they are stored, by path; None: each in its own.

    Returns:
        A record a matrix: `name`; `error`, the mean over tokens of the squared length of (W^ - W) x, where x is what
        the quantized model gives; `relative`, that over the same of W x. Of scaled matrices W^ is what it is worth
        before the inputs that are scaled too.

    Raises:
        UserError: weights, or what they are given, are not finite; --round gptq of a grid that it does not round to.
    """
    grid = quant.grid
    if rounding.round == "gptq" and grid is not None and grid.kind == "nf4":
        raise UserError("--round gptq does not fit --scheme nf4.", "Use --round nearest.", Exit.USAGE)
    records: list[Record] = []

    def visit(visited: Visited) -> None:
        of = {name: quant.grid if grids is None else grids.get(f"{visited.path}.{name}") for name in visited.linears}
        chosen = {name: grid for name, grid in of.items() if grid is not None}
        if not chosen:
            return
        linears = {name: visited.linears[name] for name in chosen}
        stored = dtype or next(iter(linears.values())).weight.dtype
        seen = given(visited, linears)
        weights = {name: linear.weight.detach().float() for name, linear in linears.items()}
        for at in FOLDS[quant.method](model.config, visited.block):
            if weights.keys() >= {*at.readers, *({at.source} & visited.linears.keys())}:
                own = [(weights[name], chosen[name]) for name in at.readers]
                factor = FACTORS[quant.method](at, own, seen[at.readers[0]], rounding, stored)
                factor, changed = fold(visited.block, at, factor, weights, partial(_kept, visited, kept))
                seen[at.readers[0]].divide(factor)
                for name, tensor in changed.items():
                    plain(f"{visited.path}.{name}", tensor)
        for name, codes in _rounded(chosen, weights, seen, quant, rounding, stored):
            store(f"{visited.path}.{name}", codes)
            made = dense(codes, chosen[name], torch.float32, tuple(weights[name].shape))
            error, whole = (_length(x, seen[name].moment) for x in (made - weights[name], weights[name]))
            if not isfinite(error):
                raise UserError(f"{visited.path}.{name} holds numbers that are not finite.", code=Exit.MISMATCH)
            relative = error / whole if whole else 0.0
            records.append({"name": f"{visited.path}.{name}", "error": error, "relative": relative})
            linear = linears[name]
            linear.weight = nn.Parameter(made.to(linear.weight.dtype), requires_grad=False)

    walk(model, batches, visit)
    return records


def _kept(visited: Visited, kept: Callable[[str], torch.dtype] | None, name: str) -> torch.dtype:
    """In which dtype a parameter of a block is stored."""
    return visited.block.get_parameter(name).dtype if kept is None else kept(f"{visited.path}.{name}")


def given(visited: Visited, linears: Mapping[str, Linear]) -> dict[str, Given]:
    """What matrices of a block are given, by name; those that are given the same share one.

    Raises:
        UserError: it is not finite.
    """
    found: dict[tuple[str, ...], Given] = {}
    counts: dict[tuple[str, ...], int] = {}

    def take(names: tuple[str, ...], x: Tensor) -> None:
        x = x.float()
        if names not in found:
            width = x.shape[1]
            found[names] = Given(x.new_zeros(width, width), x.new_zeros(width), x.new_zeros(width))
        one, size = found[names], x.abs()
        one.moment.addmm_(x.t(), x, alpha=2.0)
        one.mean += size.sum(0)
        torch.maximum(one.largest, size.amax(0), out=one.largest)
        counts[names] = counts.get(names, 0) + len(x)

    inputs(visited, take, linears)
    for names, one in found.items():
        one.moment /= max(1, counts[names])
        one.mean /= max(1, counts[names])
        if not one.moment.isfinite().all():
            raise UserError(
                f"What {visited.path}.{names[0]} is given is not finite.", "Use --dtype fp32.", Exit.MISMATCH
            )
    return {name: one for names, one in found.items() for name in names}


def _rounded(
    chosen: Mapping[str, Grid],
    weights: Mapping[str, Tensor],
    seen: Mapping[str, Given],
    quant: QuantConfig,
    rounding: Rounding,
    dtype: torch.dtype,
) -> Iterator[tuple[str, Codes]]:
    """The codes of matrices by name; those of the same inputs and grid are rounded as one."""
    together: dict[tuple[int, Grid], list[str]] = {}
    for name, grid in chosen.items():
        together.setdefault((id(seen[name]), grid), []).append(name)
    for (_, grid), names in together.items():
        weight, moment = torch.cat([weights[name] for name in names]), seen[names[0]].moment
        fixed = clipped(weight, moment, grid, dtype) if quant.method == "awq" else None
        if "gptq" in (quant.method, rounding.round):
            codes = gptq(weight, curve(moment, rounding), grid, dtype, quant.clip, fixed)
        elif fixed is not None:
            codes = Codes(nearest(weight, *fixed, grid), *fixed)
        else:
            for name in names:
                yield name, quantise(weights[name], grid, dtype, quant.clip)
            continue
        rows = [len(weights[name]) for name in names]
        parts = ([None] * len(rows) if part is None else part.split(rows) for part in codes)
        yield from ((name, Codes(*own)) for name, *own in zip(names, *parts, strict=True))


def _length(weight: Tensor, moment: Tensor) -> float:
    """The mean squared length of W x: weight (O, I) float32; moment (I, I), 2 X X' / N."""
    return float((weight @ moment).mul_(weight).sum()) / 2
