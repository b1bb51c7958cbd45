"""An SSH client connection on a stream that somebody has opened, and whether that has room."""

import asyncio
from collections.abc import Callable
from typing import Any

from alknet.alpn.streams import Stream

__all__ = ["Carried", "Room"]


class Room:
    """Whether the carrier has room, which asyncssh does not heed. `on_change` is called when that changes."""

    def __init__(self) -> None:
        self.is_full = False
        self.on_change: Callable[[], None] = lambda: None

    def set_full(self, is_full: bool) -> None:
        self.is_full = is_full
        self.on_change()


class Carried:
    """What asyncssh calls a tunnel: hands it the stream as its transport."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.room = Room()

    async def create_connection(self, factory: Callable[[], Any], host: str, port: int) -> tuple[Any, Any]:
        """Called by asyncssh, with what makes its connection object."""
        ssh = factory()
        return await self._stream.attach(_Watched(ssh, self.room)), ssh


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
