"""Plain TCP as a carrier: one connection, one stream.

The socket stays untouched until its stream is used, so a library that brings its own protocol gets it whole
(:meth:`TcpStream.attach`) and pays nothing for the contract. Such a protocol hears itself that the socket is
gone; the connection then counts as ended when it is closed, which the router does when its handler returns.

TCP tells the other side only two things: this side has finished (FIN), and this side is gone (RST). A reset sends the
second, so that data which was cut short never looks complete. `TcpConnection.close` resets what was not closed before.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Final

from alknet.alpn.errors import ConnectionClosed, StreamBroken, StreamClosed, StreamsExhausted
from alknet.alpn.streams import MAX_BUFFERED_BYTES, READ_SIZE, Address, BaseConnection
from alknet.alpn.tcp_watch import QUESTIONS
from alknet.tasks import Tasks

__all__ = ["OneStreamConnection", "TcpConnection", "TcpStream", "keep_alive"]

KEEPALIVE_IDLE_S: Final = 60
KEEPALIVE_INTERVAL_S: Final = 15
KEEPALIVE_PROBES: Final = 4
"""After a minute of silence the other machine is asked; after another one without an answer it is gone."""

_LINGER_ZERO: Final = struct.pack("ii", 1, 0)
"""`SO_LINGER` with no time: closing the socket sends RST."""


_Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def keep_alive(sock: socket.socket, patience_s: float | None = None) -> None:
    """Have the kernel notice that the machine at the other end is gone, which on TCP nobody else would: after two
    minutes, or after about `patience_s`, in whole seconds and not less than four."""
    idle_s, interval_s, probes = KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES
    if patience_s is not None:
        probes = QUESTIONS
        idle_s = interval_s = max(1, int(patience_s / (probes + 1)))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)


class OneStreamConnection(BaseConnection):
    """What TCP and TLS have in common: the connection is its one stream."""

    def __init__(
        self,
        stream: "TcpStream",
        *,
        alpn: str,
        transport: str,
        remote: Address | None,
        local: Address | None,
        on_login: Callable[[], None] | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(alpn=alpn, transport=transport, remote=remote, local=local, on_login=on_login)
        self._on_closed = on_closed
        self._stream = stream
        self._accepted = False
        stream.on_end = self._ended

    async def open_stream(self) -> "TcpStream":
        raise StreamsExhausted("a TCP connection has one stream, the one that accept_stream yields")

    async def accept_stream(self) -> "TcpStream":
        if self._accepted or self._closed.is_set():
            await self._closed.wait()
            raise ConnectionClosed("the connection has ended")
        self._accepted = True
        return self._stream

    def close(self, code: int = 0, reason: str = "") -> None:
        self._stream.reset()
        self._ended()

    def watch(self, patience_s: float) -> None:
        if not self._closed.is_set():
            self._stream.watch(patience_s)

    def _ended(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            if self._on_closed is not None:
                self._on_closed()


class TcpConnection(OneStreamConnection):
    """A connected socket as a `Connection`; takes ownership of `sock`."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        alpn: str,
        remote: Address | None,
        on_login: Callable[[], None] | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(
            TcpStream(sock),
            alpn=alpn,
            transport="tcp",
            remote=remote,
            local=Address.of(sock.getsockname()) if remote is not None else None,
            on_login=on_login,
            on_closed=on_closed,
        )


class TcpStream:
    """The one stream of a TCP connection."""

    on_end: Callable[[], None]
    """Hears, once or twice, that the socket is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._is_taken = False
        self._is_closed = False
        self._is_finished = False
        self._ended = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[_Ends] | None = None
        self._tasks = Tasks("tcp-stream")

    async def attach(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        self._take()
        return await asyncio.shield(self._tasks.start(self._attach(protocol), name="attach"))

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        reader, _ = await self._open()
        try:
            data = await reader.read(max_bytes)
        except OSError as exc:
            self._check_open()
            raise StreamBroken(f"the connection was lost: {exc}") from exc
        self._check_open()
        return data

    async def write(self, data: bytes) -> None:
        _, writer = await self._open()
        rest = memoryview(data)
        try:
            while rest:
                await writer.drain()  # an earlier write that was cancelled may have left the buffer full
                self._check_open()
                if self._is_finished:
                    raise StreamClosed("the stream was finished by this side")
                writer.write(rest[:MAX_BUFFERED_BYTES])
                rest = rest[MAX_BUFFERED_BYTES:]
            await writer.drain()
        except OSError as exc:
            self._check_open()
            raise StreamBroken(f"the connection was lost: {exc}") from exc
        self._check_open()

    async def write_eof(self) -> None:
        _, writer = await self._open()
        self._is_finished = True
        if not self._ended.is_set():  # else the next read or write says how it ended
            writer.write_eof()

    def reset(self) -> None:
        self._is_closed = True
        transport = self._transport
        if transport is not None:
            # Nothing is left to abort on one that is closed or has only to say so (asyncio's would fail).
            if not transport.is_closing() or transport.get_write_buffer_size():
                self._make_closing_reset()
                transport.abort()
        elif not self._is_taken:
            self._make_closing_reset()
            self._close_unused(is_cut=True)

    async def aclose(self) -> None:
        self._is_closed = True
        if self._transport is not None:
            self._transport.close()
            if self._opening is not None:  # else the protocol that it was handed to hears of the end
                await self._ended.wait()
        elif not self._is_taken:
            self._close_unused(is_cut=False)

    def watch(self, patience_s: float) -> None:
        """Have a machine that is gone noticed by then; while something is unsent, it takes as long as it does."""
        with contextlib.suppress(OSError):  # closed already
            keep_alive(self._sock, patience_s)

    async def _open(self) -> _Ends:
        """Reader and writer, made when first asked for: once, whoever asks, and whoever is cancelled."""
        self._check_open()
        if self._opening is None:
            self._take()
            self._opening = self._tasks.start(self._start_pumping(), name="open")
        ends = await asyncio.shield(self._opening)
        self._check_open()
        return ends

    async def _start_pumping(self) -> _Ends:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_BUFFERED_BYTES // 2, loop=loop)  # it holds twice that
        protocol = _EndWatcher(reader, loop, self._end)
        transport = await self._attach(protocol)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _attach(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        self._transport = await self._connect(protocol)
        if self._is_closed:
            self.reset()
        return self._transport

    async def _connect(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """A transport on the socket for `protocol`."""
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, self._sock)
        return transport

    def _take(self) -> None:
        self._check_open()
        if self._is_taken:
            raise StreamClosed("the stream is in use already")
        self._is_taken = True

    def _check_open(self) -> None:
        if self._is_closed:
            raise StreamClosed("the stream was closed by this side")

    def _make_closing_reset(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)

    def _close_unused(self, *, is_cut: bool) -> None:
        self._is_taken = True
        self._drop(is_cut=is_cut)
        self._end()

    def _drop(self, *, is_cut: bool) -> None:
        """Close the socket that no transport has taken."""
        self._sock.close()

    def _end(self) -> None:
        self._ended.set()
        self.on_end()


class _EndWatcher(asyncio.StreamReaderProtocol):
    """The standard reader protocol, which also tells when the socket is gone."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
        on_end: Callable[[], None],
    ) -> None:
        super().__init__(reader, loop=loop)
        self._on_end = on_end

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._on_end()
