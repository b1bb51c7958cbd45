"""Both ends of QUIC connections in memory, and peers that do not keep to the rules.

`Net` joins two `Engine`s without sockets, on a clock of its own::

    net = Net()
    net.shake_hands()
    stream_id = net.dialer.open_stream()
    net.dialer.engine.write(stream_id, b"hello", is_last=True)
    net.run(1.0)
    assert net.listener.data[stream_id] == b"hello"

`HostilePeer` is a client that can put any frames into packets that are otherwise valid.
"""

import asyncio
import os
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from aioquic import tls
from aioquic.quic import connection as library
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder

from alknet.alpn.admission import Admission, AdmissionLimits
from alknet.alpn.quic import CID_BYTES, Engine, read_header
from alknet.alpn.quic_connection import QuicConnection
from alknet.alpn.quic_dial import dial_quic
from alknet.alpn.quic_listener import QuicListener
from alknet.alpn.quic_reset import ResetTokens
from alknet.alpn.tls_listener import TlsIdentity
from alknet.alpn.udp import bind_udp
from alknet.certificates import Certificate, make_certificate
from testkit.datagrams import Conditions, Lane

__all__ = [
    "ALPN",
    "DIALER",
    "LISTENER",
    "START_S",
    "End",
    "HostilePeer",
    "Net",
    "Served",
    "accepting",
    "certificate",
    "first_datagram",
    "new_cid",
    "new_cid_frame",
    "served",
    "v2",
]

ALPN = "test"
DIALER, LISTENER = ("192.0.2.1", 50_000), ("192.0.2.2", 7022)
START_S = 1000.0
TICK_S = 1e-6
"""What passes before a timer fires: aioquic rounds, and would wait for ever for a time that is now."""
MAX_PACKET_BYTES = 1350
NEAR = Conditions(delay_s=0.01)
_PACKET_TYPES = {
    tls.Epoch.INITIAL: QuicPacketType.INITIAL,
    tls.Epoch.HANDSHAKE: QuicPacketType.HANDSHAKE,
    tls.Epoch.ONE_RTT: QuicPacketType.ONE_RTT,
}


@cache
def certificate() -> Certificate:
    return make_certificate(("localhost",))


def accepting(data: bytes) -> Engine:
    """A listener's engine for the datagram that begins a connection; it must still be received."""
    header = read_header(data)
    assert header is not None
    return Engine.accept(
        certificate(),
        [ALPN],
        original_cid=header.destination,
        retry_cid=None,
        reset_token=ResetTokens(bytes(32)).token,
    )


def v2(number: int) -> bytes:
    """`number` as QUIC writes it, in two bytes or in four."""
    return (number | 0x4000).to_bytes(2, "big") if number < 1 << 14 else (number | 0x8000_0000).to_bytes(4, "big")


class End:
    """An engine, and what it has told; reads everything at once unless `reads` is false."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.reads = True
        self.alpn: str | None = None
        self.opened: list[int] = []
        self.data: defaultdict[int, bytearray] = defaultdict(bytearray)
        self.ended: set[int] = set()
        self.reset: set[int] = set()
        self.stopped: set[int] = set()
        self.cids: set[bytes] = set()
        self.closed: tuple[int, str] | None = None
        self.is_over = False

    def open_stream(self) -> int:
        stream_id = self.engine.open_stream()
        assert stream_id is not None
        return stream_id

    def read(self, stream_id: int, count: int) -> None:
        """Say that so many bytes were read."""
        self.engine.consumed(stream_id, count)

    # --- QuicEvents -------------------------------------------------------------------------------------------

    def handshake_completed(self, alpn: str) -> None:
        self.alpn = alpn

    def stream_opened(self, stream_id: int) -> None:
        self.opened.append(stream_id)

    def data_received(self, stream_id: int, data: bytes, is_last: bool) -> None:
        assert stream_id not in self.ended | self.reset, "nothing comes after the end"
        self.data[stream_id] += data
        if self.reads:
            self.read(stream_id, len(data))
        if is_last:
            self.ended.add(stream_id)
            if self.reads:
                self.engine.settled(stream_id, len(self.data[stream_id]))

    def stream_reset(self, stream_id: int) -> None:
        assert stream_id not in self.ended | self.reset
        self.reset.add(stream_id)
        self.engine.settled(stream_id, len(self.data[stream_id]))

    def stream_stopped(self, stream_id: int) -> None:
        self.stopped.add(stream_id)

    def cid_issued(self, cid: bytes) -> None:
        self.cids.add(cid)

    def cid_retired(self, cid: bytes) -> None:
        self.cids.discard(cid)

    def closing(self, code: int, reason: str) -> None:
        assert self.closed is None, "told once"
        self.closed = code, reason

    def terminated(self) -> None:
        self.is_over = True


class Net:
    """A dialer and a listener, and the path between them."""

    def __init__(self, conditions: Conditions = NEAR, seed: int = 0) -> None:
        self.now = START_S
        self.dialer_address = DIALER
        self.dialer = End(Engine.dial(ALPN, server_name=None, address=LISTENER, now=self.now))
        self._listener: End | None = None
        self.to_listener: Lane[bytes] = Lane(conditions, f"{seed} to listener")
        self.to_dialer: Lane[bytes] = Lane(conditions, f"{seed} to dialer")

    @property
    def listener(self) -> End:
        assert self._listener is not None, "nothing has arrived yet"
        return self._listener

    def shake_hands(self, *, is_trusted: bool = True) -> None:
        self.run(60.0, until=lambda: self._listener is not None and self._listener.alpn is not None)
        assert (self.dialer.alpn, self.listener.alpn) == (ALPN, ALPN)
        if is_trusted:
            self.listener.engine.trust()
        self.run(1.0)

    def run(self, seconds: float, until: Callable[[], Any] = lambda: False) -> None:
        """Let so much time pass, or as much as it takes until `until`."""
        deadline = self.now + seconds
        while not until():
            for end, lane in ((self.dialer, self.to_listener), (self._listener, self.to_dialer)):
                for data, _ in end.engine.datagrams(self.now) if end else ():
                    lane.put(data, self.now)
                if end:
                    end.engine.pump(end)
            timers = [end.engine.timer() for end in (self.dialer, self._listener) if end]
            due = [self.to_listener.next_s(), self.to_dialer.next_s(), *(at for at in timers if at is not None)]
            if min(due) > deadline:
                self.now = deadline
                return
            self.now = max(self.now, min(due) + TICK_S)
            self._deliver()

    def _deliver(self) -> None:
        for data in self.to_listener.take(self.now):
            if self._listener is None:
                self._listener = End(accepting(data))
            self._listener.engine.receive(data, self.dialer_address, self.now)
        for data in self.to_dialer.take(self.now):
            self.dialer.engine.receive(data, LISTENER, self.now)
        for end in (self.dialer, self._listener):
            if end:
                at = end.engine.timer()
                if at is not None and at <= self.now:
                    end.engine.handle_timer(self.now)
                end.engine.pump(end)


class HostilePeer(library.QuicConnection):
    """A client that sends whatever it likes, in packets with the right keys."""

    def __init__(self, now: float = START_S, address: Any = LISTENER) -> None:
        super().__init__(configuration=QuicConfiguration(alpn_protocols=[ALPN], is_client=True, verify_mode=0))
        self.connect(address, now=now)
        self._listener_address = address

    @property
    def hello(self) -> bytes:
        """The ClientHello that it has to send."""
        return bytes(self._crypto_streams[tls.Epoch.INITIAL].sender._buffer)

    def packet(self, frames: bytes, epoch: tls.Epoch = tls.Epoch.ONE_RTT) -> bytes:
        """A datagram with just these frames."""
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=True,
            max_datagram_size=MAX_PACKET_BYTES,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            version=self._version or 0,
        )
        builder.start_packet(_PACKET_TYPES[epoch], self._cryptos[epoch])
        builder.start_frame(frames[0]).push_bytes(frames[1:])
        datagrams, _ = builder.flush()
        self._packet_number = builder.packet_number
        return datagrams[0]

    def accepted(self, now: float = START_S) -> End:
        """A listener's end that has got the first flight of this peer, and nothing else."""
        return self._accepted(self.flight(now)[0], now)

    def accepted_with(self, frames: bytes, now: float = START_S) -> End:
        """A listener's end that has got a first packet of these frames."""
        return self._accepted(self.packet(frames, tls.Epoch.INITIAL), now)

    def connected(self, now: float = START_S) -> End:
        """A listener's end after a handshake without fault; nobody has logged in."""
        end = self.accepted(now)
        for _ in range(8):
            self.exchange(end, now)
        assert end.alpn == ALPN
        return end

    def exchange(self, end: End, now: float) -> None:
        """What the two have for each other."""
        end.engine.pump(end)
        for data, _ in end.engine.datagrams(now):
            self.receive_datagram(data, self._listener_address, now=now)
        for data in self.flight(now):
            end.engine.receive(data, DIALER, now)
        end.engine.pump(end)

    def _accepted(self, data: bytes, now: float) -> End:
        end = End(accepting(data))
        end.engine.receive(data, DIALER, now)
        end.engine.pump(end)
        return end

    def flight(self, now: float) -> list[bytes]:
        return [data for data, _ in self.datagrams_to_send(now=now)]


def new_cid_frame(number: int, retire_prior_to: int) -> bytes:
    """NEW_CONNECTION_ID."""
    return b"\x18" + v2(number) + v2(retire_prior_to) + b"\x08" + os.urandom(8) + os.urandom(16)


def first_datagram(cid: bytes, token: bytes = b"") -> bytes:
    """What begins a connection to `cid`; all are of one client, so that a thousand cost little."""
    peer = _one_client()
    keys = CryptoPair()
    keys.setup_initial(cid=cid, is_client=True, version=peer._version or 0)
    builder = QuicPacketBuilder(
        host_cid=peer.host_cid,
        is_client=True,
        max_datagram_size=MAX_PACKET_BYTES,
        peer_cid=cid,
        peer_token=token,
        version=peer._version or 0,
    )
    builder.start_packet(QuicPacketType.INITIAL, keys)
    builder.start_frame(0x06).push_bytes(b"\x00" + v2(len(peer.hello)) + peer.hello)
    return builder.flush()[0][0]


@cache
def _one_client() -> HostilePeer:
    return HostilePeer()


def new_cid() -> bytes:
    return os.urandom(CID_BYTES)


# --- over sockets ---------------------------------------------------------------------------------------------


class Served:
    """A listener on loopback, and what was accepted there."""

    def __init__(self, limits: AdmissionLimits, identity: Certificate) -> None:
        self.admission = Admission(limits)
        self.accepted: asyncio.Queue[QuicConnection] = asyncio.Queue()
        self.listener = QuicListener(
            self.admission, TlsIdentity.of(identity, ["other", ALPN]), self.accepted.put_nowait
        )

    @property
    def address(self) -> tuple[str, int]:
        address = self.listener.addresses[0]
        return "127.0.0.1", address.port

    @property
    def ids(self) -> int:
        """Connection ids that are known."""
        return sum(len(link._by_cid) for link in self.listener._links)

    async def connect(self, address: Any = None, **options: Any) -> tuple[QuicConnection, QuicConnection]:
        """Dial, directly or by what stands at `address`: the dialer's end and the listener's."""
        options = {"alpn": ALPN, "server_name": None} | options
        dialer = await dial_quic(socket.AF_INET, address or self.address, **options)
        return dialer, await self.accepted.get()


@asynccontextmanager
async def served(
    limits: AdmissionLimits | None = None, *, host: str = "127.0.0.1", identity: Certificate | None = None
) -> AsyncIterator[Served]:
    """Close what was connected before leaving."""
    one = Served(limits or AdmissionLimits(), identity or certificate())
    one.listener.serve(bind_udp(host, 0))
    try:
        yield one
    finally:
        one.listener.stop_accepting()
        one.listener.close()
