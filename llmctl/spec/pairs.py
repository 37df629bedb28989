"""Pairs: where the predictions and the references of an evaluation are found in files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError

PREDICTION = "completion"  # the field that `generate` writes
REFERENCES = ("reference", "references")  # the first of these that a record has
PairFormat = Literal["auto", "lines", "jsonl"]


@dataclass(frozen=True)
class Pairing:
    """Pairs.

    Raises:
        UserError: an empty name of a field.
    """

    pred_field: Annotated[
        str | None,
        "JSON lines: field that holds the prediction; default: completion. A dotted name looks inside: "
        "answer.text, completions.0.",
    ] = None
    ref_field: Annotated[
        tuple[str, ...],
        "JSON lines: field that holds the reference, or a list of them; repeatable. Default: reference, or else "
        "references.",
    ] = ()
    format: Annotated[
        PairFormat, "The files hold a text a line (lines), or a JSON record a line (jsonl); auto: by name or content."
    ] = "auto"

    def __post_init__(self) -> None:
        if self.pred_field == "" or "" in self.ref_field:
            raise UserError("--pred-field and --ref-field name a field; one is empty.", code=Exit.USAGE)


def check_inputs(predictions: str, references: tuple[str, ...]) -> None:
    """Refuses stdin named twice and files that are not there, before anything is read.

    Raises:
        UserError: there is such.
    """
    if [predictions, *references].count("-") > 1:
        raise UserError("stdin can be read once, but - stands for two files.", code=Exit.USAGE)
    if absent := [path for path in (predictions, *references) if path != "-" and not (path and Path(path).exists())]:
        raise UserError(f"{', '.join(path or repr(path) for path in absent)}: no such file.", "Check the path.")
