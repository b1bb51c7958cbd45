"""A `Stream` as an asyncio transport, for carriers that have no socket of their own to hand over."""

import asyncio
from typing import Any, Final

from alknet.alpn.streams import MAX_BUFFERED_BYTES, Stream
from alknet.errors import AlknetError
from alknet.tasks import Tasks

__all__ = ["StreamTransport"]

HIGH_WATER_BYTES: Final = MAX_BUFFERED_BYTES // 4
"""Above this much unsent data the protocol is asked to pause."""


class StreamTransport(asyncio.Transport):
    """Pumps a stream into a protocol and back; made by :meth:`start`."""

    @classmethod
    def start(cls, stream: Stream, protocol: asyncio.Protocol) -> "StreamTransport":
        """Connect `protocol` to `stream` and begin pumping."""
        transport = cls(stream, protocol)
        protocol.connection_made(transport)
        transport._tasks.start(transport._receive(), name="receive")
        transport._tasks.start(transport._send(), name="send")
        return transport

    def __init__(self, stream: Stream, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._stream = stream
        self._protocol = protocol
        self._tasks = Tasks("stream-transport")
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()
        self._wanted = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._high_water = HIGH_WATER_BYTES
        self._low_water = HIGH_WATER_BYTES // 4
        self._is_paused = False
        self._is_closing = False
        self._eof = False
        self._is_over = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.Protocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._is_closing

    def is_reading(self) -> bool:
        return self._may_read.is_set() and not self._is_closing

    def pause_reading(self) -> None:
        self._may_read.clear()

    def resume_reading(self) -> None:
        self._may_read.set()

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low_water, self._high_water

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = HIGH_WATER_BYTES if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high}) must be at least low ({low}), and low at least 0")
        self._high_water, self._low_water = high, low
        self._maybe_pause()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._eof:
            raise RuntimeError("cannot write after write_eof")
        if self._is_closing:
            return
        self._unsent += data
        self._wanted.set()
        self._maybe_pause()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._eof = True
        self._wanted.set()

    def close(self) -> None:
        """Send what is buffered, then end."""
        self._is_closing = True
        self._wanted.set()

    def abort(self) -> None:
        """End at once."""
        self._is_closing = True
        self._unsent.clear()
        self._stream.reset()
        self._end(None)

    async def _receive(self) -> None:
        while True:
            await self._may_read.wait()
            try:
                data = await self._stream.read()
            except AlknetError as exc:
                if not self._is_closing:  # else the sender ends it, once it has sent what is left
                    self._lost(exc)
                return
            await self._may_read.wait()  # reading may have been paused in the meantime
            if self._is_closing:
                return
            try:
                if data:
                    self._protocol.data_received(data)
                    continue
                if not self._protocol.eof_received():
                    self.close()
            except Exception as exc:
                self._protocol_failed(exc)
            return

    async def _send(self) -> None:
        is_finished = False
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                while self._unsent:
                    piece = bytes(self._unsent[:HIGH_WATER_BYTES])
                    await self._stream.write(piece)
                    del self._unsent[: len(piece)]
                    self._maybe_resume()
                if self._is_closing:
                    await self._stream.aclose()
                    self._end(None)
                    return
                if self._eof and not is_finished:
                    is_finished = True
                    await self._stream.write_eof()
        except AlknetError as exc:
            self._lost(exc)
        except Exception as exc:
            self._protocol_failed(exc)

    def _maybe_pause(self) -> None:
        if len(self._unsent) > self._high_water and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()

    def _maybe_resume(self) -> None:
        if self._is_paused and len(self._unsent) <= self._low_water:
            self._is_paused = False
            self._protocol.resume_writing()

    def _lost(self, exc: AlknetError) -> None:
        error = ConnectionResetError(str(exc))
        error.__cause__ = exc
        self._end(error)

    def _protocol_failed(self, exc: Exception) -> None:
        """A callback of the protocol raised: that ends its connection, as on asyncio's own transports."""
        self._loop.call_exception_handler(
            {
                "message": "a protocol failed on a stream",
                "exception": exc,
                "transport": self,
                "protocol": self._protocol,
            }
        )
        self._end(exc)

    def _end(self, exc: Exception | None) -> None:
        if not self._is_over:
            self._is_over = self._is_closing = True
            if exc is not None:
                self._stream.reset()
            self._may_read.set()
            self._loop.call_soon(self._protocol.connection_lost, exc)
            self._loop.call_soon(self._tasks.cancel)
