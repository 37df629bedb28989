"""native: what no family of Hugging Face can say (sinusoidal or no positions, odd combinations), in our own words."""

from dataclasses import asdict, fields, replace

from llmctl.errors import Exit, UserError
from llmctl.spec.families.family import Family
from llmctl.spec.model import ModelConfig, RopeScaling
from llmctl.spec.names import Name
from llmctl.spec.sizes import crossed, layer_shapes, outer_shapes

_OTHER = ("model_type", "architectures", "dtype", "torch_dtype", "transformers_version")


def to_config(json: dict) -> ModelConfig:
    """The fields of ModelConfig under their own names; an unknown one is refused."""
    given = {key: value for key, value in json.items() if key not in _OTHER}
    own = {field.name: field for field in fields(ModelConfig)}
    unknown = sorted(set(given) - set(own))
    missing = [name for name in ("vocab", "width", "layers", "heads", "ff", "context") if name not in given]
    if unknown or missing:
        said = [f"lacks {', '.join(missing)}"] if missing else []
        said += [f"has unknown keys {', '.join(unknown)}"] if unknown else []
        raise UserError(
            f"config.json of model_type llmctl {' and '.join(said)}.",
            "Copy the config.json that belongs to the weights.",
            Exit.MISMATCH,
        )
    try:
        for name in ("eos", "window_layers", "rope_skip", "labels"):
            if given.get(name) is not None:
                given[name] = tuple(given[name])
        if given.get("rope_scaling") is not None:
            scaling = {key: tuple(one) if isinstance(one, list) else one for key, one in given["rope_scaling"].items()}
            given["rope_scaling"] = RopeScaling(**scaling)
    except TypeError as error:
        raise UserError(f"config.json of model_type llmctl: {error}.", code=Exit.MISMATCH) from error
    return ModelConfig(**given, model_type="llmctl")


def to_json(config: ModelConfig) -> dict:
    """Every field of ModelConfig."""
    return {"architectures": ["Transformer"], **asdict(replace(config, model_type="llmctl"))}


def names(config: ModelConfig) -> list[Name]:
    """Our own names."""
    outer = list(outer_shapes(config))
    embeds = [name for name in outer if name.startswith(("embed.", "encoder_embed."))]
    layers = [
        name
        for stack in config.stacks
        for name in layer_shapes(config, f"{stack}.layers.{{i}}.", crossed(config, stack))
    ]
    return [Name(name, (name,)) for name in (*embeds, *layers, *outer[len(embeds) :])]


FAMILY = Family(model_types=("llmctl",), to_config=to_config, to_json=to_json, names=names)
