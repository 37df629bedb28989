"""Foreign metrics: what a metric of `evaluate` is given besides predictions and references."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

from llmctl.errors import Exit, UserError


@dataclass(frozen=True)
class Foreign:
    """Metric.

    Raises:
        UserError: no NAME=VALUE, or a seed out of range.
    """

    option: Annotated[
        tuple[str, ...], "Of the metric's compute(): average=macro; the value is JSON, or else text; repeatable."
    ] = ()
    field: Annotated[
        tuple[str, ...], "JSON lines: field that holds an input of the metric: sources=src; repeatable."
    ] = ()
    variant: Annotated[str | None, "Configuration of the metric, where it has several: mrpc of glue."] = None
    seed: Annotated[int, "Of numpy's random numbers, where a metric draws some."] = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed is {self.seed}, wanted 0 or more, below 2^32.", code=Exit.USAGE)
        for flag, texts, wanted in (("--option", self.option, "VALUE"), ("--field", self.field, "FIELD")):
            for text in texts:
                name, _, value = text.partition("=")
                if not name or (not value and flag == "--field") or "=" not in text:
                    raise UserError(f"{flag} is {text!r}, wanted NAME={wanted}.", code=Exit.USAGE)

    @property
    def options(self) -> dict[str, Any]:
        """What compute() is given, by name."""
        return {name: _value(text) for name, _, text in (pair.partition("=") for pair in self.option)}

    @property
    def fields(self) -> dict[str, str]:
        """The fields of records that hold inputs, by the input's name."""
        return {name: text for name, _, text in (pair.partition("=") for pair in self.field)}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
