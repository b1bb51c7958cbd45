"""The frames of one stream: how they are gathered, who waits for room, and every way in which it ends."""

import asyncio
import logging

import pytest

from alknet.call.channel import BYTES_AT_ONCE, CLOSE_TIMEOUT_S, FLUSH_BYTES, MAX_EARLY_FRAMES, MAX_UNREAD_BYTES, Channel
from alknet.call.codecs import JSON, MSGPACK
from alknet.call.errors import CallError, FrameError
from alknet.call.frames import HELLO_MAX_FRAME, LENGTH_BYTES, FrameReader, frame
from testkit.polling import eventually


class Wire(asyncio.Transport):
    """A transport that keeps what is written until the test takes it off, and pauses its protocol as asyncio's do."""

    def __init__(self, high_water: int = 64 * 1024) -> None:
        super().__init__()
        self.protocol: asyncio.Protocol | None = None
        self.writes: list[bytes] = []
        self.taken = bytearray()
        self.ends: list[str] = []
        self._high_water = high_water
        self._is_paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))
        if self.get_write_buffer_size() > self._high_water and not self._is_paused:
            self._is_paused = True
            assert self.protocol is not None
            self.protocol.pause_writing()

    def take(self) -> None:
        """The other side reads everything."""
        self.taken += b"".join(self.writes)
        self.writes.clear()
        if self._is_paused:
            self._is_paused = False
            assert self.protocol is not None
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.writes))

    def close(self) -> None:
        self.ends.append("close")

    def abort(self) -> None:
        self.ends.append("abort")


def channel_on(wire: Wire) -> Channel:
    channel = Channel(0)
    wire.protocol = channel
    channel.connection_made(wire)
    return channel


async def turn() -> None:
    """One round of the event loop, and a little more."""
    for _ in range(3):
        await asyncio.sleep(0)


def bodies(data: bytes) -> list[bytes]:
    return FrameReader(max_frame=1 << 30).feed(data)


class Taker:
    """What a session does with a channel."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.ends = 0

    def on_bodies(self, channel: Channel, bodies: list[bytes]) -> None:
        self.bodies += bodies

    def on_end(self, channel: Channel) -> None:
        self.ends += 1


def taken(channel: Channel) -> Taker:
    taker = Taker()
    channel.take_over(taker.on_bodies, taker.on_end)
    return taker


# --- receiving --------------------------------------------------------------------------------------------------------


async def test_frames_are_fetched_one_by_one_whatever_their_split() -> None:
    channel = channel_on(Wire())
    data = frame(b"one") + frame(b"two")
    for byte in data:
        channel.data_received(bytes([byte]))
    assert [await channel.next_body(), await channel.next_body()] == [b"one", b"two"]


async def test_who_fetches_waits_until_a_frame_is_there() -> None:
    channel = channel_on(Wire())
    waiting = asyncio.get_running_loop().create_task(channel.next_body())
    await turn()
    assert not waiting.done()
    channel.data_received(frame(b"late"))
    assert await waiting == b"late"


async def test_who_fetches_hears_when_nothing_more_comes_after_what_has_come() -> None:
    channel = channel_on(Wire())
    waiting = asyncio.get_running_loop().create_task(channel.next_body())
    await turn()
    channel.connection_lost(None)
    with pytest.raises(FrameError, match="ended the stream"):
        await waiting
    channel = channel_on(Wire())
    channel.data_received(frame(b"last"))
    channel.connection_lost(None)
    assert await channel.next_body() == b"last"
    with pytest.raises(FrameError, match="ended the stream"):
        await channel.next_body()


async def test_a_session_gets_what_came_before_it_and_then_everything() -> None:
    channel = channel_on(Wire())
    channel.data_received(frame(b"early") + frame(b"earlier"))
    taker = taken(channel)
    channel.data_received(frame(b"later"))
    assert taker.bodies == [b"early", b"earlier", b"later"]


async def test_large_bodies_of_one_read_are_dealt_with_in_several_rounds() -> None:
    """So that calls of others come in between; small ones go together, and none is lost or changes its place."""
    wire = Wire()
    channel = channel_on(wire)
    rounds: list[list[bytes]] = []
    channel.reader.max_frame = 1024 * 1024
    channel.take_over(lambda channel, bodies: rounds.append(bodies), lambda channel: None)
    rounds.clear()
    large = [bytes([number]) * (BYTES_AT_ONCE // 2) for number in range(6)]
    small = [bytes([number]) for number in range(20)]
    channel.data_received(b"".join(map(frame, [*large, *small])))
    assert rounds == [large[:2]]
    for _ in range(4):
        await asyncio.sleep(0)
    assert rounds == [large[:2], large[2:4], large[4:], small]


async def test_a_session_on_a_stream_that_has_ended_hears_of_both() -> None:
    channel = channel_on(Wire())
    channel.data_received(frame(b"early"))
    channel.connection_lost(None)
    taker = taken(channel)
    assert (taker.bodies, taker.ends) == ([b"early"], 1)


async def test_who_goes_on_talking_before_the_hello_is_over_is_ended() -> None:
    wire = Wire()
    channel = channel_on(wire)
    channel.data_received(frame(b"x") * MAX_EARLY_FRAMES)
    assert channel.is_open
    channel.data_received(frame(b"x"))
    assert (channel.is_open, wire.ends) == (False, ["abort"])
    assert "before the hello is over" in str(channel.error)


@pytest.mark.parametrize("size", [0, HELLO_MAX_FRAME + 1, 64 * 1024 * 1024])
async def test_a_length_that_cannot_be_ends_the_stream_after_what_came_whole(size: int) -> None:
    wire = Wire()
    channel = channel_on(wire)
    taker = taken(channel)
    channel.data_received(frame(b"whole") + size.to_bytes(LENGTH_BYTES, "big") + b"x")
    channel.data_received(frame(b"unheard"))
    assert (taker.bodies, taker.ends, channel.is_open) == ([b"whole"], 1, False)
    assert f"a frame of {size} bytes" in str(channel.error)
    assert wire.ends


# --- sending ----------------------------------------------------------------------------------------------------------


async def test_what_is_sent_in_one_round_is_written_at_once() -> None:
    wire = Wire()
    channel = channel_on(wire)
    for body in (b"one", b"two", b"three"):
        channel.send(body)
    assert wire.writes == []
    await turn()
    assert wire.writes == [frame(b"one") + frame(b"two") + frame(b"three")]
    channel.send(b"four")
    await turn()
    assert wire.writes[1:] == [frame(b"four")]


async def test_much_is_written_before_the_round_is_over() -> None:
    wire = Wire()
    channel = channel_on(wire)
    channel.send(b"x" * FLUSH_BYTES)
    assert wire.writes == []
    channel.send(b"y")
    assert len(wire.writes) == 1
    await turn()
    assert len(wire.writes) == 1


async def test_an_envelope_goes_in_the_codec_of_the_session() -> None:
    wire = Wire()
    channel = channel_on(wire)
    channel.say({"n": 1})
    channel.codec = MSGPACK
    channel.say({"n": 2})
    await turn()
    first, second = bodies(wire.writes[0])
    assert (JSON.decode(first), MSGPACK.decode(second)) == ({"n": 1}, {"n": 2})


async def test_what_cannot_be_sent_is_said_in_words_and_nothing_of_it_is_sent() -> None:
    wire = Wire()
    channel = channel_on(wire)
    with pytest.raises(CallError, match="cannot be sent") as caught:
        channel.say({"n": object()})
    assert caught.value.code == "INVALID_INPUT"
    channel.max_outbound = 100
    with pytest.raises(CallError, match="more than the 100 that fit") as caught:
        channel.say({"n": "x" * 100})
    assert (caught.value.code, caught.value.retryable) == ("RESOURCE_EXHAUSTED", False)
    await turn()
    assert wire.writes == []
    assert channel.is_open


async def test_what_is_posted_and_cannot_be_sent_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    channel = channel_on(Wire())
    channel.post(None)
    assert not caplog.records
    with caplog.at_level(logging.ERROR):
        channel.post({"type": "call.error", "n": object()})
    assert "an envelope cannot be sent" in caplog.text


async def test_who_can_wait_waits_until_the_other_side_has_taken_what_was_sent() -> None:
    wire = Wire()
    channel = channel_on(wire)
    await channel.room()
    channel.send(b"x" * 70_000)
    assert channel.is_full
    loop = asyncio.get_running_loop()
    waiting = [loop.create_task(channel.room()) for _ in range(3)]
    await turn()
    waiting.pop().cancel()
    await turn()
    assert not any(task.done() for task in waiting)
    wire.take()
    await asyncio.gather(*waiting)
    assert not channel.is_full


async def test_those_who_always_have_more_to_send_take_turns() -> None:
    wire = Wire()
    channel = channel_on(wire)
    sent: list[int] = []

    async def send(number: int) -> None:
        while True:
            await channel.room()
            sent.append(number)
            channel.send(bytes([number]) * 30_000)

    async with asyncio.TaskGroup() as group:
        senders = [group.create_task(send(number)) for number in range(4)]
        await eventually(lambda: channel.is_full, "there is no room")
        while len(sent) < 100:
            wire.take()
            await turn()
            assert wire.get_write_buffer_size() <= 64 * 1024 + FLUSH_BYTES + 4 * 30_000
        for sender in senders:
            sender.cancel()
    late = sent[-40:]
    assert {number: late.count(number) for number in range(4)} == dict.fromkeys(range(4), 10)


async def test_what_one_sends_in_his_turn_may_be_all_that_there_is_room_for() -> None:
    wire = Wire()
    channel = channel_on(wire)
    channel.send(b"x" * 70_000)
    done: list[int] = []

    async def send(number: int) -> None:
        await channel.room()
        done.append(number)
        channel.send(b"x" * 70_000)

    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(send(number))
        await turn()
        for number in range(5):
            wire.take()
            await eventually(lambda number=number: len(done) == number + 1, "the next one has his turn")
            await turn()
            assert done == list(range(number + 1))


async def test_a_turn_that_nobody_wants_any_more_is_the_next_ones() -> None:
    wire = Wire()
    channel = channel_on(wire)
    channel.send(b"x" * 70_000)
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(channel.room()) for _ in range(3)]
        await turn()
        waiting[0].cancel()
        wire.take()
        waiting[1].cancel()
        await eventually(waiting[2].done, "the last one goes on")
    assert not channel.is_full


async def test_nobody_waits_for_room_in_a_stream_that_has_ended() -> None:
    wire = Wire()
    channel = channel_on(wire)
    channel.send(b"x" * 70_000)
    waiting = asyncio.get_running_loop().create_task(channel.room())
    await turn()
    channel.connection_lost(None)
    await waiting
    await channel.room()


@pytest.mark.parametrize("size", [100, 5_000, 70_000, 3 * MAX_UNREAD_BYTES])
async def test_an_other_side_that_never_reads_is_ended_at_a_bound_whatever_the_size_of_frames(size: int) -> None:
    wire = Wire()
    channel = channel_on(wire)
    taker = taken(channel)
    most = 0
    while channel.is_open:
        for _ in range(max(1, 20_000 // size)):
            channel.send(b"x" * size)
        await turn()
        most = max(most, wire.get_write_buffer_size())
        assert most <= MAX_UNREAD_BYTES + 2 * max(FLUSH_BYTES, size)
    assert most > MAX_UNREAD_BYTES
    assert "does not read" in str(channel.error)
    assert (taker.ends, wire.ends) == (1, ["abort"])


async def test_one_large_frame_is_no_reason_to_end_an_other_side_that_reads() -> None:
    wire = Wire()
    channel = channel_on(wire)
    for _ in range(3):
        channel.send(b"x" * 2 * MAX_UNREAD_BYTES)
        await turn()
        wire.take()
    assert channel.is_open


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_closing_sends_what_is_left_and_nothing_after_it() -> None:
    wire = Wire()
    channel = channel_on(wire)
    taker = taken(channel)
    channel.send(b"last")
    channel.close()
    channel.send(b"too late")
    channel.data_received(frame(b"unheard"))
    await turn()
    assert wire.writes == [frame(b"last")]
    assert (wire.ends, taker.ends, taker.bodies, channel.is_open) == (["close"], 1, [], False)


class HalfClosing(Wire):
    """A transport that can end its direction alone."""

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ends.append("eof")


async def test_lingering_waits_for_the_other_sides_end_and_takes_nothing_more() -> None:
    wire = HalfClosing()
    channel = channel_on(wire)
    taker = taken(channel)
    channel.send(b"last words")
    channel.close(linger_s=5.0)
    assert (bodies(b"".join(wire.writes)), wire.ends, channel.is_open) == ([b"last words"], ["eof"], False)
    channel.data_received(frame(b"credit"))
    assert taker.bodies == []
    waiting = asyncio.get_running_loop().create_task(channel.wait_closed())
    await turn()
    assert not waiting.done()
    assert not channel.eof_received()  # so the transport closes itself
    channel.connection_lost(None)
    await waiting


async def test_lingering_ends_by_itself_and_is_left_out_where_it_cannot_be() -> None:
    wire = HalfClosing()
    channel_on(wire).close(linger_s=0.01)
    await eventually(lambda: wire.ends == ["eof", "close"], "it is closed")
    ended = HalfClosing()
    channel = channel_on(ended)
    channel.close()
    channel.close(linger_s=5.0)
    assert "eof" not in ended.ends


async def test_aborting_drops_what_is_left() -> None:
    wire = Wire()
    channel = channel_on(wire)
    taker = taken(channel)
    channel.send(b"last")
    channel.abort()
    await turn()
    assert (wire.writes, wire.ends, taker.ends) == ([], ["abort"], 1)


async def test_the_end_is_told_once_whatever_follows() -> None:
    channel = channel_on(Wire())
    taker = taken(channel)
    channel.fail(FrameError("first"))
    channel.fail(FrameError("second"))
    channel.close()
    channel.abort()
    channel.connection_lost(None)
    assert taker.ends == 1
    assert str(channel.error) == "first"


async def test_the_other_sides_end_is_the_end() -> None:
    assert channel_on(Wire()).eof_received() is False  # the transport closes then, and tells `connection_lost`


async def test_closing_is_waited_for_until_it_is_done_and_not_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = channel_on(Wire())
    channel.close()
    waiting = asyncio.get_running_loop().create_task(channel.wait_closed())
    await turn()
    assert not waiting.done()
    channel.connection_lost(None)
    await waiting
    assert CLOSE_TIMEOUT_S <= 1
    monkeypatch.setattr("alknet.call.channel.CLOSE_TIMEOUT_S", 0.01)
    channel = channel_on(Wire())
    channel.close()
    await eventually(asyncio.get_running_loop().create_task(channel.wait_closed()).done, "the wait is over")
