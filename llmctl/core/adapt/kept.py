"""save_kept, set_kept: parameters of the base that an adapter's file holds, because they are trained as they are."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from llmctl.core.checkpoint.names import join, split
from llmctl.core.model.heads import Head
from llmctl.core.model.transformer import Transformer
from llmctl.spec.account import aliases, rules, their_shape
from llmctl.spec.families import family_read
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name
from llmctl.spec.peft import Adapter
from llmctl.spec.sites import head_names
from llmctl.spec.sizes import shapes

EMBEDDING = "embed.tokens.weight"


def save_kept(model: Transformer, adapted: set[str]) -> tuple[dict[str, Tensor], list[str], bool]:
    """What of the base is trained, as the published model names it.

    A module whose weight is trained is stored whole, with every module that shares the weight; so is all of a
    classifier. A bias whose module's weight is not trained is stored alone.

    Args:
        adapted: names of the modules that have adapters.

    Returns:
        The tensors by name; the modules that are stored whole; whether biases are stored alone.
    """
    config, family = model.config, family_read(model.config)
    parameters = dict(model.named_parameters())
    every = {rule.theirs: rule for rule in rules(config, family)}
    same = {alias: name for alias, name in aliases(family, config).items() if name in every}
    trained = {name for name in shapes(config) if name in parameters and parameters[name].requires_grad}
    whole: dict[str, None] = {}
    alone: dict[str, Name] = {}
    for name, rule in every.items():
        if trained.isdisjoint(rule.ours):
            continue
        module, _, leaf = name.rpartition(".")
        if rule.ours[0].startswith("classifier."):
            whole[name.partition(".")[0]] = None
        elif leaf == "weight":
            whole[module] = None
            whole |= {alias.removesuffix(".weight"): None for alias, other in same.items() if other == name}
        else:
            alone[name] = rule
    kept = {name: rule for name, rule in every.items() if _under(name, whole)}
    kept |= {alias: every[name] for alias, name in same.items() if _under(alias, whole)}
    found = {name: _joined(rule, parameters, config.heads) for name, rule in kept.items()}
    alone = {name: rule for name, rule in alone.items() if name not in kept}
    for name, rule in alone.items():
        module, _, leaf = name.rpartition(".")
        at = f"{module}.base_layer.{leaf}" if module in adapted else name
        found[at] = _joined(rule, parameters, config.heads)
    return found, list(whole), bool(alone)


def set_kept(model: Transformer, adapter: Adapter, kept: dict[str, Tensor], based: dict[str, Tensor]) -> list[str]:
    """Put the numbers of a file into the model, unless something is wrong.

    A tied embedding or head that is stored alone, or both with different numbers, unties the model.

    Args:
        kept: tensors by the published model's names, of modules that are stored whole, and biases.
        based: those of the base itself under an adapter, as PEFT stores embeddings.

    Returns:
        What is wrong; then the model is as it was.
    """
    config = model.config
    values, head, wrong = _placed(config, kept, based)
    sizes = shapes(config)
    for rule, tensor in values.items():
        if tuple(tensor.shape) != (wanted := their_shape(rule, sizes)):
            wrong.append(f"{rule.theirs} is {list(tensor.shape)}, wanted {list(wanted)}")
    if head is not None and tuple(head.shape) != sizes[EMBEDDING]:
        wrong.append(f"the head is {list(head.shape)}, wanted {list(sizes[EMBEDDING])}")
    wrong += _unfilled(adapter, config, kept)
    if wrong:
        return wrong
    table = next((tensor for rule, tensor in values.items() if rule.ours == (EMBEDDING,)), None)
    copied = table is not None and config.tie and config.lm_head and not any(one is table for one in based.values())
    if (head is not None or copied) and not (head is not None and table is not None and head.equal(table)):
        untie(model, head)
    for rule, tensor in values.items():
        rows = [sizes[name][0] for name in rule.ours]
        for name, part in zip(rule.ours, split(rule, tensor, rows, config.heads), strict=True):
            parameter = model.get_parameter(name)
            parameter.data = part.to(parameter.device, parameter.dtype).contiguous()
    return []


def _placed(
    config: ModelConfig, kept: dict[str, Tensor], based: dict[str, Tensor]
) -> tuple[dict[Name, Tensor], Tensor | None, list[str]]:
    """The rules that stored tensors are of; that of a head which is tied here; and what is wrong."""
    family = family_read(config)
    every = {rule.theirs: rule for rule in rules(config, family)}
    every |= {alias: every[name] for alias, name in aliases(family, config).items() if name in every}
    every |= {family.bare(name): rule for name, rule in every.items() if family.bare(name) not in every}
    tied = head_names(config) if config.tie and config.lm_head else []
    heads = {f"{name}.weight" for one in tied for name in (one, family.bare(one))}
    values, head, wrong = dict[Name, Tensor](), None, list[str]()
    for name, tensor in (based | kept).items():
        rule = every.get(family.renaming(name))
        if rule is None:
            wrong.append(f"{name} is nothing in this model")
        elif family.renaming(name) in heads and name in kept:
            head = tensor
        elif rule in values and not torch.equal(values[rule], tensor):
            wrong.append(f"{name} is {rule.theirs} in this model, but differs from it")
        else:
            values[rule] = tensor
    for table, others in twins(config).items():
        given = [name for name in (table, *others) if {f"{name}.weight", f"{family.bare(name)}.weight"} & kept.keys()]
        if given and (absent := [other for other in others if other not in given]):
            wrong.append(f"{', '.join(given)} is stored, but not {', '.join(absent)}, which is the same table")
    return values, head, wrong


def untie(model: Transformer, weight: Tensor | None = None) -> None:
    """Give a model whose head is its embedding a head of its own.

    Args:
        weight: of the new head, (V, width); None: the embedding's, as it is.
    """
    tied = model.head
    old = tied.weight
    model.config = replace(model.config, tie=False)
    head = Head(model.config, device="meta")
    for name in ("transform", "norm", "bias", "adapter"):
        setattr(head, name, getattr(tied, name))
    weight = old.detach() if weight is None else weight.to(old.device, old.dtype)
    head.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    model.head = head.train(tied.training)


def twins(config: ModelConfig) -> dict[str, list[str]]:
    """Tables that the published model reads under other names than their own: the module, and what it is read as.

    A module beside them that shares the weight and is never read, T5's and BART's `shared`, is the one they are named
    by here. A tied head is none of them: PEFT knows it as a module of its own.
    """
    family, found = family_read(config), dict[str, list[str]]()
    heads = set(head_names(config))
    stored = {rule.theirs for rule in rules(config, family)}
    for alias, name in aliases(family, config).items():
        module, table = alias.removesuffix(".weight"), name.removesuffix(".weight")
        if name in stored and name != table and family.bare(module) not in heads:
            found.setdefault(table, []).append(module)
    return found


def _under(name: str, modules: dict[str, None]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _joined(rule: Name, parameters: dict[str, Tensor], heads: int) -> Tensor:
    return join(rule, [parameters[name].detach() for name in rule.ours], heads)


def _unfilled(adapter: Adapter, config: ModelConfig, given: Iterable[str]) -> list[str]:
    """Parameters of modules that the config says are stored whole, but the file lacks."""
    family, wrong = family_read(config), []
    present = {family.bare(family.renaming(name)) for name in given}
    for rule in rules(config, family):
        parts = rule.theirs.split(".")[:-1]
        modules = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        saved = any(module.endswith(end) for module in modules for end in adapter.saved)
        if saved and family.bare(rule.theirs) not in present:
            wrong.append(f"{rule.theirs} is in modules_to_save, but has no tensor")
    return wrong
