"""Engine: the one thread that owns the model; completions of many requests are made side by side in it."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from llmctl.core.decode.batch import Desk, Event, Wish
from llmctl.core.decode.choose import Picked
from llmctl.core.decode.text import TextStream
from llmctl.core.serve.refusal import Refusal
from llmctl.errors import UserError

FAILURES = (UserError, MemoryError, RuntimeError)  # torch says RuntimeError where memory ends

T = TypeVar("T")


class Piece(NamedTuple):
    """What has become final of one completion.

    Attributes:
        index: of the completion in its request.
        text: new text.
        picked: new tokens, but for one that ended the text and is not shown.
        tokens: how many there are so far, that one included.
        finish: why it has ended, or None.
    """

    index: int
    text: str
    picked: tuple[Picked, ...]
    tokens: int
    finish: str | None


@dataclass(eq=False)
class Part:
    """One completion in the making.

    Attributes:
        wish: what the desk is asked.
        stream: makes text of its tokens.
    """

    index: int
    wish: Wish
    stream: TextStream
    tokens: int = 0

    def __post_init__(self) -> None:
        self._fresh = ""
        self.wish.stopped = self._stopped

    def _stopped(self, token: int) -> bool:
        self._fresh += self.stream.push(token)
        return self.stream.stopped

    def piece(self, event: Event) -> Piece:
        """What an event of the wish adds."""
        text, self._fresh = self._fresh, ""
        picked = event.picked
        self.tokens += picked is not None
        finish = event.finish
        if finish is not None:
            text += self.stream.finish()
            finish = "stop" if self.stream.stopped else finish
        hidden = picked is None or (finish == "stop" and picked.id in self.wish.eos)
        return Piece(self.index, text, () if hidden else (picked,), self.tokens, finish)


Told = Piece | Refusal  # a refusal ends a job


@dataclass(eq=False)
class Job:
    """The completions of one request.

    Attributes:
        tell: takes what the engine has for it, in the engine's thread.
        begun: when it was submitted, in seconds of time.monotonic.
        first: when its first token came; None before.
        left: completions that have not ended.
    """

    parts: Sequence[Part]
    tell: Callable[[list[Told]], None]
    begun: float = field(default_factory=time.monotonic)
    first: float | None = None
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = len(self.parts)


class Engine:
    """Makes completions, and runs other work of the model between their steps.

    `run` is the thread's whole life; every other method may be called from any thread.

    Args:
        desk: makes an empty desk.
        rows: completions that are made at a time.
        queue: completions that may wait beyond those.

    Attributes:
        load: completions that are being made or wait.
        seconds: that a completion takes about, once it has begun.
    """

    def __init__(self, desk: Callable[[], Desk], rows: int, queue: int):
        self._make, self._most, self.rows = desk, rows + queue, rows
        self._wake = threading.Condition()
        self._new: list[Job] = []
        self._gone: list[Job] = []
        self._works: deque[tuple[Callable[[], Any], Future]] = deque()  # one between two steps
        self._jobs: dict[Wish, tuple[Job, Part]] = {}
        self._closed = False
        self.load = 0
        self.seconds = 1.0

    def check(self) -> None:
        """Check that one completion more could be taken on, before much is done for it.

        Raises:
            Refusal: too many wait already, or it is being shut down.
        """
        with self._wake:
            self._check()
            if self.load >= self._most:
                raise self._busy()

    def submit(self, job: Job) -> None:
        """Take on the completions of a request.

        Raises:
            Refusal: too many wait already, or it is being shut down.
        """
        wanted = len(job.parts)
        with self._wake:
            self._check()
            if wanted > self._most:
                raise Refusal(f"The request wants {wanted} completions; at most {self._most} are taken at a time.")
            if self.load + wanted > self._most:
                raise self._busy()
            self.load += wanted
            self._new.append(job)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Forget a request, whose client has gone away; one that has ended is left alone."""
        with self._wake:
            self._gone.append(job)
            self._wake.notify()

    def work(self, work: Callable[[], T]) -> "Future[T]":
        """The result of a short piece of other work with the model, done in the engine's thread.

        Raises:
            Refusal: too much waits already, or it is being shut down.
        """
        future: Future[T] = Future()
        with self._wake:
            self._check()
            if len(self._works) >= self._most:
                raise self._busy()
            self._works.append((work, future))
            self._wake.notify()
        return future

    def close(self) -> None:
        """End the thread after this step; what is not done is refused."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def run(self) -> None:
        """Make completions until `close`."""
        try:
            self._desk = self._make()
            while self._step():
                pass
        finally:  # also where a bug ends it: nobody is left waiting
            self.close()
            why = Refusal("The server is shutting down.", 503)
            self._take_on()
            self._drop(why)
            for _, future in self._works:
                if future.set_running_or_notify_cancel():
                    future.set_exception(why)

    def _step(self) -> bool:
        with self._wake:
            while not (self._new or self._gone or self._works or self._jobs or self._closed):
                self._wake.wait()
            if self._closed:
                return False
            work = self._works.popleft() if self._works else None
        if work is not None and work[1].set_running_or_notify_cancel():
            self._do(*work)
        try:
            for job in self._take_on():
                self._begin(job)
            for job in self._taken_gone():
                for wish in self._end(job):
                    self._desk.cancel(wish)
            if self._jobs:
                self._tell(self._desk.step())
        except FAILURES as error:
            self._drop(failure(error))
            self._desk = self._make()  # what became of the rows is not known
        return True

    def _do(self, work: Callable[[], Any], future: Future) -> None:
        try:
            future.set_result(work())
        except FAILURES as error:
            future.set_exception(failure(error))

    def _take_on(self) -> list[Job]:
        with self._wake:
            jobs, self._new = self._new, []
        self._jobs |= {part.wish: (job, part) for job in jobs for part in job.parts}
        return jobs

    def _taken_gone(self) -> list[Job]:
        with self._wake:
            jobs, self._gone = self._gone, []
        return jobs

    def _begin(self, job: Job) -> None:
        try:
            for part in job.parts:
                self._desk.ask(part.wish)
        except UserError as error:  # it does not fit the memory that there is
            for wish in self._end(job):
                self._desk.cancel(wish)
            job.tell([Refusal(error.problem)])

    def _end(self, job: Job) -> list[Wish]:
        """Forget what is not done of a job: its wishes."""
        wishes = [part.wish for part in job.parts if self._jobs.pop(part.wish, None) is not None]
        for _ in wishes:
            self._count(job)
        return wishes

    def _tell(self, events: Sequence[Event]) -> None:
        told: dict[Job, list[Told]] = {}
        for event in events:
            job, part = self._jobs[event.wish]
            if job.first is None:
                job.first = time.monotonic()
            piece = part.piece(event)
            told.setdefault(job, []).append(piece)
            if piece.finish is not None:
                del self._jobs[event.wish]
                self._count(job)
        for job, pieces in told.items():
            job.tell(pieces)

    def _count(self, job: Job) -> None:
        """A completion has ended."""
        job.left -= 1
        with self._wake:
            self.load -= 1
            if not job.left and job.first is not None:
                self.seconds += 0.2 * (time.monotonic() - job.first - self.seconds)

    def _drop(self, why: Refusal) -> None:
        """Refuse what was begun."""
        for job in dict.fromkeys(job for job, _ in self._jobs.values()):
            self._end(job)
            job.tell([why])

    def _check(self) -> None:
        if self._closed:
            raise Refusal("The server is shutting down.", 503, retry=5)

    def _busy(self) -> Refusal:
        waits = 1 + round(self.seconds * max(0, self.load - self.rows) / self.rows)
        return Refusal(
            f"The server is busy: {self.load} completions are made or wait.", 429, code="rate_limit_exceeded",
            retry=min(60, waits),
        )  # fmt: skip


def failure(error: Exception) -> Refusal:
    """What a client is told where the model fails."""
    said = error.problem if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return Refusal(f"The model failed at this request: {said}", 500)
