"""Run: a server from its first connection to its last, with the model in a thread of its own."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import uvicorn

from llmctl.core.serve.app import Server

SIGNALS = (signal.SIGINT, signal.SIGTERM)
CONNECTIONS = 1000  # open at a time; beyond them uvicorn answers 503
SWITCH = 0.0005  # seconds after which a thread lets another one run Python
TIDY = 3.0  # seconds for refusals to be read, after those of --grace


def run(server: Server, listener: socket.socket, ready: Callable[[], None], say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; then let nobody in, and finish what was begun, for --grace seconds at most.

    A second signal ends it at once.

    Args:
        ready: called when clients are let in.
        say: told what goes on.

    Raises:
        Exception: what ended the model's thread, where a bug did.
    """
    logging.getLogger("uvicorn.error").addHandler(_Lines(say))
    sys.setswitchinterval(SWITCH)  # or the model, back from a step, waits 5 ms while answers are written
    asyncio.run(_served(server, listener, ready, say))


class _Uvicorn(uvicorn.Server):
    """Uvicorn, whose signals are ours."""

    ready: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Opens the doors, and says so."""
        await super().startup(sockets)
        self.ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves them alone."""
        yield


class _Lines(logging.Handler):
    """What uvicorn logs, a line each, and the traceback where there is one."""

    def __init__(self, say: Callable[[str], None]):
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Says it."""
        self._say(self.format(record))


async def _served(
    server: Server, listener: socket.socket, ready: Callable[[], None], say: Callable[[str], None]
) -> None:
    loop, serving = asyncio.get_running_loop(), server.serving
    config = uvicorn.Config(
        server.app(),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=max(1, round(serving.grace + TIDY)),
    )
    web = _Uvicorn(config)
    web.ready = ready
    pool = ThreadPoolExecutor(1, "engine")

    def stop() -> None:
        if web.should_exit:
            web.force_exit = True
            server.engine.close()
            return
        web.should_exit = True
        if server.engine.load:
            say(f"finishing {server.engine.load} completions; Ctrl-C again ends at once.")
        loop.call_later(serving.grace, server.engine.close)

    def ended(_: object) -> None:
        server.alive = False
        web.should_exit = True

    for number in SIGNALS:
        loop.add_signal_handler(number, stop)
    model = loop.run_in_executor(pool, server.engine.run)
    model.add_done_callback(ended)
    try:
        await web.serve([listener])
    finally:
        server.engine.close()
        await asyncio.wait([model])
        pool.shutdown(wait=False)
    model.result()
