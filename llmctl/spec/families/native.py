"""native: what no family of Hugging Face can say (sinusoidal or no positions, odd combinations), in our own words."""

from dataclasses import asdict, fields, replace

from llmctl.errors import Exit, UserError
from llmctl.spec.families.family import Family, pair
from llmctl.spec.model import ModelConfig, RopeScaling
from llmctl.spec.names import Name

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
        for name in ("eos", "window_layers"):
            if given.get(name) is not None:
                given[name] = tuple(given[name])
        if given.get("rope_scaling") is not None:
            given["rope_scaling"] = RopeScaling(**given["rope_scaling"])
    except TypeError as error:
        raise UserError(f"config.json of model_type llmctl: {error}.", code=Exit.MISMATCH) from error
    return ModelConfig(**given, model_type="llmctl")


def to_json(config: ModelConfig) -> dict:
    """Every field of ModelConfig."""
    return {"architectures": ["Transformer"], **asdict(replace(config, model_type="llmctl"))}


def names(config: ModelConfig) -> list[Name]:
    """Our own names."""
    layer, bias = "decoder.layers.{i}", config.norm == "layer"

    def same(module: str, biased: bool) -> list[Name]:
        return pair(module, module, biased)

    return [
        *same("embed.tokens", False),
        *(same("embed.positions", False) if config.position == "learned" else []),
        *(same("embed.norm", bias) if config.embed_norm else []),
        *same(f"{layer}.attention_norm", bias),
        *(rule for part in "qkv" for rule in same(f"{layer}.attention.{part}", config.qkv_bias)),
        *same(f"{layer}.attention.out", config.out_bias),
        *(rule for part in "qk" if config.qk_norm for rule in same(f"{layer}.attention.{part}_norm", False)),
        *same(f"{layer}.mlp_norm", bias),
        *(rule for part in ("gate", "up", "down") if part != "gate" or config.gated
          for rule in same(f"{layer}.mlp.{part}", config.mlp_bias)),
        *same("decoder.norm", bias),
        *([] if config.tie else same("head", False)),
    ]  # fmt: skip


FAMILY = Family(model_types=("llmctl",), to_config=to_config, to_json=to_json, names=names)
