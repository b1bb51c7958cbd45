"""An in-memory `Connection` pair: a carrier without sockets, for tests and for embedding.

    dialer, listener = memory_pair(alpn="alknet/ssh")

Both ends may open streams. It keeps every promise of the contract, backpressure included, so that what works over
it works over the others. What a stream sent before it was closed can be read after its connection has ended.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable

from alknet.alpn.attach import StreamTransport
from alknet.alpn.errors import ConnectionClosed, StreamBroken, StreamClosed
from alknet.alpn.streams import MAX_BUFFERED_BYTES, READ_SIZE, Address, BaseConnection, ChannelBinding

__all__ = ["MemoryConnection", "MemoryStream", "memory_pair"]


def memory_pair(*, alpn: str, remote: Address | None = None) -> tuple["MemoryConnection", "MemoryConnection"]:
    """Two connected ends: the dialer's and the listener's. `remote` is what the listener sees as the dialer."""
    dialer = MemoryConnection(alpn=alpn, transport="memory", remote=None)
    listener = MemoryConnection(alpn=alpn, transport="memory", remote=remote)
    dialer.channel_binding = listener.channel_binding = ChannelBinding("memory", secrets.token_bytes(32))
    dialer.other, listener.other = listener, dialer
    return dialer, listener


class MemoryConnection(BaseConnection):
    """One end of a pair."""

    other: "MemoryConnection"

    def __init__(self, *, alpn: str, transport: str, remote: Address | None) -> None:
        super().__init__(alpn=alpn, transport=transport, remote=remote)
        self._incoming: deque[MemoryStream] = deque()
        self._arrived = asyncio.Event()
        self._streams: set[MemoryStream] = set()

    async def open_stream(self) -> "MemoryStream":
        if self._closed.is_set():
            raise ConnectionClosed("the connection has ended")
        there, back = _Pipe(), _Pipe()
        theirs = self.other._add(there, back)
        self.other._incoming.append(theirs)
        self.other._arrived.set()
        return self._add(back, there)

    async def accept_stream(self) -> "MemoryStream":
        while not self._incoming:
            if self._closed.is_set():
                raise ConnectionClosed("the connection has ended")
            self._arrived.clear()
            await self._arrived.wait()
        return self._incoming.popleft()

    def close(self, code: int = 0, reason: str = "") -> None:
        for stream in tuple(self._streams):
            stream.reset()
        self._incoming.clear()
        for end in (self, self.other):
            if not end._closed.is_set():
                end.close_reason = (code, reason)
                end._closed.set()
                end._arrived.set()

    def _add(self, incoming: "_Pipe", outgoing: "_Pipe") -> "MemoryStream":
        stream = MemoryStream(incoming, outgoing, on_end=self._streams.discard)
        self._streams.add(stream)
        return stream


class _Pipe:
    """One direction: a bounded buffer between a writer and a reader."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.finished = False
        self.broken = False
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Something about the pipe has changed: let whoever waits look again."""
        self._changed.set()
        self._changed.clear()

    async def changed(self) -> None:
        await self._changed.wait()


class MemoryStream:
    """One end of a stream between two `MemoryConnection`; `on_end` hears when this side has closed or reset it."""

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, *, on_end: Callable[["MemoryStream"], None]) -> None:
        self._in = incoming
        self._out = outgoing
        self._on_end = on_end
        self._is_closed = False
        self._in_use = False
        self._transport: StreamTransport | None = None

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        self._use()
        pipe = self._in
        while not pipe.buffer and not pipe.finished and not pipe.broken:
            await pipe.changed()
        self._check_open()
        if pipe.broken:
            raise StreamBroken("the other side reset the stream")
        data = bytes(pipe.buffer[:max_bytes])
        del pipe.buffer[:max_bytes]
        pipe.wake()
        return data

    async def write(self, data: bytes) -> None:
        self._use()
        pipe, rest = self._out, memoryview(data)
        while rest:
            while len(pipe.buffer) >= MAX_BUFFERED_BYTES and not (pipe.broken or pipe.finished):
                await pipe.changed()
            self._check_open()
            if pipe.finished:
                raise StreamClosed("the stream was finished by this side")
            if pipe.broken:
                raise StreamBroken("the other side reset the stream")
            room = MAX_BUFFERED_BYTES - len(pipe.buffer)
            pipe.buffer += rest[:room]
            rest = rest[room:]
            pipe.wake()

    async def write_eof(self) -> None:
        self._use()
        self._out.finished = True
        self._out.wake()

    def reset(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        elif not self._is_closed:
            for pipe in (self._in, self._out):
                if pipe.buffer or not pipe.finished:
                    pipe.broken = True
                pipe.buffer.clear()
            self._closed()

    async def aclose(self) -> None:
        if self._transport is not None:
            self._transport.close()
        elif not self._is_closed:
            self._out.finished = True
            self._in.broken = True  # nobody here reads any more: the other side's writes fail
            self._in.buffer.clear()
            self._closed()

    async def attach(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        self._check_open()
        if self._in_use:
            raise StreamClosed("the stream is in use already")
        self._in_use = True
        pumped = MemoryStream(self._in, self._out, on_end=lambda _: self._on_end(self))
        self._transport = StreamTransport.start(pumped, protocol)
        return self._transport

    def _use(self) -> None:
        self._check_open()
        self._in_use = True

    def _check_open(self) -> None:
        if self._is_closed or self._transport is not None:
            raise StreamClosed("the stream was closed by this side, or handed to a protocol")

    def _closed(self) -> None:
        self._is_closed = True
        self._in.wake()
        self._out.wake()
        self._on_end(self)
