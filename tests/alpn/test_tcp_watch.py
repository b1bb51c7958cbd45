"""A machine that has gone without a word, and one that is only slow: over the kernel's own TCP."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import pytest

from alknet.alpn.errors import StreamBroken
from alknet.alpn.streams import Address
from alknet.alpn.tcp_watch import LEAST_PATIENCE_S, QUESTIONS, TcpWatch
from alknet.alpn.tls import TlsConnection, accept_tls, dial_tls, server_context
from alknet.certificates import Certificate, make_certificate
from testkit.netns import lossy_link
from testkit.polling import eventually

from .conformance import BULK, read_all, same

PATIENCE_S = LEAST_PATIENCE_S
BUFFER_BYTES = 64 * 1024


@cache
def certificate() -> Certificate:
    return make_certificate(("localhost",))


@asynccontextmanager
async def over_tls(near: socket.socket, far: socket.socket) -> AsyncIterator[tuple[TlsConnection, TlsConnection]]:
    """The dialer's end and the listener's, of a TLS session on two connected sockets."""
    for sock in (near, far):
        sock.setblocking(False)
    remote = Address.of(near.getsockname())
    context = server_context(certificate(), ["test"])
    async with asyncio.timeout(30.0):
        listener, dialer = await asyncio.gather(
            accept_tls(far, context=context, certificate=certificate(), remote=remote, default_alpn="http/1.1"),
            dial_tls(near, alpn="test", server_name=None, remote=remote),
        )
        try:
            yield dialer, listener
        finally:
            dialer.close()
            listener.close()


@pytest.mark.interop
@pytest.mark.asyncio(loop_factories=["uvloop"])  # which nodes run on; the kernel takes its time on any loop
async def test_a_machine_that_is_gone_is_noticed_by_who_waits_and_by_who_sends() -> None:
    with lossy_link() as link:
        with link.server.entered():
            listening = socket.create_server((link.server.address, 7022))
        with listening, link.client.entered():
            near = socket.create_connection(listening.getsockname(), timeout=10.0)
            far, _ = listening.accept()
        async with over_tls(near, far) as (dialer, listener):
            waiting, sending = await dialer.accept_stream(), await listener.accept_stream()
            await sending.write(b"still here")
            assert await waiting.read() == b"still here"
            for end in (dialer, listener):
                end.watch(PATIENCE_S)
            link.set(blocked=("tcp",))
            loop = asyncio.get_running_loop()
            began = loop.time()
            await sending.write(b"is anybody there?")
            results = await asyncio.gather(waiting.read(), sending.read(), return_exceptions=True)
            for result in results:
                assert isinstance(result, StreamBroken), result
                assert "nothing was heard for 2 s" in str(result)
            assert loop.time() - began < 4 * PATIENCE_S
            await asyncio.gather(dialer.wait_closed(), listener.wait_closed())


@pytest.mark.asyncio(loop_factories=["uvloop"])  # which nodes run on; the kernel takes its time on any loop
async def test_who_does_not_read_for_long_is_there_all_the_same() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    async with over_tls(near, far) as (dialer, listener):
        a, b = await dialer.accept_stream(), await listener.accept_stream()
        for end in (dialer, listener):
            end.watch(PATIENCE_S)
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(a.write(BULK))
            # Until the window is closed, and then for several probes of it, each at twice the distance of the last.
            done, _ = await asyncio.wait([sending], timeout=1.75 * PATIENCE_S)
            assert not done
            reading = group.create_task(read_all(b))
            await sending
            await a.aclose()
        assert same(reading.result(), BULK)


@pytest.mark.parametrize("patience_s", [0.1, LEAST_PATIENCE_S])
async def test_a_patience_has_a_least_one(patience_s: float) -> None:
    with socket.socket() as sock:
        watch = TcpWatch(sock, patience_s, lambda: None)
        delay_s = watch._timer.when() - asyncio.get_running_loop().time()
        assert delay_s == pytest.approx(LEAST_PATIENCE_S / (QUESTIONS + 1), abs=0.1)
        watch.stop()


async def test_a_socket_that_was_closed_is_watched_no_more() -> None:
    lost: list[str] = []
    sock = socket.socket()
    watch = TcpWatch(sock, PATIENCE_S, lambda: lost.append("lost"))
    last = watch._timer
    sock.close()
    await eventually(lambda: last.when() < asyncio.get_running_loop().time() - 0.1, "it has looked")
    assert watch._timer is last, "and will not look again"
    assert lost == []


async def test_a_watch_can_be_ended() -> None:
    lost: list[str] = []
    with socket.socket() as sock:
        watch = TcpWatch(sock, PATIENCE_S, lambda: lost.append("lost"))
        watch.stop()
        watch.stop()
        assert watch._timer.cancelled()
    assert lost == []
