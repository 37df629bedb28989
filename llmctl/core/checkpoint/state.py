"""The state of a training run on disk: everything that the next step depends on, so that resuming is exact."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from llmctl.spec.files import sync

NAME = re.compile(r"step-(\d{9})")


def save_state(
    directory: Path,
    step: int,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    facts: dict[str, Any],
    beside: dict[str, Tensor] | None = None,
) -> None:
    """Write step-N below `directory`, whole or not at all, and remove the steps before it.

    Args:
        directory: made when absent.
        step: steps taken.
        model: its trained parameters are saved as they are; the others come from where the run began.
        optimizers: whose moments are saved under the names of the parameters.
        facts: whatever else the run goes on from; JSON.
        beside: further tensors that it goes on from.

    Raises:
        OSError: the disk is full, or the directory cannot be written.
    """
    directory.mkdir(exist_ok=True)
    unfinished = directory / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        _write(unfinished, step, model, optimizers, facts, beside or {})
    except BaseException:  # a full disk gets its space back
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    final = directory / f"step-{step:09d}"
    shutil.rmtree(final, ignore_errors=True)
    os.rename(unfinished, final)
    sync(directory)
    for old in _steps(directory)[:-1]:
        shutil.rmtree(old)


def _write(
    directory: Path,
    step: int,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    facts: dict[str, Any],
    beside: dict[str, Tensor],
) -> None:
    names = {parameter: name for name, parameter in _trained(model).items()}
    tensors = {f"model/{name}": parameter.detach() for name, parameter in _trained(model).items()}
    tensors |= {f"beside/{name}": tensor for name, tensor in beside.items()}
    numbers: dict[str, float] = {}
    for optimizer in optimizers:
        for parameter, moments in optimizer.state.items():
            for key, value in moments.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{names[parameter]}/{key}"] = value
                else:
                    numbers[f"{names[parameter]}/{key}"] = value
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "tensors.safetensors")
    (directory / "state.json").write_text(json.dumps({"step": step, "numbers": numbers, "facts": facts}))
    for path in (directory / "tensors.safetensors", directory / "state.json", directory):
        sync(path)


def load_state(
    directory: Path,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    beside: dict[str, Tensor] | None = None,
) -> tuple[int, dict[str, Any]] | None:
    """Take up the last state below `directory`: parameters, moments and what is `beside` them in place.

    Returns:
        The steps taken and the facts, or None where no state was saved.

    Raises:
        KeyError: a trained parameter of the model, or a tensor beside it, is not in the state.
    """
    steps = _steps(directory)
    if not steps:
        return None
    about = json.loads((steps[-1] / "state.json").read_text())
    parameters = _trained(model)
    held = {id(p): o for o in optimizers for group in o.param_groups for p in group["params"]}
    with safe_open(steps[-1] / "tensors.safetensors", "pt") as file, torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(file.get_tensor(f"model/{name}"))
        for name, tensor in (beside or {}).items():
            tensor.copy_(file.get_tensor(f"beside/{name}"))
        for key in file.keys():  # noqa: SIM118 - it is not a dict
            kind, _, rest = key.partition("/")
            if kind == "optimizer":
                name, _, moment = rest.rpartition("/")
                parameter = parameters[name]
                held[id(parameter)].state[parameter][moment] = file.get_tensor(key).to(parameter.device)
    for key, value in about["numbers"].items():
        name, _, moment = key.rpartition("/")
        held[id(parameters[name])].state[parameters[name]][moment] = value
    return about["step"], about["facts"]


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name; one that several modules share under its first."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _steps(directory: Path) -> list[Path]:
    """The finished states, oldest first."""
    return sorted(path for path in directory.glob("step-*") if NAME.fullmatch(path.name))
