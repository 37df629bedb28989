"""Respond: the ways in which an answer leaves the server, each of which ends when the client goes away."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import anyio
import orjson
from starlette.responses import Response

from llmctl.core.serve.refusal import Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Gone(Exception):
    """The client has gone away, or takes nothing."""


class Json(Response):
    """An object as JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Its bytes."""
        return orjson.dumps(content)


def refused(why: Refusal) -> Json:
    """A refusal as an answer."""
    return Json(why.body, why.status, why.headers)


class Events(Response):
    """A stream of server-sent events.

    Args:
        parts: the bytes of one or more events at a time.
        stall: seconds after which a client that takes nothing is given up.
        gone: called when it went away before the end.
    """

    def __init__(self, parts: AsyncIterator[bytes], stall: float, gone: Callable[[], None]):
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self.parts, self.stall, self.gone = parts, stall, gone

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Sends it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await until_gone(self._send(send), receive)
        except (Gone, TimeoutError):
            self.gone()

    async def _send(self, send: Send) -> None:
        async for part in self.parts:
            with anyio.fail_after(self.stall):  # asyncio.wait_for may lose a cancellation before Python 3.12
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_gone(work: Awaitable[Any], receive: Receive) -> Any:
    """The result of the work.

    Args:
        receive: of ASGI, after the whole request was read.

    Raises:
        Gone: the client went away before.
    """
    task, listening = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((task, listening), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        task.cancel()
        listening.cancel()
        await asyncio.wait((task, listening))


async def body_of(receive: Receive, length: str | None, most: int, stall: float) -> bytes:
    """The body of a request.

    Args:
        length: its header Content-Length.
        most: bytes.
        stall: seconds in which the next part has to come.

    Raises:
        Refusal: it is too large, or comes too slowly.
        Gone: the client went away.
    """
    large = Refusal(f"The request is larger than {most} bytes.", 413, code="request_too_large")
    if length is not None and length.isdigit() and int(length) > most:
        raise large
    parts, size = [], 0
    while True:
        try:
            with anyio.fail_after(stall):
                message = await receive()
        except TimeoutError:
            raise Refusal(f"Nothing came for {stall:g} seconds.", 408) from None
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise large
        if not message.get("more_body", False):
            return b"".join(parts)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
