"""One stream of a QUIC connection."""

import asyncio
from typing import TYPE_CHECKING

from alknet.alpn.attach import StreamTransport
from alknet.alpn.errors import StreamBroken, StreamClosed
from alknet.alpn.streams import READ_SIZE

if TYPE_CHECKING:
    from alknet.alpn.quic_connection import QuicConnection

__all__ = ["QuicStream"]


class QuicStream:
    """One bidirectional stream."""

    def __init__(self, connection: "QuicConnection", stream_id: int, handle: "QuicStream | None" = None) -> None:
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
        while not (self._engine.is_sent(self._id) or self._is_stopped or self._connection.has_ended):
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
        self.check_over()

    def check_over(self) -> None:
        if self._is_settled and self._engine.is_sent(self._id):
            self._connection.over(self._id)
            if self._is_closed:
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
        self.check_over()

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
            self.check_over()

    def _check_writable(self) -> None:
        self._check_open()
        if self._fin_sent:
            raise StreamClosed("the stream was finished by this side")
        if self._is_stopped or (self._is_broken and not self._fin_received):
            raise StreamBroken("the other side reset the stream, or its connection ended")
        if self._connection.has_ended:
            raise StreamBroken("the connection has ended")

    def _use(self) -> None:
        self._check_open()
        self._in_use = True

    def _check_open(self) -> None:
        if self._is_closed or self._transport is not None:
            raise StreamClosed("the stream was closed by this side, or handed to a protocol")
