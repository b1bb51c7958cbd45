"""What a QUIC connection owes beyond the contract: time, strangers, many streams, and what they may cost."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from alknet.access import Identity
from alknet.alpn.errors import StreamBroken, StreamsExhausted
from alknet.alpn.quic import Datagrams, Engine
from alknet.alpn.quic_connection import KEEPALIVE_S, QUESTIONS, QuicConnection
from alknet.alpn.streams import Address, Stream
from alknet.alpn.windows import MAX_STREAMS, STRANGER_STREAMS, STREAM_BYTES
from testkit.datagrams import UdpRelay, udp_relay
from testkit.polling import eventually, settled

from .conformance import BULK, Ends, Sender, read_all, same
from .quic_peer import ALPN, DIALER, LISTENER, HostilePeer, accepting, served, v2

ALICE = Identity("alice", frozenset(), "key:SHA256:alice")
MIB = 1024 * 1024


@asynccontextmanager
async def connected(*, is_trusted: bool = True) -> AsyncIterator[Ends]:
    """A dialer's and a listener's end, over loopback."""
    async with asyncio.timeout(20.0), served() as node:
        dialer, listener = await node.connect()
        if is_trusted:
            listener.logged_in(ALICE)
        try:
            yield dialer, listener
        finally:
            dialer.close()
            listener.close()


async def pair(ends: Ends) -> tuple[Stream, Stream]:
    return await ends[0].open_stream(), await ends[1].accept_stream()


class FakeLink:
    """Keeps what is to be sent."""

    def __init__(self) -> None:
        self.sent: Datagrams = []
        self.is_blocked = False
        self.cids: set[bytes] = set()
        self.over_calls = 0

    def send(self, datagrams: Datagrams, connection: QuicConnection) -> None:
        self.sent += datagrams

    def cid_issued(self, cid: bytes, connection: QuicConnection) -> None:
        self.cids.add(cid)

    def cid_retired(self, cid: bytes) -> None:
        self.cids.discard(cid)

    def over(self, connection: QuicConnection) -> None:
        self.over_calls += 1

    def take(self) -> Sequence[bytes]:
        datagrams, self.sent = [data for data, _ in self.sent], []
        return datagrams


class FakeEnd:
    """A connection without a socket."""

    def __init__(self, engine: Engine, remote: tuple[str, int]) -> None:
        self.link = FakeLink()
        self.remote = remote
        self.established = 0
        self.connection = QuicConnection(
            engine, self.link, remote=Address.of(remote), local=None, on_established=self.on_established
        )

    def on_established(self, connection: QuicConnection) -> None:
        self.established += 1

    def receive(self, datagrams: Sequence[bytes], now: float) -> None:
        for data in datagrams:
            self.connection.receive(data, self.remote, now)
        self.connection.progressed()


async def fake_ends() -> tuple[FakeEnd, FakeEnd]:
    now = time.monotonic()
    dialer = FakeEnd(Engine.dial(ALPN, server_name=None, address=LISTENER, now=now), LISTENER)
    dialer.connection.flush()
    listener = FakeEnd(accepting(dialer.link.sent[0][0]), DIALER)
    for _ in range(6):
        exchange(dialer, listener)
    assert (dialer.established, listener.established) == (1, 1)
    listener.connection.logged_in(ALICE)
    return dialer, listener


async def hostile_and_listener() -> tuple[HostilePeer, FakeEnd]:
    """A client that keeps to no rule, and the listener that has let it in."""
    now = time.monotonic()
    peer = HostilePeer(now)
    flight = peer.flight(now)
    listener = FakeEnd(accepting(flight[0]), DIALER)
    for _ in range(6):
        listener.receive(flight, time.monotonic())
        for data in listener.link.take():
            peer.receive_datagram(data, LISTENER, now=time.monotonic())
        flight = peer.flight(time.monotonic())
    assert listener.established == 1
    listener.connection.logged_in(ALICE)
    return peer, listener


def exchange(dialer: FakeEnd, listener: FakeEnd) -> None:
    for one, other in ((dialer, listener), (listener, dialer)):
        one.connection.flush()
        other.receive(one.link.take(), time.monotonic())


# --- time -----------------------------------------------------------------------------------------------------


def impatient(monkeypatch: pytest.MonkeyPatch, *, keepalive_s: float, idle_s: float) -> None:
    monkeypatch.setattr("alknet.alpn.quic_connection.KEEPALIVE_S", keepalive_s)
    monkeypatch.setattr("alknet.alpn.quic_library.IDLE_TIMEOUT_S", idle_s)


async def closed_within(end: QuicConnection, duration_s: float) -> bool:
    try:
        async with asyncio.timeout(duration_s):
            await end.wait_closed()
    except TimeoutError:
        return False
    return True


async def test_a_silent_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch, keepalive_s=60.0, idle_s=0.3)
    async with connected() as ends:
        for end in ends:
            await end.wait_closed()
        assert ends[0].close_reason == ends[1].close_reason == (1, "Idle timeout")


async def test_a_connection_that_nobody_uses_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch, keepalive_s=0.1, idle_s=0.4)
    async with connected() as ends:
        assert not await closed_within(ends[0], 1.0)
        a, b = await pair(ends)
        await a.write(b"x")
        assert await b.read() == b"x"


async def test_garbage_does_not_count_as_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient(monkeypatch, keepalive_s=0.15, idle_s=60.0)
    dialer, listener = await fake_ends()
    now = time.monotonic()
    listener.link.take()

    def pings() -> int:
        for end in (dialer, listener):
            end.receive([b"\x40" + end.connection.engine.cid + bytes(30)], now + 1000)
        return len(listener.link.sent) > 0 and len(dialer.link.sent) > 0

    await eventually(pings, "both sides ask whether the other one is there")
    for end in (dialer, listener):
        end.connection.abandon()


# --- whether the other side is there ----------------------------------------------------------------------------


def hold_up(duration_s: float) -> None:
    """Do what a process does that computes for so long, or gets no processor: block the event loop."""
    time.sleep(duration_s)


async def test_a_watched_connection_asks_three_times_and_then_ends_as_lost() -> None:
    dialer, listener = await fake_ends()
    stream = await dialer.connection.open_stream()
    dialer.connection.flush()
    dialer.link.take()
    dialer.connection.watch(0.4)
    began = time.monotonic()
    with pytest.raises(StreamBroken):
        await stream.read()
    assert 0.3 < time.monotonic() - began < 5.0
    assert await closed_within(dialer.connection, 0.0)
    assert dialer.connection.close_reason == (0, "nothing was heard for 0.4 s")
    assert len(dialer.link.sent) >= QUESTIONS
    listener.receive(dialer.link.take(), time.monotonic())
    assert listener.connection.close_reason == (0, "nothing was heard for 0.4 s"), "where it hears that much"
    for end in (dialer, listener):
        end.connection.abandon()


async def test_one_answer_is_a_sign_of_life_for_the_whole_patience() -> None:
    dialer, listener = await fake_ends()
    dialer.connection.watch(0.4)
    await eventually(lambda: dialer.connection._asked == QUESTIONS, "each question was asked")
    exchange(dialer, listener)
    assert dialer.connection._asked == 0
    assert not await closed_within(dialer.connection, 0.25)
    assert await closed_within(dialer.connection, 5.0)
    for end in (dialer, listener):
        end.connection.abandon()


async def test_a_longer_patience_asks_no_less_often_than_without() -> None:
    dialer, listener = await fake_ends()
    dialer.connection.watch(1000.0)
    assert dialer.connection._step_s == KEEPALIVE_S
    dialer.connection.watch(4.5)
    assert dialer.connection._step_s == 4.5 / (QUESTIONS + 1)
    for end in (dialer, listener):
        end.connection.abandon()


async def test_a_process_that_was_held_up_gives_nobody_up() -> None:
    async with connected() as ends:
        for end in ends:
            end.watch(0.2)
        for _ in range(4):
            hold_up(0.4)
            await asyncio.sleep(0)
        assert not await closed_within(ends[0], 0.5)
        assert not ends[1].has_ended


async def test_an_answer_that_came_while_the_process_was_held_up_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last question's time is over, and its answer lies in the socket."""
    is_slow = False
    forward = UdpRelay._from_server

    def forward_slowly(relay: UdpRelay, flow: Any) -> None:
        forward(relay, flow)
        if is_slow:
            hold_up(0.3)

    monkeypatch.setattr(UdpRelay, "_from_server", forward_slowly)
    async with asyncio.timeout(20.0), served() as node, udp_relay(target=node.address) as relay:
        dialer, listener = await node.connect(relay.address)
        listener.logged_in(ALICE)
        await settled(lambda: relay.to_client.counts.passed)
        relay.hold()
        dialer.watch(0.8)
        await eventually(lambda: dialer._asked == QUESTIONS, "each question was asked")
        is_slow = True
        relay.release()
        await eventually(lambda: dialer._asked == 0, "the answer was heard")
        is_slow = False
        assert not dialer.has_ended
        for end in (dialer, listener):
            end.close()


# --- ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closer", [0, 1])
async def test_the_close_of_the_other_side_is_seen_at_once_with_reason_and_code(closer: int) -> None:
    async with connected() as ends:
        streams = await pair(ends)
        ends[closer].close(7, "enough")
        with pytest.raises(StreamBroken):
            await streams[1 - closer].read()
        assert await closed_within(ends[1 - closer], 1.0)
        assert ends[closer].close_reason == ends[1 - closer].close_reason == (7, "enough")


async def test_the_first_reason_stays() -> None:
    async with connected() as ends:
        ends[1].close(3, "enough")
        ends[1].close(4, "more than enough")
        await ends[0].wait_closed()
        ends[0].close(5, "me too")
        assert [end.close_reason for end in ends] == [(3, "enough")] * 2


async def test_a_close_is_said_twice_because_nobody_acknowledges_it() -> None:
    dialer, listener = await fake_ends()
    dialer.link.take()
    dialer.connection.close(7, "enough")
    first, second = dialer.link.take()
    listener.receive([second], time.monotonic())
    assert listener.connection.close_reason == (7, "enough")
    assert listener.link.over_calls >= 1
    assert first == second


async def test_what_is_over_sends_nothing_and_waits_for_nothing() -> None:
    dialer, listener = await fake_ends()
    listener.connection.close()
    dialer.receive(listener.link.take(), time.monotonic())
    for end in (dialer, listener):
        end.connection.abandon()
        end.connection.flush_soon()
        end.connection.flush()
        assert end.link.take() == []
        assert end.connection._timer is None or end.connection._timer.cancelled()
        assert end.connection._keepalive is None or end.connection._keepalive.cancelled()


async def test_a_connection_id_counts_as_soon_as_it_was_sent() -> None:
    dialer, listener = await fake_ends()
    for end, other in ((dialer, listener), (listener, dialer)):
        theirs = end.connection.engine._quic
        usable = {cid.cid for cid in (theirs._peer_cid, *theirs._peer_cid_available)}
        assert usable <= other.link.cids | {other.connection.engine.cid}
        end.connection.abandon()


async def test_new_connection_ids_are_told_before_the_other_side_can_use_them() -> None:
    dialer, listener = await fake_ends()
    dialer.connection.engine._quic.change_connection_id()
    exchange(dialer, listener)  # it retires one, and the listener sends another one
    listener.connection.flush()
    issued = {cid.cid for cid in listener.connection.engine._quic._host_cids if cid.was_sent}
    assert issued <= listener.link.cids | {listener.connection.engine.cid}
    for end in (dialer, listener):
        end.connection.abandon()


async def test_while_the_system_takes_nothing_nothing_is_made() -> None:
    dialer, listener = await fake_ends()
    dialer.link.take()
    dialer.link.is_blocked = True
    stream = await dialer.connection.open_stream()
    await stream.write(b"x")
    dialer.connection.flush()
    assert dialer.link.sent == []
    dialer.link.is_blocked = False
    dialer.connection.flush()
    assert len(dialer.link.sent) == 1
    for end in (dialer, listener):
        end.connection.abandon()


# --- streams --------------------------------------------------------------------------------------------------


async def test_only_so_many_streams_can_be_opened() -> None:
    async with connected() as ends:
        streams = [await ends[0].open_stream() for _ in range(MAX_STREAMS)]
        with pytest.raises(StreamsExhausted):
            await ends[0].open_stream()
        streams[0].reset()
        for _ in range(MAX_STREAMS):
            (await ends[1].accept_stream()).reset()
        await eventually(lambda: not ends[0].engine._quic._streams, "all are over")
        a = await ends[0].open_stream()
        await a.write(b"x")
        assert await (await ends[1].accept_stream()).read() == b"x"


async def test_a_stranger_has_few_streams_and_small_windows_until_it_has_logged_in() -> None:
    async with connected(is_trusted=False) as ends, asyncio.TaskGroup() as group:
        streams = [await ends[0].open_stream() for _ in range(2 * STRANGER_STREAMS)]
        senders = [Sender() for _ in streams]
        for sender, stream in zip(senders, streams, strict=True):
            group.create_task(sender.send(stream, [bytes(STREAM_BYTES)] * 4))
        unread = await settled(lambda: sum(len(stream._unread) for stream in ends[1]._streams.values()))
        assert unread == STRANGER_STREAMS * STREAM_BYTES
        assert len(ends[1]._incoming) == STRANGER_STREAMS
        ends[1].logged_in(ALICE)
        await eventually(lambda: len(ends[1]._incoming) == len(streams), "the other streams come")
        await eventually(
            lambda: sum(len(stream._unread) for stream in ends[1]._streams.values()) == len(streams) * STREAM_BYTES,
            "each stream has its window",
        )
        for _ in streams:
            assert len(await read_all(await ends[1].accept_stream())) == 4 * STREAM_BYTES


@pytest.mark.parametrize("is_trusted", [False, True])
async def test_streams_that_nobody_accepts_do_not_pile_up(is_trusted: bool) -> None:
    most = MAX_STREAMS if is_trusted else STRANGER_STREAMS
    async with connected(is_trusted=is_trusted) as ends:
        await eventually(lambda: ends[0].engine._quic._remote_max_streams_bidi == most, "what may be opened is known")
        for _ in range(most):
            stream = await ends[0].open_stream()
            await stream.write_eof()
            stream._stop_reading()
        await eventually(lambda: not ends[0]._streams, "for the network all are over")
        more = [await ends[0].open_stream() for _ in range(MAX_STREAMS)]
        await more[0].write(b"x")
        assert await settled(lambda: len(ends[1]._streams)) == most
        for _ in range(most):
            stream = await ends[1].accept_stream()
            assert await stream.read() == b""
        assert await (await ends[1].accept_stream()).read() == b"x"


async def test_streams_that_end_in_silence_make_room_at_once() -> None:
    async with connected(is_trusted=False) as ends:
        pairs = [await pair(ends) for _ in range(STRANGER_STREAMS)]
        for a, b in pairs:
            await a.write_eof()
            await b.write_eof()
            assert await b.read() == await a.read() == b""
        next_one = await ends[0].open_stream()
        await next_one.write(b"x")
        assert await (await ends[1].accept_stream()).read() == b"x"


async def test_a_long_lived_connection_forgets_streams_that_ended() -> None:
    async with connected() as ends:
        for number in range(2 * MAX_STREAMS):
            a, b = await pair(ends)
            if number % 2:
                a.reset()
                b.reset()
            else:
                await a.aclose()
                await b.aclose()
        await eventually(lambda: not ends[0]._streams and not ends[1]._streams, "all are forgotten")
        for end in ends:
            assert not end.engine._quic._streams
            assert not end.engine._quic.windows._streams
            assert not end.engine._theirs


async def test_one_stalled_stream_among_a_hundred_does_not_hold_up_another() -> None:
    async with connected() as ends, asyncio.TaskGroup() as group:
        pairs = [await pair(ends) for _ in range(100)]
        stalled = group.create_task(pairs[0][0].write(BULK))
        for a, _ in pairs[1:]:
            group.create_task(Sender().send(a, [BULK[:20_000]]))
        for _, b in pairs[1:]:
            assert same(await read_all(b), BULK[:20_000])
        assert not stalled.done()
        stalled.cancel()


async def test_a_hundred_stalled_senders_do_not_hold_up_another() -> None:
    async with connected() as ends, asyncio.TaskGroup() as group:
        pairs = [await pair(ends) for _ in range(100)]
        stalled = [group.create_task(a.write(BULK)) for a, _ in pairs]
        await eventually(lambda: sum(len(b._unread) for _, b in pairs) == 100 * STREAM_BYTES, "all are full")
        a, b = await pair(ends)
        group.create_task(Sender().send(a, [BULK[:MIB]]))
        assert same(await read_all(b), BULK[:MIB])
        for task in stalled:
            assert not task.done()
            task.cancel()


@pytest.mark.parametrize("who", ["sender", "reader"])
async def test_a_thousand_streams_that_are_reset_in_flight_cost_the_connection_nothing(who: str) -> None:
    async with connected(is_trusted=False) as ends:
        for _ in range(1000):
            a, b = await pair(ends)
            await a.write(bytes(STREAM_BYTES // 8))
            if who == "sender":
                await b.read(1)
                a.reset()
                b.reset()
            else:
                b.reset()
                a.reset()
        a, b = await pair(ends)
        async with asyncio.TaskGroup() as group:
            group.create_task(Sender().send(a, [BULK[:MIB]]))
            assert same(await read_all(b), BULK[:MIB])


async def test_a_handler_that_never_reads_costs_a_bounded_amount_of_memory() -> None:
    peer, listener = await hostile_and_listener()
    pieces = [(at, min(1000, STREAM_BYTES - at)) for at in range(0, STREAM_BYTES, 1000)]
    flood = [
        peer.packet(b"\x0e" + v2(4 * number) + v2(at) + v2(count) + bytes(count))
        for at, count in pieces
        for number in range(MAX_STREAMS)
    ]
    one_more = peer.packet(b"\x0e\x00" + v2(STREAM_BYTES) + b"\x01x")
    gc.collect()
    tracemalloc.start()
    try:
        for start in range(0, len(flood), 64):
            listener.receive(flood[start : start + 64], time.monotonic())
            listener.link.take()
        current, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    streams = listener.connection._streams.values()
    assert [len(stream._unread) for stream in streams] == [STREAM_BYTES] * MAX_STREAMS
    assert current < 16 * MIB
    assert peak < 16 * MIB
    assert not listener.connection.has_ended
    listener.receive([one_more], time.monotonic())
    assert listener.connection.has_ended, "who sends more than it may is thrown out"
    listener.connection.abandon()


async def test_the_facts_of_both_ends() -> None:
    async with served() as node:
        dialer, listener = await node.connect()
        assert (dialer.transport, dialer.alpn) == ("quic", ALPN)
        assert str(dialer.remote) == f"127.0.0.1:{node.address[1]}"
        assert listener.local is not None
        assert (listener.local.host, listener.local.port) == node.address
        assert listener.remote is not None
        assert listener.remote.host == "127.0.0.1"
        dialer.close()
        listener.close()
