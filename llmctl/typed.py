"""typed: lines that somebody types at a terminal, and Ctrl-C meanwhile."""

import signal
import sys
from collections.abc import Iterator
from types import FrameType

QUOTES = '"""'
PROMPT, MORE = ">>> ", "... "


class Typing:
    """While open, Ctrl-C interrupts whoever waits for a line, once; elsewhere only those who have it heard do.

    So someone who leans on it does not end the program where it has just been heard.
    """

    def __init__(self) -> None:
        self._waits = False

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGINT, self._heard)

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def line(self, prompt: str) -> str:
        """One line.

        Raises:
            EOFError: there are no more.
            KeyboardInterrupt: Ctrl-C.
        """
        signal.signal(signal.SIGINT, self._heard)  # again: who heard it before may have been cut off
        self._waits = True
        try:
            return _edited(prompt)
        finally:
            self._waits = False

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self._waits:
            self._waits = False
            raise KeyboardInterrupt


def typed_lines(typing: Typing) -> Iterator[str]:
    """Lines from the terminal until its end, each asked for; edited with readline where that is there.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    prompt = PROMPT
    while True:
        try:
            line = typing.line(prompt)
        except EOFError:
            return
        yield line
        prompt = MORE


def whole(first: str, more: Iterator[str]) -> str:
    r'''A turn: one line; or all between """ and """; or lines of which each but the last ends with \.'''
    if first.lstrip().startswith(QUOTES):
        text = first.lstrip().removeprefix(QUOTES)
        while not text.rstrip().endswith(QUOTES):
            line = next(more, None)
            if line is None:
                return text
            text += "\n" + line
        return text.rstrip().removesuffix(QUOTES).strip("\n")
    text = first
    while text.endswith("\\"):
        line = next(more, None)
        text = text.removesuffix("\\") + ("" if line is None else "\n" + line)
        if line is None:
            break
    return text.strip()


def _edited(prompt: str) -> str:
    """One line. The prompt goes to the terminal, wherever stdout goes.

    Raises:
        EOFError: there are no more.
    """
    if sys.stdout is not None and sys.stdout.isatty():
        return input(prompt)
    if sys.stderr is not None:
        print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")
