"""Strangers on the port: what they may cause, what they are told, and that nothing of them stays."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.packet import QuicProtocolVersion, pull_quic_header

from alknet.access import Identity
from alknet.alpn.admission import AdmissionLimits
from alknet.alpn.quic import CID_BYTES, MIN_INITIAL_BYTES, read_header
from alknet.alpn.quic_listener import RETRY_ABOVE
from alknet.alpn.quic_reset import MAX_RESETS_PER_S
from alknet.alpn.streams import Address
from alknet.alpn.tls_listener import TlsIdentity
from alknet.alpn.udp import bind_udp
from alknet.certificates import make_certificate
from testkit.polling import eventually, settled

from .conformance import BULK, Sender, read_all, same
from .quic_peer import ALPN, Served, certificate, first_datagram, new_cid, served

STRANGER, OTHER = "127.0.0.2", "127.0.0.3"
ALICE = Identity("alice", frozenset(), "key:SHA256:alice")
SILENCE_S = 0.2
FLOOD = 2000
LIMITS = AdmissionLimits(connections_per_address=50)


class RawPeer:
    """A UDP socket that keeps to no rule."""

    def __init__(self, sock: socket.socket, address: tuple[str, int]) -> None:
        self.sock = sock
        self.address = address

    def send(self, data: bytes) -> None:
        self.sock.sendto(data, self.address)

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, 65_535)

    async def everything(self, duration_s: float = SILENCE_S) -> list[bytes]:
        """What comes until nothing has come for so long."""
        received: list[bytes] = []
        while True:
            try:
                async with asyncio.timeout(duration_s):
                    received.append(await self.receive())
            except TimeoutError:
                return received


@contextmanager
def raw_peer(node: Served, host: str = STRANGER) -> Iterator[RawPeer]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        yield RawPeer(sock, node.address)


@asynccontextmanager
async def everywhere(limits: AdmissionLimits = LIMITS, **options: Any) -> AsyncIterator[Served]:
    """A listener on every address of this machine."""
    async with asyncio.timeout(20.0), served(limits, host="0.0.0.0", **options) as node:
        yield node


async def is_taken(node: Served, count: int) -> None:
    """Wait until so many datagrams were looked at that begin no known connection, or began one."""
    seen = lambda: node.listener.dropped.total() + node.listener.retries + node.admission.open  # noqa: E731
    await eventually(lambda: seen() >= count, f"{count} datagrams are seen")


async def flood(node: Served, peer: RawPeer, count: int) -> None:
    for number in range(count):
        peer.send(first_datagram(new_cid()))
        if number % 50 == 49:
            await asyncio.sleep(0)


async def dial_from(node: Served, host: str) -> Any:
    """Dial from the address `host`."""

    def bound(family: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.bind((host, 0))
        return sock

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alknet.alpn.quic_dial.open_udp", bound)
        return await node.connect()


def nothing_is_left(node: Served) -> bool:
    links = node.listener._links
    return (
        node.ids == node.listener.half_open == node.admission.open == node.admission.half_open == 0
        and not any(link._cids or link._sources for link in links)
        and not node.admission._strangers
    )


# --- who comes and goes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("closer", [0, 1])
async def test_nothing_is_left_of_connections_that_have_ended(closer: int) -> None:
    async with everywhere() as node:
        for number in range(20):
            ends = await node.connect()
            if number % 2:
                ends[1].logged_in(ALICE)
            stream = await ends[0].open_stream()
            await stream.write(b"x")
            await (await ends[1].accept_stream()).read()
            assert node.ids > 2
            ends[closer].close()
            await ends[1 - closer].wait_closed()
        await eventually(lambda: nothing_is_left(node), "all is forgotten")


async def test_a_connection_that_has_logged_in_leaves_the_count_of_strangers() -> None:
    async with everywhere() as node:
        dialer, listener = await node.connect()
        assert (node.admission.open, node.admission.half_open, node.listener.half_open) == (1, 1, 0)
        listener.logged_in(ALICE)
        assert (node.admission.open, node.admission.half_open) == (1, 0)
        dialer.close()
        await listener.wait_closed()
        assert node.admission.open == 0


async def test_a_connection_is_answered_from_the_address_that_was_asked() -> None:
    async with everywhere() as node:
        dialer, listener = await node.connect((OTHER, node.address[1]))
        assert listener.local == Address(OTHER, node.address[1])
        dialer.close()
        await listener.wait_closed()


async def test_a_replaced_identity_is_for_those_who_come_after() -> None:
    async with everywhere() as node:
        first = await node.connect()
        other = make_certificate(("localhost",))
        node.listener.identity = TlsIdentity.of(other, [ALPN])
        second = await node.connect()
        for ends, expected in ((first, certificate()), (second, other)):
            for end in ends:
                assert end.channel_binding.value == expected.spki_sha256
        stream = await first[0].open_stream()
        await stream.write(b"x")
        assert await (await first[1].accept_stream()).read() == b"x"
        for ends in (first, second):
            ends[0].close()
            await ends[1].wait_closed()


async def test_after_stop_accepting_nobody_comes_and_who_is_inside_stays() -> None:
    async with everywhere() as node:
        dialer, listener = await node.connect()
        with raw_peer(node) as peer:
            peer.send(first_datagram(new_cid()))
            await eventually(lambda: node.listener.half_open, "a handshake has begun")
            for _ in range(2):
                node.listener.stop_accepting()
            assert node.listener.half_open == 0
            assert node.admission.open == 1
            peer.send(first_datagram(new_cid()))
            await eventually(lambda: node.listener.dropped["stopping"], "a newcomer is refused")
            assert node.admission.open == 1
        stream = await dialer.open_stream()
        await stream.write(b"x")
        assert await (await listener.accept_stream()).read() == b"x"
        dialer.close()
        await listener.wait_closed()


async def test_a_listener_may_serve_several_sockets() -> None:
    async with served() as node:
        node.listener.serve(bind_udp("127.0.0.1", 0))
        for address in node.listener.addresses:
            dialer, listener = await node.connect((address.host, address.port))
            assert listener.local == address
            dialer.close()
            await listener.wait_closed()
        for _ in range(2):
            node.listener.close()


# --- floods ---------------------------------------------------------------------------------------------------


async def test_a_flood_of_handshakes_from_one_address_keeps_no_other_one_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alknet")
    async with everywhere() as node:
        with raw_peer(node) as peer:
            await flood(node, peer, FLOOD)
            await is_taken(node, RETRY_ABOVE + 1)
            dialer, listener = await dial_from(node, OTHER)
            await settled(lambda: node.listener.retries + node.admission.open + node.listener.dropped.total())
            assert node.listener.half_open <= RETRY_ABOVE + 1, "nobody has proven its address"
            assert node.ids <= 2 * (RETRY_ABOVE + 1) + 16
            assert node.listener.retries > 0
        stream = await dialer.open_stream()
        async with asyncio.TaskGroup() as group:
            group.create_task(Sender().send(stream, [BULK[: 1 << 20]]))
            assert same(await read_all(await listener.accept_stream()), BULK[: 1 << 20])
        dialer.close()
        await listener.wait_closed()
        assert len(caplog.records) <= 5


async def test_who_proves_its_address_gets_no_more_than_its_share(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alknet")
    async with everywhere() as node:
        with raw_peer(node) as peer:
            await flood(node, peer, 10 * LIMITS.connections_per_address)
            for data in await peer.everything():
                answer = read_header(data)
                if answer is not None and answer.token:
                    peer.send(first_datagram(answer.source, answer.token))
            await settled(lambda: node.listener.dropped["connections_per_address"])
            assert node.listener.dropped["connections_per_address"] > 0
            assert node.listener.half_open == node.admission.half_open == LIMITS.connections_per_address
            dialer, listener = await dial_from(node, OTHER)
            assert listener.remote.host == OTHER
            dialer.close()
            await listener.wait_closed()
        assert 1 <= len([record for record in caplog.records if "limit=" in record.getMessage()]) <= 5


async def test_handshakes_that_are_not_completed_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.alpn.quic_listener.HANDSHAKE_TIMEOUT_S", 0.2)
    async with everywhere() as node:
        with raw_peer(node) as peer:
            await flood(node, peer, 10)
            await eventually(lambda: node.listener.half_open == 10, "they have begun")
            await eventually(lambda: nothing_is_left(node), "they are forgotten")
            assert node.listener.dropped == {"handshake_timeout": 10}
            await peer.everything()
            assert await peer.everything() == [], "nothing is sent after the end"


async def test_a_handshake_that_breaks_a_rule_is_forgotten_long_before_its_deadline() -> None:
    async with everywhere() as node:
        node.listener.identity = TlsIdentity.of(certificate(), ["something else"])
        with raw_peer(node) as peer:
            peer.send(first_datagram(new_cid()))
            assert await peer.everything()
            await eventually(lambda: nothing_is_left(node), "it is forgotten")


# --- addresses are proven -------------------------------------------------------------------------------------


async def retry_for(node: Served, peer: RawPeer) -> tuple[bytes, bytes]:
    """Fill the listener until it asks, and return the connection id and the token that it gives."""
    node.listener._half_open.update(object() for _ in range(RETRY_ABOVE + 1))  # type: ignore[misc]
    peer.send(first_datagram(new_cid()))
    answer = read_header(await peer.receive())
    assert answer is not None
    assert answer.token
    node.listener._half_open.clear()
    return answer.source, answer.token


@pytest.mark.parametrize("is_still_on", [True, False])
async def test_a_token_of_ours_lets_in_and_any_other_does_not(is_still_on: bool) -> None:
    async with everywhere() as node:
        with raw_peer(node) as peer, raw_peer(node, OTHER) as other:
            cid, token = await retry_for(node, peer)
            if is_still_on:
                node.listener._half_open.update(object() for _ in range(RETRY_ABOVE + 1))  # type: ignore[misc]
            before = node.listener.half_open
            tampered = bytes([token[0] ^ 1]) + token[1:]
            for sender, used_cid, used_token in (
                (other, cid, token),
                (peer, new_cid(), token),
                (peer, cid, tampered),
                (peer, cid, os.urandom(100)),
                (peer, cid, b"x"),
            ):
                node.listener.dropped.clear()
                sender.send(first_datagram(used_cid, used_token))
                await eventually(lambda: node.listener.dropped["token"], "it is refused")
            assert node.listener.half_open == before
            peer.send(first_datagram(cid, token))
            await eventually(lambda: node.listener.half_open == before + 1, "it is let in")
            assert len(await peer.receive()) >= MIN_INITIAL_BYTES
            if is_still_on:
                node.listener._half_open = {c for c in node.listener._half_open if hasattr(c, "abandon")}


async def test_a_dialer_that_is_asked_proves_its_address() -> None:
    async with everywhere() as node:
        node.listener._half_open.update(object() for _ in range(RETRY_ABOVE + 1))  # type: ignore[misc]
        dialer, listener = await node.connect()
        node.listener._half_open.clear()
        assert node.listener.retries == 1
        assert listener.identity is None
        dialer.close()
        await listener.wait_closed()


async def test_nobody_is_asked_for_a_proof_while_few_shake_hands() -> None:
    async with everywhere() as node:
        with raw_peer(node) as peer:
            await flood(node, peer, RETRY_ABOVE + 1)
            await eventually(lambda: node.listener.half_open == RETRY_ABOVE + 1, "all are let in")
            assert node.listener.retries == 0


async def test_to_an_address_that_is_not_proven_at_most_three_times_as_much_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("alknet.alpn.quic_listener.HANDSHAKE_TIMEOUT_S", 1.5)
    bulky = replace(certificate(), issuers=(certificate().leaf,) * 20)
    async with everywhere(identity=certificate()) as node:
        node.listener.identity = replace(node.listener.identity, certificate=bulky)
        with raw_peer(node) as peer:
            data = first_datagram(cid := new_cid())
            peer.send(data)
            received = [await peer.receive()]
            peer.send(b"\x40" + cid + bytes(200))
            await eventually(lambda: node.listener.dropped["handshake_timeout"], "it is given up")
            received += await peer.everything()
        sent = len(data)  # what a short header brings may count, too; it is not relied on
        assert sum(map(len, received)) <= 3 * (sent + 209)
        assert sum(map(len, received)) > sent, "the certificate needs more than one datagram"


# --- what is no newcomer --------------------------------------------------------------------------------------


def long_header(version: int, *, size: int = MIN_INITIAL_BYTES, cid: bytes = b"12345678", first: int = 0xC0) -> bytes:
    head = bytes([first]) + version.to_bytes(4, "big") + bytes([len(cid)]) + cid + b"\x08" + b"abcdefgh"
    head += b"\x00" + (size - len(head) - 3 | 0x4000).to_bytes(2, "big")
    return head + bytes(size - len(head))


VERSION_1 = QuicProtocolVersion.VERSION_1
STRANGE = 0x1A2A3A4A


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00", "garbage"),
        (b"hello", "unknown"),
        (b"SSH-2.0-OpenSSH\r\n", "unknown"),
        (b"\x00" * 1200, "garbage"),
        (b"\xff" * 1200, "unknown"),
        (b"\x80", "garbage"),
        (b"\xc0\x00\x00\x00\x01\xff" + bytes(1300), "unknown"),
        (b"\x40" + b"unknown!" + bytes(12), "unknown"),
        (first_datagram(b"12345678")[: MIN_INITIAL_BYTES - 1], "short"),
        (long_header(VERSION_1, size=MIN_INITIAL_BYTES - 1), "short"),
        (long_header(VERSION_1, cid=b"1234567"), "short"),
        (long_header(STRANGE, size=MIN_INITIAL_BYTES - 1), "short"),
        (long_header(VERSION_1), "undecryptable"),
        (long_header(VERSION_1, first=0xD0), "unknown"),  # 0-RTT
        (long_header(VERSION_1, first=0xE0), "unknown"),  # Handshake
        (long_header(VERSION_1, first=0xF0), "unknown"),  # Retry
        (long_header(0), "unknown"),  # version negotiation
    ],
)
async def test_what_begins_no_connection_is_counted_and_not_answered(data: bytes, reason: str) -> None:
    async with everywhere() as node:
        with raw_peer(node) as peer:
            peer.send(data)
            await eventually(lambda: node.listener.dropped.total(), "it is dropped")
            assert node.listener.dropped == {reason: 1}
            assert nothing_is_left(node)
            assert await peer.everything(0.05) == []


async def test_a_short_header_for_nobody_gets_less_than_it_brought_and_not_often() -> None:
    async with everywhere() as node:
        with raw_peer(node) as peer:
            flood_bytes = 0
            for number in range(3 * MAX_RESETS_PER_S):
                data = b"\x40" + new_cid() + bytes(number % 100)
                peer.send(data)
                flood_bytes += len(data)
            received = await peer.everything()
            assert 0 < len(received) <= 2 * MAX_RESETS_PER_S
            assert sum(map(len, received)) < flood_bytes / 2
            assert nothing_is_left(node)


async def test_a_connection_id_of_another_socket_gets_no_answer() -> None:
    """With the token that it would be, whoever has seen the connection id could end the connection."""
    async with served() as node:
        ends = await node.connect()
        node.listener.serve(bind_udp("127.0.0.1", 0))
        second = node.listener.addresses[1]
        with raw_peer(node) as peer:
            peer.address = (second.host, second.port)
            cids = list(node.listener._links[0]._by_cid)
            for cid in cids:
                peer.send(b"\x40" + cid + bytes(100))
            await eventually(lambda: node.listener.dropped["unknown"] == len(cids), "they are dropped")
            assert await peer.everything(0.05) == []
        ends[0].close()
        await ends[1].wait_closed()


async def test_garbage_does_not_turn_the_answers_to_another_address() -> None:
    async with everywhere() as node:
        dialer, listener = await node.connect()
        with raw_peer(node) as peer:
            await peer.everything(0.1)  # the handshake's last acknowledgements have come
            peer.address = (OTHER, node.address[1])
            for cid in list(node.listener._links[0]._by_cid):
                peer.send(b"\x40" + cid + bytes(100))
            await peer.everything(0.05)
        assert node.listener._links[0]._sources[listener] == socket.inet_aton(node.address[0])
        stream = await listener.open_stream()
        await stream.write(b"still from where it was asked")
        assert await (await dialer.accept_stream()).read() == b"still from where it was asked"
        dialer.close()
        await listener.wait_closed()


async def test_an_empty_datagram_is_nothing() -> None:
    async with everywhere() as node:
        with raw_peer(node) as peer:
            peer.send(b"")
            peer.send(b"\x00")
            await eventually(lambda: node.listener.dropped.total(), "the second one is dropped")
            assert node.listener.dropped == {"garbage": 1}


async def test_an_unknown_version_is_told_which_ones_are_spoken() -> None:
    async with everywhere() as node:
        with raw_peer(node) as peer:
            peer.send(long_header(STRANGE))
            answer = await peer.receive()
            assert len(answer) < MIN_INITIAL_BYTES
            header = pull_quic_header(Buffer(data=answer), host_cid_length=CID_BYTES)
            assert (header.destination_cid, header.source_cid) == (b"abcdefgh", b"12345678")
            assert set(header.supported_versions) == {VERSION_1, QuicProtocolVersion.VERSION_2}
            assert nothing_is_left(node)
            peer.send(answer + bytes(MIN_INITIAL_BYTES))
            assert await peer.everything() == [], "a version negotiation is never answered"


async def test_a_flood_of_garbage_costs_no_memory_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "alknet")
    caplog.set_level(logging.WARNING)
    async with everywhere() as node:
        with raw_peer(node) as peer:
            for number in range(300):
                peer.send(os.urandom(number * 4 + 1))
                peer.send(long_header(VERSION_1, cid=new_cid()))
                broken = bytearray(first_datagram(new_cid()))
                broken[100] ^= 1
                peer.send(bytes(broken))
                if number % 20 == 0:
                    await asyncio.sleep(0)
            await settled(lambda: node.listener.dropped.total())
            assert node.listener.dropped.total() >= 300
            assert nothing_is_left(node)
        dialer, listener = await node.connect()
        dialer.close()
        await listener.wait_closed()
    assert len(caplog.records) <= 3


async def test_garbage_with_a_known_connection_id_disturbs_nobody() -> None:
    async with everywhere() as node:
        dialer, listener = await node.connect()
        known = list(node.listener._links[0]._by_cid)
        with raw_peer(node) as peer:
            for cid in known:
                peer.send(b"\x40" + cid + os.urandom(100))
                peer.send(long_header(VERSION_1, cid=cid))
                peer.send(long_header(VERSION_1, cid=cid, first=0xE0))
            assert await peer.everything() == []
        stream = await dialer.open_stream()
        await stream.write(b"x")
        assert await (await listener.accept_stream()).read() == b"x"
        assert not listener.has_ended
        dialer.close()
        await listener.wait_closed()
