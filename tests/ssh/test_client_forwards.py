"""The client's forwards through OpenSSH's server; those through a node: tests/interop/test_alknet_ssh_forwards.py."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from alknet.ssh.client import Link, connect
from alknet.ssh.client_forwards import Forwards
from alknet.ssh.forward_specs import Option, parse_forward
from testkit.node import free_port
from testkit.stock_sshd import Sshd, sshd_in

MIB = 1024 * 1024
DEADLINE_S = 20.0
ForwardText = tuple[Option, str]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server that forwards everything."""
    with sshd_in(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(scope="module")
def strict_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server that forwards to its own ports only."""
    with sshd_in(tmp_path_factory.mktemp("strict"), "PermitOpen localhost:* 127.0.0.1:*") as server:
        yield server


class Ends:
    """Programs that are forwarded to: one that answers a whole input with its length and what it was."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "end")
        self.port = 0
        self.kept: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.open: list[asyncio.StreamWriter] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            data = await reader.read()
            writer.write(f"{len(data)}:".encode() + data)
            await writer.drain()
        writer.close()

    async def keep(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Have a test do what it wants with the connection."""
        self.open.append(writer)
        self.kept.put_nowait((reader, writer))

    async def next(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await self.kept.get()

    async def connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection from this side, which is closed with the rest."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        self.open.append(writer)
        return reader, writer

    def abort(self) -> None:
        for writer in self.open:
            writer.transport.abort()


@asynccontextmanager
async def ends(directory: Path, *, kept: bool = False) -> AsyncIterator[Ends]:
    """Listening on a port of 127.0.0.1 and on a path."""
    programs = Ends(directory)
    handler: Any = programs.keep if kept else programs.answer
    tcp = await asyncio.start_server(handler, "127.0.0.1", 0)
    unix = await asyncio.start_unix_server(handler, programs.path)
    programs.port = tcp.sockets[0].getsockname()[1]
    async with tcp, unix:
        yield programs
        programs.abort()
        for writer in programs.open:
            with suppress(ConnectionError):
                await writer.wait_closed()


class Client:
    """Forwards and what they have said."""

    def __init__(self, texts: tuple[ForwardText, ...], **keywords: Any) -> None:
        self.said: list[str] = []
        self.forwards = Forwards([parse_forward(*text) for text in texts], self.said.append, **keywords)

    async def has_said(self, text: str) -> str:
        """The line with that in it, once there is one."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for line in self.said:
                    if text in line:
                        return line
                await asyncio.sleep(0.005)


@asynccontextmanager
async def forwarding(sshd: Sshd, *texts: ForwardText, **keywords: Any) -> AsyncIterator[tuple[Client, Link]]:
    client = Client(texts, **keywords)
    try:
        async with asyncio.timeout(DEADLINE_S), connect(sshd.target) as link:
            assert await client.forwards.listen() == []
            assert await client.forwards.attach(link) == []
            yield client, link
    finally:
        await client.forwards.aclose()


async def asked(where: int | str, data: bytes = b"question") -> bytes:
    """What a program says that hears all of `data` and its end."""
    if isinstance(where, str):
        reader, writer = await asyncio.open_unix_connection(where)
    else:
        reader, writer = await asyncio.open_connection("127.0.0.1", where)
    writer.write(data)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def test_ports_and_paths_are_forwarded_from_here(sshd: Sshd, tmp_path: Path) -> None:
    port, to_path, here = free_port(), free_port(), str(tmp_path / "here")
    async with ends(tmp_path) as programs:
        texts: tuple[ForwardText, ...] = (
            ("-L", f"{port}:localhost:{programs.port}"),
            ("-L", f"{to_path}:{programs.path}"),
            ("-L", f"{here}:127.0.0.1:{programs.port}"),
        )
        async with forwarding(sshd, *texts) as (client, _):
            for where in (port, to_path, here):
                assert await asked(where) == b"8:question", client.said
            assert os.stat(here).st_mode & 0o777 == 0o600
            blob = os.urandom(3 * MIB)
            answers = await asyncio.gather(*(asked(port, blob) for _ in range(4)))
            assert set(answers) == {f"{3 * MIB}:".encode() + blob}
            await client.forwards.wait_idle()
        assert client.said == []
        assert "here" not in os.listdir(tmp_path)
        with pytest.raises(ConnectionRefusedError):
            await asked(port)


async def test_ports_and_paths_are_forwarded_from_the_far_side(sshd: Sshd, tmp_path: Path) -> None:
    port, there = free_port(), str(tmp_path / "there")
    async with ends(tmp_path) as programs:
        texts: tuple[ForwardText, ...] = (
            ("-R", f"127.0.0.1:{port}:localhost:{programs.port}"),
            ("-R", f"0:{programs.path}"),
            ("-R", f"{there}:127.0.0.1:{programs.port}"),
        )
        async with forwarding(sshd, *texts) as (client, _):
            (line,) = client.said
            before, _, chosen = line.removesuffix(f" for remote forward to {programs.path}").rpartition(" ")
            assert before == "Allocated port"
            blob = os.urandom(3 * MIB)
            for where in (port, int(chosen), there):
                assert await asked(where, blob) == f"{3 * MIB}:".encode() + blob


async def test_nobody_at_home_is_said_on_both_sides(sshd: Sshd) -> None:
    port, nobody = free_port(), free_port()
    async with forwarding(sshd, ("-R", f"127.0.0.1:{port}:127.0.0.1:{nobody}")) as (client, _):
        assert await asked(port, b"") == b""
        assert client.said == [f"-R 127.0.0.1:{port} to 127.0.0.1:{nobody}: Connection refused"]


@pytest.mark.parametrize(("to", "why"), [("127.0.0.1:{nobody}", "Connection refused"), ("192.0.2.1:1", "open failed")])
async def test_a_channel_that_the_far_side_refuses_is_said_with_its_reason(
    strict_sshd: Sshd, to: str, why: str
) -> None:
    port, to = free_port(), to.format(nobody=free_port())
    async with forwarding(strict_sshd, ("-L", f"{port}:{to}")) as (client, _):
        assert await asked(port, b"") == b""
        assert client.said == [f"-L localhost:{port} to {to}: refused: {why}"]


# --- SOCKS ------------------------------------------------------------------------------------------------------


async def _by_socks(port: int, request: bytes, *, replies: int, question: bytes = b"question") -> tuple[bytes, bytes]:
    """The reply to a request, and what follows a question."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request + question)  # and does not wait for the reply
    writer.write_eof()
    data = await reader.read()
    writer.close()
    return data[:replies], data[replies:]


async def test_socks_goes_where_each_connection_asks(strict_sshd: Sshd, tmp_path: Path) -> None:
    port, nobody = free_port(), free_port()
    async with ends(tmp_path) as programs, forwarding(strict_sshd, ("-D", str(port))) as (client, _):
        to, host = programs.port.to_bytes(2, "big"), b"localhost"
        name = b"\5\1\0\5\1\0\3" + bytes([len(host)]) + host
        good = b"\5\0\5\0\0\1" + bytes(6)
        assert await _by_socks(port, name + to, replies=12) == (good, b"8:question")
        assert await _by_socks(port, b"\5\1\0\5\1\0\1\x7f\0\0\1" + to, replies=12) == (good, b"8:question")
        four = b"\0\x5a" + bytes(6)
        assert await _by_socks(port, b"\4\1" + to + b"\x7f\0\0\1me\0", replies=8) == (four, b"8:question")
        assert await _by_socks(port, b"\4\1" + to + b"\0\0\0\1\0localhost\0", replies=8) == (four, b"8:question")
        assert client.said == []
        refused, prohibited = b"\5\0\5\5\0\1" + bytes(6), b"\5\0\5\2\0\1" + bytes(6)
        assert await _by_socks(port, name + nobody.to_bytes(2, "big"), replies=12, question=b"") == (refused, b"")
        assert await _by_socks(port, b"\5\1\0\5\1\0\1\xc0\0\2\1\0\1", replies=12, question=b"") == (prohibited, b"")
        assert [line.partition(": refused: ")[0] for line in client.said] == [
            f"-D localhost:{port} to where SOCKS asks (localhost:{nobody})",
            f"-D localhost:{port} to where SOCKS asks (192.0.2.1:1)",
        ]
        assert await _by_socks(port, b"G", replies=0, question=b"") == (b"", b"")
        assert "is not SOCKS" in client.said[-1]


# --- ends and pressure ------------------------------------------------------------------------------------------


async def test_each_end_is_passed_on_by_itself(sshd: Sshd, tmp_path: Path) -> None:
    port = free_port()
    async with ends(tmp_path, kept=True) as programs, forwarding(sshd, ("-L", f"{port}:127.0.0.1:{programs.port}")):
        reader, writer = await programs.connect(port)
        far_reader, far_writer = await programs.next()
        far_writer.write(b"first")
        far_writer.write_eof()
        assert await reader.read() == b"first"
        writer.write(b"second")
        assert await far_reader.readexactly(6) == b"second"
        writer.write_eof()
        assert await far_reader.read() == b""
        writer.close()


async def test_a_program_that_is_cut_off_takes_the_other_along(sshd: Sshd, tmp_path: Path) -> None:
    port = free_port()
    async with (
        ends(tmp_path, kept=True) as programs,
        forwarding(sshd, ("-L", f"{port}:127.0.0.1:{programs.port}")) as (client, _),
    ):
        _, writer = await programs.connect(port)
        _, far_writer = await programs.next()
        writer.transport.abort()
        with suppress(ConnectionError):
            while True:
                far_writer.write(bytes(MIB))
                await far_writer.drain()
        await client.forwards.wait_idle()


async def _until_stuck(send: Callable[[], int]) -> int:
    """How many bytes go in until for half a second no more do."""
    loop = asyncio.get_running_loop()
    total, since = 0, loop.time()
    while loop.time() - since < 0.5:
        sent = send()
        if sent:
            total, since = total + sent, loop.time()
        await asyncio.sleep(0 if sent else 0.02)
    return total


def _sender(sock: socket.socket) -> Callable[[], int]:
    def send() -> int:
        with suppress(BlockingIOError):
            return sock.send(bytes(MIB))
        return 0

    return send


@pytest.mark.parametrize("sends", ["near", "far"])
async def test_a_stalled_reader_stops_its_sender_and_nobody_else(sshd: Sshd, tmp_path: Path, sends: str) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        to = listener.getsockname()[1]
        async with ends(tmp_path) as programs:
            other = free_port()
            texts: tuple[ForwardText, ...] = (
                ("-L", f"{port}:127.0.0.1:{to}"),
                ("-L", f"{other}:127.0.0.1:{programs.port}"),
            )
            async with forwarding(sshd, *texts) as (_, link):
                loop = asyncio.get_running_loop()
                listener.setblocking(False)
                near = socket.socket()
                near.setblocking(False)
                await loop.sock_connect(near, ("127.0.0.1", port))
                far, _ = await loop.sock_accept(listener)
                with near, far:
                    far.setblocking(False)
                    sender, reader = (near, far) if sends == "near" else (far, near)
                    total = await _until_stuck(_sender(sender))
                    assert total < 16 * MIB
                    assert await asked(other) == b"8:question"
                    assert link.ssh._transport.get_write_buffer_size() < MIB
                    sender.shutdown(socket.SHUT_WR)
                    while data := await loop.sock_recv(reader, MIB):
                        total -= len(data)
                    assert total == 0


async def test_a_connection_without_room_stops_all_senders(sshd: Sshd, tmp_path: Path) -> None:
    """asyncssh would take from each of them what the window of its channel has room for."""
    port = free_port()
    async with (
        ends(tmp_path, kept=True) as programs,
        forwarding(sshd, ("-L", f"{port}:127.0.0.1:{programs.port}")) as (_, link),
    ):
        loop = asyncio.get_running_loop()
        senders = []
        for _ in range(8):
            sock = socket.socket()
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", port))
            senders.append(sock)
            await programs.next()
        sshd.signal_connections(signal.SIGSTOP)
        try:
            for sock in senders:
                await asyncio.wait_for(_fill(sock), DEADLINE_S)
            assert link.room.is_full
            assert link.ssh._transport.get_write_buffer_size() < 4 * MIB
        finally:
            sshd.signal_connections(signal.SIGCONT)
            for sock in senders:
                sock.close()


async def _fill(sock: socket.socket) -> None:
    """Send until nothing more goes in for a moment."""
    send = _sender(sock)
    idle = 0
    while idle < 5:
        idle = 0 if send() else idle + 1
        await asyncio.sleep(0.005)


# --- connections that come and go -------------------------------------------------------------------------------


async def test_what_arrives_between_two_connections_waits_for_the_next(sshd: Sshd, tmp_path: Path) -> None:
    port = free_port()
    async with (
        ends(tmp_path) as programs,
        forwarding(sshd, ("-L", f"{port}:127.0.0.1:{programs.port}")) as (client, first),
        asyncio.TaskGroup() as group,
    ):
        reader, _ = await programs.connect(port)
        assert await asked(port) == b"8:question"
        for process in sshd.connections():
            process.kill()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await first.ssh.wait_closed()
        client.forwards.detach()
        waiting = group.create_task(asked(port))
        async with connect(sshd.target) as link:
            assert await client.forwards.attach(link) == []
            assert await waiting == b"8:question"


async def test_what_waits_too_long_is_closed(sshd: Sshd) -> None:
    port, socks = free_port(), free_port()
    client = Client((("-L", f"{port}:db:1"), ("-D", str(socks))), patience_s=0.05)
    assert await client.forwards.listen() == []
    assert await asked(port, b"") == b""
    assert client.said == [f"-L localhost:{port} to db:1: a connection was closed: there is no connection to the node"]
    reply, _ = await _by_socks(socks, b"\5\1\0\5\1\0\1\x7f\0\0\1\0\1", replies=12, question=b"")
    assert reply == b"\5\0\5\1\0\1" + bytes(6)
    await client.forwards.aclose()


async def test_a_chosen_port_is_asked_for_again(sshd: Sshd, tmp_path: Path) -> None:
    async with (
        ends(tmp_path) as programs,
        forwarding(sshd, ("-R", f"0:127.0.0.1:{programs.port}")) as (client, _),
    ):
        port = int((await client.has_said("Allocated")).split()[2])
        assert await asked(port) == b"8:question"
        async with connect(sshd.target) as link:  # while the first still has it
            assert await client.forwards.attach(link) == []
            other = int(client.said[1].split()[2])
            assert other != port
            assert await asked(other) == b"8:question"
        client.forwards.detach()
        async with connect(sshd.target) as link:
            assert await client.forwards.attach(link) == []
            assert await asked(other) == b"8:question"
            assert len(client.said) == 2


async def test_what_cannot_be_set_up_is_told(sshd: Sshd, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        free, path = free_port(), str(tmp_path / "no" / "such")
        client = Client(
            (
                ("-L", f"{port}:db:1"),
                ("-L", f"{path}:db:1"),
                ("-D", str(free)),
                ("-R", f"127.0.0.1:{port}:127.0.0.1:1"),
            )
        )
        assert [str(error) for error in await client.forwards.listen()] == [
            f"-L localhost:{port} to db:1: cannot listen on localhost:{port}: Address already in use",
            f"-L {path} to db:1: cannot listen on {path}: No such file or directory",
        ]
        async with connect(sshd.target) as link:
            (error,) = await client.forwards.attach(link)
            assert str(error).endswith(f"the node does not listen on 127.0.0.1:{port}")
            assert len(await client.forwards.ask_again()) == 1
            taken.close()
            assert await client.forwards.ask_again() == []
            assert await client.forwards.ask_again() == []
        await client.forwards.aclose()


async def test_connections_are_bounded(sshd: Sshd, tmp_path: Path) -> None:
    port, back = free_port(), free_port()
    async with ends(tmp_path, kept=True) as programs:
        texts: tuple[ForwardText, ...] = (
            ("-L", f"{port}:127.0.0.1:{programs.port}"),
            ("-R", f"127.0.0.1:{back}:127.0.0.1:{programs.port}"),
        )
        async with forwarding(sshd, *texts, max_connections=2) as (client, _):
            for where in (port, back):
                client.said.clear()
                for _ in range(2):
                    await programs.connect(where)
                    await programs.next()
                for _ in range(3):
                    assert await asked(where, b"") == b""
                assert len(client.said) == 1
                assert client.said[0].endswith("2 connections are carried; further ones are closed")
                assert any(line.endswith(": 2 connections") for line in client.forwards.lines())
                programs.abort()
                await client.forwards.wait_idle()
                await programs.connect(where)
                await programs.next()
                programs.abort()
                await client.forwards.wait_idle()
