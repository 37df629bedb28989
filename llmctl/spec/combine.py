"""CombineConfig: how whole checkpoints of one shape become one; CombinePlan: from which of their tensors."""

import json as texts
from dataclasses import dataclass, fields, replace
from math import isfinite, prod
from pathlib import Path
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.account import account, rules, their_shape
from llmctl.spec.families import family_for, family_read, read_config, read_config_json
from llmctl.spec.files import read_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name
from llmctl.spec.remade import HEAD, NAMED, apart, check_plain, remade, some
from llmctl.spec.safetensors import BITS, TensorInfo, read_tensors
from llmctl.spec.sizes import shapes

Combine = Literal["linear", "slerp", "task-arithmetic", "ties", "dare-linear", "dare-ties"]
SPARSE: tuple[Combine, ...] = ("ties", "dare-linear", "dare-ties")  # that keep a part of each change
BASED: tuple[Combine, ...] = ("task-arithmetic", *SPARSE)  # that sum changes of a base
NORMALIZED: tuple[Combine, ...] = ("linear", "ties")  # whose weights are shares unless said otherwise
# Fields of a config that say nothing of what a model computes.
_IDLE = frozenset(["model_type", "tie", "dropout", "classifier_dropout", "init_std", "context", "logit_scale"])
_EMBEDDING = "embed.tokens.weight"


@dataclass(frozen=True)
class CombineConfig:
    """Method.

    Raises:
        UserError: a value out of range, or an option of another method.
    """

    method: Annotated[
        Combine,
        "linear: their mean by weights; slerp: between two, along the arc; task-arithmetic: base + sum of weight times "
        "change; ties: the same of the largest changes, those against the elected sign left out; dare-linear, "
        "dare-ties: of changes dropped at random, the others made up for it.",
    ] = "linear"
    weights: Annotated[
        tuple[str, ...], "Weight of each model, in their order, with commas; repeatable. Default: 1 each."
    ] = ()
    density: Annotated[
        tuple[str, ...],
        "ties, dare: share of each tensor's changes that is kept; one for all models, or one for each. Default: 0.5.",
    ] = ()
    t: Annotated[float | None, "slerp: 0 is the first model, 1 the second. Default: 0.5."] = None
    scale: Annotated[float | None, "What the summed changes are multiplied by (lambda). Default: 1."] = None
    normalize: Annotated[bool | None, "Divide by the sum of the weights that count. Default: with linear and ties."] = (
        None
    )
    seed: Annotated[int, "dare: of what is dropped."] = 0

    def __post_init__(self) -> None:
        self.numbers("weights"), self.numbers("density")
        wrong = [
            f"--{name} is of {', '.join(methods)}, not of {self.method}"
            for name, given, methods in (
                ("weights", self.weights, ("linear", *BASED)),
                ("density", self.density, SPARSE),
                ("t", self.t is not None, ("slerp",)),
                ("scale", self.scale is not None, BASED),
                ("normalize", self.normalize is not None, ("linear", *BASED)),
            )
            if given and self.method not in methods
        ]
        wrong += [f"--density has {one:g}, wanted 0 to 1" for one in self.numbers("density") if not 0 <= one <= 1]
        wrong += [
            f"--{name} is {value:g}, wanted {wanted}"
            for name, value, good, wanted in (
                ("t", self.t, lambda t: 0 <= t <= 1, "0 to 1"),
                ("scale", self.scale, isfinite, "a number"),
            )
            if value is not None and not good(value)
        ]
        if wrong:
            raise UserError("; ".join(wrong) + ".", code=Exit.USAGE)

    def numbers(self, name: Literal["weights", "density"]) -> list[float]:
        """The numbers of an option that takes several.

        Raises:
            UserError: one is no number.
        """
        words = [word for text in getattr(self, name) for word in text.split(",") if word]
        try:
            found = [float(word) for word in words]
        except ValueError:
            found = [float("nan")]
        if not all(map(isfinite, found)):
            raise UserError(f"--{name} is {', '.join(words)}; wanted numbers.", code=Exit.USAGE)
        return found

    @property
    def shares(self) -> bool:
        """Whether weights are divided by their sum."""
        return self.method in NORMALIZED if self.normalize is None else self.normalize

    def each(self, name: Literal["weights", "density"], models: int) -> list[float]:
        """The weight, or the density, of each model.

        Raises:
            UserError: there is another number of them.
        """
        given, one = self.numbers(name), {"weights": 1.0, "density": 0.5}[name]
        if len(given) == 1 and (name == "density" or models == 1):
            return given * models
        if given and len(given) != models:
            raise UserError(f"--{name} has {len(given)} numbers for {models} models.", code=Exit.USAGE)
        return given or [one] * models


@dataclass(frozen=True)
class Part:
    """A tensor of ours within one of a file: which of the file's, and the rule by which it is there."""

    info: TensorInfo
    rule: Name


@dataclass(frozen=True)
class Blend:
    """A tensor of the combined checkpoint.

    Attributes:
        rule: which tensors of ours it holds, and how.
        shape: on disk.
        dtype: on disk, as safetensors spells it.
        sources: of each directory, the parts that it is made of: one where that stores it in the same way.
    """

    rule: Name
    shape: tuple[int, ...]
    dtype: str
    sources: tuple[tuple[Part, ...], ...]

    @property
    def bytes(self) -> int:
        """Size of its data."""
        return prod(self.shape) * BITS[self.dtype] // 8


@dataclass(frozen=True)
class CombinePlan:
    """What a combined checkpoint is made of.

    Attributes:
        models: directories of the checkpoints.
        base: the one whose changes are summed, or None.
        how: the method.
        weights, densities: of the models.
        config: of the combined model.
        json: its config.json.
        tensors: in the order they are written.
        notes: what a user should know.
    """

    models: tuple[Path, ...]
    base: Path | None
    how: CombineConfig
    weights: tuple[float, ...]
    densities: tuple[float, ...]
    config: ModelConfig
    json: dict
    tensors: tuple[Blend, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, models: list[Path], base: Path | None, how: CombineConfig, dtype: str | None = None) -> "CombinePlan":
        """Reads headers and configs, and checks that the models can be combined.

        Args:
            dtype: of the floats: fp32, bf16, fp16; None: as the first model's.

        Raises:
            UserError: too few or too many models, no base where one is needed; models that are quantized, or of
                different shapes.
        """
        _check_count(models, base, how)
        weights, densities = how.each("weights", len(models)), how.each("density", len(models))
        if how.method == "linear" and how.shares and not sum(weights):
            raise UserError("The weights sum to 0, by which they cannot be divided.", "Use --no-normalize.", Exit.USAGE)
        places = [*models, *([base] if base else [])]
        jsons = [read_config_json(path) for path in places]
        for path, json in zip(places, jsons, strict=True):
            check_plain(path, json)
        configs = [read_config(path) for path in places]
        stored = [account(read_tensors(path), one, str(path)).stored for path, one in zip(places, configs, strict=True)]
        config = _common(places, configs)
        notes = [*_different(places, configs), *_tokenizers(places)]
        tensors = _blends(config, configs, stored, NAMED[dtype] if dtype else None)
        json = remade(jsons[0], configs[0], config, dtype)
        return cls(
            tuple(models), base, how, tuple(weights), tuple(densities), config, json, tuple(tensors), tuple(notes)
        )

    @property
    def places(self) -> list[Path]:
        """Every directory that is read: the models, then the base."""
        return [*self.models, *([self.base] if self.base else [])]

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(blend.bytes for blend in self.tensors)

    def facts(self) -> dict[str, int]:
        """Counts of tensors and bytes, for a report."""
        return {
            "models": len(self.models),
            "tensors": len(self.tensors),
            "parameters": sum(prod(blend.shape) for blend in self.tensors),
            "bytes": self.bytes,
            "largest_tensor_bytes": max(blend.bytes for blend in self.tensors),
        }


def _check_count(models: list[Path], base: Path | None, how: CombineConfig) -> None:
    if how.method in BASED and base is None:
        raise UserError(
            f"--method {how.method} sums what was changed of a base, and there is none.",
            "Name the checkpoint that the models were trained from: --base MODEL.",
            Exit.USAGE,
        )
    if how.method not in BASED and base is not None:
        raise UserError(f"--method {how.method} knows no base.", f"--base is of {', '.join(BASED)}.", Exit.USAGE)
    if how.method == "slerp" and len(models) != 2:
        raise UserError(f"--method slerp is between two models, and there are {len(models)}.", code=Exit.USAGE)


def _common(places: list[Path], configs: list[ModelConfig]) -> ModelConfig:
    """The shape of all: the first's, with a head of its own where any has one.

    Raises:
        UserError: the shapes differ.
    """
    split = any(one.lm_head and not one.tie for one in configs)
    whole = [(apart(one) or one) if split else one for one in configs]
    wanted, wrong = shapes(whole[0]), []
    for path, one in zip(places[1:], whole[1:], strict=True):
        found = shapes(one)
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                here, there = (list(s) if (s := of.get(name)) else "absent" for of in (found, wanted))
                wrong.append(f"{name} is {here} in {path}, {there} in {places[0]}")
        if split and one.logit_scale != whole[0].logit_scale:
            wrong.append(f"the head of {path} is tied and scaled, that of {places[0]} is not")
    if wrong:
        raise UserError(
            f"The models are of different shapes: {some(wrong, '; ')}.",
            "Only checkpoints of one shape can be merged: such as were trained from the same one.",
            Exit.MISMATCH,
        )
    return whole[0]


def _different(places: list[Path], configs: list[ModelConfig]) -> list[str]:
    """What the configs say otherwise, in words."""
    notes = []
    for path, one in zip(places[1:], configs[1:], strict=True):
        names = [field.name for field in fields(ModelConfig) if field.name not in _IDLE]
        differ = [name for name in names if getattr(one, name) != getattr(configs[0], name)]
        if differ:
            notes.append(f"{path} has another {', '.join(differ)} than {places[0]}, whose config is kept.")
    return notes


def _tokenizers(places: list[Path]) -> list[str]:
    """Which models have another vocabulary than the first, in words."""
    known = [_vocabulary(path) for path in places]
    return [
        f"{path} has another tokenizer than {places[0]}: its ids may mean other tokens."
        for path, one in zip(places[1:], known[1:], strict=True)
        if one is not None and known[0] is not None and one != known[0]
    ]


def _vocabulary(path: Path) -> str | None:
    """Tokens and their ids, where tokenizer.json says them."""
    file = path / "tokenizer.json"
    if not file.is_file():
        return None
    json = read_json(file, "tokenizer")
    model = json.get("model")
    added = [(one.get("id"), one.get("content")) for one in json.get("added_tokens") or [] if isinstance(one, dict)]
    return texts.dumps([model.get("vocab") if isinstance(model, dict) else None, sorted(added)], sort_keys=True)


def _blends(
    config: ModelConfig, configs: list[ModelConfig], stored: list[dict[Name, TensorInfo]], dtype: str | None
) -> list[Blend]:
    family = family_read(config) if config == configs[0] else family_for(config)
    wanted = shapes(config)
    held = [{name: Part(info, rule) for rule, info in one.items() for name in rule.ours} for one in stored]
    for one, known in zip(configs, held, strict=True):
        if HEAD in wanted and HEAD not in known and one.tie:
            known[HEAD] = replace(known[_EMBEDDING], rule=replace(known[_EMBEDDING].rule, ours=(HEAD,)))
    made = []
    for rule in rules(config, family):
        sources = tuple(tuple(dict.fromkeys(known[name] for name in rule.ours)) for known in held)
        shape = their_shape(rule, {name: wanted[name] for name in rule.ours})
        made.append(Blend(rule, shape, dtype or sources[0][0].info.dtype, sources))
    return made
