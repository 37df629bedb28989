"""export: a checkpoint as a file that llama.cpp runs."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Shown, expand, invocation, model_path
from llmctl.spec.families import read_config
from llmctl.spec.files import write_file
from llmctl.spec.gguf import ExportConfig, GgufPlan, made_of, room
from llmctl.spec.manifest import Input, parent_of, versions
from llmctl.spec.memory import gib
from llmctl.spec.peft import is_adapter


@expand
def export(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: model.gguf.", dir_okay=False)],
    how: ExportConfig,
    shown: Shown,
    force: Annotated[bool, "Replace the file that is there."] = False,
    dry_run: Annotated[bool, "Check everything, say what would be done and what it costs; write nothing."] = False,
) -> None:
    """Write a checkpoint as a GGUF file, which llama.cpp and all that is made of it run; tokenizer included.

    Matrices are rounded block by block to the type asked for, one at a time. A quantized checkpoint is written as what
    its codes stand for, rounded again. What llama.cpp cannot compute or tokenize as llmctl does is refused, or told.
    """
    started = time.monotonic()
    path = model_path(model)
    if is_adapter(path):
        raise UserError(f"{path} is an adapter.", f"llmctl lora-merge {path} -o merged, and export that.", Exit.USAGE)
    plan = GgufPlan.of(read_config(path), how.type)
    room(out, plan.bytes)
    given = Input.of(path)
    options = {"type": how.type, "name": how.name}
    made = {"command": "export", "options": options, "inputs": [given.sha256], "tensor_bytes": plan.bytes}
    old = made_of(out)
    up_to_date = old is not None and not force and {key: old.get(key) for key in made} == made
    if out.exists() and not up_to_date and not force:
        what = "but not as asked for" if old else "and llmctl did not make it"
        raise UserError(f"{out} exists, {what}.", "Use --force to replace it, or write elsewhere with -o.")
    from llmctl.console import Console

    console = Console(shown)
    notes: list[str] = []
    facts = {**plan.facts(), "type": how.type}
    if dry_run:
        for note in plan.notes:
            console.warn(note)
        facts |= {"path": str(out), "up_to_date": up_to_date}
        rows = [(name.replace("_", " "), gib(value) if "bytes" in name else value) for name, value in facts.items()]
        console.report(facts, None if shown.json else console.table(str(out), ("", ""), rows))
        return
    if not up_to_date:
        from llmctl.core.export.gguf import export as core

        about = {**made, "tool": versions(), "argv": invocation().argv, "parent": parent_of(path)}
        with write_file(out, force) as file, console.progress(plan.bytes, "bytes", "export") as progress:
            _, notes = core(path, file, how, json.dumps(about), progress.update)
        for note in [*plan.notes, *notes]:
            console.warn(note)
    facts["file_bytes"] = out.stat().st_size
    facts["notes"] = [*plan.notes, *notes]
    console.made(out, facts, round(time.monotonic() - started, 3), up_to_date)
