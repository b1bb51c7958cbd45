"""What the ASGI side of MCP reads and writes besides what the SDK does."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

from starlette.types import Message, Receive, Send

from alknet.call.codecs import JSON
from alknet.tasks import Tasks

__all__ = ["MAX_BODY_BYTES", "Patient", "Watched", "answer", "dropped", "nothing", "read_body", "refuse", "replayed"]

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
"""Of a message; the gateway's own limit may be lower."""
_PING: Final = b": ping\r\n\r\n"
_HEADERS: Final = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))
_STREAM: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None for one above `limit` bytes, and for one whose client left."""
    parts, size, is_more = [], 0, True
    while is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return None
        is_more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that begins with a body that was read already."""
    is_first = True

    async def receive_again() -> Message:
        nonlocal is_first
        if is_first:
            is_first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receive_again


async def answer(send: Send, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """A whole answer."""
    fields = [*_HEADERS, (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, status: int, code: int, words: str) -> None:
    """An answer that belongs to no request: a JSON-RPC error without an id."""
    error: dict[str, Any] = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": words}}
    await answer(send, status, JSON.encode(error))


class Patient:
    """The answer to a client that takes JSON and event streams: JSON, or, where it is not there at the second `pulse`,
    an event stream that is kept alive until it is, so that nothing in between takes the connection for dead. The SDK
    does the same. `headers` go with either."""

    __slots__ = ("_has_begun", "_has_waited", "_headers", "_pinging", "_send")

    def __init__(self, send: Send, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self._has_waited = False
        self._has_begun = False
        self._pinging: asyncio.Task[None] | None = None

    def pulse(self, tasks: Tasks) -> None:
        """Keep the client waiting. To be called now and then until there is an answer, or will be none."""
        if not self._has_waited:
            self._has_waited = True
        elif self._pinging is None or self._pinging.done():  # else the client reads nothing
            self._pinging = tasks.start(self._ping(), name="ping")

    async def answer(self, body: bytes) -> None:
        """Send the message."""
        if self._pinging is None:
            return await answer(self._send, 200, body, self._headers)
        await self._pinging
        event = b"event: message\r\ndata: %b\r\n\r\n" % body  # JSON text has no line breaks of its own
        return await self._send({"type": "http.response.body", "body": event})

    async def _ping(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": [*_STREAM, *self._headers]})
        await self._send({"type": "http.response.body", "body": _PING, "more_body": True})


class Watched:
    """A `send` that remembers what was answered; `begun` hears of status and headers before the client does."""

    def __init__(self, send: Send, begun: Callable[[int, dict[bytes, bytes]], None] | None = None) -> None:
        self._send = send
        self._begun = begun
        self.is_over = False
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._begun is not None:
                self._begun(message["status"], dict(message["headers"]))
        elif message["type"] == "http.response.body":
            self.is_over = not message.get("more_body", False)
        await self._send(message)

    async def finish(self) -> None:
        """End an answer that was cut short."""
        if self.status is not None and not self.is_over:
            await self({"type": "http.response.body", "body": b""})


async def nothing() -> Message:
    """The `receive` of a request that nobody sent."""
    return {"type": "http.disconnect"}


async def dropped(message: Message) -> None:
    """The `send` of a request that nobody sent."""
