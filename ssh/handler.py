"""The SSH door: serves the ALPN ``alknet/ssh`` on every carrier."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol
from weakref import WeakValueDictionary

from alknet.access import Identity
from alknet.alpn.errors import ConnectionClosed
from alknet.alpn.streams import Address, Connection, Stream
from alknet.child import Child
from alknet.gate import Gate
from alknet.ssh.channel_stream import ChannelStream
from alknet.ssh.connection import SshConnection
from alknet.ssh.options import HostKey, server_options
from alknet.targets import Target
from alknet.tasks import Tasks

__all__ = ["ALPN", "Command", "OwnPort", "SshHandler", "SshSettings", "Subsystem"]

ALPN: Final = "alknet/ssh"
SHUTDOWN_GRACE_S: Final = 0.5
"""Between SIGHUP and SIGKILL when the node itself stops."""

Subsystem = Callable[[Stream, Identity, Connection], Awaitable[int]]
"""A part of the node that is reached as an SSH subsystem. It asks its own decisions and returns an exit status."""

Command = Callable[[ChannelStream, Identity, Connection, str], Awaitable[int]]
"""A command that the node itself carries out, with all that followed its name; else as a `Subsystem`."""


class OwnPort(Protocol):
    """The node's own listeners, as a forward to them needs them."""

    def is_own(self, address: str, port: int, *, any_address: bool = False) -> bool:
        """Whether one of them is there; with `any_address`, whether one has the port."""

    def introduced(self, source: Address, caller: Address | None) -> AbstractContextManager[None]:
        """While the context lasts, a connection that arrives from `source` counts as coming from `caller`."""


@dataclass(frozen=True, slots=True)
class SshSettings:
    """What the configuration says about SSH connections; see `config.model` for the meaning."""

    login_grace_s: float = 30.0
    auth_attempts: int = 10
    channels_per_connection: int = 64
    forwards_per_connection: int = 256
    connections_per_peer: int = 256
    env_allow: tuple[str, ...] = ("LANG", "LC_*")


class SshHandler:
    """Serves SSH. `settings` may be replaced while it runs; `on_login_failed` hears of hosts that failed to log in."""

    alpns = (ALPN,)

    def __init__(
        self,
        gate: Gate,
        host_key: HostKey,
        settings: SshSettings,
        *,
        subsystems: Mapping[str, Subsystem],
        commands: Mapping[str, Command] = MappingProxyType({}),
        on_login_failed: Callable[[str], None] | None = None,
        connections_of: Callable[[str], int] | None = None,
        protected: Sequence[str] = (),
    ) -> None:
        """`protected` are the paths that only ``owner`` may reach over SFTP."""
        self.gate = gate
        self.settings = settings
        self.subsystems = subsystems
        self.commands = commands
        self.tasks = Tasks("ssh")
        self._options = server_options(host_key)
        self._on_login_failed = on_login_failed
        self._connections_of = connections_of
        self.own_port: OwnPort | None = None
        """What forwards to the node itself go through; without it there are none."""
        self.protected = tuple(protected)
        self._connections: set[SshConnection] = set()
        self._waiting: set[Connection] = set()
        """Those that have not opened a stream yet."""
        self._hung_up: set[Child] = set()
        self.lookups: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """By peer: the names that it may have looked up at the same time."""

    async def handle(self, connection: Connection) -> None:
        login_until = asyncio.get_running_loop().time() + self.settings.login_grace_s
        stream = await self._first_stream(connection, login_until)
        if stream is None:
            return
        ssh = SshConnection(self, connection, self._options, login_until=login_until)
        self._connections.add(ssh)
        connection.polite_close = ssh.end
        try:
            await stream.attach(ssh)
            await ssh.wait_closed()
            await ssh.wait_gone()
        finally:
            self._connections.discard(ssh)

    async def _first_stream(self, connection: Connection, login_until: float) -> Stream | None:
        """The stream that SSH runs on; None when none comes in the time for a login, or the connection ends first."""
        self._waiting.add(connection)
        try:
            async with asyncio.timeout_at(login_until):
                return await connection.accept_stream()
        except (TimeoutError, ConnectionClosed):
            return None
        finally:
            self._waiting.discard(connection)

    def recheck(self) -> None:
        for connection in tuple(self._connections):
            connection.recheck()

    def connections_of(self, peer_id: str) -> int:
        """How many logged-in connections a peer has: at all doors, where this one has been told how to count them."""
        if self._connections_of is not None:
            return self._connections_of(peer_id)
        return sum(c.connection.identity is not None and c.connection.identity.id == peer_id for c in self._connections)

    def is_own(self, address: str, port: int, *, any_address: bool = False) -> bool:
        """Whether this node itself listens there; with `any_address`, whether it listens on the port."""
        return self.own_port is not None and self.own_port.is_own(address, port, any_address=any_address)

    async def dial_self(self, target: Target, caller: Address | None) -> socket.socket:
        """A connection to this node's own port, on which `caller` is who calls; raises `OSError`."""
        assert self.own_port is not None
        assert target.address is not None
        family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            sock.bind((target.address, 0))
            with self.own_port.introduced(Address.of(sock.getsockname()), caller):
                await asyncio.get_running_loop().sock_connect(sock, (target.address, target.port))
        except BaseException:
            sock.close()
            raise
        return sock

    def login_failed(self, host: str | None) -> None:
        if host is not None and self._on_login_failed is not None:
            self._on_login_failed(host)

    def hang_up(self, child: Child, *, terminal_closed: bool) -> None:
        """End a process group whose session is over, and remember it until it has ended."""
        self._hung_up = {other for other in self._hung_up if other.is_running} | {child}
        child.hang_up(terminal_closed=terminal_closed)

    async def shutdown(self, deadline: float) -> None:
        """Refuse new sessions, let running ones finish until `deadline`, disconnect everybody, end what still runs."""
        for waiting in tuple(self._waiting):
            waiting.close(0, "the node is shutting down")
        await asyncio.gather(*(self._drain(connection, deadline) for connection in self._connections))
        children = [child for child in self._hung_up if child.is_running]
        async with asyncio.TaskGroup() as group:
            for child in children:
                group.create_task(child.wait_ended(timeout_s=SHUTDOWN_GRACE_S))
        await self.tasks.aclose()

    async def _drain(self, connection: SshConnection, deadline: float) -> None:
        connection.is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await connection.idle.wait()
        connection.end("the node is shutting down")
        await connection.wait_closed()
