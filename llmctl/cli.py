"""llmctl's table of commands and its one error boundary."""

import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

from llmctl import __version__
from llmctl.commands.attention import attention
from llmctl.commands.bench import bench
from llmctl.commands.chat import chat
from llmctl.commands.classify import classify
from llmctl.commands.completion import completion
from llmctl.commands.corpus import corpus
from llmctl.commands.detokenize import detokenize
from llmctl.commands.distill import distill
from llmctl.commands.embed import embed
from llmctl.commands.eval_bleu import eval_bleu
from llmctl.commands.eval_chrf import eval_chrf
from llmctl.commands.eval_compare import eval_compare
from llmctl.commands.eval_harness import eval_harness
from llmctl.commands.eval_memorization import eval_memorization
from llmctl.commands.eval_metric import eval_metric
from llmctl.commands.eval_ppl import eval_ppl
from llmctl.commands.eval_rouge import eval_rouge
from llmctl.commands.eval_safety import eval_safety
from llmctl.commands.eval_task import eval_task
from llmctl.commands.eval_ter import eval_ter
from llmctl.commands.export import export
from llmctl.commands.fill_mask import fill_mask
from llmctl.commands.finetune import finetune
from llmctl.commands.generate import generate
from llmctl.commands.inspect import inspect
from llmctl.commands.lora_merge import lora_merge
from llmctl.commands.memcalc import memcalc
from llmctl.commands.merge import merge
from llmctl.commands.plot import plot
from llmctl.commands.pretrain import pretrain
from llmctl.commands.prompt import prompt
from llmctl.commands.prune import prune
from llmctl.commands.quantize import quantize
from llmctl.commands.refresh import refresh
from llmctl.commands.score import score
from llmctl.commands.serve import serve
from llmctl.commands.tokenize import tokenize
from llmctl.commands.train_tokenizer import train_tokenizer
from llmctl.commands.verify import verify
from llmctl.errors import Exit, Interrupted, UserError
from llmctl.program import Program, refusal, summary

# In the order of a model's life: the order of --help, of the README's table and of the completions.
COMMANDS: dict[str, Callable[..., None]] = {
    "corpus": corpus,
    "train-tokenizer": train_tokenizer,
    "tokenize": tokenize,
    "detokenize": detokenize,
    "pretrain": pretrain,
    "finetune": finetune,
    "distill": distill,
    "refresh": refresh,
    "lora-merge": lora_merge,
    "merge": merge,
    "export": export,
    "prune": prune,
    "quantize": quantize,
    "prompt": prompt,
    "generate": generate,
    "chat": chat,
    "serve": serve,
    "fill-mask": fill_mask,
    "embed": embed,
    "classify": classify,
    "score": score,
    "eval-ppl": eval_ppl,
    "eval-safety": eval_safety,
    "eval-memorization": eval_memorization,
    "eval-rouge": eval_rouge,
    "eval-bleu": eval_bleu,
    "eval-chrf": eval_chrf,
    "eval-ter": eval_ter,
    "eval-task": eval_task,
    "eval-metric": eval_metric,
    "eval-harness": eval_harness,
    "eval-compare": eval_compare,
    "bench": bench,
    "memcalc": memcalc,
    "inspect": inspect,
    "attention": attention,
    "verify": verify,
    "plot": plot,
    "completion": completion,
}

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_MEMORY = ("out of memory", "DefaultCPUAllocator", "not enough memory", "Cannot allocate memory", "bad_alloc")


def main() -> None:
    """Runs the command line of this process and ends it with one of the exit codes of `llmctl.errors.Exit`."""
    if not sys.warnoptions and not _debug():
        warnings.simplefilter("ignore")
    for stream, errors in ((sys.stdout, "surrogateescape"), (sys.stderr, "backslashreplace")):
        if stream is not None:
            stream.reconfigure(encoding="utf-8", errors=errors)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = _guarded(_run)
    flushed = _guarded(_flush)
    if flushed:  # or the interpreter tries, and complains, again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(int(code or flushed))


def table() -> str:
    """The commands as a Markdown table, for the README."""
    rows = [f"| `{name}` | {summary(function)} |" for name, function in COMMANDS.items()]
    return "\n".join(["| command | what it does |", "|---|---|", *rows]) + "\n"


def program() -> Program:
    """All of llmctl as typer's group."""
    app = typer.Typer(cls=Program, add_completion=False, rich_markup_mode=None)
    app.callback(context_settings={"help_option_names": ["-h", "--help"]})(llmctl)
    group = get_command(app)
    group.functions = COMMANDS
    return group


def _version(wanted: bool) -> None:
    if wanted:
        print(f"llmctl {__version__}")
        raise typer.Exit()


def llmctl(
    config_file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="TOML file of options, one table a command.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """One program for the whole life of a language model, made of commands that pipe into each other."""


def _run() -> int:
    group = program()
    if len(sys.argv) == 1:
        with group.make_context("llmctl", [], resilient_parsing=True) as context:
            sys.stderr.write(context.get_help() + "\n")
        return Exit.USAGE
    try:
        with group.make_context("llmctl", sys.argv[1:]) as context:
            group.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return Exit.DONE


def _flush() -> int:
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except OSError as error:
            error.filename = "stdout"
            raise
    return Exit.DONE


def _guarded(work: Callable[[], int]) -> int:
    """The exit code of the work; whatever it raises becomes two lines on stderr and a code."""
    try:
        return work()
    except BrokenPipeError:
        return Exit.PIPE
    except (KeyboardInterrupt, typer.Abort):
        _say("error: interrupted.")
        return Exit.INTERRUPTED
    except Interrupted as error:
        _say(f"{error}")
        return error.code
    except Exception as error:
        if _debug():
            import traceback

            traceback.print_exc()
        told = error if isinstance(error, UserError) else _told(error)
        command = next((word for word in sys.argv[1:] if word in COMMANDS), "")
        _say(f"error: {_line(told.problem)}")
        _say(f"hint:  {_line(told.hint or f'See llmctl {command} --help.'.replace('  ', ' '))}")
        return told.code


def _told(error: Exception) -> UserError:
    """What a person is told about an exception that no command foresaw."""
    text = _line(str(error))
    if isinstance(error, typer.TyperException):
        return refusal(error)
    if isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY):
        return UserError(
            f"The memory does not suffice{': ' + text if text else ''}.".replace("..", "."),
            "Take a smaller batch, length or --dtype; llmctl memcalc says what a run needs.",
            Exit.SPACE,
        )
    if "No space left on device" in text or (isinstance(error, OSError) and error.errno in FULL):
        name = getattr(error, "filename", None) or "The output"
        return UserError(f"{name}: {os.strerror(errno.ENOSPC)}.", "Free some space, or write elsewhere.", Exit.SPACE)
    if isinstance(error, OSError) and error.strerror:
        name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        return UserError(f"{name}{error.strerror}.", HINTS.get(type(error), ""))
    return UserError(
        f"This is a bug in llmctl: {type(error).__name__}: {text}.",
        "Run it again with LLMCTL_DEBUG=1 to see where, and report that.",
    )


HINTS: dict[type, str] = {
    FileNotFoundError: "Check the path.",
    PermissionError: "Check who owns it, or choose another path.",
    IsADirectoryError: "Name a file in it.",
    NotADirectoryError: "Name a directory.",
}


def _line(text: str) -> str:
    """The text on one line, with no character that would steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))


def _say(line: str) -> None:
    try:
        if sys.stderr is not None:  # print would take stdout instead
            print(line, file=sys.stderr, flush=True)
    except OSError:  # nobody reads stderr: the exit code still tells
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _debug() -> bool:
    return os.environ.get("LLMCTL_DEBUG", "") not in ("", "0")
