"""Subscriptions as server-sent events (the `text/event-stream` of the HTML standard).

Each item is an event with an ``id`` and the item as JSON. How it ended is an event, too: ``completed``, or ``error``
with the problem document; a stream that ends without either was lost.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from alknet.call.codecs import JSON, EncodeError
from alknet.call.errors import CallError
from alknet.call.prepared import Prepared
from alknet.gateway.calls import Calls
from alknet.gateway.exchange import NO_STORE, REQUEST_ID, Exchange
from alknet.gateway.problems import problem_of, status_of
from alknet.tasks import Tasks

__all__ = ["EVENT_STREAM", "EventStreams"]

EVENT_STREAM: Final = b"text/event-stream"
KEEP_ALIVE_S: Final = 15.0
"""How often a comment is sent to clients that wait, so that nothing in between takes the connection for dead."""
FIRST_ITEM_PATIENCE_S: Final = 0.5
"""So long a handler may take to refuse with a real HTTP status; then the stream begins."""
MAX_LAST_EVENT_ID: Final = 2**53
COMMENT: Final = b": keep-alive\n\n"


class EventStreams:
    """The event streams that are open, and the pulse that keeps them so."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._open: set[_EventStream] = set()
        self._tasks = Tasks("event-streams")

    def start(self) -> None:
        self._tasks.start(self._pulse(), name="pulse")

    async def aclose(self) -> None:
        await self._tasks.aclose()

    async def serve(self, exchange: Exchange, prepared: Prepared) -> None:
        """Answer with the items of `prepared`, a subscription; raises `CallError` only before anything was sent."""
        stream = _EventStream(exchange, prepared)
        self._open.add(stream)
        opener = asyncio.get_running_loop().call_later(
            FIRST_ITEM_PATIENCE_S, lambda: self._tasks.start(stream.begin(), name="begin")
        )
        try:
            await stream.send_all(self._calls.stream(prepared))
        finally:
            opener.cancel()
            self._open.discard(stream)

    async def _pulse(self) -> None:
        while True:
            await asyncio.sleep(KEEP_ALIVE_S)
            for stream in tuple(self._open):
                if stream.is_quiet():
                    # A task for each: a client that reads nothing holds up no other.
                    self._tasks.start(stream.keep_alive(), name="keep-alive")


class _EventStream:
    def __init__(self, exchange: Exchange, prepared: Prepared) -> None:
        self._exchange = exchange
        self._prepared = prepared
        self._next_id = _after(exchange.header(b"last-event-id"))
        self._is_idle = True
        self._is_over = False
        self._turn = asyncio.Lock()
        """Of what is sent: it may have to wait for the client, and comes from more than one task."""

    async def send_all(self, items: AsyncGenerator[Any, None]) -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    self._is_idle = False
                    await self._event(b"id: %d\ndata: " % self._next_id, _encoded(item))
                    self._next_id += 1
            await self._event(b"event: completed\ndata: ", b"{}")
        except CallError as exc:
            if not self._exchange.has_begun:
                raise
            error = exc
        else:
            await self._end()
            return
        status = status_of(error, self._prepared.operation.spec, is_anonymous=self._exchange.identity is None)
        body, _, _ = problem_of(error, status, self._prepared.act.request_id)
        await self._event(b"event: error\ndata: ", body)
        await self._end()

    async def begin(self) -> None:
        """Say that the subscription runs."""
        async with self._turn:
            await self._begin()

    async def _begin(self) -> None:
        exchange = self._exchange
        if exchange.has_begun or self._is_over:
            return
        exchange.has_begun = True
        headers = [(b"content-type", EVENT_STREAM), *NO_STORE, (b"x-accel-buffering", b"no"), *exchange.more_headers]
        headers.append((REQUEST_ID, self._prepared.act.request_id.encode("ascii")))
        await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
        await exchange.send({"type": "http.response.body", "body": COMMENT, "more_body": True})

    def is_quiet(self) -> bool:
        """Whether nothing was sent since the last time that this was asked, and nothing waits to be."""
        was_idle, self._is_idle = self._is_idle, True
        return was_idle and self._exchange.has_begun and not self._is_over and not self._turn.locked()

    async def keep_alive(self) -> None:
        """Send a comment."""
        async with self._turn:
            if not self._is_over:
                await self._exchange.send({"type": "http.response.body", "body": COMMENT, "more_body": True})

    async def _event(self, head: bytes, data: bytes) -> None:
        async with self._turn:
            await self._begin()
            body = b"%b%b\n\n" % (head, data)
            await self._exchange.send({"type": "http.response.body", "body": body, "more_body": True})

    async def _end(self) -> None:
        async with self._turn:
            self._is_over = True
            await self._exchange.send({"type": "http.response.body", "body": b""})


def _encoded(item: Any) -> bytes:
    """One line: JSON text has no line breaks of its own."""
    try:
        return JSON.encode(item)
    except EncodeError as exc:
        raise CallError("INTERNAL", f"an item cannot be sent: {exc}") from exc


def _after(last_event_id: str | None) -> int:
    """Numbers go on after what the client has seen, so that its next Last-Event-ID is right as well."""
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
        return min(int(last_event_id[:20]), MAX_LAST_EVENT_ID) + 1
    return 1
