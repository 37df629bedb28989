"""FORMS: how adapters at sites are stored: tensors, keys of adapter_config.json, and back."""

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmctl.core.adapt.additive import Bottleneck, Scaling
from llmctl.core.adapt.inject import sides
from llmctl.core.adapt.lora import Lora
from llmctl.core.checkpoint.names import join, split
from llmctl.core.model.layers import Embedding
from llmctl.spec.adapt import AdaptConfig
from llmctl.spec.names import Name
from llmctl.spec.peft import Adapter
from llmctl.spec.sites import Site

Parts = dict[str, Tensor]


class Form(NamedTuple):
    """How one kind of adapter of matrices and tables is stored.

    Attributes:
        known: what its tensors are to a module, as `part_of` says it.
        parts: of a site and our layers there, given the heads of the model: tensors by the ends of their names.
        said: keys of adapter_config.json that are its own, given adapters by the names of their sites, and the names
            of all sites.
        attached: the adapters of our layers at a site, given its name in the file and its tensors; ValueError.
    """

    known: frozenset[str]
    parts: Callable[[Site, list[nn.Module], int], Parts]
    said: Callable[[AdaptConfig, dict, list[str]], dict[str, object]]
    attached: Callable[[Adapter, str, Site, list[nn.Module], Parts, int], list[nn.Module]]


def ends(targets: list[str], every: list[str]) -> list[str]:
    """The shortest ends of names that are those of the targets and of nothing else."""
    chosen, ends = set(targets), set()
    for name in targets:
        parts = name.split(".")
        tails = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        ends.add(next(tail for tail in tails if all(one in chosen for one in every if f".{one}".endswith(f".{tail}"))))
    return sorted(ends)


def _rule(site: Site) -> Name:
    """How what goes with the rows of a site is put together of what goes with ours."""
    return Name(site.theirs, site.ours, fusion=site.fusion)


def _wanted(what: str, tensor: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    if tensor is None:
        raise ValueError(f"it has no {what}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{what} is {list(tensor.shape)}, wanted {list(shape)}")
    return tensor.float()


def _none(parts: Parts) -> None:
    if parts:
        raise ValueError(f"nothing takes its {', '.join(parts)}")


def _rows(site: Site, layers: list[nn.Module]) -> list[int]:
    return [sides(layer)[1] for layer in layers]


def _lora_parts(site: Site, layers: list[nn.Module], heads: int) -> Parts:
    """PEFT's A, B and magnitude; rows of ours that have no adapter have a B of zeros, and their own length."""
    adapters = [layer.adapter for layer in layers]
    first = next(one for one in adapters if one is not None)
    if any(one is not None and one.a is not first.a for one in adapters):
        raise ValueError(f"adapters of {', '.join(site.ours)}, which are one matrix in {site.theirs}, do not share A")
    rank, rule = len(first.a), _rule(site)
    bs = [
        first.b.new_zeros(rows, rank) if one is None else one.b.detach()
        for one, rows in zip(adapters, _rows(site, layers), strict=True)
    ]
    table = isinstance(layers[0], Embedding)
    found = {
        "lora_embedding_A" if table else "lora_A.weight": first.a,
        "lora_embedding_B" if table else "lora_B.weight": join(rule, bs, heads),
    }
    if first.bias is not None:
        zeros = [first.b.new_zeros(rows) for rows in _rows(site, layers)]
        biases = [zero if one is None else one.bias.detach() for one, zero in zip(adapters, zeros, strict=True)]
        found["lora_B.bias"] = join(rule, biases, heads)
    if first.magnitude is not None:
        lengths = [
            torch.linalg.vector_norm(layer.dense().float(), dim=1) if one is None else one.magnitude.detach()
            for one, layer in zip(adapters, layers, strict=True)
        ]
        found["lora_magnitude_vector"] = join(rule, lengths, heads)
    return found


def _lora_said(config: AdaptConfig, adapters: dict[str, Lora], every: list[str]) -> dict[str, object]:
    """r and alpha of most modules, patterns for the others."""
    ranks = {name: len(one.a) for name, one in adapters.items()}
    alphas = {name: _alpha(config, one) for name, one in adapters.items()}
    rank, alpha = (max(list(all_), key=list(all_).count) for all_ in (ranks.values(), alphas.values()))
    some = next(iter(adapters.values()))
    return {
        "target_modules": ends(list(adapters), every),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.method == "rslora",
        "use_dora": some.magnitude is not None,
        **({"lora_bias": True} if some.bias is not None else {}),
        "init_lora_weights": True,
        "rank_pattern": {name: one for name, one in ranks.items() if one != rank},
        "alpha_pattern": {name: one for name, one in alphas.items() if one != alpha},
    }


def _alpha(config: AdaptConfig, lora: Lora) -> int | float:
    """What gives the module's scale; a whole number where it is one."""
    rank = len(lora.a)
    found = 2.0 * rank if config.alpha is None else config.alpha
    if rank != config.rank or lora.scale != config.scale:
        found = lora.scale * (sqrt(rank) if config.method == "rslora" else rank)
    return int(found) if found == int(found) else found


def _lora_attached(
    adapter: Adapter, name: str, site: Site, layers: list[nn.Module], parts: Parts, heads: int
) -> list[nn.Module]:
    """One Lora for each of ours; they share A."""
    parts, table = dict(parts), isinstance(layers[0], Embedding)
    rank, rows = adapter.rank_of(name), _rows(site, layers)
    first, second = ("lora_embedding_A", "lora_embedding_B") if table else ("lora_A", "lora_B")
    a = nn.Parameter(_wanted(first, parts.pop(first, None), (rank, sides(layers[0])[0])))

    def taken(part: str, used: bool, *shape: int) -> list[Tensor] | list[None]:
        if not used:
            return [None] * len(rows)
        whole = _wanted(part, parts.pop(part, None), (sum(rows), *shape))
        return [one.contiguous() for one in split(_rule(site), whole, rows, heads)]

    bs = taken(second, True, rank)
    biases = taken("lora_B.bias", adapter.lora_bias)
    lengths = taken("lora_magnitude_vector", adapter.dora)
    _none(parts)
    scale = adapter.scale_of(name)
    return [
        Lora(a, b, scale, adapter.dropout, length, bias) for b, bias, length in zip(bs, biases, lengths, strict=True)
    ]


def _ia3_parts(site: Site, layers: list[nn.Module], heads: int) -> Parts:
    """PEFT's vector: a row of what enters, a column of what leaves; rows of ours without an adapter have ones."""
    adapters = [layer.adapter for layer in layers]
    first = next(one for one in adapters if one is not None)
    if first.entering:
        if any(one is None or one.factor is not first.factor for one in adapters):
            raise ValueError(f"{', '.join(site.ours)} are one matrix in {site.theirs}, and take the same factors")
        return {"ia3_l": first.factor[None]}
    ones = [first.factor.new_ones(rows) for rows in _rows(site, layers)]
    factors = [one if given is None else given.factor.detach() for given, one in zip(adapters, ones, strict=True)]
    return {"ia3_l": join(_rule(site), factors, heads)[:, None]}


def _ia3_said(config: AdaptConfig, adapters: dict[str, Scaling], every: list[str]) -> dict[str, object]:
    """PEFT wants the modules whose input is scaled among the targets, by the same ends of names."""
    entering = [name for name, one in adapters.items() if one.entering]
    feeds = ends(entering, every)
    targets = {*feeds, *ends([name for name in adapters if name not in entering], every)}
    return {"target_modules": sorted(targets), "feedforward_modules": feeds, "init_ia3_weights": True}


def _ia3_attached(
    adapter: Adapter, name: str, site: Site, layers: list[nn.Module], parts: Parts, heads: int
) -> list[nn.Module]:
    parts, entering = dict(parts), adapter.feeding(name)
    rows, inputs = _rows(site, layers), sides(layers[0])[0]
    vector = _wanted("ia3_l", parts.pop("ia3_l", None), (1, inputs) if entering else (sum(rows), 1))
    _none(parts)
    if entering:
        factor = nn.Parameter(vector[0])
        return [Scaling(factor, True) for _ in layers]
    return [Scaling(nn.Parameter(one.contiguous()), False) for one in split(_rule(site), vector[:, 0], rows, heads)]


def _bottleneck_parts(site: Site, layers: list[nn.Module], heads: int) -> Parts:
    if len(layers) > 1:
        raise ValueError(f"{', '.join(site.ours)} are one matrix in {site.theirs}; a bottleneck stands after all of it")
    return {f"bottleneck_{name}": tensor for name, tensor in layers[0].adapter.named_parameters()}


def _bottleneck_said(config: AdaptConfig, adapters: dict[str, Bottleneck], every: list[str]) -> dict[str, object]:
    width = next(iter(adapters.values())).down.out_features
    return {"target_modules": ends(list(adapters), every), "width": width, "dropout": config.dropout}


def _bottleneck_attached(
    adapter: Adapter, name: str, site: Site, layers: list[nn.Module], parts: Parts, heads: int
) -> list[nn.Module]:
    parts, made = dict(parts), Bottleneck(sides(layers[0])[1], adapter.width, adapter.dropout)
    for inner, parameter in made.named_parameters():
        part = f"bottleneck_{inner}".removesuffix(".weight")
        parameter.data = _wanted(part, parts.pop(part, None), tuple(parameter.shape))
    _none(parts)
    return [made]


_LORA = frozenset(("lora_A", "lora_B", "lora_B.bias", "lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B"))
_BOTTLENECK = frozenset(f"bottleneck_{one}{leaf}" for one in ("down", "up") for leaf in ("", ".bias"))
FORMS: dict[str, Form] = {
    "LORA": Form(_LORA, _lora_parts, _lora_said, _lora_attached),
    "IA3": Form(frozenset(("ia3_l",)), _ia3_parts, _ia3_said, _ia3_attached),
    "BOTTLENECK": Form(_BOTTLENECK, _bottleneck_parts, _bottleneck_said, _bottleneck_attached),
}
