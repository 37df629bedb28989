"""calibrated: quantize the matrices of a model by what they are given: gptq, awq, smoothquant on one walk."""

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor, nn

from llmctl.core.compress.calibrate import Visited, moments, walk
from llmctl.core.compress.quant.gptq import curve, gptq
from llmctl.core.compress.quant.grid import Codes, dense
from llmctl.core.data.batch import Batch
from llmctl.core.model.layers import Linear
from llmctl.core.model.transformer import Transformer
from llmctl.spec.calibration import Rounding
from llmctl.spec.quant import Grid, QuantConfig

Record = dict[str, str | float]
Store = Callable[[str, Codes], None]
Plain = Callable[[str, Tensor], None]


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
) -> list[Record]:
    """Quantize the matrices of all blocks, in the order in which they run, each on what those before it now give it.

    The model becomes what the codes stand for: its parameters are replaced, not written to. Embeddings and heads stay.

    Args:
        model: in eval mode, dense, without adapter or prompt.
        batches: calibration text, on the model's device.
        quant: its method is one of CALIBRATED.
        store: told the path of each quantized matrix ("decoder.layers.0.attention.q") and its codes.
        plain: told the path of each other parameter that has changed ("decoder.layers.0.mlp_norm.weight"), and it.
        grids: of the matrices to be quantized, by path; those that it lacks stay. None: all in blocks, on quant.grid.
        dtype: of the scales, as they are stored; None: each weight's own.

    Returns:
        A record a matrix: `name`; `error`, the mean over tokens of the squared length of (W^ - W) x, where x is what
        the quantized model gives; `relative`, that over the same of W x.
    """
    records: list[Record] = []

    def visit(visited: Visited) -> None:
        chosen = {name: linear for name, linear in visited.linears.items() if _grid(visited, name, quant, grids)}
        if not chosen:
            return
        seen = moments(visited, chosen)
        of = {name: _grid(visited, name, quant, grids) for name in chosen}
        for names in _together({name: (id(seen[name]), of[name]) for name in chosen}):
            moment, own = seen[names[0]], of[names[0]]
            whole = torch.cat([chosen[name].weight.detach().float() for name in names])
            made = gptq(whole, curve(moment, rounding), own, dtype or chosen[names[0]].weight.dtype, quant.clip)
            rows = [chosen[name].out_features for name in names]
            for name, *parts in zip(names, *(_split(part, rows) for part in made), strict=True):
                codes = Codes(*parts)
                records.append(_keep(f"{visited.path}.{name}", chosen[name], codes, own, moment))
                store(f"{visited.path}.{name}", codes)

    walk(model, batches, visit)
    return records


def _grid(visited: Visited, name: str, quant: QuantConfig, grids: Mapping[str, Grid] | None) -> Grid | None:
    return quant.grid if grids is None else grids.get(f"{visited.path}.{name}")


def _together(kinds: Mapping[str, Hashable]) -> list[tuple[str, ...]]:
    """Names of one kind each."""
    groups: dict[Hashable, list[str]] = {}
    for name, kind in kinds.items():
        groups.setdefault(kind, []).append(name)
    return [tuple(names) for names in groups.values()]


def _split(part: Tensor | None, rows: list[int]) -> Sequence[Tensor | None]:
    return [None] * len(rows) if part is None else part.split(rows)


def _keep(path: str, linear: Linear, codes: Codes, grid: Grid, moment: Tensor) -> Record:
    """Give a matrix the values of its codes, and say how far they are from those that it had."""
    made = dense(codes, grid, linear.weight.dtype)
    error, whole = (float(product(x.float(), moment)) for x in (made - linear.weight.detach(), linear.weight.detach()))
    linear.weight = nn.Parameter(made, requires_grad=False)
    return {"name": path, "error": error, "relative": error / whole if whole else 0.0}


def product(weight: Tensor, moment: Tensor) -> Tensor:
    """The mean squared length of W x: weight (O, I) float32; moment (I, I), 2 X X' / N."""
    return ((weight @ moment) * weight).sum() / 2
