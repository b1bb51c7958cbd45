"""A channel of an SSH connection as a carrier: one stream, and the facts of the connection that it travels on."""

import asyncio

import pytest

from alknet.access import Identity
from alknet.alpn.errors import StreamBroken, StreamsExhausted
from alknet.alpn.memory import MemoryConnection, MemoryStream, memory_pair
from alknet.alpn.streams import Address
from alknet.call.carried import ALPN, SUBSYSTEM, ChannelConnection

ALICE = Identity("alice", frozenset(), "test")


@pytest.fixture
async def ends() -> tuple[MemoryConnection, MemoryStream, MemoryStream]:
    """The listener's end of an SSH connection, and a stream of it: its end and the dialer's."""
    dialer, listener = memory_pair(alpn="alknet/ssh", remote=Address("192.0.2.1", 4000))
    listener.local = Address("192.0.2.2", 7022)
    listener.logged_in(ALICE)
    theirs = await dialer.open_stream()
    return listener, await listener.accept_stream(), theirs


Ends = tuple[MemoryConnection, MemoryStream, MemoryStream]


async def test_it_has_the_facts_of_what_it_travels_on(ends: Ends) -> None:
    carrier, stream, _ = ends
    carried = ChannelConnection(carrier, stream, transport="ssh")
    assert (carried.alpn, carried.transport) == (ALPN, "ssh") == ("alknet/call", "ssh")
    assert (carried.id, carried.identity) == (carrier.id, ALICE)
    assert (carried.remote, carried.local) == (Address("192.0.2.1", 4000), Address("192.0.2.2", 7022))
    assert SUBSYSTEM == "alknet-call"


async def test_ssh_has_proven_both_ends_so_that_it_binds_nothing(ends: Ends) -> None:
    carrier, stream, _ = ends
    assert carrier.channel_binding is not None
    carried = ChannelConnection(carrier, stream, transport="ssh")
    assert (carried.channel_binding, carried.peer_certificates) == (None, ())


async def test_a_channel_has_one_stream(ends: Ends) -> None:
    carried = ChannelConnection(*ends[:2], transport="ssh")
    for another in (carried.open_stream, carried.accept_stream):
        with pytest.raises(StreamsExhausted, match="a channel has one stream"):
            await another()


async def test_closing_it_ends_the_channel_and_not_the_connection(ends: Ends) -> None:
    carrier, stream, theirs = ends
    carried = ChannelConnection(carrier, stream, transport="ssh")
    carried.close()
    carried.close()  # once more is nothing
    async with asyncio.timeout(10):
        await carried.wait_closed()
        with pytest.raises(StreamBroken):
            await theirs.read()
    assert carrier.close_reason is None
    assert await carrier.open_stream()
