"""Post: what the engine's thread has for requests, handed to the event loop's thread in as few turns as can be."""

import asyncio
import threading
from collections.abc import Callable

from llmctl.core.serve.engine import Piece, Told
from llmctl.core.serve.refusal import Refusal

Inbox = asyncio.Queue[list[Told]]


class Post:
    """Carries pieces from one thread to the other: all that have come up since the last turn together.

    To wake the event loop for each piece takes longer than to make it, with many completions of a small model.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop, self._lock = loop, threading.Lock()
        self._sent: list[tuple[Inbox, list[Told]]] = []

    def at_once(self, inbox: Inbox) -> Callable[[list[Told]], None]:
        """Sends pieces as they come."""
        return lambda told: self._send(inbox, told)

    def in_the_end(self, inbox: Inbox, parts: int) -> Callable[[list[Told]], None]:
        """Keeps the pieces of so many completions until all have ended, or a refusal comes."""
        kept: list[Told] = []

        def tell(told: list[Told]) -> None:
            nonlocal parts
            kept.extend(told)
            parts -= sum(isinstance(one, Piece) and one.finish is not None for one in told)
            if not parts or isinstance(told[-1], Refusal):
                self._send(inbox, kept)

        return tell

    def _send(self, inbox: Inbox, told: list[Told]) -> None:
        with self._lock:
            self._sent.append((inbox, told))
            alone = len(self._sent) == 1
        if alone:
            self._loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        with self._lock:
            sent, self._sent = self._sent, []
        for inbox, told in sent:
            inbox.put_nowait(told)
