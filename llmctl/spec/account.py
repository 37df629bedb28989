"""account: every tensor on disk against what the config asks for, both ways, before any is loaded."""

import re
from dataclasses import dataclass, field, replace
from itertools import groupby

from llmctl.errors import Exit, UserError
from llmctl.spec.coding import FLOATS, Coding
from llmctl.spec.families import family_for, family_read
from llmctl.spec.families.family import Family
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name
from llmctl.spec.quantized_config import DENSE, Quantized
from llmctl.spec.safetensors import TensorInfo
from llmctl.spec.sizes import shapes

_EMBEDDING, _HEAD = "embed.tokens.weight", "head.weight"


@dataclass(frozen=True)
class Account:
    """Which tensor on disk holds what.

    Attributes:
        stored: each rule, its layer's number filled in, with the tensor that it is about; in the order of the rules.
        copies: tensors stored a second time, such as a head beside the embedding that the config ties it to, with
            the rule of the tensor that each must equal.
        coded: matrices in few bits, by the rule of the weight that they stand for.
    """

    stored: dict[Name, TensorInfo]
    copies: list[tuple[TensorInfo, Name]]
    coded: dict[Name, "Coded"] = field(default_factory=dict)

    @property
    def every(self) -> list[TensorInfo]:
        """All tensors."""
        coded = [info for one in self.coded.values() for info in one.parts.values()]
        return [*self.stored.values(), *coded, *(info for info, _ in self.copies)]


@dataclass(frozen=True)
class Coded:
    """A matrix in few bits.

    Attributes:
        coding: how it is stored.
        shape: (O, I), of what it stands for.
        parts: its tensors, by the suffix of their names.
    """

    coding: Coding
    shape: tuple[int, int]
    parts: dict[str, TensorInfo]


def rules(config: ModelConfig, family: Family | None = None) -> list[Name]:
    """The rename rules of every tensor that a model stores, layer numbers filled in, in the order of a file.

    Args:
        family: whose; None: that in which the model is written.
    """
    found: list[Name] = []
    for stack, run in groupby((family or family_for(config)).names(config), _stack):
        layers = [*run]
        count = config.stacks[stack] if stack else 1
        found += [_numbered(rule, i) if stack else rule for i in range(count) for rule in layers]
    return found


def their_shape(rule: Name, ours: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape on disk of the tensor of one rule, given those of our tensors by name."""
    rows = sum(ours[name][0] for name in rule.ours)
    shape = (rows, *ours[rule.ours[0]][1:])
    shape = shape[::-1] if rule.transposed else shape
    return (1, *shape) if rule.row else shape


def module_kind(rule: Name) -> str | None:
    """The class that published models give the module of a weight: Linear, Conv1D, Embedding; None: another tensor."""
    ours = rule.ours[0]
    module = ours.removesuffix(DENSE)
    if module == ours or "norm" in module.rpartition(".")[2]:
        return None
    if module.startswith(("embed.", "encoder_embed.")) or module.endswith(".relative"):
        return "Embedding"
    return "Conv1D" if rule.transposed else "Linear"


def account(
    tensors: dict[str, TensorInfo], config: ModelConfig, where: str, quantized: Quantized | None = None
) -> Account:
    """Match each tensor on disk with a rule and each rule with a tensor.

    Args:
        tensors: of the directory, by name.
        config: of the model that they should be, as read.
        where: the directory, for messages.
        quantized: which of its matrices are in few bits.

    Raises:
        UserError: tensors that are missing, unexpected, misshapen, or of a dtype that is not a float's.
    """
    family, ours = family_read(config), shapes(config)
    ignored = re.compile("|".join(family.ignored) or r"(?!)")
    left = {family.renaming(name): info for name, info in tensors.items()}
    left = {name: info for name, info in left.items() if not ignored.fullmatch(family.bare(name))}
    wanted = {rule.theirs: rule for rule in rules(config, family)}
    copied = {alias: wanted[name] for alias, name in aliases(family, config).items() if name in wanted}

    coded: dict[Name, Coded] = {}
    missing: list[str] = []
    for rule in wanted.values() if quantized is not None else ():
        if (coding := _coding(rule, quantized, family, left)) is not None:
            shape = their_shape(replace(rule, transposed=False), ours)
            coded[rule] = Coded(coding, shape, _parts(rule, coding, shape, family, left, missing))
    plain = {name: rule for name, rule in wanted.items() if rule not in coded}
    stored = {rule: info for name, rule in plain.items() if (info := _taken(left, name, family))}
    copies = [(info, rule) for alias, rule in copied.items() if (info := _taken(left, alias, family))]
    for info, rule in copies[:]:
        if rule not in stored:  # kept under its other name alone
            stored[rule] = info
            copies.remove((info, rule))
    stored = {rule: stored[rule] for rule in wanted.values() if rule in stored}
    missing += [name for name, rule in plain.items() if rule not in stored]
    pairs = [(info, their_shape(rule, ours)) for rule, info in [*stored.items(), *((r, i) for i, r in copies)]]
    odd = [f"{i.name} is {i.dtype}" for i, _ in pairs if i.dtype not in FLOATS]
    for one in coded.values():
        for part in one.coding.parts(*one.shape):
            if (info := one.parts.get(part.suffix)) is not None:
                pairs.append((info, info.shape if part.shape is None else part.shape))
                odd += [f"{info.name} is {info.dtype}"] * (info.dtype not in part.dtypes)
    misshapen = [f"{i.name} is {list(i.shape)}, wanted {list(shape)}" for i, shape in pairs if i.shape != shape]
    _raise(where, missing, sorted(left), misshapen, odd)
    return Account(stored, copies, coded)


def aliases(family: Family, config: ModelConfig) -> dict[str, str]:
    """Names of copies, by those of what they copy: the family's, and a tied head's."""
    found = dict(family.aliases)
    if config.tie and config.lm_head:
        names = family.names(replace(config, tie=False))
        embedding = next(rule.theirs for rule in names if rule.ours == (_EMBEDDING,))
        found |= {rule.theirs: embedding for rule in names if rule.ours == (_HEAD,)}
    return found


def _stack(rule: Name) -> str:
    """The stack whose layers a rule runs over, or nothing."""
    return rule.ours[0].partition(".")[0] if "{i}" in rule.theirs else ""


def _numbered(rule: Name, layer: int) -> Name:
    filled = tuple(name.replace("{i}", str(layer)) for name in rule.ours)
    return replace(rule, theirs=rule.theirs.replace("{i}", str(layer)), ours=filled)


def _coding(rule: Name, quantized: Quantized, family: Family, left: dict[str, TensorInfo]) -> Coding | None:
    """How the weight of a rule is stored in few bits, if it is."""
    kind, module = module_kind(rule), rule.theirs.removesuffix(DENSE)
    if kind is None:
        return None
    names = dict.fromkeys((family.in_class(module), module, family.bare(module)))
    coding = quantized.coding(names, kind)
    if coding is None or quantized.sure:
        return coding
    weight = left.get(rule.theirs) or left.get(family.bare(rule.theirs))
    return None if weight is not None and weight.dtype in FLOATS else coding


def _parts(
    rule: Name,
    coding: Coding,
    shape: tuple[int, int],
    family: Family,
    left: dict[str, TensorInfo],
    missing: list[str],
) -> dict[str, TensorInfo]:
    """The tensors of a matrix in few bits, taken out of those left; what there is none of is added to `missing`."""
    found = {}
    for part in coding.parts(*shape):
        name = f"{rule.theirs.removesuffix(DENSE)}.{part.suffix}"
        info = _taken(left, name, family)
        if info is not None:
            found[part.suffix] = info
        elif not part.optional:
            missing.append(name)
    return found


def _taken(left: dict[str, TensorInfo], name: str, family: Family) -> TensorInfo | None:
    """A tensor, taken out of those left: under its name, or without the prefix."""
    return left.pop(name, None) or left.pop(family.bare(name), None)


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
