"""An SSH session channel as a `Stream`, for the parts of a node that speak over a subsystem."""

import asyncio
from collections.abc import Callable
from typing import Final

import asyncssh
from asyncssh.constants import EXTENDED_DATA_STDERR

from alknet.alpn.attach import StreamTransport
from alknet.alpn.errors import StreamBroken, StreamClosed
from alknet.alpn.streams import MAX_BUFFERED_BYTES, READ_SIZE

__all__ = ["ChannelStream"]

LOW_WATER_BYTES: Final = MAX_BUFFERED_BYTES // 4


class ChannelStream:
    """One end of a subsystem's channel. Unread data pauses the channel, whose window then stops the other side."""

    def __init__(self, channel: "asyncssh.channel.SSHChannel[bytes]") -> None:
        self._channel: asyncssh.channel.SSHChannel[bytes] | None = channel
        self._unread = bytearray()
        self._finished = False
        self._is_closed = False
        self._arrived = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._recheck: Callable[[], None] = lambda: None

    def on_recheck(self, recheck: Callable[[], None]) -> None:
        """Have `recheck` called whenever what is allowed may have changed."""
        self._recheck = recheck

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        self._check_open()
        while not self._unread:
            if self._finished:
                return b""
            if self._channel is None:
                raise StreamBroken("the channel was closed by the other side")
            self._arrived.clear()
            await self._arrived.wait()
        data = bytes(self._unread[:max_bytes])
        del self._unread[:max_bytes]
        if len(self._unread) <= LOW_WATER_BYTES and self._channel is not None:
            self._channel.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        await self._write(data, None)

    async def write_error(self, data: bytes) -> None:
        """Write to the other side's stderr."""
        await self._write(data, EXTENDED_DATA_STDERR)

    async def _write(self, data: bytes, datatype: int | None) -> None:
        self._check_open()
        await self._may_write.wait()
        if self._channel is None or self._channel.is_closing():
            raise StreamBroken("the channel was closed by the other side")
        self._channel.write(data, datatype)
        await self._may_write.wait()

    async def write_eof(self) -> None:
        self._check_open()
        if self._channel is not None:
            self._channel.write_eof()

    def reset(self) -> None:
        self._is_closed = True
        if self._channel is not None:
            self._channel.abort()

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            if self._channel is not None:
                self._channel.close()

    async def attach(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        self._check_open()
        return StreamTransport.start(self, protocol)

    # --- called by the session --------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if len(self._unread) > MAX_BUFFERED_BYTES and self._channel is not None:
            self._channel.pause_reading()
        self._arrived.set()

    def eof_received(self) -> None:
        self._finished = True
        self._arrived.set()

    def connection_lost(self) -> None:
        self._channel = None
        self._arrived.set()
        self._may_write.set()

    def recheck(self) -> None:
        self._recheck()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StreamClosed("the stream was closed by this side")
