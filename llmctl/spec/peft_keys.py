"""KEYS: what each key of an adapter_config.json says, by kind of adapter, and how its value is read."""

import re
from collections.abc import Callable
from math import isfinite

ALL_LINEAR = "all-linear"
Read = Callable[[object], object]


def _any(value: object) -> None:
    """Means nothing to a model that is only read."""


def _text(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError("a text")
    return value


def _flag(value: object) -> bool:
    if value not in (None, True, False):
        raise ValueError("true or false")
    return bool(value)


def _count(value: object) -> int:
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise ValueError("a whole number of 1 or more")
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float) or not isfinite(value):  # type: ignore[arg-type]
        raise ValueError("a number")
    return value  # type: ignore[return-value]


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("a list of names")
    return tuple(value)


def _expressions(value: object) -> tuple[str, ...]:
    """Parts of regular expressions."""
    return tuple(_compiled(one) for one in (() if value is None else _names(value)) if one)


def _selection(value: object) -> tuple[str, ...] | str | None:
    """A list of ends of names, or one regular expression."""
    if isinstance(value, str):
        return value if value.lower() == ALL_LINEAR else _compiled(value)
    return None if value is None else _names(value)


def _compiled(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"a regular expression ({error})") from error
    return pattern


def _pairs(read: Read) -> Read:
    """{pattern: value}, in its order."""

    def pairs(value: object) -> tuple[tuple[str, object], ...]:
        if not isinstance(value, (dict, type(None))):
            raise ValueError("values by patterns")
        return tuple((_compiled(pattern), read(one)) for pattern, one in (value or {}).items())

    return pairs


def _layers(value: object) -> tuple[int, ...] | None:
    listed = [value] if type(value) is int else value
    if listed is None:
        return None
    if not isinstance(listed, list) or not all(type(one) is int for one in listed):
        raise ValueError("numbers of layers")
    return tuple(listed)


def _maybe(read: Read) -> Read:
    return lambda value: None if value is None else read(value)


def _one_of(*choices: object) -> Read:
    def chosen(value: object) -> object:
        if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in choices):
            raise ValueError(f"one of {', '.join(map(str, choices))}")
        return value

    return chosen


Key = tuple[str | None, Read]
_IDLE: Key = (None, _any)

# What reads each key, and the field of Adapter that it fills, if any.
COMMON: dict[str, Key] = {
    "peft_type": _IDLE,
    "base_model_name_or_path": ("base", _text),
    "task_type": ("task", _text),
    "modules_to_save": ("saved", _expressions),
    **dict.fromkeys(("auto_mapping", "peft_version", "revision", "inference_mode", "runtime_config"), _IDLE),
}
_TARGETS: dict[str, Key] = {
    "target_modules": ("targets", _selection),
    "exclude_modules": ("excluded", _selection),
    "fan_in_fan_out": (None, _flag),  # follows from the module, as in PEFT
}
_FIRST_VALUES = ("eva_config", "corda_config", "lora_ga_config", "loftq_config")  # of fresh weights
_FIRST_WORDS = ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs")
_PROMPTED: dict[str, Key] = {
    "num_virtual_tokens": ("virtual_tokens", _count),
    "num_layers": ("depth", _maybe(_count)),
    # what follows from the model, and from the shapes of tensors that must fit it
    **dict.fromkeys(("token_dim", "num_attention_heads", "num_transformer_submodules"), (None, _maybe(_count))),
}
KEYS: dict[str, dict[str, Key]] = {
    "LORA": _TARGETS
    | {
        "r": ("rank", _count),
        "lora_alpha": ("alpha", _number),
        "lora_dropout": ("dropout", _number),
        "use_rslora": ("rslora", _flag),
        "use_dora": ("dora", _flag),
        "lora_bias": ("lora_bias", _flag),
        "bias": ("biases", _one_of("none", "all", "lora_only")),
        "rank_pattern": ("ranks", _pairs(_count)),
        "alpha_pattern": ("alphas", _pairs(_number)),
        "layers_to_transform": ("layers", _layers),
        "layers_pattern": ("layers_patterns", _expressions),
        # pissa, olora, corda, loftq, lora_ga: the adapter is for a base whose weights they changed
        "init_lora_weights": (None, _one_of(True, False, None, "gaussian", "eva", "orthogonal", "mica")),
        **dict.fromkeys((*_FIRST_VALUES, "megatron_core", "qalora_group_size", "merge_weights"), _IDLE),
    },
    "IA3": _TARGETS | {"feedforward_modules": ("feeds", _selection), "init_ia3_weights": _IDLE},
    "PROMPT_TUNING": _PROMPTED | dict.fromkeys(_FIRST_WORDS, _IDLE),
    # what a projection makes of a prefix is stored in its place
    "PREFIX_TUNING": _PROMPTED | dict.fromkeys(("encoder_hidden_size", "prefix_projection", "init_weights"), _IDLE),
    "ADAPTION_PROMPT": {
        "adapter_len": ("virtual_tokens", _count),
        "adapter_layers": ("adapted_layers", _count),
        "target_modules": (None, _text),  # follows from the model, as in PEFT
    },
    "BOTTLENECK": _TARGETS | {"width": ("width", _count), "dropout": ("dropout", _number)},
}
