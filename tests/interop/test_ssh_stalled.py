"""Somebody does not read, on each kind of channel: the sender has to wait, the node keeps little, all others go on."""

import asyncio
import os
import pwd
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncssh
import psutil
import pytest

from testkit.as_user import Launcher
from testkit.echo import Address, echoing
from testkit.node import NodeProcess, wait_until
from testkit.polling import eventually, settled
from testkit.ssh_forwards import tell
from testkit.users import TEST_USER

pytestmark = pytest.mark.interop

OFFERED_BYTES = 64 * 1024 * 1024
MOST_KEPT_BYTES = 16 * 1024 * 1024
MOST_TAKEN_BYTES = 24 * 1024 * 1024
"""By everybody on the way: the kernel's buffers at each of the sockets, too."""
HERE = "127.0.0.1"
PIECE = bytes(64 * 1024)


@pytest.fixture(scope="module")
def place(test_user: pwd.struct_passwd) -> Iterator[Path]:
    """A directory of the test user, with a short name: that of a unix socket is limited."""
    with tempfile.TemporaryDirectory(prefix="alknet-") as directory:
        os.chown(directory, test_user.pw_uid, test_user.pw_gid)
        os.chmod(directory, 0o755)
        with (Path(directory) / "big").open("wb") as file:
            file.truncate(OFFERED_BYTES)
        yield Path(directory)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher, place: Path) -> Iterator[NodeProcess]:
    rules = [("local", f"{HERE}:*"), ("remote", "localhost:*"), ("unix", f"{place}/*")]
    lines = [f'{{action = "allow", direction = "{way}", target = "{target}"}},' for way, target in rules]
    head = ['scopes = ["forward:*", "ssh:agent", "ssh:exec", "sftp:*"]', "forward = [", *lines, "]", "[ssh]"]
    with NodeProcess(tmp_path_factory.mktemp("node"), launcher=launcher) as node:
        node.write_peer("bob", "\n".join([*head, f'user = "{TEST_USER}"', f'sftp_root = "{place}"']))
        node.alknet("config", "reload")
        yield node


@pytest.fixture(scope="module")
def echo() -> Iterator[Address]:
    with echoing() as address:
        yield address


@asynccontextmanager
async def client_of(node: NodeProcess) -> AsyncIterator[asyncssh.SSHClientConnection]:
    options: dict[str, Any] = {"agent_forwarding": str(node.directory / "no-agent"), "config": None}
    async with asyncssh.connect(
        HERE,
        node.port,
        username="bob",
        client_keys=[str(node.keys / "bob")],
        known_hosts=None,
        agent_path=None,
        **options,
    ) as client:
        yield client


def kept_by(node: NodeProcess) -> int:
    """What the node and its helpers have in memory."""
    whole = psutil.Process(node.pid)
    total = 0
    for process in (whole, *whole.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def working_for(node: NodeProcess) -> list[psutil.Process]:
    """Processes of the node that have not ended."""
    found = []
    for process in psutil.Process(node.pid).children():
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class Stalls:
    """A session, of either kind, that does not read, and counts what was pressed on it nevertheless."""

    def __init__(self) -> None:
        self.got = 0

    def connection_made(self, chan: Any) -> None:
        self.chan = chan

    def session_started(self) -> None:
        self.chan.pause_reading()

    def data_received(self, data: bytes, datatype: Any) -> None:
        self.got += len(data)


class StalledForward(Stalls, asyncssh.SSHTCPSession[bytes], asyncssh.SSHUNIXSession[bytes]):  # type: ignore[misc]
    pass


class StalledSession(Stalls, asyncssh.SSHClientSession[bytes]):  # type: ignore[misc]
    pass


class Pouring:
    """Offers much on a socket and counts what is taken; sockets, since streams would take all of it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.sent = 0

    def pour(self) -> int:
        """How much was taken in all."""
        with suppress(BlockingIOError):
            while self.sent < OFFERED_BYTES:
                self.sent += self._sock.send(PIECE)
        return self.sent


class Writing:
    """The same with a channel of the client."""

    def __init__(self, chan: Any, piece: bytes = PIECE) -> None:
        self._chan = chan
        self._piece = piece
        self._offered = 0

    def pour(self) -> int:
        while self._chan.get_write_buffer_size() < 4 * len(PIECE) and self._offered < OFFERED_BYTES:
            self._chan.write(self._piece)
            self._offered += len(self._piece)
        return self._offered - int(self._chan.get_write_buffer_size())


# --- the kinds: each sets up its stalled reader and returns what pours -----------------------------------------------

Kind = Callable[[AsyncExitStack, asyncssh.SSHClientConnection, Path, NodeProcess], Coroutine[Any, Any, Any]]


def _listening(stack: AsyncExitStack, path: Path | None) -> socket.socket:
    sock = socket.create_server((HERE, 0)) if path is None else socket.socket(socket.AF_UNIX)
    stack.enter_context(sock)
    if path is not None:
        stack.callback(path.unlink)
        sock.bind(str(path))
        path.chmod(0o666)
        sock.listen()
    sock.setblocking(False)
    return sock


async def _accepted(stack: AsyncExitStack, listening: socket.socket) -> socket.socket:
    sock, _ = await asyncio.get_running_loop().sock_accept(listening)
    return stack.enter_context(sock)


async def _open(client: asyncssh.SSHClientConnection, listening: socket.socket) -> Any:
    if listening.family == socket.AF_UNIX:
        return await client.create_unix_connection(StalledForward, listening.getsockname(), encoding=None)
    return await client.create_connection(StalledForward, *listening.getsockname(), encoding=None)


def to_the_client(is_unix: bool) -> Kind:
    async def kind(stack: AsyncExitStack, client: asyncssh.SSHClientConnection, place: Path, node: NodeProcess) -> Any:
        listening = _listening(stack, place / "target" if is_unix else None)
        await _open(client, listening)
        return Pouring(await _accepted(stack, listening))

    return kind


def to_the_target(is_unix: bool) -> Kind:
    async def kind(stack: AsyncExitStack, client: asyncssh.SSHClientConnection, place: Path, node: NodeProcess) -> Any:
        listening = _listening(stack, place / "target" if is_unix else None)
        chan, _ = await _open(client, listening)
        await _accepted(stack, listening)
        return Writing(chan)

    return kind


async def _visited(
    stack: AsyncExitStack, client: asyncssh.SSHClientConnection, path: Path | None
) -> tuple[socket.socket, Stalls]:
    """A listener for the client, and somebody who came by it."""
    came: asyncio.Future[Stalls] = asyncio.get_running_loop().create_future()

    def arrived(*_: Any) -> StalledForward:
        came.set_result(StalledForward())
        return came.result()  # type: ignore[return-value]

    if path is None:
        listener = await client.create_server(arrived, HERE, 0, encoding=None)
        visitor = socket.create_connection((HERE, listener.get_port()))
    else:
        await client.create_unix_server(arrived, str(path), encoding=None)
        visitor = socket.socket(socket.AF_UNIX)
        visitor.connect(str(path))
    stack.enter_context(visitor)
    async with asyncio.timeout(10):
        session = await came
    await _stalled(session)
    return visitor, session


async def _stalled(session: Stalls) -> None:
    """asyncssh begins to read once such a channel is open, whatever its session has said."""
    await eventually(lambda: hasattr(session, "chan") and not session.chan._recv_paused, "it is read")
    session.chan.pause_reading()


def from_a_visitor(is_unix: bool) -> Kind:
    async def kind(stack: AsyncExitStack, client: asyncssh.SSHClientConnection, place: Path, node: NodeProcess) -> Any:
        visitor, _ = await _visited(stack, client, place / "here" if is_unix else None)
        return Pouring(visitor)

    return kind


def to_a_visitor(is_unix: bool) -> Kind:
    async def kind(stack: AsyncExitStack, client: asyncssh.SSHClientConnection, place: Path, node: NodeProcess) -> Any:
        _, session = await _visited(stack, client, place / "here" if is_unix else None)
        return Writing(session.chan)

    return kind


async def to_the_agent(
    stack: AsyncExitStack, client: asyncssh.SSHClientConnection, place: Path, node: NodeProcess
) -> Any:
    session = StalledForward()

    def stall(packet: Any) -> Any:
        return client.create_unix_channel(encoding=None), session

    client._process_auth_agent_at_openssh_dot_com_open = stall  # type: ignore[method-assign]
    path = str((await client.run("echo $SSH_AUTH_SOCK", check=True)).stdout).strip()
    visitor = stack.enter_context(socket.socket(socket.AF_UNIX))
    visitor.connect(path)
    await _stalled(session)
    return Pouring(visitor)


def _sftp(kind: int, number: int, *parts: bytes | int) -> bytes:
    """A request of the file transfer protocol: numbers of four bytes, and strings."""
    body = b"".join(
        part.to_bytes(4, "big") if isinstance(part, int) else len(part).to_bytes(4, "big") + part for part in parts
    )
    return (len(body) + 5).to_bytes(4, "big") + bytes([kind]) + number.to_bytes(4, "big") + body


OPEN, READ, WRITE = 3, 5, 6
FOR_READING, FOR_WRITING = 1, 2 | 8


async def _opened_file(client: asyncssh.SSHClientConnection, name: bytes, flags: int) -> Any:
    chan, session = await client.create_session(StalledSession, subsystem="sftp", encoding=None)
    answers = bytearray()
    session.data_received = lambda data, datatype: answers.extend(data)
    chan.resume_reading()
    chan.write((5).to_bytes(4, "big") + b"\1" + (3).to_bytes(4, "big"))
    chan.write(_sftp(OPEN, 1, name, flags, 0))
    await eventually(lambda: b"f\0\0\0\1" in answers, "the file is open")  # SSH_FXP_HANDLE
    start = answers.index(b"f\0\0\0\1") + 5
    await eventually(lambda: len(answers) >= start + 4, "its handle has come")
    size = int.from_bytes(answers[start : start + 4], "big")
    await eventually(lambda: len(answers) >= start + 4 + size, "its handle has come")
    del session.data_received
    return chan, session, bytes(answers[start + 4 : start + 4 + size])


async def getting(stack: AsyncExitStack, client: asyncssh.SSHClientConnection, place: Path, node: NodeProcess) -> Any:
    """A client that asks for a whole file at once and does not read it. What counts is what the server has read."""
    chan, _, handle = await _opened_file(client, b"/big", FOR_READING)
    chan.pause_reading()
    (child,) = (one for one in working_for(node) if "alknet.ssh.files.child" in one.cmdline())
    before = child.io_counters().read_chars

    class Asking:
        offset = 0

        def pour(self) -> int:
            while self.offset < OFFERED_BYTES and chan.get_write_buffer_size() < len(PIECE):
                chan.write(_sftp(READ, 2, handle, 0, self.offset, 32768))
                self.offset += 32768
            return child.io_counters().read_chars - before

    return Asking()


async def putting(stack: AsyncExitStack, client: asyncssh.SSHClientConnection, place: Path, node: NodeProcess) -> Any:
    """The server does not read: it was stopped."""
    chan, _, handle = await _opened_file(client, b"/new", FOR_WRITING)
    (child,) = (one for one in working_for(node) if "alknet.ssh.files.child" in one.cmdline())
    child.send_signal(signal.SIGSTOP)
    stack.callback(child.send_signal, signal.SIGCONT)
    return Writing(chan, _sftp(WRITE, 3, handle, 0, 0, bytes(32768)))


KINDS: dict[str, Kind] = {
    "-L, to the client": to_the_client(is_unix=False),
    "-L, to the target": to_the_target(is_unix=False),
    "-R, to the client": from_a_visitor(is_unix=False),
    "-R, to the visitor": to_a_visitor(is_unix=False),
    "-L of a socket, to the client": to_the_client(is_unix=True),
    "-L of a socket, to the target": to_the_target(is_unix=True),
    "-R of a socket, to the client": from_a_visitor(is_unix=True),
    "-R of a socket, to the visitor": to_a_visitor(is_unix=True),
    "-A": to_the_agent,
    "sftp, get": getting,
    "sftp, put": putting,
}


@pytest.mark.parametrize("name", KINDS)
async def test_who_does_not_read_stops_the_sender_and_nobody_else(
    shared: NodeProcess, place: Path, echo: tuple[str, int], name: str
) -> None:
    async with client_of(shared) as client, AsyncExitStack() as stack:
        busy = [await client.open_connection(*echo, encoding=None) for _ in range(2)]
        data = os.urandom(1024 * 1024)
        assert await tell(*busy.pop(), data) == data  # what that takes, belongs to the node at work
        pouring = await KINDS[name](stack, client, place, shared)
        idle = kept_by(shared)
        taken = await settled(pouring.pour)
        assert taken < MOST_TAKEN_BYTES
        assert kept_by(shared) - idle < MOST_KEPT_BYTES
        assert await tell(*busy.pop(), data) == data, "another channel of the same connection"
        async with client_of(shared) as other:
            assert await tell(*await other.open_connection(*echo, encoding=None), data) == data
        client.abort()
    wait_until(lambda: not working_for(shared), "the helpers have ended")


async def test_a_client_that_reads_nothing_at_all_stops_everybody_who_speaks_to_it(
    shared: NodeProcess, echo: tuple[str, int]
) -> None:
    async with client_of(shared) as client, AsyncExitStack() as stack:
        listening = _listening(stack, None)
        pouring = []
        for _ in range(4):
            await _open(client, listening)
            pouring.append(Pouring(await _accepted(stack, listening)))
        idle = kept_by(shared)
        client._transport.pause_reading()  # type: ignore[union-attr]
        taken = await settled(lambda: sum(one.pour() for one in pouring))
        assert taken < len(pouring) * MOST_TAKEN_BYTES
        assert kept_by(shared) - idle < MOST_KEPT_BYTES
        data = os.urandom(1024 * 1024)
        async with client_of(shared) as other:
            assert await tell(*await other.open_connection(*echo, encoding=None), data) == data
        client.abort()
