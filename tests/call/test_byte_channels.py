"""Byte channels of sessions: how they are opened, refused, given up and ended; what an other side may do to them."""

import asyncio
import itertools
import random
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from alknet.alpn.errors import StreamBroken, StreamClosed
from alknet.alpn.streams import Stream
from alknet.call import byte_channels
from alknet.call.channel import Channel
from alknet.call.channel_states import MAX_CHANNELS, WINDOW_BYTES
from alknet.call.codecs import CODECS
from alknet.call.errors import CallError
from alknet.call.hello import FEATURES
from alknet.call.machine import Limits
from alknet.call.session import Session
from alknet.call.session_streams import MAX_REFUSED_STREAMS, Sizes
from testkit.polling import eventually, settled
from testkit.raw_calls import RawCaller, envelope
from testkit.session_pair import Channels, memory_ends, one_stream_ends, session_pair

CARRIERS = {"one stream": one_stream_ends, "many streams": memory_ends}
BOTH = pytest.mark.parametrize("carrier", CARRIERS)
DEADLINE_S = 15.0

pytestmark = pytest.mark.usefixtures("nothing_is_left")


class Pair:
    """Two sessions, and what is accepted at each."""

    def __init__(self, near: Session, far: Session, servers: tuple[Channels, Channels]) -> None:
        self.near, self.far = near, far
        self.at_near, self.at_far = servers

    async def pipe(self) -> tuple[Any, Stream]:
        """Both ends of a channel that the near one opens."""
        opened = await self.near.open_channel("pipe")
        return opened, await self.at_far.accepted.get()

    def are_empty(self) -> bool:
        """Let go of what was accepted; whether either side counts a channel then."""
        self.at_near.let_go()
        self.at_far.let_go()
        return places(self.near) + places(self.far) == 0


@asynccontextmanager
async def paired(carrier: str = "one stream", **how: Any) -> AsyncIterator[Pair]:
    servers = Channels(), Channels()
    async with (
        asyncio.timeout(DEADLINE_S),
        CARRIERS[carrier]() as ends,
        session_pair(ends, servers=servers, **how) as (near, far),
    ):
        yield Pair(near, far, servers)


async def failure(call: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await call
    return caught.value


async def read_all(stream: Stream) -> bytes:
    received = bytearray()
    while data := await stream.read():
        received += data
    return bytes(received)


def places(session: Session) -> int:
    """How many channels a session counts."""
    return len(session._machine.channels.channels)


# --- opening ----------------------------------------------------------------------------------------------------------


@BOTH
async def test_what_is_asked_for_arrives_and_either_end_may_ask(carrier: str) -> None:
    async with paired(carrier) as pair:
        for session, server in ((pair.near, pair.at_far), (pair.far, pair.at_near)):
            stream = await session.open_channel("pipe", peer="bob", target="h:1", forwarded_for="carol")
            other = await server.accepted.get()
            (request,) = server.requests
            said = request.service, request.peer, request.target, request.forwarded_for
            assert said == ("pipe", "bob", "h:1", "carol")
            assert stream.service == "pipe"
            await stream.write(b"there")
            await other.write(b"back")
            assert (await other.read(), await stream.read()) == (b"there", b"back")


@BOTH
async def test_channels_and_calls_do_not_get_in_each_others_way(carrier: str) -> None:
    async with paired(carrier) as pair:
        pipes = [await pair.pipe() for _ in range(5)]
        sent = [random.Random(number).randbytes(300_000) for number in range(10)]
        async with asyncio.TaskGroup() as group:
            streams = [stream for pipe in pipes for stream in pipe]
            for stream, data in zip(streams, sent, strict=True):
                group.create_task(stream.write(data)).add_done_callback(
                    lambda _, stream=stream: group.create_task(stream.write_eof())
                )
            received = [group.create_task(read_all(other)) for pipe in pipes for other in reversed(pipe)]
            for _ in range(20):
                assert (await failure(pair.near.call("t/none"))).code == "NOT_FOUND"
        assert [task.result() for task in received] == sent


@BOTH
async def test_who_serves_nothing_refuses(carrier: str) -> None:
    async with paired(carrier) as pair:
        error = await failure(pair.near.open_channel("ssh"))
        assert (error.code, str(error)) == ("NOT_FOUND", "no byte channel leads to ssh here")
        await eventually(pair.are_empty, "nothing is left of it")


@BOTH
async def test_json_has_no_bytes(carrier: str) -> None:
    async with paired(carrier, codec="json") as pair:
        error = await failure(pair.near.open_channel("pipe"))
    assert (error.code, error.retryable) == ("UNAVAILABLE", False)
    assert "msgpack" in str(error)


async def test_who_did_not_announce_channels_is_not_asked() -> None:
    async with paired(features=("credit",)) as pair:
        error = await failure(pair.near.open_channel("pipe"))
        assert pair.near.features == {"credit"}
    assert (error.code, str(error)) == ("UNAVAILABLE", "the other side does not know byte channels")


@BOTH
async def test_there_are_so_many_at_the_same_time_and_no_more(carrier: str) -> None:
    async with paired(carrier, limits=Limits(channels=4)) as pair:
        opened = [await pair.near.open_channel("pipe") for _ in range(3)]
        opened.append(await pair.far.open_channel("pipe"))
        for session in (pair.near, pair.far):
            assert (await failure(session.open_channel("pipe"))).code == "RESOURCE_EXHAUSTED"
        await opened[0].aclose()
        (await pair.at_far.accepted.get()).reset()
        await eventually(lambda: places(pair.near) == places(pair.far) == 3, "its place is free")
        await pair.near.open_channel("pipe")


async def test_256_channels_carry_at_once() -> None:
    async with paired() as pair:
        pipes = [await pair.pipe() for _ in range(MAX_CHANNELS)]
        data = b"x" * 20_000

        async def send(stream: Any) -> None:
            await stream.write(data)
            await stream.aclose()

        async with asyncio.TaskGroup() as group:
            for near, _ in pipes:
                group.create_task(send(near))
            received = [group.create_task(read_all(far)) for _, far in pipes]
        assert all(task.result() == data for task in received)


@BOTH
async def test_what_takes_too_long_is_given_up_at_both_ends(carrier: str) -> None:
    async with paired(carrier) as pair:
        pair.at_far.may_accept.clear()
        error = await failure(pair.near.open_channel("pipe", timeout_s=0.05))
        assert (error.code, str(error)) == ("TIMEOUT", "the channel to pipe was not opened in time")
        await eventually(lambda: pair.at_far.cancelled == 1, "whoever was to accept it has stopped")
        await eventually(pair.are_empty, "nothing is left of it")
        assert pair.far.serving.is_idle.is_set()


@BOTH
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13])
async def test_opening_can_be_cancelled_at_any_time(carrier: str, turns: int) -> None:
    async with paired(carrier) as pair:
        async with asyncio.TaskGroup() as group:
            opening = group.create_task(pair.near.open_channel("pipe"))
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
        if opening.done() and not opening.cancelled():
            opening.result().reset()
        await eventually(pair.are_empty, "nothing is left of it")
        await pair.pipe()
        assert pair.near.is_open


@BOTH
async def test_who_goes_away_opens_none_and_lets_them_finish(carrier: str) -> None:
    async with paired(carrier) as pair:
        near, far = await pair.pipe()
        pair.far.go_away(5.0, "bye")
        await near.write(b"still")
        assert await far.read() == b"still"
        error = await failure(pair.near.open_channel("pipe"))
        assert error.code == "UNAVAILABLE"
        assert not pair.far.serving.is_idle.is_set()
        await near.aclose()
        far.reset()
        await asyncio.wait_for(pair.far.serving.is_idle.wait(), DEADLINE_S)


# --- ends -------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("who", [0, 1])
async def test_a_reset_says_why(carrier: str, who: int) -> None:
    async with paired(carrier) as pair:
        pipe = await pair.pipe()
        near, far = pipe[who], pipe[1 - who]
        await near.write(b"x")
        await far.read()
        near.reset("out of paper")
        with pytest.raises(StreamBroken, match="out of paper"):
            await read_all(far)
        with pytest.raises(StreamBroken, match="out of paper"):
            await far.write(b"x")


@BOTH
@pytest.mark.parametrize("how", ["aclose", "lost"])
async def test_with_the_session_every_channel_breaks(carrier: str, how: str) -> None:
    async with paired(carrier) as pair:
        near, far = await pair.pipe()
        pair.at_far.may_accept.clear()
        waiting = asyncio.get_running_loop().create_task(failure_of(far.read()))
        opening = asyncio.get_running_loop().create_task(failure(pair.near.open_channel("pipe")))
        await eventually(lambda: len(pair.at_far.requests) == 2, "another one waits to be accepted")
        if how == "aclose":
            await pair.near.aclose("that is all")
        pair.near.connection.close()
        assert await waiting is not None
        assert (await opening).code == "UNAVAILABLE"
        for use in (near.read(), near.write(b"x")):
            with pytest.raises(StreamBroken):
                await use
        error = await failure(pair.near.open_channel("pipe"))
        assert (error.code, "has ended" in str(error)) == ("UNAVAILABLE", True)
        near.reset()
        await far.aclose()


@pytest.mark.parametrize("who", [0, 1])
async def test_what_was_whole_can_be_read_after_the_session_has_ended(who: int) -> None:
    async with paired() as pair:
        pipe, sessions = await pair.pipe(), (pair.near, pair.far)
        await pipe[who].write(b"last words")
        await pipe[who].aclose()
        await sessions[who].aclose()
        await sessions[1 - who].wait_ended()
        assert await read_all(pipe[1 - who]) == b"last words"
        await pipe[1 - who].aclose()


@BOTH
async def test_what_comes_after_the_close_does_no_harm(carrier: str) -> None:
    async with paired(carrier) as pair:
        for _ in range(20):
            near, far = await pair.pipe()
            writing = asyncio.get_running_loop().create_task(failure_of(far.write(bytes(4 * WINDOW_BYTES))))
            await near.read(1)
            await near.aclose()
            assert await writing is StreamBroken
            far.reset()
        await eventually(pair.are_empty, "nothing is left of them")
        assert pair.near.is_open
        assert pair.far.is_open


async def failure_of(use: Any) -> type[Exception] | None:
    """The class of what it raises."""
    try:
        await use
    except (StreamBroken, StreamClosed) as exc:
        return type(exc)
    return None


# --- turns and memory -------------------------------------------------------------------------------------------------


async def test_on_one_stream_everybody_has_his_turn() -> None:
    """Two channels at full speed: calls are answered meanwhile, and both channels get on."""
    async with paired() as pair:
        pipes = [await pair.pipe() for _ in range(2)]
        passed = [0, 0]

        async def send(number: int) -> None:
            while True:
                await pipes[number][0].write(bytes(64 * 1024))

        async def receive(number: int) -> None:
            while True:
                passed[number] += len(await pipes[number][1].read())

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(act(number)) for number in (0, 1) for act in (send, receive)]
            await eventually(lambda: min(passed) > WINDOW_BYTES, "both are at full speed")
            shares = []
            for _ in range(30):
                before = list(passed)
                assert (await failure(pair.near.call("t/none"))).code == "NOT_FOUND"
                shares.append([now - then for now, then in zip(passed, before, strict=True)])
            for task in tasks:
                task.cancel()
        # A call waits for what is on its way, not for all that somebody has to send.
        assert sorted(sum(share) for share in shares)[15] < 2 * WINDOW_BYTES
        assert 0.5 < passed[0] / passed[1] < 2


async def test_readers_that_stop_stop_their_senders_and_hold_no_more_than_their_windows() -> None:
    count = 16
    async with paired() as pair:
        pipes = [await pair.pipe() for _ in range(count)]
        sent = [0] * count

        async def send(number: int) -> None:
            while True:
                await pipes[number][0].write(bytes(32 * 1024))
                sent[number] += 32 * 1024

        tracemalloc.start()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(send(number)) for number in range(count)]
                await settled(lambda: sum(sent))
                held, _ = tracemalloc.get_traced_memory()
                assert (await failure(pair.near.call("t/none"))).code == "NOT_FOUND"
                for task in tasks:
                    task.cancel()
        finally:
            tracemalloc.stop()
        assert max(sent) <= WINDOW_BYTES
        assert held < count * (WINDOW_BYTES + 64 * 1024)


# --- an other side without manners ------------------------------------------------------------------------------------


@asynccontextmanager
async def raw_side(carrier: str = "one stream") -> AsyncIterator[tuple[Session, RawCaller, Channels]]:
    """A session with `Channels`, and an other side that has no engine."""
    server = Channels()
    async with asyncio.timeout(DEADLINE_S), CARRIERS[carrier]() as (dialer, listener):
        raw = RawCaller(dialer, listener, await dialer.open_stream())
        raw.codec = CODECS["msgpack"]
        channel = await Channel.on(await listener.accept_stream())
        sizes = Sizes(1024 * 1024, 1024 * 1024)
        session = Session(listener, channel, raw.codec, sizes=sizes, features=FEATURES, server=server)
        session.start()
        try:
            yield session, raw, server
        finally:
            dialer.close()
            await session.aclose()


def channel(kind: str, id: str = "c1", **payload: Any) -> dict[str, Any]:
    return envelope(f"channel.{kind}", id, **payload)


async def test_more_than_the_credit_closes_the_channel_and_the_session_lives() -> None:
    async with raw_side() as (session, raw, server):
        await raw.send(channel("open", service="pipe", credit=10), channel("open", "c2", service="pipe", credit=10))
        assert set(await raw.answers(2)) == {"c1", "c2"}
        stream, other = await server.accepted.get(), await server.accepted.get()
        await raw.send(*[channel("data", data=bytes(WINDOW_BYTES // 2))] * 2, channel("data", data=b"x"))
        assert await raw.receive() == channel("close", reason="more bytes than credit")
        with pytest.raises(StreamBroken, match="more bytes than credit"):
            await stream.read()
        await raw.send(channel("data", data=b"late"), channel("data", "c2", data=b"fine"))
        assert await other.read() == b"fine"
        assert session._machine.ignored == {"more bytes than credit": 1, "unknown id": 1}
        stream.reset()
        await other.aclose()


async def test_nothing_is_sent_beyond_the_credit_that_was_given() -> None:
    async with raw_side() as (_, raw, server):
        await raw.send(channel("open", service="pipe", credit=10))
        assert await raw.receive() == channel("opened", credit=WINDOW_BYTES)
        stream = await server.accepted.get()
        async with asyncio.TaskGroup() as group:
            group.create_task(stream.write(b"0123456789abcdef"))
            assert await raw.receive() == channel("data", data=b"0123456789")
            await raw.send(channel("credit", n=4))
            assert await raw.receive() == channel("data", data=b"abcd")
            await raw.send(channel("credit", n=2))
            assert await raw.receive() == channel("data", data=b"ef")
        await stream.aclose()
        assert [await raw.receive(), await raw.receive()] == [channel("eof"), channel("close")]


async def test_a_window_of_single_bytes_takes_no_more_memory_than_its_bytes() -> None:
    async with raw_side() as (session, raw, server):
        await raw.send(channel("open", service="pipe", credit=10))
        await raw.receive()
        stream = await server.accepted.get()
        tracemalloc.start()
        try:
            for _ in range(100):
                await raw.send(*[channel("data", data=b"x")] * 200)
            left = session._machine.channels.channels["c1"]
            await eventually(lambda: left.granted == WINDOW_BYTES - 20_000, "all has come")
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 4 * 20_000 + 512 * 1024
        stream.reset()


@pytest.mark.parametrize("late", [False, True])
async def test_a_channel_whose_stream_does_not_come_is_closed(monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    monkeypatch.setattr(byte_channels, "STREAM_TIMEOUT_S", 0.05)
    async with raw_side("many streams") as (session, raw, server):
        await raw.send(channel("open", service="pipe"))
        assert await raw.receive() == channel("opened")
        stream = await server.accepted.get()
        words = "the stream of the channel did not come"
        with pytest.raises(StreamBroken, match=words):
            await stream.read()
        assert await raw.receive() == channel("close", reason=words)
        stream.reset()
        await eventually(lambda: places(session) == 0, "its place is free")
        if late:  # however often: the other side could not know
            for _ in range(2 * MAX_REFUSED_STREAMS):
                other = raw.on(await raw.connection.open_stream())
                await other.send(channel("stream"))
                assert await other.rest() == []
        assert session.is_open


async def test_streams_that_no_channel_waits_for_are_refused_and_too_many_end_the_session() -> None:
    async with raw_side("many streams") as (session, raw, server):
        await raw.send(channel("open", service="pipe"))
        await raw.receive()
        first = raw.on(await raw.connection.open_stream())
        await first.send(channel("stream"))
        await first.write(b"bytes")
        assert await (await server.accepted.get()).read() == b"bytes"
        for _ in range(MAX_REFUSED_STREAMS - 1):
            other = raw.on(await raw.connection.open_stream())
            await other.send(channel("stream", "c9"))
            assert await other.rest() == []
        assert session.is_open
        await first.write(b" go on")
        await raw.on(await raw.connection.open_stream()).send(channel("stream", "c9"))
        await session.wait_ended()
        assert "streams were refused" in str(session.end_reason)


@pytest.mark.parametrize("step", [1, 3, 1000])
async def test_the_frame_that_names_a_channel_may_come_in_any_pieces_and_with_what_follows(step: int) -> None:
    async with raw_side("many streams") as (_, raw, server):
        await raw.send(channel("open", service="pipe"))
        await raw.receive()
        other = raw.on(await raw.connection.open_stream())
        body = raw.codec.encode(channel("stream"))
        sent = len(body).to_bytes(4, "big") + body + bytes(range(256))
        for start in range(0, len(sent), step):
            await other.write(sent[start : start + step])
            await asyncio.sleep(0)
        await other.stream.write_eof()
        stream = await server.accepted.get()
        assert await read_all(stream) == bytes(range(256))
        await stream.aclose()


async def test_a_stream_that_is_cut_before_it_says_anything_is_nobodys() -> None:
    async with raw_side("many streams") as (session, raw, _):
        for said in (b"", b"\0", b"\0\0\0\x20half"):
            for is_cut in (True, False):
                stream = await raw.connection.open_stream()
                await stream.write(said)
                if is_cut:
                    stream.reset()
                else:
                    await stream.aclose()
        await raw.send(envelope("call.requested", "r1", operationId="/t/none", input=None))
        assert (await raw.receive())["id"] == "r1"
        await eventually(lambda: len(session._streams.by_number) == 1, "none of them is held")
        assert session._streams.refused == 0


async def test_ids_may_be_used_again_when_nothing_of_them_is_left() -> None:
    async with raw_side() as (session, raw, server):
        for _ in range(3):
            await raw.send(channel("open", service="pipe", credit=1))
            assert (await raw.receive())["type"] == "channel.opened"
            await raw.send(channel("open", service="pipe", credit=1))
            assert (await raw.receive())["payload"]["code"] == "INVALID_INPUT"
            await raw.send(channel("close"))
            stream = await server.accepted.get()
            with pytest.raises(StreamBroken):
                await stream.read()
            stream.reset()
            await eventually(lambda: places(session) == 0, "its place is free")


@BOTH
async def test_anything_in_any_order_leaves_the_session_in_order(carrier: str) -> None:
    """Envelopes of channels as they come out of a hat; then the session still serves."""
    rng = random.Random(7022)
    async with raw_side(carrier) as (session, raw, server):
        kinds = ("open", "open", "opened", "data", "data", "credit", "eof", "close")
        for _ in range(600):
            payload = {"service": "pipe", "credit": rng.randrange(3), "n": rng.randrange(9), "data": rng.randbytes(9)}
            await raw.send(channel(rng.choice(kinds), f"c{rng.randrange(6)}", **payload))
            while not server.accepted.empty() and rng.random() < 0.5:
                stream = server.accepted.get_nowait()
                if rng.random() < 0.5:
                    stream.reset("enough")
                else:
                    await stream.aclose()
        await raw.send(envelope("call.requested", "r1", operationId="/t/none", input=None))
        for _ in itertools.count():
            if (await raw.receive())["id"] == "r1":
                break
        assert session.is_open
