"""SFTP servers that are not alknet's, in this process, and the client's view of their files."""

import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh

from alknet.ssh.transfer_remote import RemoteFiles, open_files

__all__ = ["RawServer", "Refusing", "connected", "remote_files", "string"]

HOST_KEY = asyncssh.generate_private_key("ssh-ed25519")


class _Open(asyncssh.SSHServer):
    """Lets everybody in."""

    def __init__(self, session: Callable[[], asyncssh.SSHServerSession[bytes]] | None) -> None:
        self._session = session

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def session_requested(self) -> Any:
        if self._session is None:
            return True
        return self._connection.create_server_channel(encoding=None), self._session()

    def begin_auth(self, username: str) -> bool:
        return False


@asynccontextmanager
async def connected(
    session: Callable[[], asyncssh.SSHServerSession[bytes]] | None = None, **options: Any
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """A client of an asyncssh server with `options`, or with a session of one's own."""
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=lambda: _Open(session), server_host_keys=[HOST_KEY], **options
    )
    try:
        async with asyncssh.connect(
            "127.0.0.1", server.get_port(), username="bob", client_keys=None, known_hosts=None, config=None
        ) as client:
            yield client
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def remote_files(root: Path, kind: type[asyncssh.SFTPServer] = asyncssh.SFTPServer) -> AsyncIterator[RemoteFiles]:
    """The files below `root`, as asyncssh's server (or one of its kind) serves them; no digests."""
    async with (
        connected(sftp_factory=lambda channel: kind(channel, chroot=str(root))) as ssh,
        open_files(ssh, "web") as files,
    ):
        yield files


def string(data: bytes) -> bytes:
    """As SSH writes one."""
    return struct.pack(">I", len(data)) + data


class RawServer(asyncssh.SSHServerSession[bytes]):
    """A subsystem that sends what `answer` makes of each request (its type, its number, what follows): a packet's
    content, or None to end. It greets as SFTP does."""

    def __init__(self, answer: Callable[[int, int, bytes], bytes | None]) -> None:
        self._answer = answer
        self._data = b""

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def subsystem_requested(self, subsystem: str) -> bool:
        return True

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._data += data
        while len(self._data) >= 4 and len(self._data) >= 4 + int.from_bytes(self._data[:4], "big"):
            length = int.from_bytes(self._data[:4], "big")
            packet, self._data = self._data[4 : 4 + length], self._data[4 + length :]
            kind, number = packet[0], int.from_bytes(packet[1:5], "big")
            reply = b"\2\0\0\0\3" if kind == 1 else self._answer(kind, number, packet[5:])
            if reply is None:
                self._channel.close()
                return
            self._channel.write(string(reply))


class Refusing(asyncssh.SSHServerSession[bytes]):
    """A subsystem that says why not on stderr, and ends with a code; or, without words, is none."""

    def __init__(self, words: bytes = b"", code: int = 0) -> None:
        self._words = words
        self._code = code

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def subsystem_requested(self, subsystem: str) -> bool:
        return bool(self._words)

    def session_started(self) -> None:
        self._channel.write_stderr(self._words)
        self._channel.exit(self._code)
