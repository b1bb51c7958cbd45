"""An SFTP session with a peer, on asyncssh's half of the protocol, and why a peer refuses one."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import asyncssh
from asyncssh.packet import String, UInt64
from asyncssh.sftp import SFTPClientHandler

from alknet.errors import AlknetError, DeniedError, UnavailableError
from alknet.ssh.transfer_places import shown
from alknet.tasks import Tasks

__all__ = ["DENIAL", "Handler", "open_session"]

DIGEST_EXTENSION: Final = b"blake3@alknet"
WINDOW_BYTES: Final = 8 * 1024 * 1024
"""What the peer may send before it is read."""
MAX_PACKET_BYTES: Final = 256 * 1024
"""Of one SSH packet: fewer and larger ones cost less."""
MAX_SAID_BYTES: Final = 4096
"""Of what the peer's program says on stderr."""
OPEN_TIMEOUT_S: Final = 30.0
"""What starting the file server may take on the other side."""
GOODBYE_S: Final = 2.0
DENIAL: Final = re.compile(r"\bden_[0-9A-Za-z]+")
"""A denial's id, in the words of a refusal."""


class Handler(SFTPClientHandler):
    """asyncssh's side of the protocol, and what it has no name for."""

    has_digests = False
    """Whether the peer tells the BLAKE3 digest of its files."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._return_types = {**self._return_types, DIGEST_EXTENSION: self._return_types[b"limits@openssh.com"]}

    def _log_extensions(self, extensions: Any) -> None:
        self.has_digests = any(name == DIGEST_EXTENSION for name, _ in extensions)

    @property
    def is_lost(self) -> bool:
        """Whether the session has ended."""
        return self._writer is None

    async def start(self) -> None:
        await super().start()
        # A link's two paths stand in OpenSSH's order. Only asyncssh's own server keeps to the document, which has the
        # other one.
        version = str(self._reader.get_extra_info("server_version", "")) if self._reader is not None else ""
        self._nonstandard_symlink = "AsyncSSH" not in version

    async def digest(self, handle: bytes, offset: int, length: int) -> bytes:
        """The BLAKE3 digest of a stretch of an open file."""
        request = self._make_request(DIGEST_EXTENSION, String(handle), UInt64(offset), UInt64(length))
        packet = cast("Any", await request)
        digest = packet.get_string()
        packet.check_end()
        return bytes(digest)


@asynccontextmanager
async def open_session(ssh: asyncssh.SSHClientConnection, name: str) -> AsyncIterator[Handler]:
    """A session with the file server of the peer that `ssh` is logged in at; `name` is what messages call it.

    Raises `DeniedError` when it lets nobody (or not this peer) have them, with its words.
    """
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            writer, reader, errors = await ssh.open_session(
                subsystem="sftp", encoding=None, window=WINDOW_BYTES, max_pktsize=MAX_PACKET_BYTES
            )
    except asyncssh.ChannelOpenError as exc:
        raise UnavailableError(f"{shown(name)} does not serve files: {shown(exc.reason)}") from exc
    except (TimeoutError, OSError, asyncssh.Error) as exc:
        raise UnavailableError(f"{shown(name)}: the connection was lost: {shown(str(exc))}") from exc
    said = bytearray()
    async with _listening(errors, said):
        handler = Handler(asyncio.get_running_loop(), "replace", reader, writer, 3)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await handler.start()
                ssh.create_task(handler.recv_packets(), handler.logger)
                await handler.request_limits()
        except (asyncssh.Error, OSError, TimeoutError, ValueError) as exc:
            raise await _refusal(name, writer.channel, said, exc) from exc
        try:
            yield handler
        finally:
            handler.exit()
            with contextlib.suppress(TimeoutError, OSError, asyncssh.Error):
                async with asyncio.timeout(GOODBYE_S):
                    await handler.wait_closed()
            writer.close()


@asynccontextmanager
async def _listening(errors: Any, said: bytearray) -> AsyncIterator[None]:
    """Read what the peer's program says on stderr, so that it is known why it ends, and so that it never waits."""

    async def listen() -> None:
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await errors.read(MAX_SAID_BYTES):
                said.extend(data)
                del said[:-MAX_SAID_BYTES]

    tasks = Tasks("sftp")
    tasks.start(listen(), name="stderr")
    try:
        yield
    finally:
        await tasks.aclose()


async def _refusal(name: str, channel: Any, said: bytearray, exc: Exception) -> AlknetError:
    """Why the file server did not start: the peer's program has ended, and may have said why."""
    with contextlib.suppress(TimeoutError, OSError, asyncssh.Error):
        async with asyncio.timeout(GOODBYE_S):
            await channel.wait_closed()
    words = said.decode("utf-8", "replace").strip().removeprefix("alknet: ")
    denial = DENIAL.search(words)
    if channel.get_exit_status() == DeniedError.exit_code or denial:
        return DeniedError(words or f"{name} refused its files", denial_id=denial and denial[0])
    return UnavailableError(f"{shown(name)} does not serve files: {shown(words or str(exc) or type(exc).__name__)}")
