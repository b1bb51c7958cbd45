"""The contracts over every carrier, and the values that they share."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import pytest

from alknet.alpn.admission import Admission, AdmissionLimits
from alknet.alpn.memory import memory_pair
from alknet.alpn.quic import MAX_SEND_BYTES
from alknet.alpn.quic_dial import dial_quic
from alknet.alpn.quic_listener import QuicListener
from alknet.alpn.streams import MAX_BUFFERED_BYTES, Address, BaseConnection, Connection
from alknet.alpn.tcp import TcpConnection
from alknet.alpn.tls import accept_tls, dial_tls, server_context
from alknet.alpn.tls_listener import TlsIdentity
from alknet.alpn.udp import bind_udp
from alknet.alpn.windows import STREAM_BYTES
from alknet.certificates import Certificate, make_certificate

from .conformance import Carrier, Ends, ManyStreams, OneStream

SOCKET_BUFFER_BYTES = 128 * 1024


@asynccontextmanager
async def memory_connections() -> AsyncIterator[Ends]:
    dialer, listener = memory_pair(alpn="test", remote=Address("192.0.2.1", 5))
    try:
        yield dialer, listener
    finally:
        dialer.close()
        listener.close()


@cache
def certificate() -> Certificate:
    return make_certificate(("localhost",))


def small_sockets() -> tuple[socket.socket, socket.socket]:
    """Two ends over loopback, with buffers that do not grow."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        near = socket.socket()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        near.connect(listening.getsockname())
        far, _ = listening.accept()
    for sock in (near, far):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        sock.setblocking(False)
    return near, far


@asynccontextmanager
async def tcp_connections() -> AsyncIterator[Ends]:
    dialer, listener = (TcpConnection(sock, alpn="test", remote=None) for sock in small_sockets())
    try:
        yield dialer, listener
    finally:
        dialer.close()
        listener.close()


@asynccontextmanager
async def tls_connections() -> AsyncIterator[Ends]:
    """A TLS session over what `tcp_connections` uses."""
    near, far = small_sockets()
    remote = Address.of(near.getsockname())
    context = server_context(certificate(), ["other", "test"])
    listener, dialer = await asyncio.gather(
        accept_tls(far, context=context, certificate=certificate(), remote=remote, default_alpn="http/1.1"),
        dial_tls(near, alpn="test", server_name=None, remote=remote),
    )
    try:
        yield dialer, listener
    finally:
        dialer.close()
        listener.close()
        await asyncio.sleep(0)


@asynccontextmanager
async def quic_connections() -> AsyncIterator[Ends]:
    accepted: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    identity = TlsIdentity.of(certificate(), ["other", "test"])
    listener = QuicListener(Admission(AdmissionLimits()), identity, accepted.set_result)
    listener.serve(bind_udp("127.0.0.1", 0))
    address = listener.addresses[0]
    dialer = await dial_quic(socket.AF_INET, (address.host, address.port), alpn="test", server_name=None)
    ends = dialer, await accepted
    try:
        yield ends
    finally:
        for end in ends:
            end.close()
        listener.close()


class TestMemory(ManyStreams):
    carrier = Carrier(memory_connections, most_held_bytes=2 * MAX_BUFFERED_BYTES)


class TestPlainTcp(OneStream):
    # Linux doubles what is asked for, at both ends; the rest is what the two ends hold themselves.
    carrier = Carrier(tcp_connections, most_held_bytes=4 * SOCKET_BUFFER_BYTES + 4 * MAX_BUFFERED_BYTES)


class TestTls(OneStream):
    # As plain TCP, and what one receive brings, decrypted and not.
    carrier = Carrier(tls_connections, most_held_bytes=4 * SOCKET_BUFFER_BYTES + 8 * MAX_BUFFERED_BYTES)


class TestQuic(ManyStreams):
    # Its window, what the sender holds, and for an attached stream what the transport holds.
    carrier = Carrier(quic_connections, most_held_bytes=STREAM_BYTES + MAX_SEND_BYTES + 4 * MAX_BUFFERED_BYTES)


@pytest.mark.parametrize(
    ("address", "text"),
    [(Address("192.0.2.1", 22), "192.0.2.1:22"), (Address("2001:db8::1", 22), "[2001:db8::1]:22")],
)
def test_an_address_prints_as_it_is_written_in_the_configuration(address: Address, text: str) -> None:
    assert str(address) == text


def test_every_connection_has_its_own_short_id() -> None:
    ids = {BaseConnection(alpn="test", transport="test", remote=None).id for _ in range(100)}
    assert len(ids) == 100
    assert all(name.startswith("c") and name[1:].isdigit() for name in ids)
