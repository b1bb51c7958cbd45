"""The frames of one stream: what arrives is cut into bodies, what is sent is gathered and written at once.

A protocol on whatever transport the carrier has, so that a small call costs no task and no wait of its own. Until a
session takes it over, its frames wait to be fetched one by one: that is how the hello reads them.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from alknet.alpn.streams import Stream
from alknet.call.codecs import JSON, Codec, EncodeError
from alknet.call.envelopes import Envelope
from alknet.call.errors import CallError, FrameError
from alknet.call.frames import HELLO_MAX_FRAME, FrameReader, LengthError, frame
from alknet.logs import event

__all__ = ["MAX_UNREAD_BYTES", "Channel"]

log = logging.getLogger("alknet.call")

FLUSH_BYTES: Final = 64 * 1024
"""What is gathered before it is written without waiting for the end of the event loop's round."""
MAX_UNREAD_BYTES: Final = 4 * 1024 * 1024
"""What may wait for an other side that sends without reading; then its stream is ended."""
CLOSE_TIMEOUT_S: Final = 1.0
"""What the last words may take to be sent to an other side that does not read."""
BODIES_AT_ONCE: Final = 24
"""Bodies of one read that are dealt with in one round of the event loop."""
BYTES_AT_ONCE: Final = 32 * 1024
"""The same in bytes."""
MAX_EARLY_FRAMES: Final = 64
"""Frames that may arrive before the hello asks for them."""


class Channel(asyncio.Protocol):
    """One stream. `on_bodies` gets what arrives once a session has set it, `on_end` hears when nothing more will, and
    `on_fault` ends it when the other side sent what is no frame."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.reader = FrameReader(max_frame=HELLO_MAX_FRAME)
        self.on_bodies: Callable[[Channel, list[bytes]], None] | None = None
        self.on_end: Callable[[Channel], None] = lambda channel: None
        self.on_fault: Callable[[Channel, FrameError], None] = Channel.fail
        self.is_open = True
        self.heard = 0
        """How often something has arrived."""
        self.codec: Codec = JSON
        self.max_outbound = HELLO_MAX_FRAME
        """The largest frame that the other side takes."""
        self.error: FrameError | None = None
        """What was wrong with the other side's bytes, if that ended it."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._early: deque[bytes] = deque()
        self._backlog: list[bytes] = []
        """Bodies of the last read that wait for their turn."""
        self._arrived = asyncio.Event()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._is_full = False
        self._gone = asyncio.Event()
        self._linger_s = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        """Who waits for room."""

    @classmethod
    async def on(cls, stream: Stream, number: int = 0) -> "Channel":
        """The frames of `stream`, which belongs to it from now on."""
        channel = cls(number)
        await stream.attach(channel)
        return channel

    # --- receiving --------------------------------------------------------------------------------------------------

    async def next_body(self) -> bytes:
        """The next frame, before a session takes over; raises `FrameError` when none comes."""
        while not self._early:
            if not self.is_open:
                raise self.error or FrameError("the other side ended the stream")
            self._arrived.clear()
            await self._arrived.wait()
        return self._early.popleft()

    def take_over(
        self, on_bodies: "Callable[[Channel, list[bytes]], None]", on_end: "Callable[[Channel], None]"
    ) -> None:
        """From now on what arrives goes to `on_bodies`, beginning with what has arrived already."""
        self.on_bodies, self.on_end = on_bodies, on_end
        early = list(self._early)
        self._early.clear()
        if early:
            on_bodies(self, early)
        if not self.is_open:
            on_end(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard += 1
        if not self.is_open:
            return
        try:
            self._take(self.reader.feed(data))
        except LengthError as exc:
            self._take(exc.bodies)
            self._go_on(len(self._backlog))
            self.on_fault(self, exc)

    def _go_on(self, count: int | None = None) -> None:
        """Hand over some bodies, and the rest in the event loop's next round: meanwhile the answers to the first ones
        leave, and the other side works on these while this one works on the rest."""
        count = self._at_once() if count is None else count
        bodies, self._backlog = self._backlog[:count], self._backlog[count:]
        if self._backlog:
            self._loop.call_soon(self._go_on)
        if self.on_bodies is not None:
            self.on_bodies(self, bodies)

    def _at_once(self) -> int:
        """How many of the bodies that wait are dealt with in one round: large ones take as long as several calls."""
        size = 0
        for count, body in enumerate(self._backlog[:BODIES_AT_ONCE], 1):
            size += len(body)
            if size >= BYTES_AT_ONCE:
                return count
        return BODIES_AT_ONCE

    def _take(self, bodies: list[bytes]) -> None:
        if self.on_bodies is not None:
            if self._backlog:
                self._go_on(len(self._backlog))
            self._backlog += bodies
            self._go_on()
        elif bodies:
            self._early += bodies
            if len(self._early) > MAX_EARLY_FRAMES:
                self.fail(FrameError("the other side goes on talking before the hello is over"))
            self._arrived.set()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self.is_open:
            self._go_on(len(self._backlog))  # it came before the end
        self._gone.set()
        self._end()

    # --- sending ----------------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether a sender that can wait should wait for `room`."""
        return self._is_full

    async def room(self) -> None:
        """Wait until the other side has taken most of what was sent, and whoever came before has had his turn; returns
        at once when the stream has ended."""
        if (self._is_full or self._waiting) and self.is_open:
            waiter = self._loop.create_future()
            self._waiting.append(waiter)
            await waiter

    def send(self, body: bytes) -> None:
        """Send one frame; what is sent in one round of the event loop travels together. Lost when the stream ends."""
        if not self.is_open or self._transport is None:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frame(body))
        self._out_bytes += len(body)
        if self._out_bytes > FLUSH_BYTES:
            self._flush()

    def say(self, envelope: Envelope) -> None:
        """Send an envelope; raises `CallError` as `encode` does."""
        self.send(self.encode(envelope))

    def encode(self, envelope: Envelope) -> bytes:
        """The body that says it; raises `CallError` if there is none, or one too large for the other side."""
        try:
            body = self.codec.encode(envelope)
        except EncodeError as exc:
            raise CallError("INVALID_INPUT", f"this value cannot be sent: {exc}") from exc
        if len(body) > self.max_outbound:
            raise CallError(
                "RESOURCE_EXHAUSTED",
                f"{len(body)} bytes are more than the {self.max_outbound} that fit in one message; larger values travel"
                " in pieces, as a subscription",
                retryable=False,
            )
        return body

    def post(self, envelope: Envelope | None) -> None:
        """Send an envelope if there is one, that is always small and well formed."""
        if envelope is not None:
            try:
                self.say(envelope)
            except CallError as exc:  # details of an error that a handler made up
                log.error(event("an envelope cannot be sent", type=envelope["type"], reason=exc))

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
            self._transport.write(data)
            if self._is_full and self._transport.get_write_buffer_size() > MAX_UNREAD_BYTES + len(data):
                self.fail(FrameError("the other side sends and does not read"))

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._next_turn()

    def _next_turn(self) -> None:
        """Let the one go on who has waited longest, and the next one in the event loop's next round: then what the
        first one has sent is seen, which may be all that there is room for."""
        while self._waiting and not self._is_full:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                if self._waiting:
                    self._loop.call_soon(self._next_turn)
                return

    # --- the end ----------------------------------------------------------------------------------------------------

    def close(self, *, linger_s: float = 0.0) -> None:
        """Send what is left, and end the stream. With `linger_s`, wait so long for the other side's end first: over
        TCP, what it still sends to a socket that is closed would take back what it has not read yet (RFC 1122 section
        4.2.2.13)."""
        if self._transport is not None:
            self._flush()
            if linger_s and self.is_open and self._transport.can_write_eof():
                self._linger_s = linger_s
                self._transport.write_eof()
                self._loop.call_later(linger_s, self._transport.close)
            else:
                self._transport.close()
        self._end()

    async def wait_closed(self) -> None:
        """Wait until what was sent before `close` is on its way, at most `CLOSE_TIMEOUT_S` or as long as it lingers."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(self._linger_s, CLOSE_TIMEOUT_S)):
                await self._gone.wait()

    def fail(self, error: FrameError) -> None:
        """The other side's fault: end the stream at once."""
        self.error = self.error or error
        self.abort()

    def abort(self) -> None:
        """End the stream at once; what is unsent is lost."""
        if self._transport is not None:
            self._out.clear()
            self._transport.abort()
        self._end()

    def _end(self) -> None:
        self._backlog.clear()
        if self.is_open:
            self.is_open = False
            self._arrived.set()
            self._wake()
            self.on_end(self)

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
