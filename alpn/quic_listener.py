"""QUIC on the port: datagrams to the connections that they belong to, and what strangers may cause.

Nothing is kept for a datagram that does not begin a connection: it is counted and dropped. One that does needs a place
in the `Admission`, as a TCP connection does; above `RETRY_ABOVE` unfinished handshakes its sender must first prove
(with a Retry, which keeps nothing either) that it receives what is sent to its address. A token that was given out is
checked always. A handshake has `HANDSHAKE_TIMEOUT_S`.
"""

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from alknet.alpn.admission import Admission, Slot
from alknet.alpn.quic import (
    CID_BYTES,
    MIN_INITIAL_BYTES,
    Datagrams,
    Engine,
    Header,
    RetryTokens,
    read_header,
    version_negotiation,
)
from alknet.alpn.quic_connection import QuicConnection
from alknet.alpn.quic_reset import ResetTokens
from alknet.alpn.streams import Address
from alknet.alpn.tls import HANDSHAKE_TIMEOUT_S
from alknet.alpn.tls_listener import DEFAULT_ALPN, TlsIdentity
from alknet.alpn.udp import Datagram, UdpSocket
from alknet.logs import event

__all__ = ["RETRY_ABOVE", "QuicListener"]

log = logging.getLogger("alknet.alpn")

RETRY_ABOVE: Final = 32
"""With more unfinished handshakes than this, newcomers must prove their address."""
RETRY_ABOVE_PER_S: Final = 100
"""So they must when more than this have come within a second."""
LOG_INTERVAL_S: Final = 1.0
"""A flood of refused datagrams makes one log line in this time for each reason."""
LONG_HEADER: Final = 0x80


class QuicListener:
    """Serves QUIC on any number of UDP sockets; `dispatch` gets each connection whose handshake is completed.

    `identity` may be replaced at any time: connections that begin afterwards use the new one. `reset_secret` belongs to
    this node alone and to its next start; without one, a restarted node cannot tell whom it has forgotten.
    """

    def __init__(
        self,
        admission: Admission,
        identity: TlsIdentity,
        dispatch: Callable[[QuicConnection], None],
        *,
        reset_secret: bytes = b"",
    ) -> None:
        self.identity = identity
        self.dropped: Counter[str] = Counter()
        """Datagrams that led nowhere, by reason."""
        self.retries = 0
        self._admission = admission
        self._dispatch = dispatch
        self._tokens = RetryTokens()
        self._resets = ResetTokens(reset_secret or os.urandom(32))
        self._second = self._made = 0
        self._links: list[_Link] = []
        self._half_open: set[QuicConnection] = set()
        self._is_accepting = True
        self._logged_at: dict[str, float] = {}
        self._loop = asyncio.get_running_loop()

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(Address.of(link.socket.name) for link in self._links)

    @property
    def alpns(self) -> tuple[str, ...]:
        """What is served here: HTTP/1.1 needs a connection that is one stream."""
        return tuple(alpn for alpn in self.identity.alpns if alpn != DEFAULT_ALPN)

    @property
    def half_open(self) -> int:
        """Handshakes that have begun and are not completed."""
        return len(self._half_open)

    def serve(self, sock: socket.socket) -> None:
        """Serve a bound socket, and own it."""
        self._links.append(_Link(self, sock))

    def stop_accepting(self) -> None:
        """Let nobody new in, and forget who has not finished its handshake. Idempotent."""
        self._is_accepting = False
        for connection in tuple(self._half_open):
            connection.abandon()

    def close(self) -> None:
        """Close the sockets; what is still connected hears nothing more. Idempotent."""
        for link in self._links:
            link.socket.close()
        self._links.clear()

    # --- a datagram of nobody's -------------------------------------------------------------------------------

    def newcomer(self, data: bytes, address: Any, local: bytes | None, link: "_Link") -> QuicConnection | None:
        """The connection that a datagram begins, or None."""
        header = read_header(data) if data and data[0] & LONG_HEADER else None
        if header is None or header.kind == "other":
            self.dropped["unknown" if header or (data and data[0] & 0x40) else "garbage"] += 1
            if data and data[0] & (LONG_HEADER | 0x40) == 0x40:
                self._answer_unknown(data, address, local, link)
            return None
        if len(data) < MIN_INITIAL_BYTES or len(header.destination) < CID_BYTES:  # RFC 9000 sections 14.1 and 7.2
            self.dropped["short"] += 1
            return None
        if header.kind == "negotiate":
            self.dropped["version"] += 1
            link.socket.send(version_negotiation(header), address, local)
            return None
        if not self._is_accepting:
            self.dropped["stopping"] += 1
            return None
        return self._admit(data, header, address, local, link)

    def _answer_unknown(self, data: bytes, address: Any, local: bytes | None, link: "_Link") -> None:
        cid = _destination_cid(data)
        if any(other.knows(cid) for other in self._links):
            return  # it came to the wrong socket; the token would let whoever sent it end that connection
        reset = self._resets.answer(data, cid, now=time.monotonic())
        if reset is not None:
            link.socket.send(reset, address, local)

    def _admit(
        self, data: bytes, header: Header, address: Any, local: bytes | None, link: "_Link"
    ) -> QuicConnection | None:
        now = time.monotonic()
        original: bytes | None = header.destination
        if header.token:
            original = self._tokens.original_cid(header, address, now=now)
            if original is None:
                self.dropped["token"] += 1
                return None
        elif len(self._half_open) > RETRY_ABOVE or self._made_this_second(now) > RETRY_ABOVE_PER_S:
            self.retries += 1
            retry = self._tokens.ask(header, address, new_cid=os.urandom(CID_BYTES), now=now)
            link.socket.send(retry, address, local)
            return None
        remote = Address.of(address)
        slot = self._admission.enter(remote.host, self._loop.time())
        if isinstance(slot, str):
            self.dropped[slot] += 1
            self._log_refusal(remote, slot)
            return None
        assert original is not None
        self._made += 1
        engine = Engine.accept(
            self.identity.certificate,
            self.alpns,
            original_cid=original,
            retry_cid=header.destination if header.token else None,
            reset_token=self._resets.token,
        )
        engine.receive(data, address, now)
        if not engine.has_begun:
            slot.leave()
            self.dropped["undecryptable"] += 1
            return None
        return self._begin(engine, header, remote, local, slot, link)

    def _begin(
        self, engine: Engine, header: Header, remote: Address, local: bytes | None, slot: Slot, link: "_Link"
    ) -> QuicConnection:
        def established(connection: QuicConnection) -> None:
            deadline.cancel()
            self._half_open.discard(connection)
            self._dispatch(connection)

        def closed() -> None:
            deadline.cancel()
            self._half_open.discard(connection)
            slot.leave()

        connection = QuicConnection(
            engine,
            link,
            remote=remote,
            local=link.local_address(local),
            on_established=established,
            on_login=slot.logged_in,
            on_closed=closed,
        )
        self._half_open.add(connection)
        link.adopt(connection, (header.destination, engine.cid), local)
        deadline = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._too_slow, connection)
        return connection

    def _too_slow(self, connection: QuicConnection) -> None:
        self.dropped["handshake_timeout"] += 1
        connection.abandon()

    def _made_this_second(self, now: float) -> int:
        """Engines begun in this second, whatever became of them: one costs a millisecond."""
        if int(now) != self._second:
            self._second, self._made = int(now), 0
        return self._made

    def _log_refusal(self, remote: Address, limit: str) -> None:
        now = self._loop.time()
        if now - self._logged_at.get(limit, -LOG_INTERVAL_S) >= LOG_INTERVAL_S:
            self._logged_at[limit] = now
            log.warning(event("connection rejected", remote_addr=remote.host, limit=limit))


class _Link:
    """One UDP socket of the listener: which connection each connection id belongs to."""

    def __init__(self, listener: QuicListener, sock: socket.socket) -> None:
        self._listener = listener
        self._by_cid: dict[bytes, QuicConnection] = {}
        self._cids: dict[QuicConnection, set[bytes]] = {}
        self._sources: dict[QuicConnection, bytes | None] = {}
        """The local address that each connection reached last."""
        self.socket = UdpSocket(sock, received=self._received, writable=self._writable)

    def local_address(self, packed: bytes | None) -> Address:
        host, port = self.socket.name[:2]
        if packed is not None:
            host = socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
        return Address.of((host, port))

    def knows(self, cid: bytes) -> bool:
        return cid in self._by_cid

    def adopt(self, connection: QuicConnection, cids: Sequence[bytes], local: bytes | None) -> None:
        self._cids[connection] = set()
        self._sources[connection] = local
        for cid in cids:
            self.cid_issued(cid, connection)

    def _received(self, batch: list[Datagram]) -> None:
        now = time.monotonic()
        touched: dict[QuicConnection, None] = {}
        for data, address, local in batch:
            connection = self._by_cid.get(_destination_cid(data))
            if connection is None:
                connection = self._listener.newcomer(data, address, local, self)
                if connection is None:
                    continue
            else:
                connection.safely(partial(self._give, connection, (data, address, local), now))
            touched[connection] = None
        for connection in touched:
            connection.safely(connection.progressed)

    def _give(self, connection: QuicConnection, datagram: Datagram, now: float) -> None:
        data, address, local = datagram
        if connection.receive(data, address, now):
            self._sources[connection] = local

    def _writable(self) -> None:
        for connection in tuple(self._cids):
            connection.flush()

    # --- Link -------------------------------------------------------------------------------------------------

    @property
    def is_blocked(self) -> bool:
        return self.socket.is_blocked

    def send(self, datagrams: Datagrams, connection: QuicConnection) -> None:
        self.socket.send_all(datagrams, self._sources.get(connection))

    def cid_issued(self, cid: bytes, connection: QuicConnection) -> None:
        if connection in self._cids and cid not in self._by_cid:
            self._by_cid[cid] = connection
            self._cids[connection].add(cid)

    def cid_retired(self, cid: bytes) -> None:
        connection = self._by_cid.pop(cid, None)
        if connection is not None:
            self._cids[connection].discard(cid)

    def over(self, connection: QuicConnection) -> None:
        for cid in self._cids.pop(connection, ()):
            self._by_cid.pop(cid, None)
        self._sources.pop(connection, None)


def _destination_cid(data: bytes) -> bytes:
    """Whom a datagram is for. A long header tells the length, a short one has what this side issued."""
    if data and data[0] & LONG_HEADER:
        return data[6 : 6 + data[5]] if len(data) > 6 else b""
    return data[1 : 1 + CID_BYTES]
