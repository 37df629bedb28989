"""Where an option's value comes from (flag, environment, TOML) and how its text becomes the declared type."""

import difflib
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from llmctl.errors import Exit, UserError

TRUTH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
WANTED = {int: "a whole number", float: "a number", str: "text", Path: "a path", bool: "true or false"}


@dataclass(frozen=True)
class Given:
    """A value from the environment or a TOML file, and the words that name that place in an error."""

    value: Any
    place: str

    def __str__(self) -> str:
        return str(self.value)


class Coercion:
    """Turns what was given for one parameter into the type that its command declares.

    It stands in for typer's own, which loads pydantic (0.1 s) and does not say where a value came from.
    """

    def coerce(self, value: Any, param: Any, ctx: typer.Context) -> Any:
        """The value, typed; of a repeatable option, a tuple of them.

        Raises:
            UserError: the value does not read as the type.
        """
        many = param.multiple or param.nargs == -1
        if value is None:
            return () if many else None
        value, place = (value.value, value.place) if isinstance(value, Given) else (value, spelled(param))
        kind = param.type_descriptor.annotation
        if not many:
            return _one(value, kind, place, param, ctx)
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_one(item, get_args(kind)[0], place, param, ctx) for item in items)


def spelled(param: Any) -> str:
    """How a person names the parameter: --lr, or TEXTS."""
    long = [word for word in param.opts if word.startswith("--")]
    return long[0] if long else param.metavar or param.name.upper()


def key(param: Any) -> str:
    """The name of an option in TOML and, in capitals, in the environment: batch_tokens; of an argument, its own."""
    return spelled(param)[2:].replace("-", "_") if param.param_type_name == "option" else param.name


def options(command: Any) -> dict[str, Any]:
    """The options of a command that the environment and TOML may set, by key."""
    return {
        key(param): param
        for param in command.params
        if param.param_type_name == "option" and param.name not in ("config_file", "help")
    }


def from_environment(ctx: typer.Context) -> dict[str, Given]:
    """LLMCTL_<COMMAND>_<OPTION>, by the name of the parameter; an empty variable is an absent one.

    Raises:
        UserError: a variable with this command's prefix names no option of it.
    """
    known = options(ctx.command)
    prefix = prefix_of(ctx.info_name or "")
    longer = [prefix_of(name) for name in ctx.find_root().command.list_commands(ctx)]
    longer = [other for other in longer if other.startswith(prefix) and other != prefix]
    found = {}
    for variable, text in os.environ.items():
        if not variable.startswith(prefix) or variable.startswith(tuple(longer)) or not text:
            continue
        name = variable[len(prefix) :].lower()
        if name not in known:
            raise UserError(
                f"{variable} is set, but {ctx.info_name} has no option --{name.replace('_', '-')}.",
                meant(variable, [prefix + option.upper() for option in known], f"Unset it: unset {variable}"),
                Exit.USAGE,
            )
        param = known[name]
        found[param.name] = Given(text.split() if param.multiple else text, variable)
    return found


def prefix_of(command: str) -> str:
    """What the variables of a command begin with: LLMCTL_EVAL_PPL_."""
    return f"LLMCTL_{command.replace('-', '_').upper()}_"


def from_toml(path: Path, ctx: typer.Context) -> dict[str, Given]:
    """The values of the running command's table, by the name of the parameter.

    Raises:
        UserError: no such file, not TOML, or a table or key (in any command's table) that does not exist.
    """
    program = ctx.find_root().command
    from llmctl.spec.files import read_toml

    tables = read_toml(path, "A file of options has lines such as [pretrain] and lr = 0.003", "--config")
    commands = program.list_commands(ctx)
    for table, content in tables.items():
        if table not in commands:
            where = f"table [{table}]" if isinstance(content, dict) else f"key {table!r} outside of a table"
            problem = f"{path} has the {where}, but no command is called so."
            raise UserError(problem, meant(table, commands, "Options stand in one table a command."), Exit.USAGE)
        if not isinstance(content, dict):
            problem = f"{path}: {table} is {content!r}; wanted a table [{table}] of its options."
            raise UserError(problem, f"See llmctl {table} --help for them.", Exit.USAGE)
        known = options(program.get_command(ctx, table))
        for name in content:
            if name.replace("-", "_") not in known:
                hint = meant(name, known, f"See llmctl {table} --help for the options that it has.")
                raise UserError(f"{path}: [{table}] has the key {name!r}, which is no option.", hint, Exit.USAGE)
    known = options(ctx.command)
    mine = {name.replace("-", "_"): value for name, value in tables.get(ctx.info_name, {}).items()}
    return {known[name].name: Given(value, f"{path}: [{ctx.info_name}] {name}") for name, value in mine.items()}


def meant(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """ "Did you mean ...?" for a mistyped word, or other advice when nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"Did you mean {near[0]}?" if near else otherwise


def _one(value: Any, kind: Any, place: str, param: Any, ctx: typer.Context) -> Any:
    if get_origin(kind) is Literal:
        return _choice(value, get_args(kind), place, ctx)
    if kind not in READERS:
        raise TypeError(f"{param.name}: options of type {kind} are not read here")
    try:
        typed = READERS[kind](value)
    except (ValueError, OverflowError):
        raise UserError(f"{place} is {value!r}; wanted {WANTED[kind]}.", _see(ctx), Exit.USAGE) from None
    limits = param.type_descriptor.parameter_info
    if limits.min is not None and typed < limits.min:
        raise UserError(f"{place} is {typed}; wanted at least {limits.min}.", _see(ctx), Exit.USAGE)
    if limits.max is not None and typed > limits.max:
        raise UserError(f"{place} is {typed}; wanted at most {limits.max}.", _see(ctx), Exit.USAGE)
    if kind is Path and limits.exists and str(typed) != "-" and not typed.exists():
        raise UserError(f"{place}: {typed} does not exist.", "Check the path.")
    return typed


def _choice(value: Any, choices: tuple[Any, ...], place: str, ctx: typer.Context) -> Any:
    for choice in choices:
        if str(value) == str(choice):
            return choice
    listed = [str(choice) for choice in choices]
    wanted = " or ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
    raise UserError(f"{place} is {value!r}; wanted {wanted}.", meant(str(value), listed, _see(ctx)), Exit.USAGE)


def _see(ctx: typer.Context) -> str:
    return f"See {ctx.command_path} --help."


def _int(value: Any) -> int:
    if isinstance(value, (bool, list, dict)):
        raise ValueError
    try:
        return int(value) if isinstance(value, (int, str)) else _whole(float(value))
    except ValueError:
        return _whole(float(value))  # 1e9 tokens


def _whole(value: float) -> int:
    if not value.is_integer():
        raise ValueError
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, (bool, list, dict)) or math.isnan(float(value)):
        raise ValueError
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        raise ValueError
    return str(value)


def _path(value: Any) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError
    return Path(value)


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() not in TRUTH:
        raise ValueError
    return TRUTH[str(value).lower()]


READERS: dict[Any, Callable[[Any], Any]] = {int: _int, float: _float, str: _text, Path: _path, bool: _bool}
