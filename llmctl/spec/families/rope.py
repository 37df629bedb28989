"""Rotary positions in a config.json: rope_theta and rope_scaling in old files, rope_parameters in new ones."""

import math
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields

from llmctl.errors import Exit, UserError
from llmctl.spec.families.fields import Fields
from llmctl.spec.model import ModelConfig, RopeScaling

# Keys of each rope type, theirs: ours, in the order they are written. All may be absent, unless REQUIRED.
_KEYS: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_context",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_context",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
        "truncate": "truncate",
    },
    "longrope": {
        "factor": "factor",
        "original_max_position_embeddings": "original_context",
        "attention_factor": "attention_factor",
        "short_factor": "short_factor",
        "long_factor": "long_factor",
    },
}
_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}
_PLAIN = ("default", None)


@dataclass(frozen=True)
class Spelling:
    """How a family spells its rotary positions.

    Attributes:
        theta: the base where no key says it.
        theta_key: of the base, outside rope_parameters.
        share: of a head's channels that turn, where no key says it.
        share_keys: of that share outside rope_parameters, the first that is there counts; none: all channels turn.
        original: the context that scaling began from where the outer key is absent, and it is written there; None:
            the inner one counts, then the context.
        kinds: of scaling that the family's readers know.
    """

    theta: float = 10000.0
    theta_key: str = "rope_theta"
    share: float = 1.0
    share_keys: tuple[str, ...] = ()
    original: int | None = None
    kinds: tuple[str, ...] = tuple(_KEYS)


_LLAMA = Spelling()


def read_rope(fields: Fields, context: int, spelling: Spelling = _LLAMA, head_dim: int = 0) -> dict[str, object]:
    """rope_theta, rope_scaling and rotary_dim. A rope_scaling that is there counts before rope_parameters, as in
    transformers."""
    given: dict = {}
    for key in ("rope_parameters", "rope_scaling"):
        value = _object(fields, key)
        given = value or given
    inner = Fields(given, fields.kind)
    share = _share(fields, inner, spelling)
    theta, scaling = _read(fields, inner, context, spelling)
    _agree(fields, "rope_theta", spelling.theta_key, theta)
    return {"rope_theta": theta, "rope_scaling": scaling, "rotary_dim": _turning(fields, share, head_dim)}


def read_layered_rope(fields: Fields, context: int, spelling: Spelling, local: float) -> dict[str, object]:
    """rope_theta, rope_scaling and rope_local_theta of models whose windowed layers have a base of their own.

    Args:
        local: their base where no key says it.
    """
    nested = _object(fields, "rope_parameters")
    outer = _object(fields, "rope_scaling")
    foreign = sorted(set(nested) - {"full_attention", "sliding_attention"})
    if foreign:
        fields.refused.append(f"rope_parameters {', '.join(foreign)} (known: full_attention, sliding_attention)")
    layered = Fields(nested, fields.kind)
    full, sliding = _object(layered, "full_attention"), _object(layered, "sliding_attention")
    _hand_over(layered, fields)
    inner, windowed = Fields({**full, **outer}, fields.kind), Fields(sliding, fields.kind)
    for part in (fields, inner, windowed):
        part.refuse("partial_rotary_factor", 1.0, 1)
    theta, scaling = _read(fields, inner, context, spelling)
    base = fields.number("rope_local_base_freq", default=local)
    if sliding.get("rope_type", sliding.get("type")) not in _PLAIN:
        fields.refused.append(f"rope_type {sliding.get('rope_type', sliding.get('type'))!r} of sliding_attention")
    base = windowed.number("rope_theta", default=base)
    if base <= 0:
        fields.wrong.append(f"rope_local_base_freq is {base:g}, wanted more than 0")
    _hand_over(windowed, fields)
    return {"rope_theta": theta, "rope_scaling": scaling, "rope_local_theta": base}


def _object(fields: Fields, key: str) -> dict:
    value = fields.json.get(key) or {}
    if not isinstance(value, dict):
        fields.wrong.append(f"{key} is {value!r}, wanted an object or null")
        return {}
    return value


def _read(fields: Fields, inner: Fields, context: int, spelling: Spelling) -> tuple[float, RopeScaling | None]:
    given = inner.json
    outer = fields.number(spelling.theta_key, default=spelling.theta)
    theta = inner.number("rope_theta", default=outer)
    kind = given.get("rope_type", given.get("type"))
    scaling = None
    if kind in _PLAIN:
        _refuse_unknown(inner, given, ())
    elif not isinstance(kind, str) or kind not in spelling.kinds:
        inner.refused.append(f"rope_type {kind!r} (known: default, {', '.join(spelling.kinds)})")
    else:
        _refuse_unknown(inner, given, tuple(_KEYS[kind]))
        scaling = _scaling(inner, fields, kind, context, spelling)
    if theta <= 0:
        fields.wrong.append(f"{spelling.theta_key} is {theta:g}, wanted more than 0")
    _hand_over(inner, fields)
    return theta, scaling


def _hand_over(inner: Fields, fields: Fields) -> None:
    fields.missing += [f"rope {key}" for key in inner.missing]
    fields.wrong += [f"rope {problem}" for problem in inner.wrong]
    fields.refused += inner.refused
    inner.missing, inner.wrong, inner.refused = [], [], []


def _agree(fields: Fields, key: str, other: str, value: float) -> None:
    # Some readers take the one key and some the other
    if key != other and fields.json.get(key, value) not in (value, None):
        fields.refused.append(f"{key} {fields.json[key]!r} beside {other} {value:g}")


def _share(fields: Fields, inner: Fields, spelling: Spelling) -> float:
    """The share of a head's channels that turn: the inner key counts before the outer ones."""
    if not spelling.share_keys:
        fields.refuse("partial_rotary_factor", 1.0, 1)
        inner.refuse("partial_rotary_factor", 1.0, 1)
        return 1.0
    share = fields.number(*spelling.share_keys, default=spelling.share)
    share = inner.number("partial_rotary_factor", default=share)
    _agree(fields, "partial_rotary_factor", spelling.share_keys[0], share)
    if not 0 < share <= 1:
        fields.wrong.append(f"{spelling.share_keys[0]} is {share:g}, wanted more than 0 and at most 1")
        return 1.0
    return share


def _turning(fields: Fields, share: float, head_dim: int) -> int:
    turning = int(head_dim * share)
    if share < 1 and not turning and head_dim:
        fields.wrong.append(f"partial_rotary_factor {share:g} leaves no channel of {head_dim} that turns")
    return 0 if turning == head_dim else turning


def _scaling(inner: Fields, outer: Fields, kind: str, context: int, spelling: Spelling) -> RopeScaling:
    values: dict[str, object] = {}
    for theirs, ours in _KEYS[kind].items():
        if ours == "original_context":
            # A top-level key goes before the nested one, and the context stands in for both: transformers' order
            nested = inner.count(theirs, default=context)
            values[ours] = outer.count(theirs, default=spelling.original or nested)
        elif ours == "truncate":
            values[ours] = inner.flag(theirs, True)
        elif ours in ("short_factor", "long_factor"):
            values[ours] = inner.numbers(theirs)
        elif theirs in _REQUIRED[kind] or inner.has(theirs):
            values[ours] = inner.number(theirs)
    if kind == "yarn":  # 0 and null mean the default there
        values = {ours: value for ours, value in values.items() if value or ours == "truncate"}
    if kind == "longrope":
        values.setdefault("factor", context / values["original_context"])  # type: ignore[operator]
    if inner.missing or inner.wrong:
        return RopeScaling(kind="linear", factor=1.0)
    return RopeScaling(kind=kind, **values)  # type: ignore[arg-type]


def _refuse_unknown(inner: Fields, given: dict, known: tuple[str, ...]) -> None:
    # Keys of other types lie about in published files and are ignored by transformers too; keys that it reads are not
    common = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned", "mrope_section"}
    everything = {key for keys in _KEYS.values() for key in keys}
    for key in sorted(set(given) - common - everything - set(known)):
        if isinstance(given[key], dict):
            inner.refused.append(f"rope_parameters of its own for {key}")
    if given.get("mrope_section") is not None:
        inner.refused.append("rope mrope_section")


def rope_json(config: ModelConfig, spelling: Spelling = _LLAMA) -> dict:
    """rope_theta, rope_parameters, and rope_scaling (null when plain): old readers and new ones see the same.

    Raises:
        UserError: a scaling that the family's readers do not know.
    """
    partly = {"partial_rotary_factor": _share_of(config)} if spelling.share_keys else {}
    outer = {spelling.theta_key: config.rope_theta, "rope_theta": config.rope_theta, **partly}
    outer |= dict.fromkeys(spelling.share_keys, _share_of(config))
    inner = {"rope_theta": config.rope_theta, **partly}
    scaling = config.rope_scaling
    if scaling is None:
        return {**outer, "rope_parameters": {"rope_type": "default", **inner}, "rope_scaling": None}
    if scaling.kind not in spelling.kinds:
        raise UserError(f"No config.json of this model_type says rope scaling {scaling.kind}.", code=Exit.MISMATCH)
    nested = _scaling_json(config, scaling)
    parameters = {"rope_type": scaling.kind, **inner, **nested}
    if spelling.original is not None:  # Their first readers accept type and the two lists and nothing else
        original = nested.pop("original_max_position_embeddings")
        outer["original_max_position_embeddings"] = original
        if scaling.factor == config.context / original:  # type: ignore[operator]
            del nested["factor"]
        return {**outer, "rope_parameters": parameters, "rope_scaling": {"type": scaling.kind, **nested}}
    # The first readers of linear and dynamic scaling accept type and factor and nothing else
    both = {"type": scaling.kind, **({"rope_type": scaling.kind} if len(nested) > 1 else {})}
    return {**outer, "rope_parameters": parameters, "rope_scaling": {**both, **nested}}


def layered_rope_json(config: ModelConfig, local: float) -> dict:
    """The inverse of `read_layered_rope`.

    Args:
        local: the base that is written where no layer has one of its own.
    """
    base = config.rope_local_theta or local
    json = rope_json(config)
    full = json["rope_parameters"]
    if json["rope_scaling"] is not None:  # put over a rope_type of their own by readers who do not look at type
        json["rope_scaling"]["rope_type"] = full["rope_type"]
    return {
        **json,
        "rope_local_base_freq": base,
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": base},
        },
    }


def _scaling_json(config: ModelConfig, scaling: RopeScaling) -> dict[str, object]:
    default = {field.name: field.default for field in dataclass_fields(RopeScaling)}
    nested: dict[str, object] = {}
    for theirs, ours in _KEYS[scaling.kind].items():
        value = getattr(scaling, ours)
        if value is not None and (theirs in _REQUIRED[scaling.kind] or value != default[ours]):
            nested[theirs] = list(value) if isinstance(value, tuple) else value
    if "original_max_position_embeddings" in _KEYS[scaling.kind]:
        nested.setdefault("original_max_position_embeddings", config.context)
    return nested


def _share_of(config: ModelConfig) -> float:
    """The share that readers, who multiply it by head_dim and drop what follows the point, turn into rotary_dim."""
    turning = config.rotary_dim or config.head_dim
    share = turning / config.head_dim
    return share if int(config.head_dim * share) == turning else math.nextafter(share, 1)
