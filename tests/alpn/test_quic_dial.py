"""Dialing over QUIC: refusals are told at once, nothing is left of what failed, and the network may change."""

import asyncio
import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from alknet.access import Identity
from alknet.alpn.admission import Admission, AdmissionLimits
from alknet.alpn.errors import AlpnRefused, HandshakeFailed, StreamBroken
from alknet.alpn.quic_connection import QuicConnection
from alknet.alpn.quic_dial import dial_quic
from alknet.alpn.quic_listener import QuicListener
from alknet.alpn.streams import Connection
from alknet.alpn.tls_listener import TlsIdentity
from alknet.alpn.udp import bind_udp
from alknet.certificates import spki_sha256
from alknet.verification import verify_server
from testkit import quic_ends
from testkit.authority import Authority
from testkit.carriers import listening
from testkit.datagrams import udp_relay
from testkit.polling import eventually, settled

from .conformance import BULK, Ends, Sender, pieces_of, read_all, same
from .quic_peer import ALPN, certificate, served

ALICE = Identity("alice", frozenset(), "key:SHA256:alice")
AT_ONCE_S = 1.0
MIB = 1024 * 1024


def sockets() -> int:
    """How many sockets this process has."""
    links = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return sum(os.readlink(entry).startswith("socket:") for entry in links if entry.exists() or entry.is_symlink())


@contextmanager
def silent_address() -> Iterator[tuple[str, int]]:
    """Where somebody listens and never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()


def unused_address() -> tuple[str, int]:
    with silent_address() as address:
        return address


async def dial(address: tuple[str, int], alpn: str = ALPN, server_name: str | None = None) -> QuicConnection:
    async with asyncio.timeout(20.0):
        return await dial_quic(socket.AF_INET, address, alpn=alpn, server_name=server_name)


def socket_of(connection: QuicConnection) -> tuple[str, int]:
    """Where the dialer's datagrams come from."""
    return "127.0.0.1", connection._link._socket.name[1]  # type: ignore[attr-defined]


async def moves(ends: Ends, count: int = MIB) -> None:
    """Both sides send so much on one stream, and all of it arrives."""
    data = BULK[:count]
    a = await ends[0].open_stream()
    b = await ends[1].accept_stream()
    async with asyncio.TaskGroup() as group:
        for stream in (a, b):
            group.create_task(Sender().send(stream, pieces_of(data)))
        at_a, at_b = group.create_task(read_all(a)), group.create_task(read_all(b))
    assert same(at_a.result(), data)
    assert same(at_b.result(), data)
    await a.aclose()
    await b.aclose()


# --- refusals -------------------------------------------------------------------------------------------------


async def test_where_nobody_listens_is_known_at_once() -> None:
    before = sockets()
    async with asyncio.timeout(AT_ONCE_S):
        with pytest.raises(HandshakeFailed, match=os.strerror(errno.ECONNREFUSED)):
            await dial(unused_address())
    assert sockets() == before


async def test_an_alpn_that_is_not_served_is_refused_at_once() -> None:
    async with served() as node:
        before = sockets()
        async with asyncio.timeout(AT_ONCE_S):
            with pytest.raises(AlpnRefused, match="elsewhere"):
                await dial(node.address, alpn="elsewhere")
        assert sockets() == before
        await eventually(lambda: node.admission.open == 0 and node.ids == 0, "the listener forgets it, too")


async def test_silence_ends_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.alpn.quic_dial.HANDSHAKE_TIMEOUT_S", 0.2)
    before = sockets()
    with silent_address() as address, pytest.raises(HandshakeFailed, match=r"no QUIC handshake within 0\.2 s"):
        await dial(address)
    assert sockets() == before


@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_a_cancelled_dial_leaves_no_socket(turns: int) -> None:
    with silent_address() as address:
        before = sockets()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(dial(address))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
        assert task.cancelled()
        assert sockets() == before


async def test_a_refused_address_of_the_network_is_a_failed_handshake() -> None:
    before = sockets()
    with pytest.raises((HandshakeFailed, OSError)):
        async with asyncio.timeout(AT_ONCE_S):
            await dial(("255.255.255.255", 9))  # EACCES: nobody asked for broadcasts
    assert sockets() == before


async def test_the_dialer_has_what_the_listener_showed(tmp_path: Path) -> None:
    root = Authority.make()
    shown = Authority.make("Test Low", above=Authority.make("Test Middle", above=root)).issue(tmp_path, "node.example")
    async with served(identity=shown) as node:
        dialer, listener = await node.connect()
        chain = tuple(each.public_bytes(Encoding.DER) for each in (shown.leaf, *shown.issuers))
        assert len(chain) == 3
        assert (dialer.peer_certificates, listener.peer_certificates) == (chain, ())
        assert dialer.channel_binding is not None
        assert spki_sha256(dialer.peer_certificates[0]) == dialer.channel_binding.value
        verify_server(dialer.peer_certificates, "node.example", now=time.time(), authorities=root.pem)
        dialer.close()
        await listener.wait_closed()


async def test_a_closed_connection_leaves_no_socket() -> None:
    async with served() as node:
        before = sockets()
        for closer in (0, 1):
            ends = await node.connect()
            assert sockets() == before + 1
            ends[closer].close()
            await ends[0].wait_closed()
            assert sockets() == before
            await ends[1].wait_closed()


@pytest.mark.parametrize("name", ["localhost", "bücher.example", "xn--bcher-kva.example"])
async def test_a_host_may_have_any_name(name: str) -> None:
    async with served() as node:
        dialer, listener = await node.connect(server_name=name)
        dialer.close()
        await listener.wait_closed()


async def test_a_name_that_is_none_leaves_no_socket() -> None:
    before = sockets()
    with pytest.raises(UnicodeError):
        await dial(unused_address(), server_name="x" * 64 + ".example")
    assert sockets() == before


# --- who else sends -------------------------------------------------------------------------------------------


async def test_what_comes_from_somewhere_else_is_ignored() -> None:
    async with served() as node:
        ends = await node.connect()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.2", 0))
            for _ in range(50):
                stranger.sendto(b"\x40" + ends[0].engine.cid + os.urandom(100), socket_of(ends[0]))
                stranger.sendto(os.urandom(1200), socket_of(ends[0]))
            await moves(ends, 64 * 1024)
        assert ends[0].engine.peer_address == node.address
        ends[0].close()
        await ends[1].wait_closed()


async def test_garbage_during_the_handshake_does_not_stop_it() -> None:
    async with served() as node, udp_relay(target=node.address) as relay:
        relay.hold()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            async with asyncio.TaskGroup() as group:
                dialing = group.create_task(node.connect(relay.address))
                source = await eventually(lambda: next(iter(relay.sources), None), "the dialer has sent")
                for _ in range(20):
                    stranger.sendto(os.urandom(1200), source)
                relay.release()
        dialer, listener = dialing.result()
        dialer.close()
        await listener.wait_closed()


async def test_after_the_handshake_a_report_of_an_error_ends_nothing() -> None:
    """Anybody on the way can forge one."""
    async with served() as node:
        ends = await node.connect()
        for code in (errno.ECONNREFUSED, errno.EHOSTUNREACH):
            ends[0]._link._failed(OSError(code, os.strerror(code)))
        await moves(ends, 64 * 1024)
        reports = []
        ends[0]._link._socket._failed = reports.append
        node.listener.close()  # now the system reports in earnest
        stream = await ends[0].open_stream()
        await stream.write(b"is anybody there?")
        await eventually(lambda: reports, "a report")
        await settled(lambda: int(ends[0].has_ended))
        assert not ends[0].has_ended
        for end in ends:
            end.close()


# --- the network changes --------------------------------------------------------------------------------------


async def test_a_nat_that_forgets_does_not_end_the_connection() -> None:
    async with asyncio.timeout(20.0), served() as node, udp_relay(target=node.address) as relay:
        ends = await node.connect(relay.address)
        ends[1].logged_in(ALICE)
        await moves(ends)
        sources = set()
        for _ in range(3):
            sources |= set(relay.sources.values())
            relay.rebind()
            await moves(ends)
        assert ends[1].engine.peer_address == next(iter(relay.sources.values())) not in sources
        assert ends[0].close_reason is ends[1].close_reason is None
        ends[0].close()
        await ends[1].wait_closed()


async def test_a_nat_that_forgets_in_the_middle_of_a_transfer_loses_nothing() -> None:
    async with asyncio.timeout(20.0), served() as node, udp_relay(target=node.address) as relay:
        ends = await node.connect(relay.address)
        ends[1].logged_in(ALICE)
        async with asyncio.TaskGroup() as group:
            moving = group.create_task(moves(ends, 2 * MIB))
            for _ in range(3):
                passed = relay.to_client.counts.passed + 300
                await eventually(
                    lambda enough=passed: relay.to_client.counts.passed > enough or moving.done(), "traffic"
                )
                relay.rebind()
        await moves(ends)
        ends[0].close()
        await ends[1].wait_closed()


async def test_who_only_listens_is_found_again_when_it_says_something() -> None:
    """After a rebinding the listener cannot reach the dialer until that sends: a ping does."""
    async with asyncio.timeout(20.0), served() as node, udp_relay(target=node.address) as relay:
        ends = await node.connect(relay.address)
        relay.rebind()
        stream = await ends[1].open_stream()
        await stream.write(b"news")
        ends[0].engine.ping()
        ends[0].flush()
        assert await (await ends[0].accept_stream()).read() == b"news"
        ends[0].close()
        await ends[1].wait_closed()


# --- the other side is gone without a word --------------------------------------------------------------------


TESTKIT = Path(__file__).resolve().parents[1] / "_lib"
PATIENCE_S = 1.5
NOTICED_S = 5.0


async def other_end(group: AsyncExitStack, role: str, port: int) -> tuple[asyncio.subprocess.Process, str]:
    """A process of `testkit.quic_ends`, and what it says when it is ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "testkit.quic_ends", role, "127.0.0.1", str(port)),
        stdout=asyncio.subprocess.PIPE,
        cwd=TESTKIT,
    )

    async def end() -> None:
        if process.returncode is None:
            process.kill()
        await process.wait()

    group.push_async_callback(end)
    assert process.stdout is not None
    return process, (await process.stdout.readline()).decode().strip()


@pytest.mark.asyncio(loop_factories=["uvloop"])  # which nodes run on; patience takes its time on any loop
async def test_a_process_that_is_killed_is_given_up_by_either_end() -> None:
    accepted: asyncio.Queue[Connection] = asyncio.Queue()

    async def keep(connection: Connection) -> None:
        accepted.put_nowait(connection)
        await connection.wait_closed()

    async with asyncio.timeout(30.0), AsyncExitStack() as group, listening(keep, quic_ends.ALPN) as port:
        theirs, their_port = await other_end(group, "listen", 0)
        staying, word = await other_end(group, "stay", port)
        assert word == "ready"
        dialer = await dial(("127.0.0.1", int(their_port)), quic_ends.ALPN)
        listener = await accepted.get()
        for end in (dialer, listener):
            end.watch(PATIENCE_S)
        stream = await dialer.open_stream()
        for process in (theirs, staying):
            process.kill()
        began = time.monotonic()
        with pytest.raises(StreamBroken):
            await stream.read()
        await dialer.wait_closed()
        await listener.wait_closed()
        assert time.monotonic() - began < NOTICED_S
        for end in (dialer, listener):
            assert end.close_reason == (0, "nothing was heard for 1.5 s")


async def test_a_node_that_was_started_again_says_so_before_the_patience_is_over() -> None:
    def serving(port: int) -> QuicListener:
        identity = TlsIdentity.of(certificate(), [ALPN])
        listener = QuicListener(Admission(AdmissionLimits()), identity, accepted.append, reset_secret=bytes(32))
        listener.serve(bind_udp("127.0.0.1", port))
        return listener

    accepted: list[QuicConnection] = []
    first = serving(0)
    address = "127.0.0.1", first.addresses[0].port
    dialer = await dial(address)
    forgotten = await eventually(lambda: accepted and accepted[0], "it is accepted")
    first.close()  # as a process does that is killed: it says nothing
    second = serving(address[1])
    dialer.watch(4.0)
    began = time.monotonic()
    async with asyncio.timeout(20.0):
        await dialer.wait_closed()
    assert dialer.close_reason is not None
    assert "does not know this connection any more" in dialer.close_reason[1]
    assert time.monotonic() - began < 3.0
    forgotten.abandon()
    second.close()
