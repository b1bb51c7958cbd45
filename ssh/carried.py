"""An SSH client connection on a stream that somebody has opened, with the packets of :mod:`alknet.ssh.packets`, and
whether the stream has room."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import asyncssh
from asyncssh.constants import MSG_DISCONNECT
from asyncssh.packet import SSHPacket

from alknet.alpn.streams import Stream
from alknet.ssh.channel import PACKET_BYTES, WINDOW_BYTES
from alknet.ssh.packets import FastChannel, FastPackets

__all__ = ["Carried", "Room"]

MAX_PARTING: Final = 1000


class Room:
    """Whether the carrier has room, which asyncssh does not heed. `on_change` is called when that changes."""

    def __init__(self) -> None:
        self.is_full = False
        self.on_change: Callable[[], None] = lambda: None

    def set_full(self, is_full: bool) -> None:
        self.is_full = is_full
        self.on_change()


class Carried(FastPackets, asyncssh.SSHClientConnection):
    """A client connection. Made by :meth:`start`; `room` is that of its carrier, `parting` what the other side says
    when it ends the connection."""

    room: Room
    parting: list[str]

    @classmethod
    async def start(cls, stream: Stream, owner: asyncssh.SSHClient, *, timeout_s: float, **options: Any) -> "Carried":
        """Log in over `stream`, with `options` of asyncssh's ``connect``, which makes another kind of connection.

        `owner` is asked what a client is asked. Raises what asyncssh raises, and `TimeoutError` after `timeout_s`.
        """
        loop = asyncio.get_running_loop()
        prepared = await asyncssh.SSHClientConnectionOptions.construct(client_factory=lambda: owner, **options)
        prepared.waiter = loop.create_future()
        ssh = cls(loop, prepared, wait="auth")
        ssh.room = Room()
        ssh.parting = []
        ssh.set_extra_info(host=options["host"], port=options["port"])
        async with asyncio.timeout(timeout_s):
            await stream.attach(_Watched(ssh, ssh.room))
            try:
                await prepared.waiter
            except BaseException:
                ssh.abort()
                await ssh.wait_closed()
                raise
        return ssh

    def create_tcp_channel(
        self,
        encoding: str | None = None,
        errors: str = "strict",
        window: int = WINDOW_BYTES,
        max_pktsize: int = PACKET_BYTES,
    ) -> "asyncssh.SSHTCPChannel[Any]":
        self._update_recv_pktlen(max_pktsize)
        return _TcpChannel(self, self._loop, encoding, errors, window, max_pktsize)

    def create_unix_channel(
        self,
        encoding: str | None = None,
        errors: str = "strict",
        window: int = WINDOW_BYTES,
        max_pktsize: int = PACKET_BYTES,
    ) -> "asyncssh.SSHUNIXChannel[Any]":
        self._update_recv_pktlen(max_pktsize)
        return _UnixChannel(self, self._loop, encoding, errors, window, max_pktsize)

    def _process_disconnect(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        """Keep what is said, which asyncssh forgets where the other side ends in order."""
        said = SSHPacket(packet.get_remaining_payload())
        said.get_uint32()
        self.parting.append(said.get_string()[:MAX_PARTING].decode("utf-8", "replace"))
        super()._process_disconnect(pkttype, pktid, packet)

    _packet_handlers = asyncssh.SSHClientConnection._packet_handlers | {MSG_DISCONNECT: _process_disconnect}


class _TcpChannel(FastChannel, asyncssh.SSHTCPChannel[bytes]):
    """A forwarded connection."""


class _UnixChannel(FastChannel, asyncssh.SSHUNIXChannel[bytes]):
    """A forwarded connection of a Unix socket."""


class _Watched(asyncio.Protocol):
    """asyncssh's connection as the carrier's protocol, with an eye on the room."""

    def __init__(self, ssh: Any, room: Room) -> None:
        self._ssh = ssh
        self._room = room

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._ssh.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._ssh.data_received(data)

    def eof_received(self) -> bool | None:
        ended: bool | None = self._ssh.eof_received()
        return ended

    def connection_lost(self, exc: Exception | None) -> None:
        self._ssh.connection_lost(exc)

    def pause_writing(self) -> None:
        self._room.set_full(True)

    def resume_writing(self) -> None:
        self._room.set_full(False)
