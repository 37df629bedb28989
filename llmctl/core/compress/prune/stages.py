"""Stages: from one checkpoint directory to the next: parts cut out, then single weights pruned."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llmctl.core.checkpoint.carry import carry
from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.compress.judge import texts
from llmctl.core.compress.prune.files import rewrite
from llmctl.core.compress.prune.run import prune_files, prune_model
from llmctl.core.compress.slim.run import slim
from llmctl.core.data.batch import Batch
from llmctl.spec.calibration import Calibration
from llmctl.spec.families import read_config_json
from llmctl.spec.prune import PruneConfig, targets
from llmctl.spec.remade import remade
from llmctl.spec.slim import SlimConfig

Records = list[dict[str, Any]]
Progress = Callable[[int], None]


def stage(place: Path, name: str, make: Callable[[Path], Records]) -> tuple[Path, Records]:
    """A directory below `place`, made by `make` unless an interrupted run has, and the records of what was done.

    Args:
        name: begins with a dot, so that it is gone from what is finished.
    """
    directory, records = place / name, place / f"{name}.json"
    if not directory.is_dir():
        unfinished = place / f"{name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        records.write_text(json.dumps(make(unfinished)), encoding="utf-8")
        os.rename(unfinished, directory)
    return directory, json.loads(records.read_text(encoding="utf-8"))


def slim_checkpoint(
    source: Path, directory: Path, how: SlimConfig, calibration: Calibration, device: torch.device, seed: int
) -> Records:
    """Write a checkpoint with parts cut out into an existing directory; returns a record a layer."""
    checkpoint = Checkpoint.open(source)
    batches = calibration_batches(checkpoint, calibration, device) if how.calibrated else []
    model, records = slim(checkpoint.model(device), how, batches, seed)
    save_checkpoint(directory, model, model.config)
    carry(directory, remade(read_config_json(source), checkpoint.config, model.config, None), [source])
    return records


def prune_checkpoint(
    source: Path, directory: Path, how: PruneConfig, calibration: Calibration, device: torch.device, progress: Progress
) -> Records:
    """Write a checkpoint with single weights pruned into an existing directory; returns a record a matrix.

    Args:
        progress: told how many matrices are done.
    """
    checkpoint = Checkpoint.open(source)
    names = targets(checkpoint.config, how)
    if calibration.calibration is None:
        records = prune_files(source, directory, checkpoint.config, how, names, progress)
    else:
        batches = calibration_batches(checkpoint, calibration, device)
        model = checkpoint.model(device)
        records = prune_model(model, batches, how, names, progress)
        rewrite(
            source,
            directory,
            checkpoint.config,
            [f"{name}.weight" for name in names],
            lambda name, _: model.get_parameter(name).detach().cpu(),
        )
    carry(directory, read_config_json(source), [source])
    return records


def calibration_batches(checkpoint: Checkpoint, calibration: Calibration, device: torch.device) -> list[Batch]:
    """The calibration text as the model reads it."""
    made = texts(
        calibration.calibration,
        checkpoint.config,
        checkpoint.tokenizer(),
        calibration.calibration_tokens,
        "train",
        calibration.calibration_row,
    )
    return [batch.to(device) for batch in made()]


def take_out(stage: Path, place: Path) -> None:
    """Move what a stage has made to where it is wanted."""
    for path in stage.iterdir():
        os.rename(path, place / path.name)
    stage.rmdir()
