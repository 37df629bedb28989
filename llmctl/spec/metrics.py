"""metrics.jsonl: the records of a training run, and curves of them."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from llmctl.errors import UserError

METRICS = "metrics.jsonl"
Points = list[tuple[float, float]]


def read_metrics(path: str) -> list[dict[str, Any]]:
    """The records of a run.

    Args:
        path: a metrics.jsonl, a directory that holds one, a run still going on whose OUT.partial does, or - for
            stdin. A last line that is not finished is left out.

    Raises:
        UserError: there is none, or a line is not a JSON object.
    """
    if path == "-":
        data = sys.stdin.buffer.read() if sys.stdin else b""
    else:
        file = _file_of(Path(path))
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; wanted a run or its {METRICS}.") from error
    *lines, _unfinished = data.split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UserError(f"Line {number} of {path} is not a JSON object; wanted a {METRICS}.")
        records.append(record)
    if not records:
        raise UserError(f"{path} holds no records.", "Has the run taken a step yet?")
    return records


def curve(records: list[dict[str, Any]], x: str, y: str) -> Points:
    """The points (x, y) of the records that have both, in order; what is not a finite number is left out."""
    found = [(record.get(x), record.get(y)) for record in records]
    return [(a, b) for a, b in found if _number(a) and _number(b)]


def smoothed(points: Points, weight: float) -> Points:
    """The points with y as an exponential moving average that starts without bias.

    Args:
        weight: of what came before, 0 to less than 1; 0 leaves the points as they are.

    Source: Kingma & Ba, arXiv:1412.6980, section 3 (the correction of the bias).
    """
    made, mean, seen = [], 0.0, 0.0
    for x, y in points:
        mean = weight * mean + (1 - weight) * y
        seen = weight * seen + (1 - weight)
        made.append((x, mean / seen))
    return made


def _file_of(path: Path) -> Path:
    """Where a run's metrics lie."""
    going_on = path.with_name(f"{path.name}.partial") if path.name else path
    for place in (path, going_on):
        if place.is_dir():
            return place / METRICS
    return path


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
