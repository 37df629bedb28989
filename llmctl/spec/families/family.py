"""Family: how one kind of published checkpoint spells what ModelConfig and Transformer say."""

from collections.abc import Callable
from dataclasses import dataclass

from llmctl.spec.model import ModelConfig
from llmctl.spec.names import Name


@dataclass(frozen=True)
class Family:
    """Two config functions and rename rules.

    Attributes:
        model_types: what config.json may call it.
        to_config: a parsed config.json to ModelConfig. Raises UserError where we would compute something else.
        to_json: back; every key that a reader needs, without dtype.
        names: one rule for each kind of tensor that a model of that config stores, in the order it is written.
        prefix: of tensor names, which files of a model saved without its head lack.
        ignored: patterns (whole name, after the prefix) of stored buffers that follow from the config.
    """

    model_types: tuple[str, ...]
    to_config: Callable[[dict], ModelConfig]
    to_json: Callable[[ModelConfig], dict]
    names: Callable[[ModelConfig], list[Name]]
    prefix: str = ""
    ignored: tuple[str, ...] = ()


def pair(theirs: str, ours: str, bias: bool, **how: object) -> list[Name]:
    """The rule of a weight, and where `bias`, of the bias beside it."""
    rules = [Name(f"{theirs}.weight", (f"{ours}.weight",), **how)]  # type: ignore[arg-type]
    return [*rules, Name(f"{theirs}.bias", (f"{ours}.bias",))] if bias else rules


def tokens_json(config: ModelConfig) -> dict[str, object]:
    """The special ids as config.json and generation_config.json spell them; eos may be a list."""
    eos = config.eos[0] if len(config.eos) == 1 else list(config.eos) or None
    return {"bos_token_id": config.bos, "eos_token_id": eos, "pad_token_id": config.pad}
