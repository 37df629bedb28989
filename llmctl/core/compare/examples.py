"""Examples: what one system scored on each example of each task, out of the files that evaluations leave."""

import json
import math
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from llmctl.core.benchmark.figures import Sums
from llmctl.core.data.streams import opened
from llmctl.errors import Exit, UserError

PLAIN = ("", "none")  # a filter of lm-eval's that filters nothing
# lm-eval's scores of whole texts are pairs: log probability in nats, and how many of these it is of.
ROLLING = {"word_perplexity": "words", "byte_perplexity": "bytes", "bits_per_byte": "bytes"}
STAMPED = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d{2}-\d{2}T[\d:.-]+)\.jsonl?$")
RESULTS = re.compile(r"results_(?P<date>\d{4}-\d{2}-\d{2}T[\d:.-]+)\.json$")
WANTED = "Wanted: the --samples of an eval command, results or samples of lm-eval, or two checkpoints with --task FILE."


@dataclass
class Examples:
    """The examples of one task.

    Attributes:
        ids: the number of each, or its name.
        where: the file that they are from.
        lines: of each its line there.
        targets: of each a hash of what was wanted, 0 where that is not told; it holds within this process.
        records: of each a hash of the record that was asked, 0 where that is not told.
        ours: whether it is one of eval-task's, to which lm-eval's records may not compare: it prepares them.
        scores: of each score one number an example, nan where one has none.
        together: figures that are not means of scores, where what they are made of is known.
    """

    where: str
    ids: list[int | str] = field(default_factory=list)
    lines: array = field(default_factory=lambda: array("q"))
    targets: array = field(default_factory=lambda: array("q"))
    records: array = field(default_factory=lambda: array("q"))
    ours: bool = False
    scores: dict[str, array] = field(default_factory=dict)
    together: dict[str, Sums] = field(default_factory=dict)

    def add(self, number: int | str, line: int, target: int, scores: dict[str, float], record: int = 0) -> None:
        """One more example."""
        for name in [name for name in scores if name not in self.scores]:
            self.scores[name] = array("d", [math.nan]) * len(self.ids)
        self.ids.append(number)
        self.lines.append(line)
        self.targets.append(target)
        self.records.append(record)
        for name, values in self.scores.items():
            values.append(scores.get(name, math.nan))

    def line(self, row: int) -> str:
        """Where an example is from: "samples.jsonl:12"."""
        return f"{self.where}:{self.lines[row]}" if self.lines[row] else self.where


@dataclass
class Side:
    """All that is known of one system.

    Attributes:
        name: as the user named it.
        tasks: examples by task; of lm-eval's filters each is a task, "gsm8k,strict-match".
        figures: of results without examples, by task and figure: value, and standard error or nan.
        better: of each task's figures whether more is better, where that is told.
        judged: of each task in results how many examples were judged, and its version, as far as they are told.
    """

    name: str
    tasks: dict[str, Examples] = field(default_factory=dict)
    figures: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    better: dict[str, dict[str, bool]] = field(default_factory=dict)
    judged: dict[str, tuple[str, str]] = field(default_factory=dict)


def read_side(path: Path | str) -> Side:
    """What a file tells of a system, or a directory that lm-eval wrote.

    Args:
        path: JSON lines, a record an example: `scores: {name: number}` and `doc_id` as every command of ours writes
            with --samples, or lm-eval's samples. Or a results file (JSON), whose samples are looked for in it and
            beside it; or a directory of both, of which the newest results count; or - for JSON lines on stdin.

    Raises:
        UserError: none of them, or a record that is malformed, by its line.
    """
    name = str(path)
    if name != "-" and not Path(path).exists():
        raise UserError(f"{path} does not exist.", WANTED)
    if name != "-" and Path(path).is_dir():
        return _of_directory(Path(path))
    side = Side(name)
    results = None if name == "-" else _results(Path(path))
    if results is None:
        _read(side, name, None)
    else:
        _summarise(side, results)
        for task, records in (results.get("samples") or {}).items():
            _take(side, name, enumerate(records), task, numbered=False)
        for file, task in _beside(Path(path)):
            _read(side, str(file), task)
    if not side.tasks and not side.figures:
        raise UserError(f"{path} holds no example.", WANTED)
    return side


def _of_directory(path: Path) -> Side:
    found = sorted((file for file in path.rglob("*.json") if RESULTS.match(file.name)), key=lambda file: file.name)
    if not found:
        raise UserError(f"{path} is a directory without results_DATE.json.", WANTED)
    side = read_side(found[-1])
    side.name = str(path)
    return side


def _results(path: Path) -> dict[str, Any] | None:
    """A results file; None if it is another one, whose every line is a record."""
    if path.suffix != ".json":
        return None
    try:
        found = json.loads(path.read_bytes())  # which reads NaN, as orjson does not
    except ValueError:
        return None
    if not isinstance(found, dict) or "doc_id" in found or "scores" in found:
        return None
    if not isinstance(found.get("results"), dict):
        raise UserError(f"{path} has no results and no examples.", WANTED)
    return found


def _beside(results: Path) -> list[tuple[Path, str]]:
    """The samples of the same run, by its date, each with its task."""
    date = RESULTS.match(results.name)
    found = ((file, STAMPED.match(file.name)) for file in sorted(results.parent.glob("samples_*.jsonl")))
    return [(file, name["task"]) for file, name in found if date and name and name["date"] == date["date"]]


def _summarise(side: Side, results: dict[str, Any]) -> None:
    """Takes the figures of a results file: {"acc,none": 0.5, "acc_stderr,none": 0.1} each task."""
    for task, values in results["results"].items():
        for key, value in values.items() if isinstance(values, dict) else ():
            figure, comma, kind = key.partition(",")
            if not comma or figure.endswith("_stderr") or not _is_number(value):
                continue
            error = values.get(f"{figure}_stderr,{kind}")
            whole = task if kind in PLAIN else f"{task},{kind}"
            error = float(error) if _is_number(error) else math.nan
            side.figures.setdefault(whole, {})[figure] = (float(value), error)
        count = ((results.get("n-samples") or {}).get(task) or {}).get("effective")
        version = (results.get("versions") or {}).get(task)
        side.judged[task] = ("" if count is None else str(count), "" if version is None else str(version))
    for task, known in (results.get("higher_is_better") or {}).items():
        side.better[task] = {name: up for name, up in known.items() if isinstance(up, bool)}


def _read(side: Side, path: str, task: str | None) -> None:
    if task is None:
        stamped = STAMPED.match(Path(path).name)
        task = stamped["task"] if stamped else ""
    with opened(path) as file:
        _take(side, "stdin" if path == "-" else path, _records(file, path), task)


def _records(lines: Iterable[bytes], path: str) -> Iterator[tuple[int, Any]]:
    """The records of a file with their lines, from 1."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise UserError(f"{path}:{number} is not JSON: {error}.", WANTED) from error


def _take(side: Side, where: str, records: Iterable[tuple[int, Any]], task: str, numbered: bool = True) -> None:
    """Takes examples; of those without a doc_id each is the next one of its task."""
    known: dict[str, set[int | str]] = {name: set(one.ids) for name, one in side.tasks.items()}
    for line, record in records:
        place = f"{where}:{line}" if numbered else f"{where}, sample {line} of {task}"
        if not isinstance(record, dict):
            raise UserError(f"{place} is not a JSON object.", WANTED)
        scores = _scores(record, place)
        kind = record.get("filter", "")
        name = str(record.get("task") or task)
        name = name if kind in PLAIN else f"{name},{kind}"
        examples = side.tasks.setdefault(name, Examples(where))
        number = record.get("doc_id", len(examples.ids))
        if not isinstance(number, (int, str)) or isinstance(number, bool):
            raise UserError(f"{place} has doc_id {number!r}; wanted a number or a name.")
        if number in known.setdefault(name, set()):
            raise UserError(f"{place} is example {number!r} once more.", "Each may be there once.", Exit.MISMATCH)
        known[name].add(number)
        examples.ours = "prediction" in record
        digest = hash(record["doc_hash"]) if isinstance(record.get("doc_hash"), str) else 0
        examples.add(number, line if numbered else 0, _target(record), scores, digest)


def _scores(record: dict[str, Any], place: str) -> dict[str, float]:
    """The scores of a record, of ours or of lm-eval's.

    Raises:
        UserError: it has none, or one that is not a finite number.
    """
    if isinstance(record.get("scores"), dict):
        found = record["scores"]
    elif isinstance(record.get("metrics"), list):
        found = {name: record.get(name) for name in record["metrics"] if isinstance(name, str)}
    else:
        raise UserError(f"{place} has no scores.", WANTED)
    made: dict[str, float] = {}
    for name, value in found.items():
        if name in ROLLING and isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
            made["nll"], made[ROLLING[name]] = -float(value[0]), float(value[1])
        elif _is_number(value):
            made[name] = float(value)
        elif not isinstance(value, (list, dict, str)) or "scores" in record:  # lm-eval's corpus figures have no score
            raise UserError(f"{place}: its score {name} is {value!r}; wanted a finite number.")
    return made


def _target(record: dict[str, Any]) -> int:
    """A hash of what was wanted of an example, the same for the same record; 0 where it is not told."""
    for name in ("target", "reference", "references"):
        if record.get(name) is not None:
            return hash(str(record[name]))  # lm-eval writes all of them as text
    return 0


def _is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float)) and math.isfinite(value)
