"""The SSH client behind ``alknet ssh`` and behind every command that asks a running node.

It verifies whom it reached before it sends anything: by the key that is pinned for the peer, else by OpenSSH's
``known_hosts``. It never trusts on first use.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import asyncssh

from alknet.errors import DeniedError, InvalidInputError, RemoteError, UnavailableError
from alknet.keys import PublicKey
from alknet.ssh.terminal import TerminalSize

__all__ = ["ClientSession", "SessionOptions", "Target", "ask", "connect"]

CONNECT_TIMEOUT_S: Final = 10.0
KEEPALIVE_INTERVAL_S: Final = 30
"""A server that is silent for so long is asked whether it is there, three times; then the connection is given up."""
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to reach, as whom, and how to know that it is them."""

    addresses: tuple[tuple[str, int], ...]
    user: str
    identity: Path | None
    """A private-key file; None means the keys of a running ssh-agent."""
    host_key: PublicKey | None
    """The only key accepted; None means that OpenSSH's known_hosts decides."""
    name: str
    """For messages."""


async def connect(target: Target) -> asyncssh.SSHClientConnection:
    """Log in at the first address that answers. Raises `UnavailableError` when none does or it is not the right
    host, `DeniedError` when the login is refused."""
    trusted: Any = ()
    if target.host_key is not None:
        trusted = ([asyncssh.import_public_key(str(target.host_key))], [], [])
    options: dict[str, Any] = {
        "username": target.user,
        "known_hosts": trusted,
        "client_keys": [_private_key(target.identity)] if target.identity is not None else (),
        "keepalive_interval": KEEPALIVE_INTERVAL_S,
        "agent_path": () if target.identity is None else None,
        "config": None,
        "gss_host": None,
        "password_auth": False,
        "kbdint_auth": False,
        "host_based_auth": False,
        "encoding": None,
        "compression_algs": ["none"],
        "encryption_algs": ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr"],
        "connect_timeout": CONNECT_TIMEOUT_S,
        "login_timeout": CONNECT_TIMEOUT_S,
    }
    failures: list[str] = []
    for host, port in target.addresses:
        client = _Client()
        try:
            connection, _ = await asyncssh.create_connection(partial(_same, client), host, port, **options)
        except (OSError, asyncssh.ConnectionLost, asyncssh.TimeoutError) as exc:
            why = os.strerror(exc.errno) if isinstance(exc, OSError) and exc.errno else str(exc) or "no answer"
            failures.append(f"{host} port {port}: {why}")
            continue
        except asyncssh.PermissionDenied as exc:
            said = client.banner.strip().removeprefix("alknet: ")
            raise DeniedError(
                said or f"{target.name} refused the login of {target.user!r}",
                hint="" if said else "is this key in the peer's entry there? --identity names another",
            ) from exc
        except asyncssh.HostKeyNotVerifiable as exc:
            raise UnavailableError(
                f"{target.name} at {host} port {port} did not prove to be itself: {exc.reason}",
                hint="nothing was sent; if you know its key, put it into the peer's host_key or into known_hosts"
                " (ssh-keyscan shows what it claims)",
            ) from exc
        except asyncssh.DisconnectError as exc:
            raise UnavailableError(f"{target.name} ended the connection: {exc.reason}") from exc
        return connection
    raise UnavailableError(
        f"{target.name} cannot be reached: {'; '.join(failures) or 'it has no address'}", hint="is it running?"
    )


async def ask(connection: asyncssh.SSHClientConnection, subsystem: str, request: bytes) -> bytes:
    """Send one request to a subsystem and return its whole answer."""
    answer = bytearray()
    ended = asyncio.get_running_loop().create_future()

    class Question(asyncssh.SSHClientSession[bytes]):
        def data_received(self, data: bytes, datatype: int | None) -> None:
            if datatype is None:  # stderr is for people
                answer.extend(data)
            if len(answer) > MAX_ANSWER_BYTES and not ended.done():
                ended.set_exception(RemoteError("the node's answer is too large"))

        def connection_lost(self, exc: Exception | None) -> None:
            if not ended.done():
                ended.set_result(None)

    try:
        channel, _ = await connection.create_session(Question, subsystem=subsystem, encoding=None)
        channel.write(request)
        channel.write_eof()
        await ended
    except asyncssh.ChannelOpenError as exc:
        raise UnavailableError(f"the node does not answer questions: {exc.reason}") from exc
    except OSError as exc:
        raise UnavailableError(f"the connection was lost: {exc}") from exc
    return bytes(answer)


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """A session to run: the command (None for a shell) and the terminal, if there is one."""

    command: str | None
    terminal: str | None = None
    size: TerminalSize = (0, 0, 0, 0)
    modes: dict[int, int] | None = None


class ClientSession(asyncssh.SSHClientSession[bytes]):
    """The client's side of a session, between callbacks and the channel.

    `on_data` gets (bytes, is_stderr) and returns False to ask for a pause; `on_end` is called once. `exit_status` is
    the command's, None when it was ended by a signal or lost.
    """

    def __init__(self) -> None:
        self.on_data: Callable[[bytes, bool], bool] = lambda data, is_stderr: True
        self.on_pause: Callable[[bool], None] = lambda paused: None
        self.exit_status: int | None = None
        self.exit_signal: str | None = None
        self.ended = asyncio.Event()
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None

    @classmethod
    async def start(
        cls,
        connection: asyncssh.SSHClientConnection,
        session: "ClientSession",
        options: SessionOptions,
    ) -> asyncssh.SSHClientChannel[bytes]:
        """Open the channel and start the command or shell."""
        try:
            channel, _ = await connection.create_session(
                lambda: session,
                options.command or (),
                encoding=None,
                term_type=options.terminal,
                term_size=options.size,
                term_modes=options.modes or {},
            )
        except asyncssh.ChannelOpenError as exc:
            raise UnavailableError(f"no session could be opened: {exc.reason}") from exc
        return channel

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if not self.on_data(data, datatype is not None) and self._channel is not None:
            self._channel.pause_reading()

    def drained(self) -> None:
        """What `on_data` could not take at once is written: go on."""
        if self._channel is not None:
            self._channel.resume_reading()

    def pause_writing(self) -> None:
        self.on_pause(True)

    def resume_writing(self) -> None:
        self.on_pause(False)

    def exit_status_received(self, status: int) -> None:
        self.exit_status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self.exit_signal = signal

    def connection_lost(self, exc: Exception | None) -> None:
        self._channel = None
        self.ended.set()


def _private_key(path: Path) -> asyncssh.SSHKey:
    try:
        return asyncssh.read_private_key(path)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, OSError) as exc:
        raise InvalidInputError(
            f"{path}: is not a private key that can be used: {exc}",
            hint="name the private half, not the .pub file; a key with a passphrase belongs into ssh-agent",
        ) from exc


def _same(client: "_Client") -> "_Client":
    return client


class _Client(asyncssh.SSHClient):
    def __init__(self) -> None:
        self.banner = ""

    def auth_banner_received(self, msg: str, lang: str) -> None:
        self.banner = (self.banner + msg)[-4096:]
