"""Foreign metrics: modules of `evaluate`, from a file, ours by name, or the hub's."""

import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import evaluate
import numpy as np

from llmctl import __version__
from llmctl.core.metrics.inputs import read_rows
from llmctl.core.metrics.named import HUB, module_of
from llmctl.errors import UserError
from llmctl.spec.files import sha256_of
from llmctl.spec.foreign import Foreign
from llmctl.spec.pairs import Pairing

TOGETHER = 1000  # examples that a metric is given at a time


class Found(NamedTuple):
    """What a metric said.

    Attributes:
        result: as compute() gave it, as JSON has it.
        count: examples.
        signature: the metric's own, or what it is and was given.
        seconds: for all of it.
    """

    name: str
    result: dict[str, Any]
    count: int
    signature: str
    seconds: float

    @property
    def each(self) -> dict[str, list[float]]:
        """The figures that the result has of each example."""
        return {
            name: value
            for name, value in self.result.items()
            if isinstance(value, list)
            and len(value) == self.count
            and all(isinstance(one, (int, float)) for one in value)
        }


def run(
    name: str,
    predictions: str,
    references: Sequence[str],
    pairing: Pairing,
    foreign: Foreign,
    tell: Callable[[int], None] = lambda count: None,
) -> Found:
    """What a metric says of some files.

    Examples are written to the disk as they come, as `evaluate` does; how much compute() holds is the metric's matter.

    Args:
        name: of the metric, as `open_metric` takes it.
        tell: hears how many examples were read.

    Raises:
        UserError: no such metric; what is read is no input for it; or it fails.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        metric, code = open_metric(name, foreign.variant, Path(cache))
        metric.seed = foreign.seed
        rows = read_rows(predictions, references, pairing, foreign.fields, feature_sets(metric))
        count = 0
        while batch := list(islice(rows, TOGETHER)):
            count += len(batch)
            columns = {one: [row.values[one] for row in batch] for one in batch[0].values}
            _guarded(f"{name}, from {batch[0].where} on,", lambda columns=columns: metric.add_batch(**columns))
            tell(count)
        result = _guarded(name, lambda: metric.compute(**foreign.options))
    result = _plain(result if isinstance(result, dict) else {metric.name: result})
    told = "|".join(f"{option}:{value}" for option, value in foreign.options.items())
    variant = "" if foreign.variant is None else f"variant:{foreign.variant}|"
    signature = f"metric:{metric.name}|module:{code}|{variant}{told}{'|' if told else ''}"
    signature += f"seed:{foreign.seed}|evaluate:{evaluate.__version__}|version:llmctl-{__version__}"
    return Found(metric.name, result, count, signature, time.perf_counter() - began)


def _guarded(name: str, work: Callable[[], Any]) -> Any:
    """What the metric's own code gives; whatever it raises is told as its failure."""
    try:
        return work()
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{name} failed: {type(error).__name__}: {error}", "See what it takes, and --option."
        ) from error


def open_metric(name: str, variant: str | None, cache: Path) -> tuple[evaluate.EvaluationModule, str]:
    """A metric, and what identifies its code.

    Args:
        name: as `module_of` takes it.
        variant: its configuration ("mrpc" of glue); None: the default one.
        cache: directory for what it is given.

    Raises:
        UserError: there is none of that name, or it cannot be loaded.
    """
    path = module_of(name)
    evaluate.config.HF_EVALUATE_OFFLINE = path is not None
    asked = name.removeprefix(HUB) if path is None else str(path.resolve())
    try:
        metric = evaluate.load(asked, config_name=variant, cache_dir=str(cache))
    except ImportError as error:
        raise UserError(f"{name} needs a package: {error}", "Install it with pip.") from error
    except Exception as error:
        raise UserError(
            f"{name} cannot be loaded: {type(error).__name__}: {error}",
            "Is it a metric's module?" if path else "Is the hub within reach?",
        ) from error
    return metric, "hub" if path is None else sha256_of(path)[:12]


def feature_sets(metric: evaluate.EvaluationModule) -> list[dict[str, Any]]:
    """The types of a metric's inputs, in each of the forms that it takes."""
    found = metric.features
    return [dict(one) for one in (found if isinstance(found, list) else [found])]


def _plain(value: Any) -> Any:
    """A metric's result as JSON has it."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return value if isinstance(value, (int, float, str, bool)) or value is None else str(value)
