"""refresh: a finished run again, with its recorded options, on new data."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Shown, Written, expand, model_path
from llmctl.spec.refresh import Beginning, recorded, renewed


@expand
def refresh(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="What pretrain, finetune, distill, prune or quantize made, or - for it.")],
    data: Annotated[tuple[str, ...], typer.Argument(help="The new data, of the kind that RUN was made from.")],
    written: Written,
    shown: Shown,
    begin: Annotated[
        Beginning,
        "start: begin as RUN did; run: go on from what RUN has become, as pretrain, finetune and distill can.",
    ] = "start",
    change: Annotated[
        tuple[str, ...], "NAME=VALUE: another value of an option of that command, such as steps=500; repeatable."
    ] = (),
) -> None:
    """Run the command that made RUN again, with the options recorded in its llmctl.json, on new data.

        llmctl refresh tuned new.jsonl -o tuned-2
        llmctl refresh base new-tokens --begin run --change steps=500 -o base-2

    What other files RUN was made from are read again where they were. OUT is what that command makes, and it is
    interrupted and resumed as that command is.
    """
    run = model_path(run)
    if not data:
        raise UserError("There is no new data.", "Name a FILE, or a directory of tokens.", Exit.USAGE)
    name, options = recorded(run)
    options = renewed(run, name, options, data, begin)
    options |= {"out": str(written.out), "force": written.force, "dry_run": written.dry_run}
    options |= {"json": shown.json, "quiet": shown.quiet, "color": shown.color}
    group = context.find_root().command
    command = group.get_command(context, name)
    with command.make_context(name, _words(command, name, options, change), parent=context.parent) as inner:
        command.invoke(inner)


def _words(command: Any, name: str, options: dict[str, Any], change: tuple[str, ...]) -> list[str]:
    """The words after `llmctl NAME` that say these options.

    Raises:
        UserError: an option that the command has not.
    """
    from llmctl.values import key

    changes = dict(_pair(text) for text in change)
    known = {key(param): param for param in command.params if param.name not in ("config_file", "help")}
    for where, names in (("RUN was made with", options), ("--change names", changes)):
        if unknown := [one for one in names if one not in known]:
            problem = f"{where} --{unknown[0].replace('_', '-')}, which llmctl {name} has not."
            hint = f"See llmctl {name} --help." if names is changes else "RUN was made by another version of llmctl."
            raise UserError(problem, hint, Exit.USAGE if names is changes else Exit.MISMATCH)
    words, places = [], []
    for one, param in known.items():
        value = changes.get(one, options.get(one))
        values = value if isinstance(value, list) else [] if value is None else [value]
        if param.param_type_name == "argument":
            places += map(str, values)
        elif param.is_flag:
            if str(value).lower() in ("true", "false"):
                words.append((param.opts if str(value).lower() == "true" else param.secondary_opts)[-1])
        else:
            words += [f"{_long(param)}={item}" for item in values]
    return [*words, "--", *places]


def _long(param: Any) -> str:
    return next(word for word in param.opts if word.startswith("--"))


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise UserError(f"--change is {text!r}, wanted NAME=VALUE.", "Such as --change steps=500", Exit.USAGE)
    return name.removeprefix("--").replace("-", "_"), value
