"""QUIC as a carrier: a `Connection` of many streams, driven by datagrams and a timer.

`QuicConnection` pumps an `Engine`: it is given datagrams (`receive`, then `progressed` once for all of them), sends
what the engine wants sent through its `Link`, and keeps the engine's time. Streams wait on it with futures; nothing
here starts a task.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from alknet.access import Identity
from alknet.alpn.attach import StreamTransport
from alknet.alpn.errors import ConnectionClosed, StreamBroken, StreamClosed, StreamsExhausted
from alknet.alpn.quic import Datagrams, Engine
from alknet.alpn.streams import READ_SIZE, Address, BaseConnection, ChannelBinding

__all__ = ["KEEPALIVE_S", "Link", "QuicConnection", "QuicStream"]

KEEPALIVE_S: Final = 20.0
"""A connection that has heard nothing for so long asks whether the other side is there; NATs forget after 30 s."""


class Link(Protocol):
    """Where a connection's datagrams go."""

    def send(self, datagrams: Datagrams, connection: "QuicConnection") -> None:
        """Send, or drop; never waits."""

    @property
    def is_blocked(self) -> bool:
        """The system takes no more now; `send` again when `QuicConnection.flush` is called."""

    def cid_issued(self, cid: bytes, connection: "QuicConnection") -> None:
        """Datagrams to `cid` are for `connection`."""

    def cid_retired(self, cid: bytes) -> None: ...
    def over(self, connection: "QuicConnection") -> None:
        """The connection needs no datagrams any more."""


class QuicConnection(BaseConnection):
    """One QUIC connection; `on_established` hears when the handshake is completed, `alpn` is known then."""

    def __init__(
        self,
        engine: Engine,
        link: Link,
        *,
        remote: Address,
        local: Address | None,
        on_established: Callable[["QuicConnection"], None],
        on_login: Callable[[], None] | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(alpn="", transport="quic", remote=remote, local=local, on_login=on_login)
        self.engine = engine
        self.is_established = False
        self.close_reason: tuple[int, str] | None = None
        """What ended it, whoever did."""
        self._link = link
        self._on_established = on_established
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, QuicStream] = {}
        self._incoming: deque[QuicStream] = deque()
        self._arrived = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._flush_is_due = False
        self._heard_at = time.monotonic()
        self._keepalive: asyncio.TimerHandle | None = None

    # --- the contract -----------------------------------------------------------------------------------------

    def logged_in(self, identity: Identity) -> None:
        super().logged_in(identity)
        self.engine.trust()
        self.flush_soon()

    async def open_stream(self) -> "QuicStream":
        self._check_open()
        stream_id = self.engine.open_stream()
        if stream_id is None:
            raise StreamsExhausted("as many streams as one side may have are open")
        self.flush_soon()
        return self._add(stream_id)

    async def accept_stream(self) -> "QuicStream":
        while not self._incoming:
            self._check_open()
            self._arrived.clear()
            await self._arrived.wait()
        self._check_open()
        return self._incoming.popleft()

    def close(self, code: int = 0, reason: str = "") -> None:
        if self._closed.is_set():
            return
        for stream in tuple(self._streams.values()):
            stream.cut()
        self.engine.close(code, reason)
        self.flush()
        self._ended(code, reason)

    # --- being driven -----------------------------------------------------------------------------------------

    def receive(self, data: bytes, address: Any, now: float) -> None:
        """A datagram for this connection; `progressed` follows when there are no more."""
        self._heard_at = now
        self.engine.receive(data, address, now)

    def progressed(self) -> None:
        """Deal with what was received, or what the timer has caused."""
        self.engine.pump(self)
        for stream in tuple(self._streams.values()):
            stream.maybe_wake_writer()
        self.flush()

    def flush_soon(self) -> None:
        """Send what is to be sent when the code that runs now has ended."""
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        self._flush_is_due = False
        if self._link.is_blocked:
            return
        datagrams = self.engine.datagrams(time.monotonic())
        if datagrams:
            self._link.send(datagrams, self)
        self._set_timer()

    def abandon(self) -> None:
        """Forget the connection without a word to the other side."""
        self.terminated()

    def _set_timer(self) -> None:
        at = self.engine.timer()
        if at is None:
            return
        if self._timer is not None:
            if self._timer_at <= at:
                return  # it fires in time, and looks again
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - time.monotonic()), self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        now, at = time.monotonic(), self.engine.timer()
        if at is not None and at <= now:
            self.engine.handle_timer(now)
            self.progressed()
        else:
            self._set_timer()

    def _keep_alive(self) -> None:
        quiet = time.monotonic() - self._heard_at
        if quiet >= KEEPALIVE_S:
            self.engine.ping()
            self.flush_soon()
            quiet = 0.0
        self._keepalive = self._loop.call_later(KEEPALIVE_S - quiet, self._keep_alive)

    # --- QuicEvents -------------------------------------------------------------------------------------------

    def handshake_completed(self, alpn: str) -> None:
        self.alpn = alpn
        self.is_established = True
        self.channel_binding = ChannelBinding("tls-spki", self.engine.spki)
        self._keepalive = self._loop.call_later(KEEPALIVE_S, self._keep_alive)
        self._on_established(self)

    def stream_opened(self, stream_id: int) -> None:
        stream = self._add(stream_id)
        if self._closed.is_set():
            stream.reset()
            return
        self._incoming.append(stream)
        self._arrived.set()

    def data_received(self, stream_id: int, data: bytes, is_last: bool) -> None:
        self._streams[stream_id].data_received(data, is_last)

    def stream_reset(self, stream_id: int) -> None:
        self._streams[stream_id].was_reset()

    def stream_stopped(self, stream_id: int) -> None:
        if stream_id in self._streams:
            self._streams[stream_id].was_stopped()

    def cid_issued(self, cid: bytes) -> None:
        self._link.cid_issued(cid, self)

    def cid_retired(self, cid: bytes) -> None:
        self._link.cid_retired(cid)

    def closing(self, code: int, reason: str) -> None:
        self._ended(code, reason)

    def terminated(self) -> None:
        for timer in (self._timer, self._keepalive):
            if timer is not None:
                timer.cancel()
        self._ended(0, "")
        self._link.over(self)

    # --- streams ----------------------------------------------------------------------------------------------

    def forget(self, stream_id: int) -> None:
        """Both directions of a stream are over, and nothing is kept of it."""
        self._streams.pop(stream_id, None)

    def replace(self, stream_id: int, stream: "QuicStream") -> None:
        self._streams[stream_id] = stream

    def _add(self, stream_id: int) -> "QuicStream":
        stream = self._streams[stream_id] = QuicStream(self, stream_id)
        return stream

    def _ended(self, code: int, reason: str) -> None:
        if self._closed.is_set():
            return
        self.close_reason = (code, reason)
        self._closed.set()
        self._arrived.set()
        for stream in tuple(self._streams.values()):
            stream.connection_ended()
        self._incoming.clear()
        if self._on_closed is not None:
            self._on_closed()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ConnectionClosed("the connection has ended")


class QuicStream:
    """One bidirectional stream."""

    def __init__(self, connection: QuicConnection, stream_id: int, handle: "QuicStream | None" = None) -> None:
        self._handle = handle
        """The stream that its user holds, where this is the one that a transport pumps."""
        self._connection = connection
        self._engine = connection.engine
        self._id = stream_id
        self._unread = bytearray()
        self._received = 0
        self._fin_received = False
        self._is_broken = False
        """The other side reset it, or its connection ended."""
        self._is_stopped = False
        """The other side reads no more."""
        self._fin_sent = False
        self._is_closed = False
        self._is_settled = False
        self._in_use = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._transport: StreamTransport | None = None

    # --- the contract -----------------------------------------------------------------------------------------

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        self._use()
        while not (self._unread or self._fin_received or self._is_broken):
            self._reader = self._reader or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._reader)
            self._check_open()
        if self._is_broken and not self._fin_received:
            raise StreamBroken("the other side reset the stream, or its connection ended")
        data = bytes(self._unread[:max_bytes])
        del self._unread[:max_bytes]
        self._credit(len(data))
        return data

    async def write(self, data: bytes) -> None:
        self._use()
        rest = memoryview(data)
        while True:
            self._check_writable()
            if not rest:
                return
            room = self._engine.room(self._id)
            if room <= 0:
                await self._wait_for_room()
                continue
            self._engine.write(self._id, bytes(rest[:room]))
            self._connection.flush_soon()
            rest = rest[room:]

    async def write_eof(self) -> None:
        self._use()
        self._finish()

    def reset(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        elif not self._is_closed:
            self._engine.reset(self._id)
            self._stop_reading()
            self._connection.flush_soon()

    async def aclose(self) -> None:
        if self._transport is not None:
            self._transport.close()
            return
        if not self._is_closed:
            self._finish()
            self._stop_reading()
            self._connection.flush_soon()
        while not (self._engine.is_sent(self._id) or self._is_stopped or self._connection._closed.is_set()):
            await self._wait_for_room()

    async def attach(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        self._check_open()
        if self._in_use:
            raise StreamClosed("the stream is in use already")
        self._in_use = True
        pumped = QuicStream(self._connection, self._id, handle=self)
        pumped._unread, pumped._received = self._unread, self._received
        pumped._fin_received, pumped._is_broken = self._fin_received, self._is_broken
        pumped._is_stopped, pumped._is_settled = self._is_stopped, self._is_settled
        self._connection.replace(self._id, pumped)
        self._transport = StreamTransport.start(pumped, protocol)
        return self._transport

    # --- what the connection tells ----------------------------------------------------------------------------

    def cut(self) -> None:
        """This side closes the connection."""
        (self._handle or self).reset()

    def data_received(self, data: bytes, is_last: bool) -> None:
        self._received += len(data)
        self._fin_received = is_last
        if self._is_closed:
            self._credit(len(data))  # nobody reads it, so it must not count against the other streams
        else:
            self._unread += data
            self._wake_reader()
        self._maybe_settle()

    def was_reset(self) -> None:
        self._is_broken = True
        self._fin_received = False
        self._drop_unread()
        self._settle()
        self.wake()

    def was_stopped(self) -> None:
        self._is_stopped = True
        self.wake()

    def connection_ended(self) -> None:
        self._is_broken = True
        self.wake()

    def maybe_wake_writer(self) -> None:
        if self._writer is not None and (
            self._engine.room(self._id) > 0 or (self._is_closed and self._engine.is_sent(self._id))
        ):
            self._wake_writer()
        if self._is_closed and self._is_settled and self._engine.is_sent(self._id):
            self._connection.forget(self._id)

    def wake(self) -> None:
        """Something has changed: let whoever waits look again."""
        self._wake_reader()
        self._wake_writer()

    # --- inside -----------------------------------------------------------------------------------------------

    def _wake_reader(self) -> None:
        if self._reader is not None:
            self._reader.set_result(None)
            self._reader = None

    def _wake_writer(self) -> None:
        if self._writer is not None:
            self._writer.set_result(None)
            self._writer = None

    async def _wait_for_room(self) -> None:
        self._writer = self._writer or asyncio.get_running_loop().create_future()
        await asyncio.shield(self._writer)

    def _finish(self) -> None:
        if not (self._fin_sent or self._is_broken or self._is_stopped):
            self._engine.write(self._id, b"", is_last=True)
            self._connection.flush_soon()
        self._fin_sent = True

    def _stop_reading(self) -> None:
        """This side is done with the stream."""
        self._is_closed = True
        if not self._fin_received:
            self._engine.stop(self._id)
        self._drop_unread()
        self._maybe_settle()
        self.wake()

    def _drop_unread(self) -> None:
        dropped = len(self._unread)
        self._unread.clear()
        self._credit(dropped)

    def _credit(self, count: int) -> None:
        if count and not self._is_settled and self._engine.consumed(self._id, count):
            self._connection.flush_soon()
        self._maybe_settle()

    def _maybe_settle(self) -> None:
        if self._fin_received and not self._unread:
            self._settle()

    def _settle(self) -> None:
        if not self._is_settled:
            self._is_settled = True
            self._engine.settled(self._id, self._received)
            self._connection.flush_soon()

    def _check_writable(self) -> None:
        self._check_open()
        if self._fin_sent:
            raise StreamClosed("the stream was finished by this side")
        if self._is_stopped or (self._is_broken and not self._fin_received):
            raise StreamBroken("the other side reset the stream, or its connection ended")
        if self._connection._closed.is_set():
            raise StreamBroken("the connection has ended")

    def _use(self) -> None:
        self._check_open()
        self._in_use = True

    def _check_open(self) -> None:
        if self._is_closed or self._transport is not None:
            raise StreamClosed("the stream was closed by this side, or handed to a protocol")
