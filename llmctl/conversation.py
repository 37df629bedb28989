"""conversation: a talk with a model at a terminal, or a turn a line from a pipe."""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

from llmctl.console import Console, harmless
from llmctl.errors import Exit, Interrupted, UserError
from llmctl.signals import Stop
from llmctl.spec.chat import changed, read_talk, settings, write_talk
from llmctl.typed import QUOTES, Typing, typed_lines, whole

if TYPE_CHECKING:
    from llmctl.core.decode.talk import Talk

COMMAND = re.compile(r"/([a-z]+|\?)(?:\s+(.*))?", re.DOTALL)
OTHERS = {"?": "help", "exit": "quit", "bye": "quit", "clear": "reset", "q": "quit"}
HELP = f"""\
/system [TEXT]     show what the system says, or change it (/system none: nothing)
/set [NAME VALUE]  show the settings, or change one: temperature, top_p, max_tokens, seed ...
/retry             another answer in the place of the last one
/undo              take the last turn back
/reset             begin anew, with the same system prompt
/show              all that was said
/info              how full the context is
/save [-f] FILE    write the conversation, as JSON; -f: over another file
/load FILE         go on with one that was saved
/quit              end, as Ctrl-D does
Ctrl-C stops an answer. {QUOTES} begins and ends a turn of several lines; so does \\ at the end of a line.
"""


class Conversation:
    """A talk at a terminal: turns and commands are typed, answers are shown as they grow.

    Args:
        saved: a file that the conversation is kept in.
        mine: that file may be written over: the conversation came from it.
    """

    def __init__(self, talk: "Talk", console: Console, saved: Path | None = None, mine: bool = False):
        self.talk, self.console, self.saved = talk, console, saved
        self.files = {saved} if mine else set()
        self.ended = False
        self.forgotten = 0
        self._typing = Typing()
        self.commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "system": self._system,
            "set": self._set,
            "retry": self._retry,
            "undo": self._undo,
            "reset": self._reset,
            "show": self._show,
            "info": self._info,
            "save": self._save,
            "load": self._load,
            "quit": self._quit,
        }

    def run(self) -> None:
        """Until someone ends it.

        Raises:
            Interrupted: by SIGTERM.
        """
        with suppress(ImportError):  # not every Python has it
            import readline  # noqa: F401 - input() edits lines with it
        with Terminated(), self._typing:
            while not self.ended:
                try:
                    self._turn()
                except KeyboardInterrupt:
                    self._note("\n/quit or Ctrl-D ends the program.")
                except UserError as error:
                    self._note(f"error: {error.problem}\nhint:  {error.hint}".removesuffix("\nhint:  "))

    def _turn(self) -> None:
        """One turn or command."""
        lines = typed_lines(self._typing)
        first = next(lines, None)
        if first is None:
            self._note("")
            self.ended = True
            return
        found = COMMAND.fullmatch(first.strip())
        if found:
            name = OTHERS.get(found[1], found[1])
            if name not in self.commands:
                near = [one for one in self.commands if one.startswith(name[:1])]
                hint = f"Did you mean /{near[0]}? " if near else ""
                raise UserError(f"There is no command /{name}.", hint + "/help lists them.")
            self.commands[name]((found[2] or "").strip())
        elif text := whole(first, lines):
            self._answer(lambda stopped: self.talk.ask(text, stopped))

    def _answer(self, asked: Callable[[Callable[[], bool]], Iterator[str]]) -> None:
        last = "\n"
        with Stop((signal.SIGINT,)) as stop:
            try:
                for piece in asked(lambda: stop.asked):
                    self.console.out(harmless(piece) if self._terminal else piece)
                    last = piece
            finally:
                if not last.endswith("\n"):
                    self.console.out("\n")
        said = self.talk.said
        if said.ending == "interrupted":
            self._note("(stopped)" if said.text else "(stopped; the turn is taken back)")
        elif said.ending == "length":
            full = said.prompt_tokens + said.tokens > self.talk.context
            limit = f"the context of {self.talk.context} tokens is full" if full else f"{said.tokens} tokens"
            self._note(f"(cut short: {limit}{'' if full else '; /set max_tokens N'})")
        if self.talk.first > self.forgotten:
            self._note(f"(the oldest {self.talk.first} messages are beyond the context and no longer read)")
        self.forgotten = self.talk.first
        if self.saved is not None:
            self._write(self.saved)

    def _help(self, rest: str) -> None:
        self._note(HELP.rstrip())

    def _system(self, rest: str) -> None:
        if rest:
            before = self.talk.system
            self.talk.system = None if rest == "none" else rest
            try:
                self.talk.check()
            except UserError:
                self.talk.system = before
                raise
        self._note(f"system: {harmless(self.talk.system)}" if self.talk.system else "The system says nothing.")

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if value and name.strip("-") == "seed":
            if not re.fullmatch(r"-?\d{1,18}", value.strip()):
                raise UserError(f"seed is {value!r}; wanted a whole number.", "/set seed 1")
            self.talk.seed = int(value)
        elif value:
            self.talk.sampling = changed(self.talk.sampling, name, value)
        elif name:
            raise UserError(f"/set {name} has no value.", f"/set {name} VALUE")
        else:
            now = {one.name: getattr(self.talk.sampling, one.name) for one in settings(self.talk.sampling)}
            self._note("\n".join(f"{name} {value}" for name, value in {**now, "seed": self.talk.seed}.items()))
            return
        if self.talk.sampling.greedy and name.strip("-") not in ("temperature", "max_tokens", "repetition_penalty"):
            self._note("The temperature is 0, so the likeliest token is taken: /set temperature 1")

    def _retry(self, rest: str) -> None:
        if self.talk.sampling.greedy:
            self._note("The temperature is 0, so the answer is the same: /set temperature 1")
        self._answer(self.talk.retry)

    def _undo(self, rest: str) -> None:
        self.talk.undo()
        self._note(f"{self.talk.turns} turns are left.")

    def _reset(self, rest: str) -> None:
        opening = self.talk.system
        self.talk.restart()
        self.talk.system = opening
        self.forgotten = 0

    def _show(self, rest: str) -> None:
        for one in self.talk.messages:
            self._note(f"{one['role']}: {harmless(one['content'])}")

    def _info(self, rest: str) -> None:
        said = self.talk.said
        if said is None:
            self._note(f"0 of {self.talk.context} tokens of context.")
        else:
            used = said.prompt_tokens + said.tokens
            self._note(
                f"{used} of {self.talk.context} tokens of context; of the last prompt's {said.prompt_tokens}, "
                f"{said.known_tokens} had been read before; {said.tokens} written."
            )

    def _save(self, rest: str) -> None:
        force, name = rest.startswith("-f "), rest.removeprefix("-f ").strip()
        path = self._path(name, "/save")
        self._write(path, force)
        self._note(f"Saved: {path}")

    def _load(self, rest: str) -> None:
        path = self._path(rest, "/load")
        self.talk.restart(read_talk(path))
        self.files.add(path)
        self.forgotten = 0
        waits = bool(self.talk.messages) and self.talk.messages[-1]["role"] == "user"
        self._note(
            f"{len(self.talk.messages)} messages." + (" The last one waits: /retry answers it." if waits else "")
        )

    def _quit(self, rest: str) -> None:
        self.ended = True

    def _path(self, name: str, command: str) -> Path:
        if not name:
            raise UserError(f"{command} needs a file.", f"{command} talk.json")
        return Path(os.path.expanduser(name))  # Path's own raises where there is no such user

    def _write(self, path: Path, force: bool = False) -> None:
        if os.path.exists(path) and not force and path not in self.files:
            raise UserError(f"{path} exists.", f"/save -f {path} writes over it.")
        write_talk(path, self.talk.messages, force=True)
        self.files.add(path)

    def _note(self, text: str) -> None:
        """For people, on stderr; what was asked for is shown with --quiet, too."""
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)

    @property
    def _terminal(self) -> bool:
        return sys.stdout is not None and sys.stdout.isatty()


class Terminated:
    """While open, SIGTERM ends the program, whatever Ctrl-C does."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGTERM, self._end)

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _end(self, number: int, frame: FrameType | None) -> None:
        raise Interrupted("error: interrupted.", Exit.INTERRUPTED)


def answer_lines(talk: "Talk", console: Console, stdin: IO[bytes], saved: Path | None = None) -> tuple[int, int]:
    """Answer each line that is not empty; answers on stdout, each with a newline after it, or as JSON lines.

    Returns:
        How many turns there were, and how many of them could not be answered.
    """
    count = failed = 0
    for raw in stdin:
        if not raw.strip():
            continue
        count += 1
        record: dict[str, Any] = {"schema": "llmctl/chat/1"}
        try:
            text = raw.decode("utf-8").strip()
            record["prompt"] = text
            for piece in talk.ask(text):
                if not console.shown.json:
                    console.out(piece)
            record |= _record(talk)
        except UnicodeDecodeError as error:
            failed += 1
            record["error"] = f"the line is not UTF-8: {error.reason} at byte {error.start}."
        except UserError as error:
            if error.code == Exit.MISMATCH:
                raise
            failed += 1
            record["error"] = error.problem
        if "error" in record:
            console.warn(f"turn {count}: {record['error']}")
        console.out(json.dumps(record, ensure_ascii=False) + "\n" if console.shown.json else "\n")
        if saved is not None:
            write_talk(saved, talk.messages, force=True)
    return count, failed


def _record(talk: "Talk") -> dict[str, Any]:
    """What is told of an answer."""
    said = talk.said
    usage = {
        "prompt_tokens": said.prompt_tokens,
        "completion_tokens": said.tokens,
        "cached_tokens": said.known_tokens,
    }
    return {"completion": said.text, "finish_reason": said.ending, "usage": usage}
