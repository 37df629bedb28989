"""account: every tensor on disk against what the config asks for, both ways, before any is loaded."""

import re
from dataclasses import dataclass, replace

from llmctl.errors import Exit, UserError
from llmctl.spec.families import family_for
from llmctl.spec.families.family import Family
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name
from llmctl.spec.safetensors import TensorInfo
from llmctl.spec.sizes import shapes

FLOATS = ("F32", "BF16", "F16", "F64")
_EMBEDDING, _HEAD = "embed.tokens.weight", "head.weight"


@dataclass(frozen=True)
class Account:
    """Which tensor on disk holds what.

    Attributes:
        stored: each rule, its layer's number filled in, with the tensor that it is about; in the order of the rules.
        copy: a head stored beside the embedding that the config ties it to; it must equal that, or None.
    """

    stored: dict[Name, TensorInfo]
    copy: TensorInfo | None


def rules(config: ModelConfig) -> list[Name]:
    """The rename rules of every tensor that a model stores, layer numbers filled in, in the order of a file."""
    found: list[Name] = []
    layered: list[Name] = []
    for rule in [*family_for(config).names(config), None]:
        if rule is not None and "{i}" in rule.theirs:
            layered.append(rule)
            continue
        found += [_numbered(rule, i) for i in range(config.layers if layered else 0) for rule in layered]
        layered = []
        found += [] if rule is None else [rule]
    return found


def their_shape(rule: Name, ours: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape on disk of the tensor of one rule, given those of our tensors by name."""
    rows = sum(ours[name][0] for name in rule.ours)
    shape = (rows, *ours[rule.ours[0]][1:])
    return shape[::-1] if rule.transposed else shape


def account(tensors: dict[str, TensorInfo], config: ModelConfig, where: str) -> Account:
    """Match each tensor on disk with a rule and each rule with a tensor.

    Args:
        tensors: of the directory, by name.
        config: of the model that they should be.
        where: the directory, for messages.

    Raises:
        UserError: tensors that are missing, unexpected, misshapen, or of a dtype that is not a float's.
    """
    family, ours = family_for(config), shapes(config)
    wanted = rules(config)
    ignored = re.compile("|".join(family.ignored) or r"(?!)")
    left = {name: info for name, info in tensors.items() if not ignored.fullmatch(name.removeprefix(family.prefix))}
    spare = None
    if config.tie:
        spare = next(rule for rule in family.names(replace(config, tie=False)) if rule.ours == (_HEAD,))
    copy = _taken(left, spare, family) if spare else None

    stored: dict[Name, TensorInfo] = {}
    missing = []
    for rule in wanted:
        info = _taken(left, rule, family)
        if info is None and rule.ours == (_EMBEDDING,) and copy is not None:
            info, copy = copy, None  # a tied matrix, kept under its other name
        if info is None:
            missing.append(rule.theirs)
        else:
            stored[rule] = info
    pairs = [(info, their_shape(rule, ours)) for rule, info in stored.items()]
    if copy is not None:
        pairs.append((copy, ours[_EMBEDDING]))
    misshapen = [f"{i.name} is {list(i.shape)}, wanted {list(shape)}" for i, shape in pairs if i.shape != shape]
    odd = [f"{i.name} is {i.dtype}" for i, _ in pairs if i.dtype not in FLOATS]
    _raise(where, missing, sorted(left), misshapen, odd)
    return Account(stored, copy)


def _numbered(rule: Name, layer: int) -> Name:
    filled = tuple(name.replace("{i}", str(layer)) for name in rule.ours)
    return replace(rule, theirs=rule.theirs.replace("{i}", str(layer)), ours=filled)


def _taken(left: dict[str, TensorInfo], rule: Name, family: Family) -> TensorInfo | None:
    """The rule's tensor, taken out of those left: under its name, or without the prefix."""
    return left.pop(rule.theirs, None) or left.pop(rule.theirs.removeprefix(family.prefix), None)


def _raise(where: str, missing: list[str], unexpected: list[str], misshapen: list[str], odd: list[str]) -> None:
    found = [
        f"{len(names)} {what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
            ("of a dtype that holds no plain weights", odd),
        )
        if names
    ]
    if not found:
        return
    hint = "Take config.json and weights from the same checkpoint."
    if missing == ["lm_head.weight"]:
        hint = "If the embedding serves as the head, set tie_word_embeddings to true in config.json."
    raise UserError(f"The tensors of {where} do not fit its config.json; {'; '.join(found)}.", hint, Exit.MISMATCH)
