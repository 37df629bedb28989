"""FAMILIES: which published checkpoints are known, and how a config.json becomes a ModelConfig and back."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from llmctl.errors import Exit, UserError
from llmctl.spec.families import bart, bert, bloom, gemma, gpt2, gpt_neox, llama, native, olmo2, phi3, t5
from llmctl.spec.families.family import Family
from llmctl.spec.files import read_json
from llmctl.spec.model import ModelConfig
from llmctl.spec.peft import base_of, is_adapter
from llmctl.spec.quantized_config import as_numbers, quantized, unquantized
from llmctl.spec.safetensors import INDEX, SINGLE, SPARSE, read_tensors

FAMILIES: dict[str, Family] = {
    "gpt2": gpt2.FAMILY,
    "llama": llama.FAMILY,
    "gemma": gemma.FAMILY,
    "phi3": phi3.FAMILY,
    "olmo2": olmo2.FAMILY,
    "gpt_neox": gpt_neox.FAMILY,
    "bloom": bloom.FAMILY,
    "bert": bert.FAMILY,
    "t5": t5.FAMILY,
    "bart": bart.FAMILY,
    "native": native.FAMILY,
}
_BY_TYPE = {model_type: family for family in FAMILIES.values() for model_type in family.model_types}


def family_of(config_json: dict) -> Family:
    """The family of a parsed config.json.

    Raises:
        UserError: its model_type is none of ours.
    """
    model_type = config_json.get("model_type")
    if not isinstance(model_type, str) or model_type not in _BY_TYPE:
        found = "has no model_type" if model_type is None else f"has model_type {model_type!r}"
        raise UserError(
            f"config.json {found}; llmctl knows {', '.join(_BY_TYPE)}.",
            "Name a checkpoint of one of these.",
            Exit.MISMATCH,
        )
    return _BY_TYPE[model_type]


def fitted(config: ModelConfig) -> ModelConfig:
    """The same model under a model_type whose config.json can say all of it: its own if that can, else the first
    of Hugging Face's that can, else llmctl, which no other tool opens."""
    for model_type in (config.model_type, *_BY_TYPE):
        candidate = replace(config, model_type=model_type)
        if model_type in _BY_TYPE and _says(_BY_TYPE[model_type], candidate):
            return candidate
    return replace(config, model_type="llmctl")


def family_read(config: ModelConfig) -> Family:
    """The family whose config.json a model of this config was read from."""
    return _BY_TYPE[config.model_type]


def family_for(config: ModelConfig) -> Family:
    """The family that a model of this config is written in."""
    return _BY_TYPE[fitted(config).model_type]


def read_config(directory: Path | str) -> ModelConfig:
    """The ModelConfig of a checkpoint directory; where its config.json leaves heads open, the weights beside it decide.

    That matrices are in few bits is no part of it.

    That of an adapter's directory is its base's, with the heads that the adapter brings.

    Raises:
        UserError: config.json is absent, unreadable, of another model, or asks for what is not implemented; or the
            headers of the weights are needed and cannot be read; or the base of an adapter is not there.
    """
    directory = Path(directory)
    if is_adapter(directory):
        from llmctl.spec.adapted import adapted_config  # which reads the base by this function

        return adapted_config(directory)
    found = read_config_json(directory)
    stored = family_of(found).settled and any((directory / name).is_file() for name in (SINGLE, INDEX, SPARSE))
    return config_within(found, read_tensors(directory) if stored else None)


def config_within(json: dict, names: Iterable[str] | None = None) -> ModelConfig:
    """The ModelConfig of a checkpoint, whose matrices may be in few bits.

    Args:
        json: its config.json.
        names: as for `config_of`.

    Raises:
        UserError: as `config_of`, or matrices in few bits of a kind that is not known.
    """
    quantized(json)
    return config_of(unquantized(json), None if names is None else as_numbers(names))


def config_of(json: dict, names: Iterable[str] | None = None) -> ModelConfig:
    """The ModelConfig of a parsed config.json.

    Args:
        names: of all tensors stored with it, which decide on heads that config.json leaves open.

    Raises:
        UserError: it is of another model, or asks for what is not implemented.
    """
    family = family_of(json)
    config = family.to_config(json)
    if names is None:
        return config
    present = {family.bare(family.renaming(name)) for name in names}
    for flag in family.settled:
        with_it, without = (_stored(family, config, flag, value) for value in (True, False))
        if adds := with_it - without:
            config = replace(config, **{flag: bool(present & adds)})
        elif drops := without - with_it:  # as a tied head does
            config = replace(config, **{flag: not present & drops})
    return config


def _stored(family: Family, config: ModelConfig, flag: str, value: bool) -> set[str]:
    """What the tensors of a model with such a flag are called, without prefixes; none where it cannot be."""
    try:
        names = family.names(replace(config, **{flag: value}))
    except UserError:  # flags that need one another
        return set()
    return {family.bare(rule.theirs) for rule in names}


def read_config_json(directory: Path | str) -> dict:
    """A checkpoint directory's config.json, parsed; that of its base, for an adapter that has none.

    Raises:
        UserError: it is absent, unreadable or not a JSON object.
    """
    path = Path(directory) / "config.json"
    if not path.is_file() and is_adapter(directory):
        path = base_of(directory) / "config.json"
    if not path.is_file():
        what = "has no config.json" if path.parent.is_dir() else "is not a directory"
        what = what if path.parent.exists() else "does not exist"
        raise UserError(f"{directory} {what}.", "Name a checkpoint directory: config.json and model.safetensors in it.")
    return read_json(path, "config.json")


def _says(family: Family, config: ModelConfig) -> bool:
    """Whether a config.json of the family says all of a config but what the stored tensors say."""
    try:
        said = family.to_config(family.to_json(config))
        open_ = {flag: getattr(config, flag) for flag in family.settled}
        return _essence(replace(said, **open_)) == _essence(config)
    except UserError:
        return False


def _essence(config: ModelConfig) -> ModelConfig:
    """Without the fields that mean nothing in this model."""
    if config.position != "rope":
        config = replace(config, rope_theta=10000.0, rope_scaling=None)
    return replace(config, window_layers=None) if config.window is None else config
