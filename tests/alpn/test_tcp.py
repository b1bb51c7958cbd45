"""Plain TCP beyond the contract: what goes over the wire at the end, and when the connection is over."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from alknet.access import Identity
from alknet.alpn.errors import ConnectionClosed, StreamBroken, StreamClosed
from alknet.alpn.streams import Address
from alknet.alpn.tcp import KEEPALIVE_IDLE_S, TcpConnection, keep_alive
from testkit.polling import eventually, settled

from .conformance import BULK, Recorder, same

ALICE = Identity("alice", frozenset(), "key:SHA256:alice")


class Watched:
    """A `TcpConnection`, the raw socket of its peer, and what the connection told."""

    def __init__(self, sock: socket.socket, peer: socket.socket) -> None:
        self.told: list[str] = []
        self.peer = peer
        self.connection = TcpConnection(
            sock,
            alpn="test",
            remote=Address("127.0.0.1", 1),
            on_login=lambda: self.told.append("login"),
            on_closed=lambda: self.told.append("closed"),
        )

    async def peer_gets(self) -> bytes:
        """Everything until the end; `ConnectionResetError` when that is a reset."""
        loop = asyncio.get_running_loop()
        received = bytearray()
        while data := await loop.sock_recv(self.peer, 64 * 1024):
            received += data
        return bytes(received)

    def peer_resets(self) -> None:
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()


@asynccontextmanager
async def watched() -> AsyncIterator[Watched]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peer = socket.create_connection(listening.getsockname())
        sock, _ = listening.accept()
    peer.setblocking(False)
    sock.setblocking(False)
    with peer:
        both = Watched(sock, peer)
        async with asyncio.timeout(10.0):
            yield both
        both.connection.close()


async def test_a_login_and_the_end_are_told_once() -> None:
    async with watched() as it:
        it.connection.logged_in(ALICE)
        with pytest.raises(RuntimeError):
            it.connection.logged_in(ALICE)
        for _ in range(2):
            it.connection.close()
        await it.connection.wait_closed()
    assert it.told == ["login", "closed"]


async def test_an_unused_connection_that_is_closed_is_reset() -> None:
    async with watched() as it:
        it.connection.close()
        with pytest.raises(ConnectionResetError):
            await it.peer_gets()


async def test_closing_a_stream_ends_it_in_order_and_resetting_does_not() -> None:
    for way in ("aclose", "reset"):
        async with watched() as it:
            stream = await it.connection.accept_stream()
            await stream.write(b"words")
            if way == "aclose":
                await stream.aclose()
                assert await it.peer_gets() == b"words"
            else:
                stream.reset()
                with pytest.raises(ConnectionResetError):
                    await it.peer_gets()


async def test_what_was_closed_in_order_is_not_reset_by_the_close_of_the_connection() -> None:
    async with watched() as it:
        stream = await it.connection.accept_stream()
        await stream.write(BULK[:100_000])
        await stream.aclose()
        it.connection.close()
        assert same(await it.peer_gets(), BULK[:100_000])


async def test_an_attached_protocol_that_closed_in_order_is_not_reset_either() -> None:
    async with watched() as it:
        stream, protocol = await it.connection.accept_stream(), Recorder()
        transport = await stream.attach(protocol)
        transport.write(BULK[:100_000])
        transport.close()
        peer_gets = asyncio.gather(it.peer_gets())
        await eventually(lambda: protocol.lost_with, "connection_lost")
        it.connection.close()
        (received,) = await peer_gets
        assert same(received, BULK[:100_000])


async def test_a_close_that_the_peer_does_not_let_through_can_be_cut() -> None:
    async with watched() as it, asyncio.TaskGroup() as group:
        stream = await it.connection.accept_stream()
        for _ in range(4):  # each write that is cancelled leaves some part of it to be sent
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await stream.write(BULK)
        closing = group.create_task(stream.aclose())
        await settled(lambda: int(closing.done()))
        assert not closing.done()
        it.connection.close()
        await closing
    assert it.told == ["closed"]


async def test_the_end_of_the_peers_words_is_not_the_end_of_the_connection() -> None:
    async with watched() as it:
        stream = await it.connection.accept_stream()
        it.peer.shutdown(socket.SHUT_WR)
        assert await stream.read() == b""
        await settled(lambda: len(it.told))
        assert it.told == []
        await stream.write(b"still here")
        await stream.aclose()
        assert it.told == ["closed"]
        assert await it.peer_gets() == b"still here"


async def test_a_reset_by_the_peer_ends_the_connection_and_is_an_error_however_late_it_is_read() -> None:
    async with watched() as it:
        stream = await it.connection.accept_stream()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await stream.read()
        it.peer_resets()
        await it.connection.wait_closed()
        assert it.told == ["closed"]
        for _ in range(2):
            with pytest.raises(StreamBroken):
                await stream.read()
            with pytest.raises(StreamBroken):
                await stream.write(b"x")
        await stream.write_eof()  # nothing to add to an end
        await stream.aclose()
        with pytest.raises(StreamClosed):
            await stream.read()
        with pytest.raises(ConnectionClosed):
            await it.connection.accept_stream()
    assert it.told == ["closed"]


async def test_an_attached_protocol_gets_the_socket_itself() -> None:
    async with watched() as it:
        protocol = Recorder()
        stream = await it.connection.accept_stream()
        transport = await stream.attach(protocol)
        assert transport.get_extra_info("peername") == it.peer.getsockname()
        it.peer.send(b"x")
        await eventually(lambda: protocol.data == b"x", "data arrives")


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancelled_attach_leaves_nothing_open(turns: int) -> None:
    async with watched() as it:
        protocol = Recorder()
        stream = await it.connection.accept_stream()
        async with asyncio.TaskGroup() as group:
            attaching = group.create_task(stream.attach(protocol))
            for _ in range(turns):
                await asyncio.sleep(0)
            attaching.cancel()
        it.connection.close()
        with pytest.raises(ConnectionResetError):
            await it.peer_gets()
        assert protocol.calls in ([], ["made", "lost"])
    assert it.told == ["closed"]


@pytest.mark.parametrize("way", ["reset", "aclose", "close"])
@pytest.mark.parametrize("turns", range(4))
async def test_closing_while_the_first_use_is_under_way_leaves_nothing_open(way: str, turns: int) -> None:
    async with watched() as it, asyncio.TaskGroup() as group:
        stream = await it.connection.accept_stream()
        reading = group.create_task(_ignoring_close(stream.read()))
        for _ in range(turns):
            await asyncio.sleep(0)
        match way:
            case "reset":
                stream.reset()
            case "aclose":
                await stream.aclose()
            case "close":
                it.connection.close()
        await it.connection.wait_closed()
        await reading
    assert it.told == ["closed"]


async def _ignoring_close(read: Coroutine[Any, Any, bytes]) -> None:
    with pytest.raises(StreamClosed):
        await read


def test_a_machine_that_is_gone_is_noticed_by_the_kernel() -> None:
    with socket.socket() as sock:
        keep_alive(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPALIVE_IDLE_S


@pytest.mark.parametrize(("patience_s", "step_s"), [(0.1, 1), (4.5, 1), (8.0, 2), (60.0, 15)])
async def test_a_connection_that_is_watched_is_asked_about_sooner(patience_s: float, step_s: int) -> None:
    with socket.socket() as sock:
        keep_alive(sock)
        connection = TcpConnection(sock, alpn="test", remote=None)
        connection.watch(patience_s)
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [sock.getsockopt(socket.IPPROTO_TCP, name) for name in names] == [step_s, step_s, 3]
        connection.close()
        connection.watch(patience_s)
