"""What every carrier owes, as test classes: derive one per carrier and say which carrier it is.

::

    class TestMemory(ManyStreams):
        carrier = Carrier(memory_connections, most_held_bytes=MAX_BUFFERED_BYTES)

A carrier is two connected ends, the dialer's and the listener's. In each test `a` is a stream of the dialer's end, and
`b` the same stream at the listener's end.
"""

import asyncio
import contextlib
import hashlib
import itertools
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alknet.access import Identity
from alknet.alpn.errors import ConnectionClosed, StreamBroken, StreamClosed, StreamsExhausted
from alknet.alpn.streams import MAX_BUFFERED_BYTES, Connection, Stream
from alknet.certificates import spki_sha256
from testkit.polling import eventually, settled

__all__ = ["Carrier", "ManyStreams", "OneStream", "Recorder"]

DEADLINE_S = 20.0
SOON_S = 0.2
"""A patience that is over soon."""
BULK = random.Random(7022).randbytes(4 * 1024 * 1024)
"""More than any carrier holds, so a sender of all of it must wait."""
ALICE = Identity("alice", frozenset(), "key:SHA256:alice")

Ends = tuple[Connection, Connection]


@dataclass(frozen=True)
class Carrier:
    """How to get two connected ends; the context closes both. `most_held_bytes` is what a sender may be rid of
    while nobody reads, the operating system's buffers included."""

    connect: Callable[[], AbstractAsyncContextManager[Ends]]
    most_held_bytes: int


class Recorder(asyncio.Protocol):
    """Keeps what a transport told it; `keep_open` is its answer to the other side's end."""

    def __init__(self, *, keep_open: bool = False) -> None:
        self.keep_open = keep_open
        self.calls: list[str] = []
        self.data = bytearray()
        self.lost_with: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.calls.append("made")

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.calls.append("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.lost_with.append(exc)


async def read_all(stream: Stream, max_bytes: int = 64 * 1024) -> bytes:
    received = bytearray()
    while data := await stream.read(max_bytes):
        assert len(data) <= max_bytes
        received += data
    return bytes(received)


async def read_exactly(stream: Stream, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        data = await stream.read(count - len(received))
        assert data, "the stream ended early"
        received += data
    return bytes(received)


class Sender:
    """Writes pieces one after the other and counts what it is rid of."""

    def __init__(self) -> None:
        self.sent = 0

    async def send(self, stream: Stream, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            await stream.write(piece)
            self.sent += len(piece)
        await stream.write_eof()


def pieces_of(data: bytes, size: int = 32 * 1024) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def same(one: bytes | bytearray, other: bytes | bytearray) -> bool:
    """Whether two large values are equal, without printing them when they are not."""
    return hashlib.sha256(one).digest() == hashlib.sha256(other).digest()


class Conformance:
    """What every carrier owes, whether it has one stream or many; the classes to derive from are below."""

    carrier: ClassVar[Carrier]

    @asynccontextmanager
    async def connections(self) -> AsyncIterator[Ends]:
        async with asyncio.timeout(DEADLINE_S), self.carrier.connect() as ends:
            yield ends

    async def join(self, ends: Ends) -> tuple[Stream, Stream]:
        """The same stream at both ends."""
        raise NotImplementedError

    @asynccontextmanager
    async def streams(self) -> AsyncIterator[tuple[Stream, Stream]]:
        async with self.connections() as ends:
            yield await self.join(ends)

    # --- bytes ------------------------------------------------------------------------------------------------

    @settings(max_examples=25, suppress_health_check=[HealthCheck.differing_executors])
    @given(cuts=st.lists(st.integers(0, 200_000), max_size=8), max_bytes=st.integers(1, 100_000))
    async def test_bytes_arrive_in_order_in_any_split(self, cuts: list[int], max_bytes: int) -> None:
        bounds = [0, *sorted(cuts)]
        pieces = [BULK[start:end] for start, end in itertools.pairwise(bounds)]
        async with self.streams() as (a, b), asyncio.TaskGroup() as group:
            group.create_task(Sender().send(a, pieces))
            assert same(await read_all(b, max(max_bytes, bounds[-1] // 100)), b"".join(pieces))

    async def test_bytes_pass_both_ways_at_the_same_time(self) -> None:
        async with self.streams() as (a, b), asyncio.TaskGroup() as group:
            for sender in (a, b):
                group.create_task(Sender().send(sender, pieces_of(BULK)))
            at_a, at_b = group.create_task(read_all(a)), group.create_task(read_all(b))
        assert same(at_a.result(), BULK)
        assert same(at_b.result(), BULK)

    async def test_one_huge_write_arrives_whole(self) -> None:
        async with self.streams() as (a, b), asyncio.TaskGroup() as group:
            group.create_task(Sender().send(a, [BULK]))
            assert same(await read_all(b), BULK)

    async def test_read_returns_at_most_what_is_asked_for_and_keeps_the_rest(self) -> None:
        async with self.streams() as (a, b):
            await a.write(b"0123456789")
            assert await read_exactly(b, 1) == b"0"
            assert len(await b.read(3)) <= 3
            await a.write_eof()
            assert (await read_all(b)).endswith(b"9")

    async def test_writing_nothing_is_not_an_end(self) -> None:
        async with self.streams() as (a, b):
            await a.write(b"")
            await a.write(b"x")
            assert await b.read() == b"x"

    # --- ends -------------------------------------------------------------------------------------------------

    async def test_half_close_leaves_the_other_direction_open(self) -> None:
        async with self.streams() as (a, b):
            await a.write(b"question")
            await a.write_eof()
            assert await read_all(b) == b"question"
            await b.write(b"answer")
            await b.write_eof()
            assert await read_all(a) == b"answer"

    async def test_the_listener_can_half_close_first(self) -> None:
        async with self.streams() as (a, b):
            await b.write_eof()
            assert await a.read() == b""
            await a.write(b"still here")
            assert await read_exactly(b, 10) == b"still here"

    async def test_the_end_stays_the_end(self) -> None:
        async with self.streams() as (a, b):
            await a.write_eof()
            assert [await b.read() for _ in range(3)] == [b""] * 3

    async def test_writing_after_the_own_end_is_refused(self) -> None:
        async with self.streams() as (a, _):
            await a.write_eof()
            await a.write_eof()
            with pytest.raises(StreamClosed):
                await a.write(b"late")

    async def test_a_reset_breaks_the_other_side(self) -> None:
        async with self.streams() as (a, b):
            await a.write(b"x" * 1000)
            a.reset()
            with pytest.raises(StreamBroken):
                await read_all(b)
            with pytest.raises(StreamBroken):
                await b.read()
            with pytest.raises(StreamBroken):
                await b.write(b"y")

    async def test_a_reset_wakes_who_waits_at_the_other_side(self) -> None:
        async with self.streams() as (a, b), asyncio.TaskGroup() as group:
            writer = group.create_task(_outcome(b.write(BULK)))
            reader = group.create_task(_outcome(b.read()))
            await a.read(1)
            a.reset()
        assert (reader.result(), writer.result()) == (StreamBroken, StreamBroken)

    @pytest.mark.parametrize("way", ["reset", "aclose"])
    async def test_use_after_the_own_close_is_refused(self, way: str) -> None:
        async with self.streams() as (a, b):
            await _close(a, way)
            for use in (a.read(), a.write(b"x"), a.write_eof(), a.attach(Recorder())):
                with pytest.raises(StreamClosed):
                    await use
            with contextlib.suppress(StreamBroken):
                assert await b.read() == b""

    @pytest.mark.parametrize("way", ["reset", "aclose"])
    async def test_the_own_close_wakes_who_waits(self, way: str) -> None:
        async with self.streams() as (a, _), asyncio.TaskGroup() as group:
            reader = group.create_task(_outcome(a.read()))
            await a.write(b"the reader waits now")
            await _close(a, way)
        assert reader.result() is StreamClosed

    async def test_the_own_reset_wakes_a_writer(self) -> None:
        async with self.streams() as (a, _), asyncio.TaskGroup() as group:
            sender = Sender()
            writer = group.create_task(_outcome(sender.send(a, pieces_of(BULK))))
            await settled(lambda: sender.sent)
            a.reset()
        assert writer.result() is StreamClosed

    async def test_closing_and_resetting_are_idempotent(self) -> None:
        async with self.streams() as (a, b):
            await a.aclose()
            await a.aclose()
            a.reset()
            assert await b.read() == b""
            b.reset()
            b.reset()
            await b.aclose()

    async def test_aclose_sends_what_was_written(self) -> None:
        async with self.connections() as ends:
            a, b = await self.join(ends)
            data = BULK[: 16 * 1024]
            await a.write(data)
            await a.aclose()
            a.reset()
            ends[0].close()
            assert same(await read_all(b), data)

    async def test_aclose_waits_for_a_slow_reader(self) -> None:
        async with self.connections() as ends:
            a, b = await self.join(ends)

            async def send() -> None:
                await a.write(BULK)
                await a.aclose()
                ends[0].close()

            async with asyncio.TaskGroup() as group:
                group.create_task(send())
                assert same(await read_all(b, 100_000), BULK)

    # --- backpressure -----------------------------------------------------------------------------------------

    async def test_an_unread_stream_stops_its_sender_until_it_is_read(self) -> None:
        async with self.streams() as (a, b), asyncio.TaskGroup() as group:
            sender = Sender()
            sending = group.create_task(sender.send(a, pieces_of(BULK)))
            assert await settled(lambda: sender.sent) <= self.carrier.most_held_bytes < len(BULK)
            assert not sending.done()
            assert same(await read_all(b), BULK)

    async def test_reading_a_little_lets_little_through(self) -> None:
        async with self.streams() as (a, b), asyncio.TaskGroup() as group:
            sender = Sender()
            sending = group.create_task(sender.send(a, pieces_of(BULK)))
            await settled(lambda: sender.sent)
            await read_exactly(b, 512 * 1024)
            assert await settled(lambda: sender.sent) <= self.carrier.most_held_bytes + 512 * 1024
            sending.cancel()

    # --- tasks ------------------------------------------------------------------------------------------------

    async def test_first_read_and_first_write_may_come_together(self) -> None:
        async with self.streams() as (a, b), asyncio.TaskGroup() as group:
            reader = group.create_task(a.read())
            group.create_task(a.write(b"ping"))
            await b.write(await read_exactly(b, 4))
        assert reader.result() == b"ping"

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 50])
    async def test_a_cancelled_read_loses_nothing(self, turns: int) -> None:
        async with self.streams() as (a, b):
            await _cancelled_after(turns, b.read())
            await a.write(b"first")
            assert await read_exactly(b, 5) == b"first"
            await _cancelled_after(turns, b.read())
            await a.write(b"second")
            await a.write_eof()
            assert await read_all(b) == b"second"

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 50])
    async def test_after_a_cancelled_write_the_stream_goes_on(self, turns: int) -> None:
        async with self.streams() as (a, b), asyncio.TaskGroup() as group:
            await _cancelled_after(turns, a.write(BULK))
            group.create_task(Sender().send(a, [b"the end"]))
            received = await read_all(b)
        assert received.endswith(b"the end")
        begun = received.removesuffix(b"the end")
        assert same(begun, BULK[: len(begun)])

    async def test_cancelled_writes_do_not_pile_up(self) -> None:
        async with self.streams() as (a, b), asyncio.TaskGroup() as group:
            for _ in range(100):
                await _cancelled_after(3, a.write(BULK[:MAX_BUFFERED_BYTES]))
            group.create_task(a.aclose())
            assert len(await read_all(b)) <= self.carrier.most_held_bytes

    # --- attach -----------------------------------------------------------------------------------------------

    async def test_attach_carries_data_both_ways(self) -> None:
        async with self.streams() as (a, b):
            protocol = Recorder()
            transport = await a.attach(protocol)
            transport.write(b"to b")
            await b.write(b"to a")
            assert await read_exactly(b, 4) == b"to b"
            await eventually(lambda: protocol.data == b"to a", "data arrives")
            assert protocol.calls == ["made"]
            assert not transport.is_closing()

    async def test_an_attached_stream_belongs_to_its_protocol(self) -> None:
        async with self.streams() as (a, _):
            await a.attach(Recorder())
            for use in (a.read(), a.write(b"x"), a.write_eof(), a.attach(Recorder())):
                with pytest.raises(StreamClosed):
                    await use

    async def test_attaching_a_stream_in_use_is_refused(self) -> None:
        async with self.streams() as (a, b):
            await a.write(b"x")
            with pytest.raises(StreamClosed):
                await a.attach(Recorder())
            assert await b.read() == b"x"

    async def test_a_paused_protocol_stops_its_sender_and_gets_nothing(self) -> None:
        async with self.streams() as (a, b), asyncio.TaskGroup() as group:
            protocol, sender = Recorder(keep_open=True), Sender()
            transport = await a.attach(protocol)
            await b.write(b"!")
            await eventually(lambda: protocol.data == b"!", "data arrives")
            transport.pause_reading()
            assert not transport.is_reading()
            group.create_task(sender.send(b, pieces_of(BULK)))
            assert await settled(lambda: sender.sent) <= self.carrier.most_held_bytes
            assert protocol.data == b"!"
            transport.resume_reading()
            await eventually(lambda: "eof" in protocol.calls, "everything arrives")
            assert same(protocol.data[1:], BULK)

    async def test_a_fast_protocol_is_paused_until_the_reader_has_caught_up(self) -> None:
        async with self.streams() as (a, b):
            protocol = Recorder()
            transport = await a.attach(protocol)
            transport.write(BULK)
            assert protocol.calls == ["made", "pause"]
            assert transport.get_write_buffer_size() > transport.get_write_buffer_limits()[1]
            assert same(await read_exactly(b, len(BULK)), BULK)
            await eventually(lambda: protocol.calls == ["made", "pause", "resume"], "writing resumes")
            assert transport.get_write_buffer_size() <= transport.get_write_buffer_limits()[0]

    async def test_write_limits_can_be_set(self) -> None:
        async with self.streams() as (a, b):
            protocol = Recorder()
            transport = await a.attach(protocol)
            transport.set_write_buffer_limits(high=2 * len(BULK))
            transport.write(BULK)
            assert protocol.calls == ["made"]
            assert same(await read_exactly(b, len(BULK)), BULK)

    async def test_a_protocol_hears_the_end_and_may_answer_it(self) -> None:
        async with self.streams() as (a, b):
            protocol = Recorder(keep_open=True)
            transport = await a.attach(protocol)
            await b.write_eof()
            await eventually(lambda: "eof" in protocol.calls, "eof_received")
            assert transport.can_write_eof()
            transport.write(b"answer")
            transport.write_eof()
            assert await read_all(b) == b"answer"
            assert protocol.calls == ["made", "eof"]

    async def test_the_end_closes_a_protocol_that_does_not_want_to_answer(self) -> None:
        async with self.streams() as (a, b):
            protocol = Recorder(keep_open=False)
            await a.attach(protocol)
            await b.write_eof()
            await eventually(lambda: protocol.lost_with, "connection_lost")
            assert protocol.calls == ["made", "eof", "lost"]
            assert protocol.lost_with == [None]
            assert await b.read() == b""

    async def test_closing_a_transport_flushes_it(self) -> None:
        async with self.streams() as (a, b):
            protocol = Recorder()
            transport = await a.attach(protocol)
            transport.write(BULK)
            transport.close()
            assert transport.is_closing()
            assert same(await read_all(b), BULK)
            await eventually(lambda: protocol.lost_with, "connection_lost")
            transport.close()
            a.reset()
            await settled(lambda: len(protocol.calls))
            assert protocol.lost_with == [None]

    async def test_aclose_of_an_attached_stream_flushes_it(self) -> None:
        async with self.streams() as (a, b):
            protocol = Recorder()
            transport = await a.attach(protocol)
            transport.write(BULK)
            await a.aclose()
            assert same(await read_all(b), BULK)
            await eventually(lambda: protocol.lost_with == [None], "connection_lost")

    async def test_aborting_a_transport_ends_it_at_once(self) -> None:
        async with self.streams() as (a, b):
            protocol = Recorder()
            transport = await a.attach(protocol)
            transport.write(BULK)
            transport.abort()
            transport.abort()
            assert "lost" not in protocol.calls, "connection_lost must not come inside of abort"
            await eventually(lambda: protocol.lost_with, "connection_lost")
            with contextlib.suppress(StreamBroken):
                assert len(await read_all(b)) <= self.carrier.most_held_bytes
            assert protocol.lost_with == [None]

    @pytest.mark.parametrize("is_closing", [False, True])
    async def test_resetting_an_attached_stream_breaks_the_other_side(self, is_closing: bool) -> None:
        async with self.streams() as (a, b):
            protocol = Recorder()
            transport = await a.attach(protocol)
            transport.write(BULK)
            if is_closing:
                transport.close()
            a.reset()
            await eventually(lambda: protocol.lost_with == [None], "connection_lost")
            with pytest.raises(StreamBroken):
                await read_all(b)

    async def test_a_reset_by_the_other_side_is_an_error_to_the_protocol(self) -> None:
        async with self.streams() as (a, b):
            protocol = Recorder()
            await a.attach(protocol)
            await b.write(b"x")
            await eventually(lambda: protocol.data, "data arrives")
            b.reset()
            await eventually(lambda: protocol.lost_with, "connection_lost")
            assert isinstance(protocol.lost_with[0], OSError)
            assert len(protocol.lost_with) == 1

    async def test_closing_the_connection_ends_the_protocol(self) -> None:
        async with self.connections() as ends:
            a, _ = await self.join(ends)
            protocol = Recorder()
            transport = await a.attach(protocol)
            ends[0].close()
            await eventually(lambda: protocol.lost_with, "connection_lost")
            assert transport.is_closing()
            assert protocol.calls == ["made", "lost"]

    # --- connections ------------------------------------------------------------------------------------------

    async def test_close_ends_both_ends(self) -> None:
        async with self.connections() as ends:
            _, b = await self.join(ends)
            ends[0].close(7, "enough")
            ends[0].close()
            await ends[0].wait_closed()
            with pytest.raises(StreamBroken):
                await b.read()
            await ends[1].wait_closed()
            ends[1].close()

    async def test_closing_the_connection_wakes_its_own_reader(self) -> None:
        async with self.connections() as ends, asyncio.TaskGroup() as group:
            a, b = await self.join(ends)
            reader = group.create_task(_outcome(a.read()))
            await b.write(b"")
            await settled(lambda: int(reader.done()))
            ends[0].close()
        assert reader.result() is StreamClosed

    async def test_waiting_for_a_stream_ends_with_the_connection(self) -> None:
        async with self.connections() as ends, asyncio.TaskGroup() as group:
            await self.join(ends)
            waiting = group.create_task(_outcome(ends[1].accept_stream()))
            await settled(lambda: int(waiting.done()))
            assert not waiting.done()
            ends[1].close()
        assert waiting.result() is ConnectionClosed
        with pytest.raises(ConnectionClosed):
            await ends[1].accept_stream()

    async def test_a_closed_connection_yields_no_stream(self) -> None:
        async with self.connections() as ends:
            ends[1].close()
            with pytest.raises(ConnectionClosed):
                await ends[1].accept_stream()

    async def test_an_identity_is_proven_once(self) -> None:
        async with self.connections() as (_, listener):
            assert listener.identity is None
            listener.logged_in(ALICE)
            assert listener.identity is ALICE
            with pytest.raises(RuntimeError):
                listener.logged_in(ALICE)

    @pytest.mark.asyncio(loop_factories=["uvloop"])  # which nodes run on; patience takes its time on any loop
    async def test_an_end_that_is_there_is_kept_however_long_it_says_nothing(self) -> None:
        async with self.connections() as ends:
            for end in ends:
                end.watch(SOON_S)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(ends[0].wait_closed(), 4 * SOON_S)
            a, b = await self.join(ends)
            await a.write(b"still here")
            assert await b.read() == b"still here"

    async def test_watching_a_connection_that_has_ended_is_nothing(self) -> None:
        async with self.connections() as (dialer, _):
            dialer.close()
            dialer.watch(SOON_S)
            await dialer.wait_closed()

    async def test_the_facts_of_a_connection(self) -> None:
        async with self.connections() as (dialer, listener):
            assert dialer.alpn == listener.alpn
            assert dialer.id != listener.id
            assert dialer.transport == listener.transport
            assert dialer.channel_binding == listener.channel_binding
            assert listener.peer_certificates == ()

    async def test_the_certificate_that_the_dialer_saw_is_the_one_that_binds(self) -> None:
        async with self.connections() as (dialer, _):
            binding = dialer.channel_binding
            if binding is None or binding.kind != "tls-spki":
                assert dialer.peer_certificates == ()
            else:
                assert spki_sha256(dialer.peer_certificates[0]) == binding.value


class OneStream(Conformance):
    """A carrier whose connection is one stream, the same at both ends."""

    async def join(self, ends: Ends) -> tuple[Stream, Stream]:
        return await ends[0].accept_stream(), await ends[1].accept_stream()

    async def test_no_further_stream_can_be_opened(self) -> None:
        async with self.connections() as ends:
            for end in ends:
                with pytest.raises(StreamsExhausted):
                    await end.open_stream()

    async def test_the_end_of_the_stream_is_the_end_of_the_connection(self) -> None:
        async with self.connections() as ends:
            a, _ = await self.join(ends)
            await a.write(b"x")
            await a.aclose()
            await ends[0].wait_closed()
            with pytest.raises(ConnectionClosed):
                await ends[0].accept_stream()

    async def test_closing_the_stream_unused_ends_the_connection(self) -> None:
        async with self.connections() as ends:
            a, b = await self.join(ends)
            await a.aclose()
            await ends[0].wait_closed()
            assert await b.read() == b""
            b.reset()
            await ends[1].wait_closed()


class ManyStreams(Conformance):
    """A carrier on which both ends open streams."""

    async def join(self, ends: Ends) -> tuple[Stream, Stream]:
        return await ends[0].open_stream(), await ends[1].accept_stream()

    async def test_both_ends_open_streams_and_they_arrive_in_order(self) -> None:
        async with self.connections() as ends:
            for opener, accepter in (ends, ends[::-1]):
                opened = [await opener.open_stream() for _ in range(3)]
                for number, stream in enumerate(opened):
                    await stream.write(b"%d" % number)
                accepted = [await accepter.accept_stream() for _ in range(3)]
                assert [await stream.read() for stream in accepted] == [b"0", b"1", b"2"]

    async def test_a_stalled_stream_does_not_hold_up_another(self) -> None:
        async with self.connections() as ends, asyncio.TaskGroup() as group:
            stalled, _ = await self.join(ends)
            a, b = await self.join(ends)
            blocked = group.create_task(stalled.write(BULK))
            group.create_task(Sender().send(a, [BULK]))
            assert same(await read_all(b), BULK)
            assert not blocked.done()
            blocked.cancel()

    async def test_a_reset_ends_its_stream_only(self) -> None:
        async with self.connections() as ends:
            a, b = await self.join(ends)
            broken, _ = await self.join(ends)
            broken.reset()
            await a.write(b"x")
            assert await b.read() == b"x"

    async def test_a_closed_connection_opens_no_stream(self) -> None:
        async with self.connections() as (dialer, _):
            dialer.close()
            with pytest.raises(ConnectionClosed):
                await dialer.open_stream()


async def _outcome(coro: Coroutine[Any, Any, object]) -> object:
    """What `coro` returned, or the class of what it raised."""
    try:
        return await coro
    except Exception as exc:
        return type(exc)


async def _close(stream: Stream, way: str) -> None:
    if way == "reset":
        stream.reset()
    else:
        await stream.aclose()


async def _cancelled_after(turns: int, coro: Coroutine[Any, Any, object]) -> None:
    """Begin `coro`, and cancel it after so many turns of the event loop."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(coro)
        for _ in range(turns + 1):
            await asyncio.sleep(0)
        task.cancel()
