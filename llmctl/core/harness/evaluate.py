"""Evaluation by lm-evaluation-harness: its tasks found and put to a model of llmctl, and its results."""

import contextlib
import difflib
import io
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate as evaluated
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable

from llmctl.core.harness.model import HarnessModel
from llmctl.errors import UserError
from llmctl.spec.harness import Harness

PAIRS = {"word_perplexity": "words", "byte_perplexity": "bytes", "bits_per_byte": "bytes"}  # what such a score counts
SEEDS = (0, 1234, 1234, 1234)  # of random, numpy, torch and examples, as lm-eval has them
BROKEN = (yaml.YAMLError, KeyError, ValueError, TypeError, AttributeError, ImportError, OSError, SyntaxError)


def found_tasks(asked: Harness) -> dict[str, Any]:
    """The tasks, loaded with their data: {"tasks": {name: Task}, "groups": {...}}.

    lm-eval's own are looked through only for a name that is not in --include-path.

    Raises:
        UserError: no such task, or one that cannot be made.
    """
    for path in (*asked.include_path, *(name for name in asked.names if name.endswith((".yaml", ".yml")))):
        if not Path(path).exists():
            raise UserError(f"{path} does not exist.", "Check the path.")
    try:
        manager = TaskManager(include_path=list(asked.include_path), include_defaults=False)
        if any(not _matches(manager, name) for name in asked.names):
            manager = TaskManager(include_path=list(asked.include_path))
    except BROKEN as error:
        raise _unmade(", ".join(asked.include_path), error) from error
    missing = [name for name in asked.names if not _matches(manager, name)]
    if missing:
        alike = difflib.get_close_matches(missing[0], manager.all_tasks, 1)
        hint = "lm-eval ls tasks lists its own; others need --include-path DIR, or the name of their YAML file."
        raise UserError(
            f"There is no task {', '.join(missing)}.", f"Did you mean {alike[0]}? {hint}" if alike else hint
        )
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in dict.fromkeys(match for asking in asked.names for match in _matches(manager, asking)):
        try:
            for part, values in manager.load([name]).items():
                loaded[part].update(values)
        except BROKEN as error:
            raise _unmade(name, error) from error
    return loaded


def evaluate(model: HarnessModel, asked: Harness, loaded: dict[str, Any]) -> dict[str, Any]:
    """What lm-eval finds: its results, with `samples` by task.

    Seeds, examples and generation options are set as its own command line sets them.

    Args:
        loaded: as `found_tasks` gives them.

    Raises:
        UserError: a task that cannot be put to this model.
    """
    seeds = SEEDS if asked.seed is None else (asked.seed,) * 4
    random.seed(seeds[0])
    np.random.seed(seeds[1])
    torch.manual_seed(seeds[2])
    for task in loaded["tasks"].values():
        _settle(task, asked, seeds[3])
    with contextlib.redirect_stdout(io.StringIO()):  # it prints while it draws
        results = evaluated(
            model,
            loaded,
            limit=asked.limit,
            bootstrap_iters=asked.bootstrap,
            system_instruction=asked.system,
            apply_chat_template=asked.chat,
            fewshot_as_multiturn=asked.chat,
        )
    results["config"] = {
        "model": "llmctl",
        "model_args": {"pretrained": str(model.subject.path)},
        **model.get_model_info(),
        "limit": asked.limit,
        "bootstrap_iters": asked.bootstrap,
        "gen_kwargs": asked.generation or None,
        **dict(zip(("random_seed", "numpy_seed", "torch_seed", "fewshot_seed"), seeds, strict=True)),
    }
    return json.loads(json.dumps(dict(results), default=handle_non_serializable))


def figures(results: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Each figure with its standard error, or None, by task and name: "arc:acc"; of a filter "gsm8k,strict:acc"."""
    made = {}
    for task, values in results["results"].items():
        for key, value in values.items():
            name, comma, kind = key.partition(",")
            if comma and not name.endswith("_stderr") and isinstance(value, (int, float)):
                error = values.get(f"{name}_stderr,{kind}")
                whole = task if kind == "none" else f"{task},{kind}"
                made[f"{whole}:{name}"] = (float(value), error if isinstance(error, (int, float)) else None)
    return made


def samples(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each example as lm-eval tells it, with its task and its `scores`, numbers all, as our own commands write them."""
    for task, records in results["samples"].items():
        for record in records:
            yield {"task": task, **record, "scores": _scores(record)}


def _scores(record: Mapping[str, Any]) -> dict[str, float]:
    """The scores that are numbers; of those that are sums for a ratio, both parts: nll and its words or bytes."""
    made: dict[str, float] = {}
    for name in record["metrics"]:
        value = record[name]
        if isinstance(value, (bool, int, float)):
            made[name] = float(value)
        elif name in PAIRS and isinstance(value, list):
            made["nll"], made[PAIRS[name]] = -float(value[0]), float(value[1])
    return made


def _settle(task: Task, asked: Harness, seed: int) -> None:
    """Gives a task what the user says: how many examples, unless it is made for none, and how texts are written.

    Raises:
        UserError: it would run what the model writes, or show it pictures.
    """
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        problem = "runs code that the model wrote" if getattr(task, "UNSAFE_CODE", False) else "shows pictures"
        raise UserError(f"{task.task_name} {problem}; llmctl does not do that here.", "Leave it out.")
    own = task.get_config("num_fewshot")
    if asked.shots is not None and own != 0:
        task.set_config(key="num_fewshot", value=asked.shots)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    if asked.generation and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=asked.generation, update=True)
    task.set_fewshot_seed(seed=seed)


def _matches(manager: TaskManager, name: str) -> list[str]:
    return [str(Path(name).absolute())] if name.endswith((".yaml", ".yml")) else manager.match_tasks([name])


def _unmade(name: str, error: Exception) -> UserError:
    reached = isinstance(error, ConnectionError)
    hint = "Its data lie on the Hugging Face hub; is there a network?" if reached else "Mend it, or leave it out."
    return UserError(f"lm-eval cannot make {name}: {type(error).__name__}: {str(error).rstrip('.')}.", hint)
