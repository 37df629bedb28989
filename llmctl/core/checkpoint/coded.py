"""hold: a matrix of a file in few bits put into a model, as codes that its layers compute with."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from llmctl.core.checkpoint.names import split
from llmctl.core.compress.pages import give_back, trim
from llmctl.core.compress.quant.grid import Codes, dense
from llmctl.core.compress.quant.layouts import Read, decode
from llmctl.core.compress.quant.linear import held
from llmctl.core.compress.quant.ordered import Ordered
from llmctl.core.model.heads import Head
from llmctl.core.model.layers import Linear
from llmctl.core.model.transformer import Transformer
from llmctl.errors import Exit, UserError
from llmctl.spec.account import Coded
from llmctl.spec.coding import BLOCK
from llmctl.spec.names import Name


def hold(
    model: Transformer,
    rule: Name,
    stored: Coded,
    parts: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Put a matrix into the modules of a model that it is of, in place; memory of the file is given back.

    Args:
        model: on the meta device where it is not filled; biases are there already.
        rule: of the weight that the matrix stands for.
        parts: its tensors, by the suffix of their names, as views of the file.
        dtype: of activations.

    Raises:
        UserError: a value among the tensors that is not understood.
    """
    try:
        read = decode(parts, stored.coding, stored.shape, dtype)
    except UserError as error:
        name = next(iter(stored.parts.values())).name
        raise UserError(f"{name}: {error.problem}", error.hint, error.code) from error
    names = [name.removesuffix(".weight") for name in rule.ours]
    modules = [model.get_submodule(name) for name in names]
    rows = [module.weight.shape[0] for module in modules]
    for name, module, codes in zip(
        names, modules, _split(rule, read, stored.shape, rows, model.config.heads), strict=True
    ):
        _placed(model, name, module, Codes(*(None if one is None else _on(one, device) for one in codes)), read, dtype)
    give_back(list(parts.values()), [*model.parameters(), *model.buffers()])
    if device.type == "cpu":
        trim()


def _placed(model: Transformer, name: str, module: nn.Module, codes: Codes, read: Read, dtype: torch.dtype) -> None:
    shape = tuple(module.weight.shape)
    if isinstance(module, Linear):
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, _linear(module, codes, read, dtype))
    elif isinstance(module, Head):
        bare = Linear(shape[1], shape[0], bias=False, device="meta")
        module.hold(_linear(bare, codes, read, dtype))
    else:
        table = dense(codes, read.grid, dtype, shape)
        module.weight = nn.Parameter(table if read.order is None else table[:, read.order.argsort()])


def _linear(source: Linear, codes: Codes, read: Read, dtype: torch.dtype) -> Linear:
    made = held(source, codes, read.grid, dtype)
    return made if read.order is None else Ordered(made, read.order.to(codes.codes.device))


def _split(rule: Name, read: Read, shape: tuple[int, int], rows: list[int], heads: int) -> list[Codes]:
    """The codes of each of our modules that share a matrix."""
    if len(rows) == 1:
        return [read.codes]
    rule, codes = replace(rule, transposed=False), read.codes
    if read.grid.kind != "nf4":
        found = [[None] * len(rows) if one is None else split(rule, one, rows, heads) for one in codes]
        return [Codes(*some) for some in zip(*found, strict=True)]
    runs = [count // heads if rule.fusion == "heads" else count for count in rows]
    if any(count * shape[1] % BLOCK for count in runs):
        raise UserError(
            f"{rule.theirs} holds {len(rows)} matrices, but blocks of {BLOCK} weights cross from one to another.",
            "Use the checkpoint that it was quantized from.",
            Exit.MISMATCH,
        )
    pieces = [
        split(rule, one.view(-1)[:, None], [count * shape[1] // each for count in rows], heads)
        for one, each in ((codes.codes, 2), (codes.scale, BLOCK))
    ]
    return [Codes(packed.contiguous(), scale[:, 0].contiguous()) for packed, scale in zip(*pieces, strict=True)]


def _on(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device).contiguous()
