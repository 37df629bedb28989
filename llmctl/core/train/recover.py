"""What recovers after pruning: the model that is left, on text or under the model that it was; what went stays away."""

import shutil
from pathlib import Path

import torch

from llmctl.core.checkpoint.carry import carry
from llmctl.core.checkpoint.directory import Checkpoint, save_checkpoint
from llmctl.core.checkpoint.write import DTYPES
from llmctl.core.compress.prune.masks import hold, nonzero
from llmctl.core.data.old import read_old
from llmctl.core.device import Place
from llmctl.core.train.distill import response
from llmctl.core.train.objectives import tokens_loss
from llmctl.core.train.run import BEST, Run
from llmctl.core.train.texts import prepare
from llmctl.spec.families import read_config_json
from llmctl.spec.plan import TrainPlan
from llmctl.spec.recovery import Recovery
from llmctl.spec.safetensors import main_dtype, read_tensors


def recover(
    directory: Path, start: Path, source: Path, recovery: Recovery, text: str, place: Place,
    seed: int,
) -> Run:  # fmt: skip
    """A run ready to go, or to go on from what an interrupted one left in `directory`; it writes the checkpoint there.

    Args:
        directory: where it is made; it exists.
        start: the pruned checkpoint; zeros of its layers' matrices stay zeros, bit for bit.
        source: the checkpoint before pruning.
        recovery: how.
        text: to train on: a text, or a directory of tokens, whose held-out part is measured before and after.
        place: device and precision; weights are float32 while they learn, and written in the dtype of `start`.
        seed: of the order of the text.
    """
    checkpoint = Checkpoint.open(start)
    config, tokenizer = checkpoint.config, checkpoint.tokenizer()
    model = checkpoint.model(place.device, torch.float32, writable=True)
    masks = {path: mask for path, mask in nonzero(model).items() if bool(mask.any())}  # all zeros: not yet learned
    learning = recovery.learning(config.context)
    memory = None if place.device.type == "cpu" else place.total_memory()
    dtype = "fp32" if place.dtype == torch.float32 else "bf16"
    plan = TrainPlan.of(config, learning, read_old(text, tokenizer, "train").tokens, dtype, memory)
    objective = tokens_loss
    if recovery.recover_by == "teacher":
        held = None if place.dtype == torch.float32 else place.dtype
        objective = response(Checkpoint.open(source).model(place.device, held).requires_grad_(False))
    stored = DTYPES[main_dtype(read_tensors(start).values())]

    def write(to: Path) -> None:
        save_checkpoint(to, model, config, dtype=stored)
        carry(to, read_config_json(start), [start])

    run = prepare(
        directory, model, None, text, tokenizer, plan, learning, recovery.watch, place, write, seed, objective
    )
    run.after = hold(model, masks) if masks else None
    return run


def settle(directory: Path) -> None:
    """Remove the model with the lowest held-out loss from beside the last one."""
    shutil.rmtree(directory / BEST, ignore_errors=True)
