"""The contracts over every carrier, and the values that they share."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from alknet.alpn.memory import memory_pair
from alknet.alpn.streams import MAX_BUFFERED_BYTES, Address, BaseConnection
from alknet.alpn.tcp import TcpConnection

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


@asynccontextmanager
async def tcp_connections() -> AsyncIterator[Ends]:
    """Two ends over loopback, with socket buffers that do not grow."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        near = socket.socket()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        near.connect(listening.getsockname())
        far, _ = listening.accept()
    for sock in (near, far):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        sock.setblocking(False)
    dialer, listener = (TcpConnection(sock, alpn="test", remote=None) for sock in (near, far))
    try:
        yield dialer, listener
    finally:
        dialer.close()
        listener.close()


class TestMemory(ManyStreams):
    carrier = Carrier(memory_connections, most_held_bytes=2 * MAX_BUFFERED_BYTES)


class TestPlainTcp(OneStream):
    # Linux doubles what is asked for, at both ends; the rest is what the two ends hold themselves.
    carrier = Carrier(tcp_connections, most_held_bytes=4 * SOCKET_BUFFER_BYTES + 4 * MAX_BUFFERED_BYTES)


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
