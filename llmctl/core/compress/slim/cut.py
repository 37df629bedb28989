"""cut: a model of a smaller config, of the tensors of another without some heads, neurons, channels and layers."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llmctl.core.model.norms import LayerNorm
from llmctl.core.model.transformer import Transformer
from llmctl.spec.model import ModelConfig
from llmctl.spec.sizes import shapes

# What the axes of a module's matrix run over, by how its path ends, the last that fits; a vector beside it has the
# first of them. None: nothing that is cut.
_AXES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"norm", ("width",)),
    (r"attention\.q", ("queries", "width")),
    (r"attention\.[kv]", ("keys", "width")),
    (r"attention\.out", ("width", "queries")),
    (r"attention\.q_norm", ("queries",)),
    (r"attention\.k_norm", ("keys",)),
    (r"mlp\.(gate|up)", ("neurons", "width")),
    (r"mlp\.down", ("width", "neurons")),
    (r"relative", (None, "heads")),
    (r"embed\.(tokens|positions|types)", (None, "width")),
    (r"head", (None, "width")),
    (r"head\.transform", ("width", "width")),
    (r"pooler", ("pooled", "width")),
    (r"next_sentence", (None, "pooled")),
    (r"classifier\.dense", ("dense", "width")),
)
READERS = ("queries", "keys", "neurons")  # what matrices that read the stream make of it
_BLOCK = re.compile(r"((?:encoder|decoder)\.layers\.)(\d+)(\..*)")

Cuts = Mapping[tuple[str, str], Tensor]


def cut(model: Transformer, config: ModelConfig, cuts: Cuts, layers: Mapping[str, tuple[int, ...]] = {}) -> Transformer:
    """The model with what stays of each axis, in eval mode; what is not cut shares its memory with the old one.

    Args:
        config: of the result.
        cuts: indices that stay, int64, by axis and owner: ("queries", path of an attention), ("neurons", path of an
            MLP), ("heads", path of a stack), ("width", ""), ("pooled", ""), ("dense", "").
        layers: numbers that stay in each stack; {}: all. Paths in `cuts` have the new numbers.
    """
    state, made = model.state_dict(), {}
    for name in shapes(config):
        tensor = state[_older(name, layers)]
        for axis, over in enumerate(_axes(name, config)[: tensor.dim()]):
            if over is not None and over in cuts:
                tensor = tensor.index_select(axis, cuts[over].to(tensor.device))
        made[name] = nn.Parameter(tensor.detach())
    smaller = Transformer(config, device="meta")
    smaller.load_state_dict(made, strict=True, assign=True)
    return smaller.requires_grad_().eval()


def rows_of(groups: Tensor, size: int) -> Tensor:
    """The channels of groups of `size` channels each: (n,) to (n size,) int64."""
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()


def over(path: str, config: ModelConfig) -> tuple[tuple[str, str] | None, ...]:
    """What the axes of a module's matrix run over, as keys of `Cuts`.

    Args:
        path: of the module in the model: "decoder.layers.3.mlp.up".
    """
    if path == "classifier.out":
        reads = "dense" if config.classifier_dense != "none" else "width"
        return None, ("pooled" if reads == "width" and config.pooler and config.classifier == "sequence" else reads, "")
    found = next(axes for pattern, axes in reversed(_AXES) if re.search(f"{pattern}$", path))
    if path.endswith(("attention.q_norm", "attention.k_norm")):
        found = found if config.qk_norm_whole else (None,)
    owner = path.rpartition(".")[0]
    return tuple(None if one is None else (one, owner if one in (*READERS, "heads") else "") for one in found)


def scale_norm(norm: nn.Module, factor: float | Tensor, bias: bool = False) -> None:
    """Multiply what a norm makes by a factor, in place of its weight; `bias`: what it adds, too."""
    with torch.no_grad():
        weight = norm.weight.float()
        scaled = (weight + 1) * factor - 1 if norm.plus_one else weight * factor
        norm.weight = nn.Parameter(scaled.to(norm.weight.dtype))
        if bias and isinstance(norm, LayerNorm):
            norm.bias = nn.Parameter((norm.bias.float() * factor).to(norm.bias.dtype))


def _axes(name: str, config: ModelConfig) -> tuple[tuple[str, str] | None, ...]:
    return over(name.rpartition(".")[0], config)


def _older(name: str, layers: Mapping[str, tuple[int, ...]]) -> str:
    """What a tensor was called before layers went."""
    found = _BLOCK.fullmatch(name)
    if found is None or not layers:
        return name
    stack = name.partition(".")[0]
    return f"{found[1]}{layers[stack][int(found[2])]}{found[3]}"
