"""Renewal: the recorded options of a finished run, on new data, as a command line of the command that made it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.manifest import MANIFEST, read_manifest
from llmctl.spec.student import SIZES

Beginning = Literal["start", "run"]
SHAPE = ("preset", "kind", "layers", "encoder_layers", "width", "heads", "kv_heads", "head_dim", "ff", "context",
         "window", "position", "attention", "head")  # fmt: skip


@dataclass(frozen=True)
class Renewal:
    """How a command is run again on new data.

    Attributes:
        data: options that name its data; those that were given are replaced.
        begin: the option that names what it begins with; None: it cannot go on from its own result.
        dropped: options that say what the beginning is like, which do not go with one that is there.
        several: it takes more than one file.
    """

    data: tuple[str, ...]
    begin: str | None = None
    dropped: tuple[str, ...] = ()
    several: bool = False


RENEWALS: dict[str, Renewal] = {
    "pretrain": Renewal(("data",), "from", SHAPE),
    "finetune": Renewal(("data",), "model", several=True),
    "distill": Renewal(("data",), "student", (*SIZES, "take", "start")),
    "prune": Renewal(("calibration", "recover_data")),
    "quantize": Renewal(("data", "calibration")),
}


def recorded(run: Path) -> tuple[str, dict[str, Any]]:
    """The command that made a directory, and its options by name.

    Raises:
        UserError: nothing says so, or it is a command that learns from no data.
    """
    manifest = read_manifest(run)
    if manifest is None:
        problem = f"{run} has no {MANIFEST}, so nothing says how it was made."
        raise UserError(problem, "Name what a command of llmctl made.", Exit.MISMATCH)
    command, options = manifest.get("command"), manifest.get("options")
    if command not in RENEWALS or not isinstance(options, dict):
        problem = f"{run} was made by llmctl {command}, which does not learn from data."
        raise UserError(problem, f"Name what one of {', '.join(RENEWALS)} made.", Exit.MISMATCH)
    return command, options


def renewed(
    run: Path, command: str, options: dict[str, Any], data: Sequence[str], beginning: Beginning
) -> dict[str, Any]:
    """The options of a run with other data.

    Raises:
        UserError: a run without data, more files than the command takes, or a beginning that it cannot have.
    """
    how, made = RENEWALS[command], dict(options)
    if len(data) > 1 and not how.several:
        raise UserError(f"llmctl {command} takes one text, not {len(data)}.", "Join them.", Exit.USAGE)
    given = [name for name in how.data if made.get(name)]
    if not given:
        problem = f"{run} was made without data: there is nothing to renew."
        raise UserError(problem, f"Run llmctl {command} again.", Exit.MISMATCH)
    for name in given:
        old = made[name]
        made[name] = ([*old[:-1], *data] if command == "distill" else list(data)) if isinstance(old, list) else data[0]
    if beginning == "run":
        if how.begin is None:
            problem = f"llmctl {command} cannot go on from its own result."
            raise UserError(problem, "Leave --begin run out.", Exit.USAGE)
        if not (run / "config.json").is_file() or (run / "adapter_config.json").is_file():
            problem = f"{run} is an adapter, from which finetune cannot go on."
            raise UserError(problem, f"llmctl lora-merge {run} -o merged, and finetune that.", Exit.MISMATCH)
        made |= dict.fromkeys(how.dropped)
        if command == "distill":
            made["data"] = [str(run), made["data"][-1]]
        else:
            made[how.begin] = str(run)
    return made
