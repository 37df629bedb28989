"""described: what a metric of ours says of itself to `evaluate`: its inputs, and its options with their help."""

import dataclasses
from typing import Any

import datasets
import evaluate

TEXT = datasets.Value("string")


def text_metric(summary: str, options: type | None, returned: str) -> evaluate.MetricInfo:
    """The description of a metric of texts: a prediction, and one reference or a list of them.

    Args:
        summary: what the metric is.
        options: the dataclass whose fields compute() takes as keywords; None: it takes none.
        returned: what compute() returns, key by key.
    """
    features = [
        datasets.Features({"predictions": TEXT, "references": datasets.Sequence(TEXT)}),
        datasets.Features({"predictions": TEXT, "references": TEXT}),
    ]
    return metric_info(summary, features, options, returned)


def metric_info(
    summary: str, features: list[datasets.Features], options: type | None, returned: str
) -> evaluate.MetricInfo:
    """The description of a metric that takes these features; the rest as for `text_metric`."""
    inputs = [f"    {name}: {INPUTS[name]}" for name in features[0]]
    told = [f"    {field.name}: {_help(field)} Default: {_default(field)!r}." for field in _fields(options)]
    description = "\n".join(["\nArgs:", *inputs, *told, f"Returns:\n    {returned}\n"])
    return evaluate.MetricInfo(description=summary, citation="", inputs_description=description, features=features)


INPUTS = {"predictions": "texts.", "references": "a text for each, or a list of them."}


def _fields(options: Any) -> tuple[Any, ...]:
    return () if options is None else dataclasses.fields(options)


def _help(field: Any) -> str:
    return next((note for note in field.type.__metadata__ if isinstance(note, str)), "")


def _default(field: Any) -> Any:
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()
