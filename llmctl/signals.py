"""Stop: a request to end, by Ctrl-C or SIGTERM, that work answers when it has reached a good place."""

import signal
import threading
from types import FrameType


class Stop:
    """While open, the first SIGINT or SIGTERM only sets `asked`; a second one interrupts at once.

    Args:
        numbers: the signals that are heard.
    """

    def __init__(self, numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)) -> None:
        self.asked = False
        self.numbers = numbers
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in self.numbers:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
