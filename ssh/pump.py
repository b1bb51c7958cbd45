"""A socket and a channel, joined: what one brings, the other gets, as fast as the slower one takes it.

Each end of the data is passed on by itself; the pair ends when both directions have, or when either side breaks.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final, cast

import asyncssh

__all__ = ["Pump"]

LINGER_S: Final = 30.0
"""What a socket gets to take the rest after its channel was closed."""


class Pump(asyncssh.SSHTCPSession[bytes], asyncssh.SSHUNIXSession[bytes]):
    """The session of a forwarded channel. The socket is read only while both the channel and the connection have room,
    and the channel only while the socket takes what it brings.

    A connected `sock` belongs to the pump at once, also before it is started. `on_end` is called once, when the pair
    is over.
    """

    def __init__(
        self,
        on_end: Callable[["Pump"], None],
        *,
        connection_is_full: Callable[[], bool],
        sock: socket.socket | None = None,
    ) -> None:
        self._sock = sock
        """Until it has been started."""
        self._is_starting = False
        self._on_end = on_end
        self._connection_is_full = connection_is_full
        self._channel: Any = None
        self._socket: asyncio.Transport | None = None
        self._channel_is_full = False
        self._reading = False
        self._early = bytearray()
        self._for_socket = bytearray()
        """What each side brought before the other one was there."""
        self._socket_ended = self._channel_ended = False
        self._channel_was_lost = False
        self._is_over = False
        self._linger: asyncio.TimerHandle | None = None

    async def take(self, sock: socket.socket) -> None:
        """Have the connected `sock` and begin with it; see `start`."""
        self._sock = sock
        if self._is_over:
            self.close()
        await self.start()

    async def start(self) -> None:
        """Begin with the socket, before the channel is open or afterwards: what comes early, waits. Raises `OSError`,
        and is over then; does nothing where it is over already."""
        if self._sock is None:
            return
        sock, self._is_starting = self._sock, True
        try:
            await asyncio.get_running_loop().create_connection(lambda: _SocketEnd(self), sock=sock)
        except BaseException:
            self._is_starting = False
            self.close()
            raise
        self._sock, self._is_starting = None, False
        if self._socket is None or self._is_over:
            return
        if self._for_socket:
            self._socket.write(bytes(self._for_socket))
            self._for_socket.clear()
        if self._channel_ended:
            self._end_socket_output()
        if self._channel is not None:
            self._channel.resume_reading()
            self._read_if_there_is_room()
        elif self._channel_was_lost:
            self._finish()
        if not self._reading:
            self._socket.pause_reading()

    @property
    def is_over(self) -> bool:
        return self._is_over

    def close(self) -> None:
        """End both sides now; what is under way is lost. Idempotent."""
        if self._sock is not None and not self._is_starting:
            self._sock.close()
            self._sock = None
        if self._socket is not None:
            self._socket.abort()
        if self._channel is not None:
            self._channel.abort()
        self._over()

    # --- the channel ------------------------------------------------------------------------------------------

    def connection_made(self, chan: Any) -> None:
        self._channel = chan
        if self._is_over:
            chan.close()  # the socket did not last until the client had its answer
        elif self._socket is None:
            chan.pause_reading()
        else:
            if self._socket_ended:
                self._send_early()
                chan.write_eof()
            self._read_if_there_is_room()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if self._socket is not None:
            self._socket.write(data)
        elif self._sock is not None:
            self._for_socket += data  # the client has closed the channel already; the window bounds it

    def eof_received(self) -> bool:
        self._channel_ended = True
        if self._sock is None:
            self._end_socket_output()
        return True  # the other direction stays open

    def connection_lost(self, exc: Exception | None) -> None:
        self._channel = None
        self._channel_was_lost = True
        if exc is not None:
            self.close()
        elif self._socket is not None:
            self._finish()
        elif self._sock is None:
            self._over()

    def pause_writing(self) -> None:
        self._channel_is_full = True
        self._stop_reading()

    def resume_writing(self) -> None:
        self._channel_is_full = False
        self._read_if_there_is_room()

    def connection_paused(self) -> None:
        """The connection as a whole has no room."""
        self._stop_reading()

    def connection_resumed(self) -> None:
        self._read_if_there_is_room()

    # --- the socket -------------------------------------------------------------------------------------------

    def socket_made(self, transport: asyncio.Transport) -> None:
        self._socket = transport
        if self._is_over:
            transport.abort()
            return
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def socket_data(self, data: bytes) -> None:
        if self._channel is None:
            self._early += data  # one read: uvloop begins to read before it can be told not to
            if self._socket is not None:
                self._socket.pause_reading()
        elif not self._channel.is_closing():
            self._channel.write(data)

    def socket_eof(self) -> None:
        self._socket_ended = True
        if self._channel is None:
            return
        if self._channel_ended:
            self._channel.close()
        else:
            self._channel.write_eof()

    def socket_lost(self) -> None:
        self._socket = None
        if self._channel is not None:
            self._channel.close()
        else:
            self._over()

    def socket_is_full(self, is_full: bool) -> None:
        if self._channel is None:
            return
        if is_full:
            self._channel.pause_reading()
        else:
            self._channel.resume_reading()

    # ----------------------------------------------------------------------------------------------------------

    def _end_socket_output(self) -> None:
        if self._socket is not None and not self._socket.is_closing():
            if self._socket_ended:
                self._socket.close()
            elif self._socket.can_write_eof():
                self._socket.write_eof()

    def _finish(self) -> None:
        """The channel is gone: what is written to the socket still goes out, if it is taken in time."""
        assert self._socket is not None
        self._socket.close()
        if not self._is_over:
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self.close)

    def _send_early(self) -> None:
        if self._early:
            early, self._early = bytes(self._early), bytearray()
            self._channel.write(early)

    def _read_if_there_is_room(self) -> None:
        if self._channel is None or self._channel_is_full or self._connection_is_full():
            return
        self._send_early()
        if self._reading or self._channel_is_full or self._connection_is_full():
            return  # what came early was all that there is room for
        if self._socket is not None and not self._socket_ended:
            self._reading = True
            self._socket.resume_reading()

    def _stop_reading(self) -> None:
        if self._reading and self._socket is not None:
            self._reading = False
            self._socket.pause_reading()

    def _over(self) -> None:
        if not self._is_over:
            self._is_over = True
            if self._linger is not None:
                self._linger.cancel()
            self._on_end(self)


class _SocketEnd(asyncio.Protocol):
    """Tells the pump what happens on the socket."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pump.socket_made(cast("asyncio.Transport", transport))

    def data_received(self, data: bytes) -> None:
        self._pump.socket_data(data)

    def eof_received(self) -> bool:
        self._pump.socket_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._pump.socket_lost()

    def pause_writing(self) -> None:
        self._pump.socket_is_full(True)

    def resume_writing(self) -> None:
        self._pump.socket_is_full(False)
