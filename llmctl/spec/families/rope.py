"""Rotary positions in a config.json: rope_theta and rope_scaling in old files, rope_parameters in new ones."""

from dataclasses import fields as dataclass_fields

from llmctl.spec.families.fields import Fields
from llmctl.spec.model import ModelConfig, RopeScaling

# Keys of each rope type, theirs: ours, in the order they are written. All but factor may be absent, unless REQUIRED.
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
}
_REQUIRED = {"llama3": ("low_freq_factor", "high_freq_factor")}
_PLAIN = ("default", None)


def read_rope(fields: Fields, context: int) -> tuple[float, RopeScaling | None]:
    """Base and scaling. A rope_scaling that is there counts before rope_parameters, as in transformers."""
    fields.refuse("partial_rotary_factor", 1.0, 1)
    given = {}
    for key in ("rope_parameters", "rope_scaling"):
        value = fields.json.get(key) or {}
        if not isinstance(value, dict):
            fields.wrong.append(f"{key} is {value!r}, wanted an object or null")
        else:
            given = value or given
    inner = Fields(given, fields.kind)
    inner.refuse("partial_rotary_factor", 1.0, 1)
    outer = fields.number("rope_theta", default=10000.0)
    theta = inner.number("rope_theta", default=outer)
    kind = given.get("rope_type", given.get("type"))
    scaling = None
    if kind in _PLAIN:
        _refuse_unknown(inner, given, ())
    elif not isinstance(kind, str) or kind not in _KEYS:
        inner.refused.append(f"rope_type {kind!r} (known: default, {', '.join(_KEYS)})")
    else:
        _refuse_unknown(inner, given, tuple(_KEYS[kind]))
        scaling = _scaling(inner, fields, kind, context)
    if theta <= 0:
        fields.wrong.append(f"rope_theta is {theta:g}, wanted more than 0")
    fields.missing += [f"rope {key}" for key in inner.missing]
    fields.wrong += [f"rope {problem}" for problem in inner.wrong]
    fields.refused += inner.refused
    return theta, scaling


def _scaling(inner: Fields, outer: Fields, kind: str, context: int) -> RopeScaling:
    values: dict[str, object] = {}
    for theirs, ours in _KEYS[kind].items():
        if ours == "original_context":
            # A top-level key goes before the nested one, and the context stands in for both: transformers' order
            nested = inner.count(theirs, default=context)
            values[ours] = outer.count(theirs, default=nested)
        elif ours == "truncate":
            values[ours] = inner.flag(theirs, True)
        elif theirs == "factor" or theirs in _REQUIRED.get(kind, ()) or inner.has(theirs):
            values[ours] = inner.number(theirs)
    if kind == "yarn":  # 0 and null mean the default there
        values = {ours: value for ours, value in values.items() if value or ours == "truncate"}
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


def rope_json(config: ModelConfig) -> dict:
    """rope_theta, rope_parameters, and rope_scaling (null when plain): old readers and new ones see the same."""
    scaling = config.rope_scaling
    if scaling is None:
        plain = {"rope_type": "default", "rope_theta": config.rope_theta}
        return {"rope_theta": config.rope_theta, "rope_parameters": plain, "rope_scaling": None}
    default = {field.name: field.default for field in dataclass_fields(RopeScaling)}
    nested: dict[str, object] = {}
    for theirs, ours in _KEYS[scaling.kind].items():
        value = getattr(scaling, ours)
        optional = ours != "factor" and scaling.kind != "llama3"
        if value is not None and not (optional and value == default[ours]):
            nested[theirs] = value
    if "original_max_position_embeddings" in _KEYS[scaling.kind]:
        nested.setdefault("original_max_position_embeddings", config.context)
    # The first readers of linear and dynamic scaling accept type and factor and nothing else
    return {
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": scaling.kind, "rope_theta": config.rope_theta, **nested},
        "rope_scaling": {"type": scaling.kind, **({"rope_type": scaling.kind} if len(nested) > 1 else {}), **nested},
    }
