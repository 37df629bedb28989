"""Edit: what one adapter does to one stored tensor of its base, as the headers of its file say."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Literal, NamedTuple

from llmctl.errors import Exit, UserError
from llmctl.spec.account import rules
from llmctl.spec.families import family_for
from llmctl.spec.families.family import Family
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name
from llmctl.spec.peft import Adapter, part_of
from llmctl.spec.remade import SPELLED, apart, some
from llmctl.spec.safetensors import BITS, TensorInfo
from llmctl.spec.sites import sites

EditKind = Literal["replace", "low-rank", "factor", "shift"]


@dataclass(frozen=True)
class Given:
    """An adapter to merge.

    Attributes:
        path: its directory.
        weight: what the change that it makes is multiplied by.
    """

    path: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Given":
        """What is typed as PATH or PATH:WEIGHT; a directory that has such a name is that directory."""
        path, colon, number = text.rpartition(":")
        if not colon or not path or Path(text).exists():
            return cls(Path(text))
        try:
            weight = float(number)
        except ValueError:
            return cls(Path(text))
        if not isfinite(weight):
            raise UserError(f"{text} has the weight {number}, wanted a number.", code=Exit.USAGE)
        return cls(Path(path), weight)


class Edit(NamedTuple):
    """What one adapter does to one stored tensor; edits of an adapter follow each other.

    Attributes:
        given: number of the adapter.
        kind: replace: by the tensor `whole`; low-rank: `b` times `a` is added, then rows get the length `magnitude`, if
            there is one; factor: features are multiplied by `factor`, those that enter or those that leave; shift:
            `bias` is added.
        parts: the adapter's tensors by these names.
        scale: of what is added.
        entering: whether the factor is of what enters.
    """

    given: int
    kind: EditKind
    parts: dict[str, TensorInfo]
    scale: float = 1.0
    entering: bool = False


@dataclass(frozen=True)
class Made:
    """A tensor of the merged checkpoint.

    Attributes:
        name: on disk.
        shape: on disk.
        dtype: on disk, as safetensors spells it.
        source: the tensor of the base; None: an adapter adds it.
        edits: in the order of the adapters.
        turned: the file holds (in, out), or it is a table: features that leave are its columns.
        scale: what the base's tensor and the edits are multiplied by at last: of a head that was tied and scaled.
        packed: the rule by which it holds matrices of ours whose weights count as NF4 has them, or None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    source: TensorInfo | None
    edits: tuple[Edit, ...] = ()
    turned: bool = False
    scale: float = 1.0
    packed: Name | None = None

    @property
    def bytes(self) -> int:
        """Size of its data."""
        return prod(self.shape) * BITS[self.dtype] // 8


def edits_of(
    number: int, given: Given, adapter: Adapter, stored: dict[str, TensorInfo], config: ModelConfig
) -> dict[str, list[Edit]]:
    """The edits of one adapter, by the first of our names that the stored tensor holds; all it has is used.

    Raises:
        UserError: it has what the model has no place for, or lacks what it should have.
    """
    untied = apart(config) or config
    family = family_for(untied)
    places = {family.bare(rule.theirs): rule for rule in rules(untied, family)}
    aliases = {family.bare(alias): family.bare(name) for alias, name in family.aliases.items()}
    modules: dict[str, dict[str, TensorInfo]] = {}
    spelled: dict[str, str] = {}  # as patterns of the adapter's config know it
    edits: dict[str, list[Edit]] = {}
    unknown, wrong = [], []
    for name, info in stored.items():
        given_as, part = part_of(name)
        module = family.module(given_as)
        if spelled.setdefault(module, given_as) != given_as:
            wrong.append(f"{given_as} and {spelled[module]} are one module")
        modules.setdefault(module, {})[part] = info
    for module, parts in modules.items():
        used: set[str] = set()
        for leaf in ("weight", "bias"):
            place = f"{module}.{leaf}"
            rule = places.get(place) or places.get(aliases.get(place, ""))
            for edit, names in _edits(number, adapter, spelled[module], leaf, parts):
                used |= names
                if rule is None:
                    unknown += [place] * (edit.kind != "factor")  # a matrix without a bias has none to scale
                elif place in places or rule.ours[0] not in edits:
                    edits.setdefault(rule.ours[0], []).append(edit)
                elif edit.kind != "replace":  # else the same tensor under another name
                    wrong.append(f"{module} is changed under two names")
        if left := parts.keys() - used:
            wrong.append(f"{module} has {', '.join(sorted(left))} alone")
        wrong += _contradicting(adapter, spelled[module], parts)
    wrong += _missing(adapter, modules, untied, family)
    if unknown:
        wrong.insert(0, f"the base has no place for {some(unknown)}")
    if wrong:
        hint = "Name the checkpoint that the adapter was made for: --base MODEL."
        raise UserError(f"{given.path} does not fit the base: {some(wrong, '; ')}.", hint, Exit.MISMATCH)
    return edits


def _edits(
    number: int, adapter: Adapter, module: str, leaf: str, parts: dict[str, TensorInfo]
) -> Iterator[tuple[Edit, set[str]]]:
    """What the parts of one module do to its weight or its bias, in order, and which parts these are."""
    for part in (leaf, f"base.{leaf}"):
        if part in parts:
            yield Edit(number, "replace", {"whole": parts[part]}), {part}
    if leaf == "weight":
        for a, b in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            if a in parts and b in parts:
                named = {"a": a, "b": b, "magnitude": "lora_magnitude_vector"}
                found = {key: parts[name] for key, name in named.items() if name in parts}
                yield Edit(number, "low-rank", found, adapter.scale_of(module)), {*named.values()}
    elif "lora_B.bias" in parts:
        yield Edit(number, "shift", {"bias": parts["lora_B.bias"]}, adapter.scale_of(module)), {"lora_B.bias"}
    if "ia3_l" in parts:
        entering = adapter.feeding(module)
        if leaf == "weight" or not entering:
            yield Edit(number, "factor", {"factor": parts["ia3_l"]}, entering=entering), {"ia3_l"}


def _contradicting(adapter: Adapter, module: str, parts: dict[str, TensorInfo]) -> list[str]:
    """Where the tensors of a module are not what the adapter's config says."""
    wrong = []
    for name, rank in (("lora_A", 0), ("lora_B", 1), ("lora_embedding_A", 0), ("lora_embedding_B", 1)):
        if name in parts and (len(shape := parts[name].shape) != 2 or shape[rank] != adapter.rank_of(module)):
            wrong.append(f"{parts[name].name} is {list(shape)}, wanted rank {adapter.rank_of(module)}")
    if "lora_A" in parts or "lora_embedding_A" in parts:
        for part, said in (("lora_magnitude_vector", adapter.dora), ("lora_B.bias", adapter.lora_bias)):
            if said != (part in parts) and not (part == "lora_B.bias" and "lora_embedding_A" in parts):
                wrong.append(f"{module} {'lacks' if said else 'has'} {part}")
    return wrong


def _missing(adapter: Adapter, modules: dict[str, dict], config: ModelConfig, family: Family) -> list[str]:
    """Matrices of the layers that the adapter says it is for, and has nothing for."""
    if adapter.targets is None or adapter.all_linear:
        return []
    names = [site.theirs for site in sites(config, family) if ".layers." in site.ours[0]]
    return [
        f"it has nothing for {name}, which its target_modules name"
        for name in names
        if adapter.targeted(name)
        and not any(part.startswith(("lora_", "ia3_")) for part in modules.get(family.bare(name), {}))
    ]


def unfit(made: Made, given: list[Given]) -> list[str]:
    """What is wrong with the shapes of the edits of a tensor, in words."""
    if made.source is None:
        if [edit.kind for edit in made.edits] != ["replace"]:
            return [f"{made.name} is not in the base, and in {'no' if not made.edits else 'more than one'} adapter"]
        if (weight := given[made.edits[0].given].weight) != 1:
            return [f"{made.name} is no part of the base, so that a weight of {weight:g} means nothing for it"]
    elif made.source.shape != made.shape:
        return [f"{made.name} is {list(made.source.shape)}, wanted {list(made.shape)}"]
    wrong = []
    for edit in made.edits:
        for part, info in edit.parts.items():
            shape = wanted_shape(made, edit, part)
            if info.shape != shape:
                wrong.append(f"{info.name} is {list(info.shape)}, wanted {list(shape)}")
            if info.dtype not in SPELLED:
                wrong.append(f"{info.name} is {info.dtype}")
    return wrong


def wanted_shape(made: Made, edit: Edit, part: str) -> tuple[int, ...]:
    """The shape of a part of an edit of a tensor."""
    shape = made.shape[::-1] if made.turned else made.shape
    rank = edit.parts["a"].shape[0] if "a" in edit.parts and edit.parts["a"].shape else 0
    return {
        "whole": made.shape,
        "a": (rank, *shape[1:]),
        "b": (*shape[:1], rank),
        "magnitude": shape[:1],
        "bias": shape[:1],
        "factor": (1, *shape[1:]) if edit.entering else (*shape[:1], 1),
    }[part]
