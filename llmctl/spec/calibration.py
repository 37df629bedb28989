"""Calibration and Rounding: the text that shows what matrices are given, and how weights are rounded after it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError

RoundedBy = Literal["nearest", "gptq"]


@dataclass(frozen=True)
class Calibration:
    """Calibration.

    Raises:
        UserError: numbers out of range.
    """

    calibration: Annotated[
        str | None,
        "Text, JSON lines, CSV, parquet or a directory of tokens (its training part), run through the model to see "
        "what its matrices are given. Text like what it is for serves best.",
    ] = None
    calibration_tokens: Annotated[int, "Tokens of it, at most. More than the inputs of the widest matrix."] = 32_768
    calibration_row: Annotated[int, "Tokens of a row of it, or the model's context where that is less."] = 512

    def __post_init__(self) -> None:
        if self.calibration_tokens < 2 or self.calibration_row < 2:
            raise UserError("--calibration-tokens and --calibration-row are at least 2.", code=Exit.USAGE)


@dataclass(frozen=True)
class Rounding:
    """Rounding after calibration.

    Raises:
        UserError: numbers out of range.
    """

    damp: Annotated[
        float, "gptq: what is added to the second moments of inputs, as a share of their mean; more holds back."
    ] = 0.01
    act_order: Annotated[bool, "gptq: columns with the largest inputs first."] = True
    migration: Annotated[
        float, "smoothquant: how much of the large values goes over from inputs to weights, 0 to 1."
    ] = 0.5
    round: Annotated[RoundedBy, "How awq and smoothquant round what they have scaled; gptq lowers errors further."] = (
        "nearest"
    )

    def __post_init__(self) -> None:
        if not 0 < self.damp < 100:
            raise UserError(f"--damp is {self.damp:g}, wanted a number more than 0, such as 0.01.", code=Exit.USAGE)
        if not 0 <= self.migration <= 1:
            raise UserError(f"--migration is {self.migration:g}, wanted 0 to 1.", code=Exit.USAGE)

    def used(self, method: str) -> tuple[str, ...]:
        """Its fields that a method of quantization looks at."""
        solved = ("damp", "act_order") if "gptq" in (method, self.round) else ()
        return {
            "gptq": solved,
            "awq": ("round", *solved),
            "smoothquant": ("round", "migration", *solved),
        }.get(method, ())
