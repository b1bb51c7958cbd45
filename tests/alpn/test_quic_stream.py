"""What a QUIC stream owes beyond the contract: credit for what nobody reads, and waiting that is woken."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from alknet.access import Identity
from alknet.alpn.errors import StreamBroken, StreamClosed
from alknet.alpn.quic_connection import QuicConnection
from alknet.alpn.quic_stream import QuicStream
from alknet.alpn.windows import SPARE_BYTES, STREAM_BYTES
from testkit.polling import eventually, settled

from .conformance import BULK, Recorder, Sender, read_all, read_exactly, same
from .quic_peer import served

ALICE = Identity("alice", frozenset(), "key:SHA256:alice")


@asynccontextmanager
async def joined() -> AsyncIterator[tuple[QuicStream, QuicStream]]:
    """A stream of the dialer's, and the same at the listener."""
    async with asyncio.timeout(20.0), served() as node:
        dialer, listener = await node.connect()
        listener.logged_in(ALICE)
        a = await dialer.open_stream()
        try:
            yield a, await listener.accept_stream()
        finally:
            dialer.close()
            listener.close()


def connection_of(stream: QuicStream) -> QuicConnection:
    return stream._connection


def window_in_use(connection: QuicConnection) -> int:
    """Bytes that were received and for which the other side has got no credit."""
    return connection.engine._quic._local_max_data.used - connection.engine._quic.windows._consumed


async def outcome(coro: Any) -> Any:
    try:
        return await coro
    except Exception as exc:
        return type(exc)


# --- credit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["reader resets", "reader closes", "sender resets", "both"])
async def test_bytes_that_nobody_will_read_are_given_back(who: str) -> None:
    async with joined() as (a, b), asyncio.TaskGroup() as group:
        sending = group.create_task(outcome(a.write(BULK)))
        await settled(lambda: len(b._unread))
        assert window_in_use(connection_of(b)) == STREAM_BYTES
        if who in ("sender resets", "both"):
            a.reset()
        if who in ("reader resets", "both"):
            b.reset()
        if who == "reader closes":
            group.create_task(b.aclose())
        await eventually(lambda: window_in_use(connection_of(b)) == 0, "all is given back")
        await eventually(sending.done, "the sender has heard it")
        assert sending.result() in (StreamBroken, StreamClosed)
        a.reset()
        b.reset()
        await eventually(lambda: not connection_of(a)._streams and not connection_of(b)._streams, "it is forgotten")


async def test_late_bytes_of_a_stream_that_was_closed_are_given_back() -> None:
    async with joined() as (a, b):
        await a.write(b"x" * 1000)
        await a.write_eof()
        b._stop_reading()
        assert not b._received, "it is on its way"
        await eventually(lambda: b._received == 1000, "it arrives")
        await settled(lambda: window_in_use(connection_of(b)))
        assert window_in_use(connection_of(b)) == 0


async def test_what_was_received_before_an_attach_is_not_lost_and_is_credited() -> None:
    async with joined() as (a, b), asyncio.TaskGroup() as group:
        group.create_task(Sender().send(a, [BULK[:SPARE_BYTES]]))
        await eventually(lambda: len(b._unread) == STREAM_BYTES, "its window is full")
        protocol = Recorder(keep_open=True)
        transport = await b.attach(protocol)
        await eventually(lambda: "eof" in protocol.calls, "everything arrives")
        assert same(protocol.data, BULK[:SPARE_BYTES])
        assert window_in_use(connection_of(b)) == 0
        transport.close()


async def test_a_stream_can_be_attached_once_and_only_before_it_is_used() -> None:
    async with joined() as (a, b):
        await a.attach(Recorder())
        with pytest.raises(StreamClosed):
            await a.attach(Recorder())
        await b.write(b"x")
        with pytest.raises(StreamClosed):
            await b.attach(Recorder())
        a.reset()


# --- waiting --------------------------------------------------------------------------------------------------


async def test_a_writer_is_woken_when_the_other_side_reads_no_more() -> None:
    async with joined() as (a, b), asyncio.TaskGroup() as group:
        writer = group.create_task(outcome(a.write(BULK)))
        await settled(lambda: len(b._unread))
        connection_of(b).engine.stop(b._id)
        connection_of(b).flush()
        await eventually(writer.done, "the writer is woken")
        assert writer.result() is StreamBroken
        assert await outcome(a.write(b"x")) is StreamBroken
        await a.aclose()


async def test_closing_ends_when_the_other_side_reads_no_more() -> None:
    async with joined() as (a, b), asyncio.TaskGroup() as group:
        group.create_task(outcome(a.write(BULK[: 4 * STREAM_BYTES])))
        await settled(lambda: len(b._unread))
        closing = group.create_task(a.aclose())
        await settled(lambda: int(closing.done()))
        assert not closing.done()
        b.reset()
        await eventually(closing.done, "nothing is left to be sent")


@pytest.mark.parametrize("closer", [0, 1])
async def test_closing_ends_with_the_connection(closer: int) -> None:
    async with joined() as (a, b), asyncio.TaskGroup() as group:
        group.create_task(outcome(a.write(BULK[: 4 * STREAM_BYTES])))
        await settled(lambda: len(b._unread))
        closing = group.create_task(a.aclose())
        await settled(lambda: int(closing.done()))
        connection_of((a, b)[closer]).close()
        await eventually(closing.done, "nothing can be sent any more")


async def test_reads_and_writes_that_are_cancelled_leave_the_stream_as_it_was() -> None:
    async with joined() as (a, b), asyncio.TaskGroup() as group:
        for _ in range(100):
            reader, writer = group.create_task(b.read()), group.create_task(a.write(b""))
            await asyncio.sleep(0)
            reader.cancel()
            writer.cancel()
        stalled = group.create_task(a.write(BULK))
        held = await settled(lambda: len(b._unread))
        assert held == STREAM_BYTES
        stalled.cancel()
        await asyncio.sleep(0)
        group.create_task(Sender().send(a, [b"the end"]))
        received = await read_all(b)
        assert received.endswith(b"the end")
        begun = received.removesuffix(b"the end")
        assert same(begun, BULK[: len(begun)])
        assert a._writer is None
        assert b._reader is None


async def test_a_reset_after_everything_has_arrived_takes_nothing_back() -> None:
    async with joined() as (a, b):
        await a.write(b"all of it")
        await a.write_eof()
        await eventually(lambda: b._fin_received, "it has arrived")
        a.reset()
        await settled(lambda: len(b._unread))
        assert await read_all(b) == b"all of it"
        b.reset()


async def test_a_broken_stream_stays_broken() -> None:
    async with joined() as (a, b):
        await a.write(b"x" * 100)
        assert await read_exactly(b, 1) == b"x"
        a.reset()
        await eventually(lambda: b._is_broken, "the reset has arrived")
        for _ in range(2):
            assert await outcome(b.read()) is StreamBroken
            assert await outcome(b.write(b"y")) is StreamBroken
        await b.write_eof()
        await b.aclose()
        assert await outcome(b.read()) is StreamClosed
