"""Gate: what every request passes: who may come in, what is counted, and what a log says of it."""

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from llmctl.core.serve.metrics import Metrics
from llmctl.core.serve.refusal import Refusal
from llmctl.core.serve.respond import Message, Receive, Send, refused
from llmctl.spec.serve import is_local

App = Callable[[Message, Receive, Send], Awaitable[None]]
ABORTED = 499  # what nginx logs where the client went away; it is never sent
BROKEN = 500  # what is sent after a bug, by those who called


class Gate:
    """An ASGI application before another.

    Args:
        keys: of which a request must hold one; none: anybody may come.
        hosts: by which this server is called; none: any.
        paths: that are known, for the metrics.
        log: told a line of each request.
    """

    def __init__(
        self,
        app: App,
        keys: Sequence[str],
        hosts: frozenset[str] | None,
        paths: frozenset[str],
        metrics: Metrics,
        log: Callable[[str], None],
    ):
        self.app, self.keys, self.hosts, self.metrics = app, [key.encode() for key in keys], hosts, metrics
        self.paths, self.log = paths, log

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Lets a request in, or refuses it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), BROKEN

        async def counted(message: Message) -> None:
            nonlocal status
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]

        app = self.app
        try:
            self._check(scope)
        except Refusal as why:
            app = refused(why)
        try:
            await app(scope, receive, counted)
        except asyncio.CancelledError:  # its client is cut off, at the end
            status = ABORTED
            raise
        finally:
            seconds, path = time.monotonic() - began, scope["path"]
            self.metrics.requests[path if path in self.paths else "other", status] += 1
            notes = " ".join(scope.get("state", {}).get("notes", ()))
            self.log(f"{scope['method']} {path!a} {status} {seconds:.3f} s {notes}".replace("'", "").rstrip())

    def _check(self, scope: Message) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts is not None and host and not (is_local(_name(host)) or _name(host) in self.hosts):
            # A page in a browser may have a name of its own point here, and would be let read the answers. Without
            # any name, as HTTP 1.0 lets probes ask, it is no browser.
            raise Refusal(f"This server is not called {host!r}.", 421)
        if "origin" in headers and not _own(headers["origin"], _name(host)):
            # A page may send requests to any server, though it cannot read the answers.
            raise Refusal("Pages of other sites may not ask this server.", 403)
        if self.keys and scope["path"] != "/health":
            kind, _, key = headers.get("authorization", "").partition(" ")
            given = key.strip().encode("utf-8", "replace") if kind.lower() == "bearer" else b""
            if not any(hmac.compare_digest(given, one) for one in self.keys):
                said = "The API key is not valid." if given else "There is no API key: Authorization: Bearer KEY."
                raise Refusal(said, 401, code="invalid_api_key")


def _name(host: str) -> str:
    """The host of HOST:PORT."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _own(origin: str, name: str) -> bool:
    """Whether a page is this machine's, or comes from a server of the same name."""
    try:
        found = urlsplit(origin).hostname
    except ValueError:
        return False
    return bool(found) and (is_local(found) or found == name)
