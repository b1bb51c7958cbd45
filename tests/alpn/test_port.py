"""The port over real sockets: what each opening leads to, and that a stranger never holds more than its share."""

import asyncio
import contextlib
import errno
import os
import re
import resource
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alknet.access import Identity
from alknet.alpn.admission import Admission, AdmissionLimits, Slot
from alknet.alpn.errors import HandshakeFailed
from alknet.alpn.first_byte import Opening, opening
from alknet.alpn.port import Carrier, Port, plain
from alknet.alpn.quic_dial import dial_quic
from alknet.alpn.quic_listener import QuicListener
from alknet.alpn.router import Router
from alknet.alpn.streams import Address, Connection
from alknet.alpn.tls_listener import TlsIdentity
from alknet.alpn.udp import bind_udp
from alknet.certificates import make_certificate
from alknet.errors import StartupError
from testkit.polling import eventually, settled

from .conformance import Recorder

SERVED = (Opening.SSH, Opening.TLS, Opening.SOCKS, Opening.HTTP)
NEVER_S = 3600.0
SOON_S = 0.05
ALICE = Identity("alice", frozenset(), "key:SHA256:alice")


@dataclass(frozen=True)
class Taken:
    """What a door was given."""

    kind: Opening
    sock: socket.socket
    remote: Address
    slot: Slot

    def end(self) -> None:
        self.sock.close()
        self.slot.leave()


class Doors:
    """Carriers that keep what they were given."""

    def __init__(self, kinds: Iterable[Opening] = SERVED) -> None:
        self.taken: list[Taken] = []
        self._seen = 0
        self.carriers: dict[Opening, Carrier] = {kind: self._carrier(kind) for kind in kinds}

    def _carrier(self, kind: Opening) -> Carrier:
        return lambda sock, remote, slot: self.taken.append(Taken(kind, sock, remote, slot))

    async def next_taken(self) -> Taken:
        self._seen += 1
        await eventually(lambda: len(self.taken) >= self._seen, "a door got a connection")
        return self.taken[self._seen - 1]

    def close(self) -> None:
        for taken in self.taken:
            taken.end()


@asynccontextmanager
async def listening(
    doors: Doors | None = None, *, limits: AdmissionLimits | None = None, hosts: tuple[str, ...] = ("127.0.0.1",)
) -> AsyncIterator[Port]:
    doors = doors or Doors()
    port = Port(Admission(limits or AdmissionLimits()), doors.carriers)
    port.listen(hosts, 0)
    try:
        async with asyncio.timeout(20.0):
            yield port
    finally:
        port.stop_accepting()
        doors.close()


class Client:
    """A stranger's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def is_closed(self) -> bool:
        """Wait for the end that the node makes, in whatever way."""
        try:
            async with asyncio.timeout(10.0):
                return await self._loop.sock_recv(self.sock, 1) == b""
        except ConnectionError:
            return True

    def is_open(self) -> bool:
        try:
            return self.sock.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except ConnectionError:
            return False

    def leave(self, *, reset: bool = False) -> None:
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@contextmanager
def clients(address: Address, count: int = 1, *, source: str | None = None) -> Iterator[list[Client]]:
    """`count` connections from `source`, made before the node gets to accept them."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            origin = (source, 0) if source else None
            sock = stack.enter_context(socket.create_connection((address.host, address.port), source_address=origin))
            sock.setblocking(False)
            made.append(Client(sock))
        yield made


@contextmanager
def client(address: Address, *, source: str | None = None) -> Iterator[Client]:
    with clients(address, source=source) as (one,):
        yield one


async def is_empty(port: Port) -> None:
    """Wait until nobody is counted any more."""
    counts = port.admission
    await eventually(lambda: (counts.open, counts.half_open, len(port._waiting)) == (0, 0, 0), "everybody is gone")


# --- the first byte -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"SSH-2.0-test\r\n", Opening.SSH),
        (b"S", Opening.SSH),
        (b"\x16\x03\x01\x00\xc8", Opening.TLS),
        (b"\x16", Opening.TLS),
        (b"\x05\x01\x00", Opening.SOCKS),
        (b"GET / HTTP/1.1\r\n\r\n", Opening.HTTP),
        (b"A", Opening.HTTP),
        (b"Z", Opening.HTTP),
    ],
)
async def test_the_first_byte_chooses_the_door_which_gets_every_byte(said: bytes, kind: Opening) -> None:
    doors = Doors()
    async with listening(doors) as port:
        with client(port.addresses[0]) as stranger:
            await stranger.send(said)
            taken = await doors.next_taken()
            assert taken.kind is kind
            assert await asyncio.get_running_loop().sock_recv(taken.sock, 100) == said
            assert taken.remote == Address(*stranger.sock.getsockname())
            assert (port.admission.open, port.admission.half_open) == (1, 1)
            taken.end()
            await is_empty(port)


@pytest.mark.parametrize("said", [b"\x00", b"\x04\x01", b"s", b"@", b"[", b"\x80", b"\xff\xff"])
async def test_an_unknown_opening_is_closed_and_counted(said: bytes) -> None:
    doors = Doors()
    async with listening(doors) as port:
        with client(port.addresses[0]) as stranger:
            await stranger.send(said)
            assert await stranger.is_closed()
        assert port.unserved == {"unknown": 1}
        assert doors.taken == []
        await is_empty(port)


@pytest.mark.parametrize(("said", "kind"), [(b"S", "ssh"), (b"\x16", "tls"), (b"\x05", "socks"), (b"G", "http")])
async def test_an_opening_without_a_door_is_closed_and_counted(said: bytes, kind: str) -> None:
    async with listening(Doors([])) as port:
        with client(port.addresses[0]) as stranger:
            await stranger.send(said)
            assert await stranger.is_closed()
        assert port.unserved == {kind: 1}
        await is_empty(port)


@settings(max_examples=40)
@given(said=st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5))
async def test_whatever_is_said_is_decided_once_and_leaves_nothing(said: list[bytes]) -> None:
    doors = Doors([Opening.SSH])
    async with listening(doors) as port:
        with contextlib.ExitStack() as stack:
            for data in said:
                await stack.enter_context(client(port.addresses[0])).send(data)
            kinds = Counter(opening(data[0]).value for data in said)
            expected = Counter({kind: count for kind, count in kinds.items() if kind != "ssh"})
            await eventually(lambda: port.unserved == expected and len(doors.taken) == kinds["ssh"], "all decided")
        doors.close()
        await is_empty(port)


# --- silence --------------------------------------------------------------------------------------------------


async def test_silence_is_a_client_that_waits_for_the_banner_of_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.alpn.port.SILENCE_S", SOON_S)
    monkeypatch.setattr("alknet.alpn.port.FIRST_BYTE_TIMEOUT_S", NEVER_S)
    doors = Doors()
    async with listening(doors) as port:
        with client(port.addresses[0]):
            taken = await doors.next_taken()
            assert taken.kind is Opening.SSH
            with pytest.raises(BlockingIOError):
                taken.sock.recv(1)


async def test_silence_without_ssh_is_closed_at_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.alpn.port.SILENCE_S", NEVER_S)
    monkeypatch.setattr("alknet.alpn.port.FIRST_BYTE_TIMEOUT_S", SOON_S)
    async with listening(Doors([Opening.TLS])) as port:
        with client(port.addresses[0]) as stranger:
            assert await stranger.is_closed()
        assert port.unserved == {"silent": 1}
        await is_empty(port)


@pytest.mark.parametrize("reset", [False, True])
async def test_who_leaves_without_a_word_is_forgotten(reset: bool) -> None:
    doors = Doors()
    async with listening(doors) as port:
        with client(port.addresses[0]) as stranger:
            await eventually(lambda: port.admission.open == 1, "the stranger is in")
            stranger.leave(reset=reset)
            await is_empty(port)
        assert doors.taken == []
        assert port.unserved == {}


async def test_who_left_with_a_word_still_gets_its_door() -> None:
    doors = Doors()
    async with listening(doors) as port:
        with client(port.addresses[0]) as stranger:
            await stranger.send(b"SSH-2.0-x\r\n")
            stranger.leave()
            taken = await doors.next_taken()
            assert (taken.kind, taken.sock.recv(100)) == (Opening.SSH, b"SSH-2.0-x\r\n")


# --- listening ------------------------------------------------------------------------------------------------


async def test_a_loopback_address_takes_both_families_on_one_port() -> None:
    doors = Doors()
    async with listening(doors, hosts=("127.0.0.1", "::1")) as port:
        four, six = port.addresses
        assert (four.host, six.host) == ("127.0.0.1", "::1")
        assert four.port == six.port != 0
        for address in (four, six):
            with client(address) as stranger:
                await stranger.send(b"S")
                assert (await doors.next_taken()).remote.host == address.host


async def test_several_addresses_are_listened_on_at_once() -> None:
    doors = Doors()
    async with listening(doors, hosts=("127.0.0.2",)) as port:
        port.listen(("127.0.0.3",), 0)
        assert [address.host for address in port.addresses] == ["127.0.0.2", "127.0.0.3"]
        for address in port.addresses:
            with client(address) as stranger:
                await stranger.send(b"S")
                await doors.next_taken()


async def test_a_second_address_that_the_machine_lacks_is_left_out() -> None:
    async with listening(hosts=("127.0.0.1", "2001:db8::1")) as port:
        assert [address.host for address in port.addresses] == ["127.0.0.1"]


async def test_a_first_address_that_the_machine_lacks_is_an_error() -> None:
    port = Port(Admission(AdmissionLimits()), {})
    with pytest.raises(StartupError, match=r"cannot listen on 192\.0\.2\.1:0 \(TCP\): Cannot assign") as caught:
        port.listen(("192.0.2.1",), 0)
    assert "node.listen" in caught.value.hint


@pytest.mark.parametrize("taken", ["127.0.0.1", "::1"])
async def test_a_taken_port_is_an_error_that_leaves_nothing_bound(taken: str) -> None:
    family = socket.AF_INET6 if ":" in taken else socket.AF_INET
    port = Port(Admission(AdmissionLimits()), {})
    with socket.create_server((taken, 0), family=family) as other:
        number = other.getsockname()[1]
        where = str(Address(taken, number)).replace("[", r"\[").replace("]", r"\]")
        with pytest.raises(StartupError, match=rf"cannot listen on {where} \(TCP\): Address already in use") as caught:
            port.listen(("127.0.0.1", "::1"), number)
    assert "--listen" in caught.value.hint
    assert port.addresses == ()
    port.listen(("127.0.0.1", "::1"), number)
    port.stop_accepting()


async def test_port_zero_gives_up_when_no_port_is_free_on_every_address() -> None:
    port = Port(Admission(AdmissionLimits()), {})
    with pytest.raises(StartupError, match="no port is free on all of"):
        port.listen(("127.0.0.1", "127.0.0.1"), 0)
    assert port.addresses == ()


async def test_stopping_closes_who_waits_and_frees_the_port() -> None:
    async with listening() as port:
        (address,) = port.addresses
        with clients(address, 3) as strangers:
            await eventually(lambda: port.admission.open == 3, "all are in")
            port.stop_accepting()
            port.stop_accepting()
            assert [await stranger.is_closed() for stranger in strangers] == [True] * 3
        await is_empty(port)
        assert port.addresses == ()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address.host, address.port))


# --- UDP ------------------------------------------------------------------------------------------------------


@cache
def identity() -> TlsIdentity:
    return TlsIdentity.of(make_certificate(("localhost",)), ["test"])


@asynccontextmanager
async def serving_quic() -> AsyncIterator[tuple[Port, QuicListener, list[Connection]]]:
    """A port that does not listen yet, its QUIC, and the connections that come to it."""
    admission, accepted = Admission(AdmissionLimits()), list[Connection]()
    quic = QuicListener(admission, identity(), accepted.append)
    port = Port(admission, Doors().carriers, quic)
    try:
        async with asyncio.timeout(20.0):
            yield port, quic, accepted
    finally:
        port.stop_accepting()
        quic.close()


def is_refused(address: Address) -> bool:
    """Whether TCP is not accepted at `address`."""
    with contextlib.suppress(ConnectionRefusedError), client(address):
        return False
    return True


def udp_holder(host: str, port: int = 0) -> socket.socket:
    """Another program's socket; its number is free on TCP."""
    for _ in range(20):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((host, port))
        try:
            socket.create_server(("::", sock.getsockname()[1]), family=socket.AF_INET6, dualstack_ipv6=True).close()
        except OSError:
            sock.close()
        else:
            return sock
    raise AssertionError("no port is free")


async def test_udp_has_the_number_of_tcp_on_every_address() -> None:
    async with serving_quic() as (port, quic, accepted):
        port.listen(("127.0.0.1", "::1"), 0)
        assert quic.addresses == port.addresses
        assert len({address.port for address in port.addresses}) == 1
        for address in port.addresses:
            ((family, *_, name),) = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)
            dialer = await dial_quic(family, name, alpn="test", server_name=None)
            await eventually(lambda: accepted, "it is there")
            connection = accepted.pop()
            assert (connection.transport, connection.local) == ("quic", address)
            assert port.admission.open == 1
            dialer.close()
            await eventually(lambda: port.admission.open == 0, "its end is heard")


@pytest.mark.parametrize("taken", ["127.0.0.1", "::1"])
async def test_a_port_that_is_taken_on_udp_is_an_error_that_leaves_nothing_bound(taken: str) -> None:
    async with serving_quic() as (port, quic, _):
        with udp_holder(taken) as other:
            number = other.getsockname()[1]
            where = re.escape(str(Address(taken, number)))
            with pytest.raises(StartupError, match=rf"cannot listen on {where} \(UDP\): Address already in use"):
                port.listen(("127.0.0.1", "::1"), number)
            assert (port.addresses, quic.addresses) == ((), ())
            for host in ("127.0.0.1", "::1"):
                assert is_refused(Address(host, number))
                if host != taken:
                    udp_holder(host, number).close()
        port.listen(("127.0.0.1", "::1"), number)
        assert len(port.addresses) == len(quic.addresses) == 2


async def test_tcp_accepts_nobody_before_udp_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []

    def bind(host: str, number: int) -> socket.socket:
        refused.append(all(is_refused(Address(each, number)) for each in ("127.0.0.1", "::1")))
        return bind_udp(host, number)

    monkeypatch.setattr("alknet.alpn.port.bind_udp", bind)
    async with serving_quic() as (port, _, _):
        port.listen(("127.0.0.1", "::1"), 0)
        assert refused == [True, True]
        assert not any(is_refused(address) for address in port.addresses)


async def test_port_zero_takes_a_number_that_is_free_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def bind(host: str, number: int) -> socket.socket:
        tried.append(number)
        if len(tried) < 4:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return bind_udp(host, number)

    monkeypatch.setattr("alknet.alpn.port.bind_udp", bind)
    async with serving_quic() as (port, quic, _):
        port.listen(("127.0.0.1",), 0)
        assert quic.addresses == port.addresses == (Address("127.0.0.1", tried[3]),)
        tried.clear()
        monkeypatch.setattr("alknet.alpn.port.PORT_ZERO_TRIES", 3)
        with pytest.raises(StartupError, match=r"no port is free on all of 127\.0\.0\.2"):
            port.listen(("127.0.0.2",), 0)
        assert len(port.addresses) == len(quic.addresses) == 1


async def test_after_stopping_quic_connections_go_on_and_no_new_ones_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving_quic() as (port, quic, accepted):
        port.listen(("127.0.0.1",), 0)
        (address,) = port.addresses
        where = (address.host, address.port)
        dialer = await dial_quic(socket.AF_INET, where, alpn="test", server_name=None)
        await eventually(lambda: accepted, "it is there")
        port.stop_accepting()
        port.stop_accepting()
        assert is_refused(address)
        monkeypatch.setattr("alknet.alpn.quic_dial.HANDSHAKE_TIMEOUT_S", 4 * SOON_S)
        with pytest.raises(HandshakeFailed):
            await dial_quic(socket.AF_INET, where, alpn="test", server_name=None)
        assert quic.dropped["stopping"] > 0
        assert port.admission.open == len(accepted) == 1
        stream = await dialer.open_stream()
        await stream.write(b"still here")
        assert await (await accepted[0].accept_stream()).read() == b"still here"
        dialer.close()
        await eventually(lambda: port.admission.open == 0, "its end is heard")


# --- limits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["connections", "connections_per_address", "half_open"])
async def test_who_is_over_a_limit_is_refused_and_counted_until_somebody_leaves(limit: str) -> None:
    async with listening(limits=AdmissionLimits(**{limit: 2})) as port:
        with clients(port.addresses[0], 2) as (first, second), client(port.addresses[0]) as third:
            assert await third.is_closed()
            assert port.admission.refused == {limit: 1}
            assert first.is_open()
            assert second.is_open()
            first.leave()
            await eventually(lambda: port.admission.open == 1, "one has left")
            with client(port.addresses[0]) as fourth:
                await eventually(lambda: port.admission.open == 2, "the next one is in")
                assert fourth.is_open()
        await is_empty(port)


@pytest.mark.parametrize("allowed", [100, 500])
async def test_a_crowd_from_one_address_does_not_keep_others_out(
    allowed: int, many_descriptors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alknet.alpn.port.SILENCE_S", NEVER_S)
    doors = Doors()
    async with listening(doors, limits=AdmissionLimits(connections_per_address=allowed)) as port:
        with clients(port.addresses[0], 500, source="127.0.0.2") as crowd, client(port.addresses[0]) as other:
            await other.send(b"SSH-2.0-x\r\n")
            assert (await doors.next_taken()).remote.host == "127.0.0.1"
            assert port.admission.half_open == allowed + 1
            assert port.admission.refused.total() == 500 - allowed
            assert await settled(lambda: sum(stranger.is_open() for stranger in crowd)) == allowed
            doors.close()
        await is_empty(port)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Room for some thousand sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """The process can open `count` more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers = [os.dup(0)]
    try:
        while fillers[-1] < highest:
            fillers.append(os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + count, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in fillers:
            os.close(fd)


async def test_the_last_descriptors_are_not_for_callers(caplog: pytest.LogCaptureFixture) -> None:
    async with listening() as port:
        with client(port.addresses[0]) as stranger:
            with descriptors_left(5):
                assert await stranger.is_closed()
            assert port.admission.refused == {"descriptors": 1}
            assert port.admission.open == 0
            assert [record.getMessage() for record in caplog.records] == [
                "connection rejected remote_addr=127.0.0.1 limit=descriptors"
            ]
        with client(port.addresses[0]):
            await eventually(lambda: port.admission.open == 1, "the next one gets in")


async def test_without_descriptors_accepting_pauses_and_then_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("alknet.alpn.port.EXHAUSTED_PAUSE_S", SOON_S)
    async with listening() as port:
        with clients(port.addresses[0], 5):
            with descriptors_left(0):
                await eventually(lambda: len(caplog.records) >= 2, "it tries again after a pause")
                count = len(caplog.records)
                await settled(lambda: 0)
                assert len(caplog.records) - count <= 5, "it does not spin"
                assert port.admission.open == 0
            await eventually(lambda: port.admission.open == 5, "all get in")
        await is_empty(port)
    assert {record.getMessage() for record in caplog.records} == {
        'accepting pauses reason="Too many open files"',
    }


async def test_stopping_during_the_pause_stays_stopped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("alknet.alpn.port.EXHAUSTED_PAUSE_S", SOON_S)
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with listening() as port:
        with client(port.addresses[0]) as stranger:
            with descriptors_left(0):
                await eventually(lambda: caplog.records, "accepting pauses")
                port.stop_accepting()
            assert await stranger.is_closed()
            await settled(lambda: port.admission.open)
            assert port.admission.open == 0
    assert failures == []


# --- whoever takes the socket ---------------------------------------------------------------------------------


async def test_a_door_that_fails_loses_this_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    def fail(sock: socket.socket, remote: Address, slot: Slot) -> None:
        raise ValueError("a mistake in a carrier")

    doors = Doors()
    doors.carriers[Opening.TLS] = fail
    async with listening(doors) as port:
        with clients(port.addresses[0], 2) as (unlucky, lucky):
            await unlucky.send(b"\x16")
            assert await unlucky.is_closed()
            await lucky.send(b"S")
            assert (await doors.next_taken()).kind is Opening.SSH
            assert port.admission.open == 1
    assert "a mistake in a carrier" in caplog.text


class Serving:
    """A handler that does one of the things that a handler may do."""

    alpns = ("test",)

    def __init__(self, way: str) -> None:
        self.way = way

    async def handle(self, connection: Connection) -> None:
        if self.way == "returns at once":
            return
        if self.way == "fails before it accepts":
            raise ValueError("a mistake in a handler")
        stream = await connection.accept_stream()
        if self.way == "accepts and returns":
            return
        if self.way == "attaches":
            protocol = Recorder()
            await stream.attach(protocol)
            await eventually(lambda: protocol.lost_with, "the client leaves")
            return
        await stream.read()
        connection.logged_in(ALICE)
        if self.way == "fails after a login":
            raise ValueError("a mistake in a handler")
        await stream.write(b"answer")
        await stream.aclose()
        if self.way == "waits for the end":
            await connection.wait_closed()

    def recheck(self) -> None:
        pass

    async def shutdown(self, deadline: float) -> None:
        pass


@pytest.mark.parametrize(
    "way",
    [
        "returns at once",
        "fails before it accepts",
        "accepts and returns",
        "attaches",
        "fails after a login",
        "answers",
        "waits for the end",
    ],
)
@pytest.mark.parametrize("reset", [False, True])
async def test_a_place_is_free_again_whatever_the_handler_does(way: str, reset: bool) -> None:
    router = Router([Serving(way)])
    doors = Doors([])
    doors.carriers[Opening.SSH] = plain("test", router)
    async with listening(doors) as port:
        with clients(port.addresses[0], 3) as strangers:
            for stranger in strangers:
                await stranger.send(b"SSH-2.0-x\r\n")
            for stranger in strangers:
                stranger.leave(reset=reset)
        await is_empty(port)
        await eventually(lambda: router.connections == (), "every handler has ended")


async def test_a_place_is_free_again_when_nobody_serves_the_protocol() -> None:
    doors = Doors([])
    doors.carriers[Opening.SSH] = plain("test", Router([]))
    async with listening(doors) as port:
        with client(port.addresses[0]) as stranger:
            await stranger.send(b"S")
            assert await stranger.is_closed()
            await is_empty(port)


async def test_a_place_is_free_again_when_the_node_cuts_its_handler() -> None:
    router = Router([Serving("attaches")])
    doors = Doors([])
    doors.carriers[Opening.SSH] = plain("test", router)
    async with listening(doors) as port:
        with client(port.addresses[0]) as stranger:
            await stranger.send(b"S")
            await eventually(lambda: router.connections, "the handler serves")
            assert await router.shutdown(0.0) == 1
            assert await stranger.is_closed()
            await is_empty(port)


async def test_a_login_makes_room_for_strangers() -> None:
    router = Router([Serving("waits for the end")])
    doors = Doors([])
    doors.carriers[Opening.SSH] = plain("test", router)
    async with listening(doors, limits=AdmissionLimits(half_open=1)) as port:
        for _ in range(3):
            with client(port.addresses[0]) as stranger:
                await stranger.send(b"S")
                assert await asyncio.get_running_loop().sock_recv(stranger.sock, 100) == b"answer"
        assert port.admission.refused == {}
        await is_empty(port)
