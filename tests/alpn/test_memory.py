"""What the in-memory pair owes beyond the contract."""

import asyncio
import gc
import weakref

import pytest

from alknet.alpn.errors import ConnectionClosed, StreamBroken
from alknet.alpn.memory import MemoryConnection, MemoryStream, memory_pair
from alknet.alpn.streams import MAX_BUFFERED_BYTES, Address

from .conformance import read_all


def test_both_ends_share_a_channel_binding_that_no_other_pair_has() -> None:
    one, other = (memory_pair(alpn="test") for _ in range(2))
    assert one[0].channel_binding == one[1].channel_binding
    assert one[0].channel_binding != other[0].channel_binding


def test_only_the_listener_sees_an_address() -> None:
    dialer, listener = memory_pair(alpn="test", remote=Address("192.0.2.1", 1))
    assert (dialer.remote, listener.remote) == (None, Address("192.0.2.1", 1))


async def test_the_reason_of_the_close_reaches_both_ends_and_the_first_one_stays() -> None:
    dialer, listener = memory_pair(alpn="test")
    listener.close(3, "enough")
    dialer.close(4, "me too")
    assert dialer.close_reason == listener.close_reason == (3, "enough")


async def test_a_writer_holds_exactly_the_bound() -> None:
    dialer, listener = memory_pair(alpn="test")
    a = await dialer.open_stream()
    await a.write(b"x" * MAX_BUFFERED_BYTES)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await a.write(b"y")
    b = await listener.accept_stream()
    assert len(await b.read()) < MAX_BUFFERED_BYTES
    await a.write(b"y")
    dialer.close()


async def test_what_was_sent_before_the_close_can_still_be_accepted_and_read() -> None:
    dialer, listener = memory_pair(alpn="test")
    a = await dialer.open_stream()
    await a.write(b"last words")
    await a.aclose()
    dialer.close()
    assert await read_all(await listener.accept_stream()) == b"last words"
    with pytest.raises(ConnectionClosed):
        await listener.accept_stream()


async def test_a_stream_that_was_not_accepted_is_reset_by_the_close() -> None:
    dialer, listener = memory_pair(alpn="test")
    a = await dialer.open_stream()
    listener.close()
    with pytest.raises(StreamBroken):
        await a.read()
    with pytest.raises(ConnectionClosed):
        await listener.accept_stream()


async def test_a_long_lived_connection_forgets_streams_that_ended() -> None:
    dialer, listener = memory_pair(alpn="test")
    ended: list[weakref.ref[MemoryStream]] = []
    for close in (_close_first, _reset_first):
        a, b = await dialer.open_stream(), await listener.accept_stream()
        await close(a, b)
        ended += [weakref.ref(a), weakref.ref(b)]
        del a, b
    gc.collect()
    assert [ref() for ref in ended] == [None] * 4
    assert isinstance(dialer, MemoryConnection)


async def _close_first(a: MemoryStream, b: MemoryStream) -> None:
    await a.aclose()
    await b.aclose()


async def _reset_first(a: MemoryStream, b: MemoryStream) -> None:
    a.reset()
    b.reset()
