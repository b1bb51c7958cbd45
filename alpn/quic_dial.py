"""QUIC from the dialer's side: one connection on a socket of its own."""

import asyncio
import errno
import os
import time
from typing import Any, Final

from alknet.alpn.errors import AlpnRefused, HandshakeFailed
from alknet.alpn.quic import Datagrams, Engine
from alknet.alpn.quic_connection import QuicConnection
from alknet.alpn.streams import Address
from alknet.alpn.tls import HANDSHAKE_TIMEOUT_S
from alknet.alpn.udp import Datagram, UdpSocket, open_udp, source_address

__all__ = ["dial_quic"]

NO_APPLICATION_PROTOCOL: Final = 0x178
"""CRYPTO_ERROR with the TLS alert no_application_protocol (RFC 9001 section 8.1)."""
SOURCE_CHECK_S: Final = 1.0
"""How often a dialer looks whether its own address has changed."""
REFUSALS: Final = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM})


async def dial_quic(family: int, address: Any, *, alpn: str, server_name: str | None) -> QuicConnection:
    """Shake hands with the node at the socket address `address`.

    Raises `HandshakeFailed`, and `AlpnRefused` when it does not serve `alpn`; nothing but the handshake was sent then.
    """
    link = _DialerLink(family, address, alpn, server_name)
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            return await link.shake_hands()
    except TimeoutError:
        link.connection.close()
        raise HandshakeFailed(f"no QUIC handshake within {HANDSHAKE_TIMEOUT_S:g} s") from None
    except BaseException:
        link.connection.close()
        raise


class _DialerLink:
    def __init__(self, family: int, address: Any, alpn: str, server_name: str | None) -> None:
        self._alpn = alpn
        self._target = family, address
        self._source: str | None = None
        self._source_check: asyncio.TimerHandle | None = None
        self._socket: UdpSocket | None = None
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        engine = Engine.dial(alpn, server_name=server_name, address=address, now=time.monotonic())
        self._socket = UdpSocket(
            open_udp(family), received=self._received, writable=self._writable, failed=self._failed
        )
        self.connection = QuicConnection(
            engine,
            self,
            remote=Address.of(address),
            local=None,
            on_established=self._established,
            on_closed=self._closed,
        )

    async def shake_hands(self) -> QuicConnection:
        self.connection.flush()
        await self._done
        return self.connection

    def _established(self, connection: QuicConnection) -> None:
        self._settle(None)
        self._source = source_address(*self._target)
        self._check_source()

    def _check_source(self) -> None:
        """Tell the node when this machine has another address: until it hears from there, it sends to the old one."""
        source = source_address(*self._target)
        if source is not None and source != self._source:
            self._source = source
            self.connection.engine.ping()
            self.connection.flush_soon()
        self._source_check = asyncio.get_running_loop().call_later(SOURCE_CHECK_S, self._check_source)

    def _settle(self, error: Exception | None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)

    def _closed(self) -> None:
        self.connection.abandon()  # what had to be said was sent; the socket has no other use
        if self._done.done():
            return
        code, reason = self.connection.close_reason or (0, "")
        if code == NO_APPLICATION_PROTOCOL:
            self._settle(AlpnRefused(f"it does not serve {self._alpn}"))
        else:
            self._settle(HandshakeFailed(f"the QUIC handshake failed: {reason or hex(code)}"))

    def _received(self, batch: list[Datagram]) -> None:
        now = time.monotonic()
        for data, address, _ in batch:
            self.connection.receive(data, address, now)
        self.connection.progressed()

    def _failed(self, exc: OSError) -> None:
        # Anyone on the way can forge such a report, so it counts only while there is nothing to lose.
        if exc.errno in REFUSALS:
            self._settle(HandshakeFailed(os.strerror(exc.errno)))

    def _writable(self) -> None:
        self.connection.flush()

    # --- Link -------------------------------------------------------------------------------------------------

    @property
    def is_blocked(self) -> bool:
        return self._socket is None or self._socket.is_blocked

    def send(self, datagrams: Datagrams, connection: QuicConnection) -> None:
        if self._socket is not None:
            self._socket.send_all(datagrams)

    def cid_issued(self, cid: bytes, connection: QuicConnection) -> None:
        pass  # everything that comes to this socket is for the one connection

    def cid_retired(self, cid: bytes) -> None:
        pass

    def over(self, connection: QuicConnection) -> None:
        if self._source_check is not None:
            self._source_check.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
