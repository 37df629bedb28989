"""Family: how one kind of published checkpoint spells what ModelConfig and Transformer say."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from llmctl.spec.model import Level, ModelConfig
from llmctl.spec.names import Name


@dataclass(frozen=True)
class Family:
    """Two config functions and rename rules.

    Attributes:
        model_types: what config.json may call it.
        to_config: a parsed config.json to ModelConfig. Raises UserError where we would compute something else.
        to_json: back; every key that a reader needs, without dtype.
        names: one rule for each kind of tensor that a model of that config stores, in the order it is written.
        prefixes: of tensor names, which files of a model saved without its head lack.
        ignored: patterns (whole name, after the prefix) of stored buffers that follow from the config.
        renamed: (pattern, replacement) of what old files call otherwise, applied to every stored name.
        classes: (pattern, replacement) of modules that transformers' classes of today, and so adapters, call otherwise
            than files do.
        aliases: other names under which a file may hold a tensor again, or instead: alias to the name in `names`.
        settled: flags of ModelConfig that the stored tensors decide: config.json does not always say which heads
            there are.
        touched: classes of transformers read each matrix's weight as they are made, so that one that is packed has to
            be dequantized as it is loaded.
        wide: modules, by the last part of their names, that transformers leaves as they are where it has bitsandbytes
            quantize the others.
        classifiers: of a model of that config, the fields that a head which labels texts ("sequence") or their tokens
            ("token") changes; a head that no class of transformers has is absent.
    """

    model_types: tuple[str, ...]
    to_config: Callable[[dict], ModelConfig]
    to_json: Callable[[ModelConfig], dict]
    names: Callable[[ModelConfig], list[Name]]
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    classes: tuple[tuple[str, str], ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    settled: tuple[str, ...] = ()
    touched: bool = False
    wide: tuple[str, ...] = ()
    classifiers: Callable[[ModelConfig], dict[Level, dict[str, object]]] = lambda config: {}

    def renaming(self, name: str) -> str:
        """What a stored tensor is called in files of today."""
        return _replaced(name, self.renamed)

    def in_class(self, name: str) -> str:
        """What a class of transformers calls a tensor or a module of a file."""
        return _replaced(name, self.classes)

    def module(self, name: str) -> str:
        """What a module is called in files of today, without the prefix."""
        return self.bare(self.renaming(f"{name}.").removesuffix("."))

    def bare(self, name: str) -> str:
        """The name of a tensor or a module without the prefix."""
        return next((name.removeprefix(prefix) for prefix in self.prefixes if name.startswith(prefix)), name)


def _replaced(name: str, changes: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in changes:
        name = re.sub(pattern, replacement, name)
    return name


def pair(theirs: str, ours: str, bias: bool, **how: object) -> list[Name]:
    """The rule of a weight, and where `bias`, of the bias beside it."""
    rules = [Name(f"{theirs}.weight", (f"{ours}.weight",), **how)]  # type: ignore[arg-type]
    return [*rules, Name(f"{theirs}.bias", (f"{ours}.bias",))] if bias else rules


def tokens_json(config: ModelConfig) -> dict[str, object]:
    """The special ids as config.json and generation_config.json spell them; eos may be a list."""
    eos = config.eos[0] if len(config.eos) == 1 else list(config.eos) or None
    start = {} if config.decoder_start is None else {"decoder_start_token_id": config.decoder_start}
    return {"bos_token_id": config.bos, "eos_token_id": eos, "pad_token_id": config.pad, **start}
