"""Dialing: whatever answers first wins, every attempt that fails says why, and nothing is left of the others."""

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from alknet.alpn.admission import Admission, AdmissionLimits
from alknet.alpn.dial import CARRIERS, HEAD_START_S, MAX_ADDRESSES, Dialed, dial, first_stream
from alknet.alpn.errors import AlpnRefused, ConnectionClosed
from alknet.alpn.first_byte import Opening
from alknet.alpn.memory import memory_pair
from alknet.alpn.port import Port
from alknet.alpn.quic_listener import QuicListener
from alknet.alpn.streams import Connection
from alknet.alpn.tls_listener import TlsIdentity, TlsListener
from alknet.alpn.udp import bind_udp
from alknet.certificates import Certificate, make_certificate
from alknet.errors import AlknetError, UnavailableError
from alknet.tasks import Tasks
from testkit.datagrams import UdpRelay, udp_relay
from testkit.polling import eventually

HOST = "127.0.0.1"
NEVER_S = 3600.0
SOON_S = 0.05
TRIES = 20
SMALL_S = 0.75
"""What a handshake on loopback takes on a busy machine, and more."""


@cache
def certificate() -> Certificate:
    return make_certificate(("localhost",))


class Node:
    """What listens on one port number: QUIC, TLS, or both."""

    def __init__(self, alpns: Sequence[str], carriers: Sequence[str], *, reads: bool, port: int) -> None:
        self.dispatched: list[Connection] = []
        self._reads = reads
        self._readers = Tasks("reader")
        self.admission = Admission(AdmissionLimits())
        identity = TlsIdentity.of(certificate(), alpns)
        self._tls = TlsListener(identity, self._dispatch)
        self._quic = QuicListener(self.admission, identity, self._dispatch) if "quic" in carriers else None
        self._port = Port(self.admission, {Opening.TLS: self._tls}, self._quic)
        if "tls" in carriers:
            self._port.listen([HOST], port)
            self.address = HOST, self._port.addresses[0].port
        else:
            assert self._quic is not None
            self._quic.serve(bind_udp(HOST, port))
            self.address = HOST, self._quic.addresses[0].port

    def _dispatch(self, connection: Connection) -> None:
        self.dispatched.append(connection)
        if self._reads and connection.transport == "tls":  # whose end is noticed by reading only
            self._readers.start(self._read(connection), name=connection.id)

    async def _read(self, connection: Connection) -> None:
        stream = await connection.accept_stream()
        with contextlib.suppress(AlknetError):
            while await stream.read():
                pass
        connection.close()

    async def stop(self) -> None:
        for connection in self.dispatched:
            connection.close()
        self._port.stop_accepting()
        self._tls.stop_accepting()
        await eventually(lambda: self.admission.open == 0, "the node has nobody left")
        if self._quic is not None:
            self._quic.close()
        await self._readers.aclose()


@asynccontextmanager
async def node(
    alpns: Sequence[str] = ("test",), *, carriers: Sequence[str] = CARRIERS, reads: bool = True, port: int = 0
) -> AsyncIterator[Node]:
    it = Node(alpns, carriers, reads=reads, port=port)
    try:
        yield it
    finally:
        await it.stop()


@pytest.fixture(autouse=True)
async def leaves_nothing() -> AsyncIterator[None]:
    """Every socket and task of a test is gone when it ends, and nothing has failed unseen."""
    mistakes: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: mistakes.append(context))
    before, tasks = sockets(), len(asyncio.all_tasks())
    async with asyncio.timeout(20.0):
        yield
        await eventually(lambda: sockets() <= before, "every socket is closed")
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks, "every task has ended")
    assert mistakes == []


def sockets() -> int:
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            count += os.readlink(entry).startswith("socket:")
    return count


@contextmanager
def silent_udp(port: int = 0) -> Iterator[int]:
    """Somebody who gets datagrams and never answers, as behind a firewall."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HOST, port))
        yield sock.getsockname()[1]


@contextmanager
def silent_tcp(port: int = 0) -> Iterator[socket.socket]:
    """Somebody who accepts and never says a word."""
    with socket.create_server((HOST, port)) as sock:
        sock.setblocking(False)
        yield sock


def is_free_on_tcp(port: int) -> bool:
    with contextlib.suppress(OSError), silent_tcp(port):
        return True
    return False


def unused_port() -> int:
    """A port on which nobody listens, over TCP or UDP."""
    for _ in range(TRIES):
        with silent_udp() as port:
            if is_free_on_tcp(port):
                return port
    raise AssertionError("no port is free")


@asynccontextmanager
async def behind_a_slow_path(it: Node, delay_s: float) -> AsyncIterator[UdpRelay]:
    """A way to a node's QUIC whose number is free on TCP."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(TRIES):
            relay = await stack.enter_async_context(udp_relay(target=it.address, delay_s=delay_s))
            if is_free_on_tcp(relay.address[1]):
                break
        yield relay


class Lines(list[str]):
    """What was reported."""

    def __call__(self, line: str) -> None:
        self.append(line)


async def dialed(*addresses: tuple[str, int], alpn: str = "test", **options: Any) -> Dialed:
    found = await dial(addresses, alpn=alpn, **options)
    found.connection.close()
    return found


# --- the race -------------------------------------------------------------------------------------------------


async def test_quic_wins_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.alpn.dial.HEAD_START_S", NEVER_S)
    lines = Lines()
    async with node() as it:
        found = await dialed(it.address, report=lines)
        assert (found.connection.transport, found.connection.alpn) == ("quic", "test")
        assert (found.host, found.port) == it.address
        await eventually(lambda: it.dispatched, "the node has it")
        assert [connection.transport for connection in it.dispatched] == ["quic"]
    (line,) = lines
    assert re.fullmatch(rf"quic to {HOST}:{found.port}: connected in \d+ ms", line)


async def test_where_udp_is_swallowed_tls_wins_after_the_head_start() -> None:
    loop = asyncio.get_running_loop()
    async with node(carriers=["tls"]) as it:
        with silent_udp(it.address[1]):
            await dialed(it.address)  # what is loaded once does not count
            began = loop.time()
            found = await dialed(it.address)
            took = loop.time() - began
    assert found.connection.transport == "tls"
    assert HEAD_START_S * 0.9 <= took <= HEAD_START_S + SMALL_S


async def test_where_udp_is_refused_tls_begins_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.alpn.dial.HEAD_START_S", NEVER_S)
    lines = Lines()
    async with node(carriers=["tls"]) as it:
        found = await dialed(it.address, report=lines)
        assert found.connection.transport == "tls"
    assert lines[0] == f"quic to {HOST}:{found.port}: Connection refused"
    assert lines[1].startswith(f"tls to {HOST}:{found.port}: connected in ")
    assert len(lines) == 2


async def test_where_tcp_is_refused_quic_still_wins_however_slow() -> None:
    lines = Lines()
    async with node(carriers=["quic"]) as it, behind_a_slow_path(it, 0.3) as relay:
        found = await dialed(relay.address, report=lines)
        assert found.connection.transport == "quic"
        assert lines[0] == f"tls to {HOST}:{found.port}: Connection refused"
        await eventually(lambda: it.dispatched, "the node has it")
        await eventually(lambda: it.admission.open == 0, "the node hears of the end")


async def test_a_loser_on_quic_is_closed_and_the_node_forgets_it() -> None:
    async with (
        node(carriers=["quic"]) as slow,
        behind_a_slow_path(slow, 0.3) as relay,
        node(carriers=["tls"], port=relay.address[1]) as fast,
    ):
        assert (await dialed(fast.address)).connection.transport == "tls"
        await eventually(lambda: relay.to_server.counts.passed, "the handshake over QUIC reaches the node")
        await eventually(lambda: slow.admission.open == 0, "and so does its end")
        assert relay.to_server.counts.received > 1


async def test_a_loser_on_tls_is_closed() -> None:
    async with node(carriers=["quic"]) as it, behind_a_slow_path(it, 0.2) as relay:
        with silent_tcp(relay.address[1]) as listening:
            found = await dialed(relay.address)
            assert found.connection.transport == "quic"
            loop = asyncio.get_running_loop()
            sock, _ = await loop.sock_accept(listening)
            with sock:
                while await loop.sock_recv(sock, 1000):
                    pass


async def test_two_that_win_together_leave_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both handshakes are completed before the race is looked at again."""
    pairs = [memory_pair(alpn="test") for _ in CARRIERS]
    waiting = iter(pairs)
    ready = asyncio.Event()

    async def open_(attempt: Any, alpn: str) -> Connection:
        dialer, _ = next(waiting)
        if attempt.carrier == "tls":
            ready.set()
        await ready.wait()
        return dialer

    monkeypatch.setattr("alknet.alpn.dial._open", open_)
    monkeypatch.setattr("alknet.alpn.dial.HEAD_START_S", SOON_S)
    found = await dial([(HOST, 1)], alpn="test")
    assert found.connection is pairs[1][0]  # it need not wait
    async with asyncio.timeout(1.0):
        await pairs[0][1].wait_closed()
    found.connection.close()


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_carriers_can_be_chosen(carrier: str) -> None:
    async with node() as it:
        assert (await dialed(it.address, carriers=(carrier,))).connection.transport == carrier
        await eventually(lambda: it.dispatched, "the node has it")
        assert [connection.transport for connection in it.dispatched] == [carrier]


# --- failures -------------------------------------------------------------------------------------------------


async def test_when_nobody_answers_each_attempt_says_why() -> None:
    lines, port = Lines(), unused_port()
    with pytest.raises(UnavailableError) as caught:
        await dialed((HOST, port), report=lines)
    expected = [f"{carrier} to {HOST}:{port}: Connection refused" for carrier in CARRIERS]
    assert lines == expected
    assert str(caught.value) == "; ".join(expected)
    assert not isinstance(caught.value, AlpnRefused)


async def test_silence_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("tls", "dial", "quic_dial"):
        monkeypatch.setattr(f"alknet.alpn.{module}.HANDSHAKE_TIMEOUT_S", 2 * SOON_S)
    monkeypatch.setattr("alknet.alpn.dial.HEAD_START_S", SOON_S)
    port = unused_port()
    with silent_udp(port), silent_tcp(port), pytest.raises(UnavailableError) as caught:
        await dialed((HOST, port))
    assert "no QUIC handshake within 0.1 s" in str(caught.value)
    assert "no TLS handshake within 0.1 s" in str(caught.value)


@pytest.mark.parametrize("carriers", [CARRIERS, ("quic",), ("tls",)])
async def test_when_all_answer_and_none_serves_the_alpn_that_is_said(carriers: tuple[str, ...]) -> None:
    async with node(["other"]) as it:
        with pytest.raises(AlpnRefused) as caught:
            await dialed(it.address, carriers=carriers)
        assert str(caught.value).count("it does not serve test") == len(carriers)
        await eventually(lambda: it.admission.open == 0 or it.dispatched, "the node hears of the end")
        assert {connection.alpn for connection in it.dispatched} <= {"http/1.1"}


async def test_nothing_to_dial_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match="it has no address"):
        await dialed()


async def test_a_mistake_in_a_carrier_ends_that_attempt_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*arguments: Any, **options: Any) -> Any:
        raise ValueError("a mistake in a carrier")

    monkeypatch.setattr("alknet.alpn.quic_dial.dial_quic", fail)
    monkeypatch.setattr("alknet.alpn.dial.HEAD_START_S", NEVER_S)
    async with node() as it:
        assert (await dialed(it.address)).connection.transport == "tls"
        with pytest.raises(UnavailableError, match="a mistake in a carrier"):
            await dialed(it.address, carriers=("quic",))
    assert "ValueError: a mistake in a carrier" in caplog.text


# --- several addresses ----------------------------------------------------------------------------------------


async def test_the_first_address_that_answers_is_told_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.alpn.dial.HEAD_START_S", NEVER_S)
    lines, dead = Lines(), unused_port()
    async with node() as it:
        found = await dialed((HOST, dead), ("localhost", it.address[1]), report=lines)
        assert (found.host, found.port) == ("localhost", it.address[1])
        assert found.connection.remote is not None
        assert found.connection.remote.host in (HOST, "::1")
    assert lines[:2] == [f"{carrier} to {HOST}:{dead}: Connection refused" for carrier in CARRIERS]
    assert "connected in" in lines[-1]


async def test_a_silent_address_does_not_keep_the_next_one_waiting() -> None:
    dead = unused_port()
    with silent_udp(dead), silent_tcp(dead):
        async with node() as it, asyncio.timeout(2 * HEAD_START_S + SMALL_S):
            assert (await dialed((HOST, dead), it.address)).port == it.address[1]


async def test_an_attempt_that_fails_gives_its_turn_to_the_next_though_others_are_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("alknet.alpn.dial.HEAD_START_S", 3 * SMALL_S)
    dead = unused_port()
    with silent_udp(dead):  # its TCP refuses
        async with node() as it, asyncio.timeout(5 * SMALL_S):
            assert (await dialed((HOST, dead), it.address)).port == it.address[1]


@pytest.mark.parametrize("name", ["", "a..b", "x" * 70 + ".example", "\0"])
async def test_a_name_that_leads_nowhere_is_told_and_the_others_are_tried(name: str) -> None:
    lines = Lines()
    async with node() as it:
        assert (await dialed((name, 7022), it.address, report=lines)).host == HOST
        assert lines[0].startswith(f"{name}: ")
        assert len(lines) == 2
    with pytest.raises(UnavailableError, match=f"^{re.escape(name)}: "):
        await dialed((name, 7022))


async def test_no_more_addresses_are_tried_than_there_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    async def refuse(attempt: Any, alpn: str) -> Connection:
        tried.append(str(attempt))
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("alknet.alpn.dial._open", refuse)
    with pytest.raises(UnavailableError):
        await dialed(*((f"192.0.2.{number}", 7022) for number in range(30) for _ in range(2)))
    assert len(tried) == len(set(tried)) == MAX_ADDRESSES * len(CARRIERS)
    assert tried[:3] == ["quic to 192.0.2.0:7022", "tls to 192.0.2.0:7022", "quic to 192.0.2.1:7022"]


@pytest.mark.parametrize(
    ("host", "sent"), [("localhost", "localhost"), (HOST, None), ("::0001", None), ("fe80::1%lo", None)]
)
async def test_a_name_is_sent_along_and_an_address_is_not(
    host: str, sent: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str | None] = []

    async def note(*arguments: Any, server_name: str | None, **options: Any) -> Any:
        names.append(server_name)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("alknet.alpn.quic_dial.dial_quic", note)
    with pytest.raises(UnavailableError):
        await dialed((host, 7022), carriers=("quic",))
    assert set(names) == {sent}


# --- cancelling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [*range(12), 20, 40, 80])
@pytest.mark.parametrize("carriers", [("quic",), ("tls",)])
async def test_a_cancelled_dial_leaves_nothing(turns: int, carriers: tuple[str, ...]) -> None:
    async with node() as it:
        async with asyncio.TaskGroup() as group:
            dialing = group.create_task(dial([it.address], alpn="test", carriers=carriers))
            for _ in range(turns):
                await asyncio.sleep(0)
            dialing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                (await dialing).connection.close()
        await eventually(lambda: it.admission.open == 0, "the node has nobody left")


@pytest.mark.parametrize("carriers", [CARRIERS, ("quic",), ("tls",)])
async def test_a_dial_that_is_cancelled_as_it_succeeds_closes_what_it_got(carriers: tuple[str, ...]) -> None:
    async with node() as it:

        def connected(line: str) -> None:
            assert "connected in" in line
            dialing.cancel()

        async with asyncio.TaskGroup() as group:
            dialing = group.create_task(dial([it.address], alpn="test", carriers=carriers, report=connected))
        assert dialing.cancelled()
        await eventually(lambda: it.dispatched, "the node had it")
        await it.dispatched[0].wait_closed()


# --- the first stream -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_the_first_stream_is_the_same_for_every_carrier(carrier: str) -> None:
    async with node(reads=False) as it:
        found = await dial([it.address], alpn="test", carriers=(carrier,))
        stream = await first_stream(found.connection)
        await stream.write(b"question")
        await eventually(lambda: it.dispatched, "the node has it")
        theirs = await it.dispatched[0].accept_stream()
        assert await theirs.read() == b"question"
        await theirs.write(b"answer")
        assert await stream.read() == b"answer"
        found.connection.close()
        with pytest.raises(ConnectionClosed):
            await first_stream(found.connection)
