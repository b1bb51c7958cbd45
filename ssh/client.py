"""The SSH client behind ``alknet ssh``, and one of the ways to a node's operations.

It runs over whatever carrier the dialer found (QUIC, else TLS) and verifies whom it reached by the SSH host key before
it sends anything: see :mod:`alknet.ssh.trust`.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import asyncssh

from alknet.alpn.dial import CARRIERS, Dialed, dial, first_stream
from alknet.alpn.errors import AlpnRefused
from alknet.alpn.streams import Connection, Stream
from alknet.errors import AlknetError, DeniedError, InvalidInputError, UnavailableError
from alknet.ssh.carried import Carried, Room
from alknet.ssh.channel_stream import ChannelStream
from alknet.ssh.handler import ALPN
from alknet.ssh.terminal import TerminalSize
from alknet.ssh.trust import HostTrust, TrustingClient

__all__ = [
    "REMARK_PREFIX",
    "ClientSession",
    "Link",
    "Reach",
    "SessionOptions",
    "Target",
    "connect",
    "open_subsystem",
    "round_trip",
]

T = TypeVar("T")
CONNECT_TIMEOUT_S: Final = 10.0
QUESTION_TIMEOUT_S: Final = 120.0
"""What the user may take who is asked about an unknown host."""
CLOSE_TIMEOUT_S: Final = 1.0
"""What saying goodbye may take before the connection is cut."""
MAX_REMARKS: Final = 16
REMARK_PREFIX: Final = "alknet: "
"""With which a node of ours begins what it says."""
KEEPALIVE_INTERVAL_S: Final = 30
"""A server that is silent for so long is asked whether it is there, three times; then the connection is given up."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to reach, as whom, and how to know that it is them."""

    addresses: tuple[tuple[str, int], ...]
    user: str
    identity: Path | None
    """A private-key file; None means the keys of a running ssh-agent."""
    trust: HostTrust
    name: str
    """For messages."""
    may_ask: bool = False
    """Whether `trust` asks a person, who needs time."""
    reach: "Reach | None" = None
    """How to get there, where it is not dialled."""


class Reach(Protocol):
    """Another way to a host than dialling it: inside of a connection that somebody has with it."""

    def __call__(
        self, *, carriers: Sequence[str], report: Callable[[str], None]
    ) -> AbstractAsyncContextManager[tuple[Connection, Stream]]:
        """A stream to its SSH door, and the connection that this is; raises `AlknetError` where there is none."""


@dataclass(frozen=True, slots=True)
class Link:
    """A login: the SSH connection and the carrier below it."""

    ssh: asyncssh.SSHClientConnection
    carrier: Connection
    room: Room = field(default_factory=Room)
    """Whether the carrier takes more, for who sends a lot."""
    remarks: deque[str] = field(default_factory=deque)
    """What the other side has remarked, which SSH calls debug messages; the newest last, and only the last few."""
    parting: list[str] = field(default_factory=list)
    """What the other side said when it ended the connection; empty where it said nothing."""


@asynccontextmanager
async def connect(
    target: Target,
    *,
    carriers: Sequence[str] = CARRIERS,
    report: Callable[[str], None] = lambda line: None,
    notice: Callable[[str], None] = lambda line: None,
    agent: str | None = None,
) -> AsyncIterator[Link]:
    """Log in, and leave in order afterwards. `report` gets lines on how the carrier was found, `notice` what the other
    side wants people to read. Programs there may use the ssh-agent whose socket is `agent`; sessions offer it.

    Raises `UnavailableError` when no address answers, `HostKeyError` when it is not the right host, and `DeniedError`
    when the login is refused.
    """
    if target.reach is not None:
        async with (
            target.reach(carriers=carriers, report=report) as (carrier, stream),
            _logged_in(target, Dialed(carrier, *target.addresses[0]), stream, notice, agent) as link,
        ):
            yield link
        return
    try:
        dialed = await dial(target.addresses, alpn=ALPN, carriers=carriers, report=report)
    except AlpnRefused as exc:
        raise UnavailableError(f"{target.name} does not let anybody in by ssh: {exc}") from exc
    except UnavailableError as exc:
        raise UnavailableError(f"{target.name} cannot be reached: {exc}", hint="is it running?") from exc
    try:
        stream = await first_stream(dialed.connection)
        async with _logged_in(target, dialed, stream, notice, agent) as link:
            yield link
    finally:
        dialed.connection.close()


@asynccontextmanager
async def _logged_in(
    target: Target, dialed: Dialed, stream: Stream, notice: Callable[[str], None], agent: str | None
) -> AsyncIterator[Link]:
    client = _Client(target.trust, address=(dialed.host, dialed.port))
    client.notice = notice
    ssh = await _log_in(target, dialed, stream, client, agent)
    try:
        yield Link(ssh, dialed.connection, ssh.room, client.remarks, ssh.parting)
    finally:
        await _leave(ssh, stream)


async def _leave(ssh: asyncssh.SSHClientConnection, stream: Stream) -> None:
    """Say goodbye, and let it arrive: asyncssh's own way throws away what its transport has not sent yet."""
    ssh._send_disconnect(asyncssh.DISC_BY_APPLICATION, "Disconnected by application", "")
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await stream.aclose()
            await ssh.wait_closed()
    except TimeoutError:
        ssh.abort()


async def _log_in(target: Target, dialed: Dialed, stream: Stream, client: "_Client", agent: str | None) -> Carried:
    host, port = dialed.host, dialed.port
    patience = CONNECT_TIMEOUT_S + (QUESTION_TIMEOUT_S if target.may_ask else 0.0)
    options: dict[str, Any] = {
        "server_host_key_algs": target.trust.algorithms(host, port),
        "host": host,
        "port": port,
        "username": target.user,
        "known_hosts": ([], [], []),  # the client decides
        "client_keys": [_key_pair(target.identity)] if target.identity is not None else (),
        # QUIC asks for itself, and waits longer: it survives a tunnel that a question at this level would not.
        "keepalive_interval": 0 if dialed.connection.transport == "quic" else KEEPALIVE_INTERVAL_S,
        "agent_path": () if target.identity is None else None,
        "agent_forwarding": agent or False,
        "config": None,
        "gss_host": None,
        "password_auth": False,
        "kbdint_auth": False,
        "host_based_auth": False,
        "encoding": None,
        "compression_algs": ["none"],
        "encryption_algs": ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr"],
        "login_timeout": patience,
    }
    try:
        return await Carried.start(stream, client, timeout_s=patience, **options)
    except asyncssh.PermissionDenied as exc:
        said = client.banner.strip().removeprefix("alknet: ")
        raise DeniedError(
            said or f"{target.name} refused the login of {target.user!r}",
            hint="" if said else "is this key in the peer's entry there? --identity names another",
        ) from exc
    except asyncssh.HostKeyNotVerifiable as exc:
        assert client.refusal is not None
        raise client.refusal from exc
    except (OSError, asyncssh.ConnectionLost, asyncssh.TimeoutError) as exc:
        raise UnavailableError(f"{target.name} was reached, and then lost: {exc or 'no answer'}") from exc
    except asyncssh.DisconnectError as exc:
        raise UnavailableError(f"{target.name} ended the connection: {exc.reason}") from exc


async def round_trip(ssh: asyncssh.SSHClientConnection) -> float:
    """Seconds that a request takes to the other side's SSH and back."""
    began = time.monotonic()
    await _in_time(ssh._make_global_request(b"keepalive@openssh.com"))
    return time.monotonic() - began


async def _in_time(answer: Awaitable[T]) -> T:
    """An answer of the other side's SSH, which the carrier says is alive."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return await answer
    except TimeoutError:
        raise UnavailableError(f"the other side does not answer within {CONNECT_TIMEOUT_S:g} s") from None


async def open_subsystem(ssh: asyncssh.SSHClientConnection, subsystem: str) -> ChannelStream:
    """The stream of a subsystem; what it says on stderr is for people, and lost."""
    session = _Subsystem()
    try:
        await _in_time(ssh.create_session(lambda: session, subsystem=subsystem, encoding=None))
    except asyncssh.ChannelOpenError as exc:
        raise UnavailableError(f"the node does not serve {subsystem}: {exc.reason}") from exc
    except OSError as exc:
        raise UnavailableError(f"the connection was lost: {exc}") from exc
    return session.stream


class _Subsystem(asyncssh.SSHClientSession[bytes]):
    """Between asyncssh's callbacks and the stream."""

    stream: ChannelStream

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self.stream = ChannelStream(chan)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if datatype is None:
            self.stream.data_received(data)

    def eof_received(self) -> bool:
        self.stream.eof_received()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.stream.connection_lost()

    def pause_writing(self) -> None:
        self.stream.pause_writing()

    def resume_writing(self) -> None:
        self.stream.resume_writing()


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
        self.lost_because = ""
        """What ended the stream that carries the connection, where that said so."""
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
            channel, _ = await _in_time(
                connection.create_session(
                    lambda: session,
                    options.command or (),
                    encoding=None,
                    term_type=options.terminal,
                    term_size=options.size,
                    term_modes=options.modes or {},
                )
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
        if exc is not None and isinstance(exc.__cause__, AlknetError):
            self.lost_because = str(exc.__cause__)
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


def _key_pair(path: Path) -> asyncssh.SSHKey | tuple[asyncssh.SSHKey, asyncssh.SSHCertificate]:
    """The private key, with the certificate that lies beside it as NAME-cert.pub, which is offered first."""
    key = _private_key(path)
    beside = path.with_name(path.name + "-cert.pub")
    if not beside.exists():
        return key
    try:
        certificate = asyncssh.read_certificate(beside)
    except (asyncssh.KeyImportError, OSError) as exc:
        raise InvalidInputError(f"{beside}: is not a certificate that can be used: {exc}") from exc
    if certificate.key.public_data != key.public_data:
        raise InvalidInputError(f"{beside}: is not a certificate of the key {path}", hint="remove it, or sign that key")
    return key, certificate


class _Client(TrustingClient):
    """Keeps what the other side says before the login, and passes on what it says later."""

    def __init__(self, trust: HostTrust, *, address: tuple[str, int]) -> None:
        super().__init__(trust, address=address)
        self.banner = ""
        self.remarks: deque[str] = deque(maxlen=MAX_REMARKS)
        self.notice: Callable[[str], None] = lambda line: None

    def auth_banner_received(self, msg: str, lang: str) -> None:
        self.banner = (self.banner + msg)[-4096:]

    def debug_msg_received(self, msg: str, lang: str, always_display: bool) -> None:
        self.remarks.append(msg)
        if always_display:
            self.notice(msg.removeprefix(REMARK_PREFIX))
