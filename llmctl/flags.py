"""expand: the fields of a dataclass become options, so that name, type, default, help and check are written once."""

import copy
import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.models import ArgumentInfo, OptionInfo

from llmctl.errors import Exit, UserError
from llmctl.spec.sample import Format

Dtype = Literal["auto", "fp32", "bf16", "fp16"]
GENERAL = "General options"


@dataclass(frozen=True)
class Shown:
    """General options."""

    json: Annotated[bool, "Print the report as one JSON object."] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")] = False
    color: Annotated[bool, "Colors and live progress where stderr or stdout is a terminal."] = True


@dataclass(frozen=True)
class Written:
    """Output."""

    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write.", file_okay=False)]
    force: Annotated[bool, "Replace what an earlier run left at --out."] = False
    dry_run: Annotated[bool, "Check everything, say what would be done and what it costs; write nothing."] = False


@dataclass(frozen=True)
class Compute:
    """Compute.

    Raises:
        UserError: no such kind of device, or a negative number of threads.
    """

    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", metavar="NAME")] = "auto"
    dtype: Annotated[Dtype, "Type of the arithmetic; auto: what the device does best."] = "auto"
    threads: Annotated[int, "CPU threads; 0: one for each core."] = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise UserError(f"--device is {self.device!r}; wanted auto, cpu, cuda, cuda:N or mps.", code=Exit.USAGE)
        if self.threads < 0:
            raise UserError(f"--threads is {self.threads}; wanted 0 or more.", code=Exit.USAGE)


@dataclass(frozen=True)
class Source:
    """Input.

    Raises:
        UserError: no texts, or from two places.
    """

    file: Annotated[str | None, typer.Argument(help="Texts, a line each or a JSON record a line; - for stdin.")] = None
    prompt: Annotated[tuple[str, ...], typer.Option("--prompt", "-p", help="A text; repeatable.")] = ()
    format: Annotated[
        Format, "FILE holds lines, JSON lines (jsonl), or is one text (text); auto: by name or content."
    ] = "auto"
    field: Annotated[str | None, "Field of a record that holds the text; default: text, or else prompt."] = None
    special: Annotated[bool, "Read special tokens typed in a text as such."] = False

    def __post_init__(self) -> None:
        if self.prompt and self.file is not None:
            raise UserError(f"Texts come from -p or from {self.file}, not both.", "Leave one out.", Exit.USAGE)
        if not self.prompt and self.file is None:
            raise UserError("There is no text.", 'Add -p "A text.", a FILE, or - for stdin.', Exit.USAGE)


@dataclass(frozen=True)
class Texts(Source):
    """Input.

    Raises:
        UserError: no texts, or from two places; an impossible size of a batch.
    """

    batch_size: Annotated[int, "Texts read by the model at a time."] = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise UserError(f"--batch-size is {self.batch_size}, wanted 1 or more.", code=Exit.USAGE)


@dataclass(frozen=True)
class Invocation:
    """The command now running, as `llmctl.json` records it.

    Attributes:
        command: name as typed: "train-tokenizer".
        argv: the words after `llmctl`.
        options: every argument and option, by the name of its flag, as resolved from flag, environment, TOML and
            default; JSON-able.
    """

    command: str
    argv: list[str]
    options: dict[str, Any]


_running: Invocation | None = None


def invocation() -> Invocation:
    """The command now running; `expand` records it.

    Raises:
        LookupError: no command is running.
    """
    if _running is None:
        raise LookupError("no command is running")
    return _running


def model_path(value: Path | str) -> Path:
    """The path of a directory that a command takes as input; `-` reads it from stdin, one line.

    Raises:
        UserError: `-` is given twice, stdin holds no path, or nothing lies there.
    """
    path = Path(value)
    if str(value) == "-":
        options = _running.options if _running else {}
        names = [name for name, given in options.items() if given == "-" or given == ["-"]]
        if len(names) > 1:
            raise UserError(f"stdin can be read once, but - stands for {' and for '.join(names)}.", code=Exit.USAGE)
        line = sys.stdin.readline().rstrip("\r\n") if sys.stdin else ""
        if not line:
            raise UserError(
                "- stands for a path on stdin, but stdin holds none.",
                "The command before the pipe failed, or printed nothing; its own error says why.",
            )
        path = Path(line)
        for name in names:
            options[name] = line
    if not path.exists():
        raise UserError(f"{path} does not exist.", "Check the path, or run the command that makes it.")
    return path


def expand(function: Callable[..., None]) -> Callable[..., None]:
    """A command whose dataclass parameters are spread out into one option a field.

    `bool` becomes `--x/--no-x`, a `Literal` a choice, `tuple[T, ...]` a repeatable option, `T | None` an
    option that may be absent. Help is the text in `Annotated[T, "text"]`, or that of a `typer.Option` or
    `typer.Argument` there. The first line of the dataclass's docstring heads its options in `--help`.

    Raises:
        TypeError: two fields have the same name.
    """
    flat: list[tuple[str, Any, Any, str | None]] = []  # name, annotation, default, heading
    groups: dict[str, tuple[type, list[str]]] = {}
    for parameter in inspect.signature(function).parameters.values():
        kind = parameter.annotation
        if dataclasses.is_dataclass(kind):
            heading = (inspect.getdoc(kind) or "").partition("\n")[0].rstrip(".")
            fields = [field for field in dataclasses.fields(kind) if field.init]
            groups[parameter.name] = (kind, [field.name for field in fields])
            flat += [(field.name, field.type, _default(field), heading) for field in fields]
        else:
            flat.append((parameter.name, kind, parameter.default, None))
    parameters = [_parameter(*row) for row in flat]
    keys = [(one.name, _key(one)) for one in parameters if one.annotation is not typer.Context]
    if twice := {key for _, key in keys if [other for _, other in keys].count(key) > 1}:
        raise TypeError(f"{function.__name__}: two parameters are called {', '.join(sorted(twice))}")
    tuples = {name for name, kind, _, _ in flat if get_origin(_bare(kind)) is tuple}

    @functools.wraps(function)
    def command(**values: Any) -> None:
        global _running
        values.pop("config_file", None)
        for name in tuples & values.keys():
            values[name] = tuple(values[name] or ())
        _running = Invocation(
            command=function.__name__.replace("_", "-"),
            argv=sys.argv[1:],
            options={key: _plain(values[name]) for name, key in keys if name in values},
        )
        for name, (kind, members) in groups.items():
            if name not in values:
                values[name] = _build(kind, {member: values.pop(member) for member in members if member in values})
        function(**values)

    config = typer.Option(
        "--config", metavar="FILE", help="TOML file of options, one table a command.", rich_help_panel=GENERAL
    )
    parameters.append(_keyword("config_file", Annotated[Path | None, config], None))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {}
    return command


def _parameter(name: str, annotation: Any, default: Any, heading: str | None) -> inspect.Parameter:
    """One field as a parameter that typer understands."""
    if annotation is typer.Context:
        return _keyword(name, annotation, inspect.Parameter.empty)
    notes = annotation.__metadata__ if get_origin(annotation) is Annotated else ()
    kind = _bare(annotation)
    declared = next((note for note in notes if isinstance(note, (OptionInfo, ArgumentInfo))), None)
    text = next((note for note in notes if isinstance(note, str)), None)
    if declared is not None:
        info = copy.copy(declared)
    elif default is inspect.Parameter.empty and heading is None:
        info = typer.Argument(help=text)
    else:
        info = typer.Option(help=text)
    if isinstance(info, OptionInfo):
        info.rich_help_panel = info.rich_help_panel or heading
        written = [word for word in (info.default, *(info.param_decls or ())) if isinstance(word, str)]
        long = next((word for word in written if word.startswith("--")), f"--{name.rstrip('_').replace('_', '-')}")
        if kind in (bool, bool | None) and "/" not in long:
            long = f"{long}/--no-{long[2:]}"
        info.default = ...
        info.param_decls = (long, *(word for word in written if not word.startswith("--")))
    if get_origin(kind) is tuple:
        item, *rest = get_args(kind)
        if rest != [...]:
            raise TypeError(f"{name}: a tuple of options is tuple[T, ...], not {kind}")
        kind = list[item]
        default = list(default) if isinstance(default, tuple) else default
    return _keyword(name, Annotated[kind, info], default)


def _key(parameter: inspect.Parameter) -> str:
    """Its name for people, in `llmctl.json` as in TOML: that of the flag, not of the Python parameter."""
    info = parameter.annotation.__metadata__[0]
    flag = info.param_decls[0] if isinstance(info, OptionInfo) else f"--{parameter.name.rstrip('_')}"
    return flag.partition("/")[0].removeprefix("--").replace("-", "_")


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _bare(annotation: Any) -> Any:
    """The type inside `Annotated`."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty


def _build(kind: type, values: dict[str, Any]) -> Any:
    """The dataclass; what its own checks refuse is a usage error unless they say otherwise."""
    try:
        return kind(**values)
    except UserError as error:
        if error.code == Exit.FAILURE:
            error.code = Exit.USAGE
        raise


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
