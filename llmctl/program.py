"""Typer's group and command as llmctl wants them: plain help, commands built when named, values from three places."""

import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import typer

# typer 0.29 has its own copy of click, which the package click has nothing to do with.
from typer._click.exceptions import BadOptionUsage, MissingParameter, NoSuchOption, UsageError
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from llmctl.errors import Exit, UserError
from llmctl.flags import GENERAL
from llmctl.values import Coercion, from_environment, from_toml, meant, prefix_of, spelled

COLUMN = 30  # where the help texts of options begin
LONGEST = 40  # list of choices that stands in the left column
UNBROKEN = "\N{NO-BREAK SPACE}"
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


class Command(TyperCommand):
    """One subcommand."""

    def get_params(self, ctx: typer.Context) -> list[Any]:
        """All parameters, --help among them, read by our coercion."""
        return _coerced(super().get_params(ctx))

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        """Flags win over LLMCTL_<COMMAND>_<OPTION>, which wins over the [command] table of --config."""
        try:
            found, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        except UsageError as error:
            error.ctx = ctx  # typer leaves it out of some
            raise
        if not found.get("help"):
            file = found.get("config_file") or (ctx.parent.params.get("config_file") if ctx.parent else None)
            ctx.default_map = (from_toml(Path(file), ctx) if file else {}) | from_environment(ctx)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:
        """Usage, the docstring, arguments, and options under their headings, the general ones last."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        general: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            if param.hidden:
                continue
            if param.param_type_name == "argument":
                heading = "Arguments"
            else:
                heading = param.rich_help_panel or (GENERAL if param.name == "help" else "Options")
            rows = general if heading == GENERAL else sections.setdefault(heading, [])
            rows.append((spelling(param), _explanation(param)))
        usage = ["[OPTIONS]", *(spelling(p) for p in self.params if p.param_type_name == "argument" and not p.hidden)]
        variable = f"{prefix_of(ctx.info_name or '')}<OPTION>"
        note = f"Options can also be set by {variable}, or by [{ctx.info_name}] in a --config file."
        formatter.write(page(ctx.command_path, usage, self.help or "", sections | {GENERAL: general}, note))


class Program(TyperGroup):
    """The group of all subcommands; each is built when it is named, so that many cost no more than few."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.functions: dict[str, Callable[..., None]] = {}

    def get_params(self, ctx: typer.Context) -> list[Any]:
        """All parameters, --help among them, read by our coercion."""
        return _coerced(super().get_params(ctx))

    def list_commands(self, ctx: typer.Context) -> list[str]:
        return list(self.functions)

    def get_command(self, ctx: typer.Context, name: str) -> Any:
        if name not in self.functions:
            return None
        if name not in self.commands:
            one = typer.Typer(add_completion=False, rich_markup_mode=None)
            one.command(name, cls=Command)(self.functions[name])
            self.commands[name] = get_command(one)
        return self.commands[name]

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:
        """The command that the first word names.

        Raises:
            UserError: there is none.
        """
        if args[0] not in self.functions:
            hint = meant(args[0], self.functions, "llmctl --help lists the commands.")
            raise UserError(f"llmctl has no command {args[0]!r}.", hint, Exit.USAGE)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:
        """Usage, the purpose, one line a command, options."""
        commands = [(name, summary(function)) for name, function in self.functions.items()]
        rows = [(spelling(param), param.help or "") for param in self.get_params(ctx)]
        usage = ["[OPTIONS]", "COMMAND ..."]
        note = "llmctl COMMAND --help says what a command takes."
        formatter.write(page(ctx.command_path, usage, self.help or "", {"Commands": commands, "Options": rows}, note))


def refusal(error: typer.TyperException) -> UserError:
    """What typer says about a command line, as llmctl says it."""
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx else "llmctl"
    hint = f"See {path} --help."
    if isinstance(error, NoSuchOption):
        known = [word for param in ctx.command.get_params(ctx) for word in (*param.opts, *param.secondary_opts)]
        name = error.option_name
        if ctx.parent is None:
            hint = "The options of a command stand after it."
        problem, hint = f"{path} has no option {name}.", meant(name, [w for w in known if w.startswith("--")], hint)
    elif isinstance(error, MissingParameter):
        param = error.param
        name = spelled(param)
        problem = f"{path} needs {name}."
        value = metavar(param)
        hint = f"Add {spelling(param)}: {param.help}" if param.help else f"Add {name} {value}."
    elif isinstance(error, BadOptionUsage):
        takes = "takes no value" if "does not take" in error.message else "needs a value"
        problem = f"{error.option_name} {takes}."
    else:
        problem = error.format_message()
    return UserError(problem, hint, Exit.USAGE)


def summary(function: Callable[..., None]) -> str:
    """The first line of a command's docstring."""
    return (function.__doc__ or "").strip().partition("\n")[0]


def page(path: str, usage: list[str], text: str, sections: dict[str, list[tuple[str, str]]], note: str) -> str:
    """A page of help, as wide as the terminal and at most 100 columns."""
    width = max(50, min(100, shutil.get_terminal_size().columns))
    lines = _wrap(f"usage: {path} {' '.join(usage)}", width, subsequent_indent="       ")
    for paragraph in text.strip().split("\n\n"):
        indented = any(line.startswith(" ") for line in paragraph.splitlines())
        lines += ["", *(paragraph.splitlines() if indented else _wrap(paragraph, width))]
    for heading, rows in sections.items():
        if not rows:
            continue
        lines += ["", f"{heading}:"]
        column = min(COLUMN, max(len(left) for left, _ in rows) + 4)
        for left, right in rows:
            wrapped = _wrap(right, width - column) or [""]
            first = f"  {left}".ljust(column)
            if len(left) + 4 > column:
                lines.append(f"  {left}")
                first = " " * column
            lines += [(first + wrapped[0]).rstrip(), *(" " * column + line for line in wrapped[1:])]
    lines += ["", *_wrap(note, width)]
    return "\n".join(lines).replace(UNBROKEN, " ") + "\n"


def _wrap(text: str, width: int, **options: Any) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False, **options)


def spelling(param: Any) -> str:
    """The left column of help: "-o, --out PATH", "--[no-]force", "TEXTS..."."""
    if param.param_type_name == "argument":
        name = metavar(param) + ("..." if param.nargs != 1 else "")
        return name if param.required else f"[{name}]"
    short = [word for word in param.opts if not word.startswith("--")]
    long = [word for word in param.opts if word.startswith("--")]
    if param.secondary_opts:
        long = [f"--[no-]{word[2:]}" for word in long]
    words = ", ".join(short + long)
    return words if param.is_flag else f"{words} {metavar(param)}"


def metavar(param: Any) -> str:
    """What stands for a value: its choices, or N, X, TEXT, PATH; of an argument, its name."""
    if param.metavar:
        return param.metavar
    listed = "|".join(str(choice) for choice in param.type_descriptor.choices or ())
    if listed and len(listed) <= LONGEST:
        return listed
    if param.param_type_name == "argument":
        return param.name.upper()
    kind = param.type_descriptor.annotation
    return "NAME" if listed else METAVARS.get(get_args(kind)[0] if param.multiple else kind, "VALUE")


def _coerced(params: list[Any]) -> list[Any]:
    for param in params:
        param._runtime_param = Coercion()
    return params


def _explanation(param: Any) -> str:
    """The right column of help, with the default."""
    default = param.default
    if param.required:
        note = "[required]" if param.param_type_name == "option" else ""
    elif default is None or default is False or default in ("", [], ()) or not param.show_default:
        note = ""
    elif default is True:
        note = "[default: yes]"
    else:
        shown = ", ".join(str(item) for item in default) if isinstance(default, list) else str(default)
        note = f"[default: {shown}]"
    choices = [str(choice) for choice in param.type_descriptor.choices or ()]
    one_of = f"One of {', '.join(choices)}." if choices and "|".join(choices) != metavar(param) else ""
    return " ".join(filter(None, [param.help, one_of, note.replace(" ", UNBROKEN)]))
