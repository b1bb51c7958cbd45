"""A socket and a channel, joined: the socket is real, the channel writes down what it is told."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.ssh.pump import Pump
from testkit.polling import eventually, settled

HIGH_BYTES = 64 * 1024


@dataclass
class Channel:
    """Stands for asyncssh's; it is full when it was not drained of `HIGH_BYTES`."""

    pump: Pump
    written: bytearray = field(default_factory=bytearray)
    events: list[str] = field(default_factory=list)
    is_paused: bool = False

    def write(self, data: bytes) -> None:
        assert "eof" not in self.events
        self.written += data
        if len(self.written) > HIGH_BYTES:
            self.pump.pause_writing()

    def drain(self) -> bytes:
        data = bytes(self.written)
        self.written.clear()
        self.pump.resume_writing()
        return data

    def write_eof(self) -> None:
        self.events.append("eof")

    def close(self) -> None:
        self.events.append("close")

    def abort(self) -> None:
        self.events.append("abort")

    def is_closing(self) -> bool:
        return bool(self.events)

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


class Pair:
    """A pump, the other end of its socket, and how often it ended; it begins by itself with the socket."""

    def __init__(self) -> None:
        mine, self.far = socket.socketpair()
        self.ends = 0
        self.is_full = False
        self.pump = Pump(self._ended, connection_is_full=lambda: self.is_full, sock=mine)
        self.channel = Channel(self.pump)
        self.mine = mine
        for sock in (mine, self.far):
            sock.setblocking(False)

    def _ended(self, pump: Pump) -> None:
        self.ends += 1

    async def opened(self) -> "Pair":
        """With the channel open after the socket was there."""
        await self.pump.start()
        self.pump.connection_made(self.channel)
        return self

    async def hear(self, number: int) -> bytes:
        """So many bytes at the far end; fewer where it ended."""
        loop, heard = asyncio.get_running_loop(), bytearray()
        async with asyncio.timeout(10):
            while len(heard) < number and (data := await loop.sock_recv(self.far, number)):
                heard += data
        return bytes(heard)

    def stuff(self) -> int:
        """How much more the far end can say before somebody reads it."""
        taken = 0
        try:
            while True:
                taken += self.far.send(bytes(65536))
        except BlockingIOError:
            return taken


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    yield pair
    pair.pump.close()
    await eventually(lambda: pair.mine.fileno() < 0, "its socket is closed")
    assert pair.ends == 1
    pair.far.close()


async def test_both_directions_carry_and_end_by_themselves(pair: Pair) -> None:
    channel = (await pair.opened()).channel
    pair.far.send(b"from there")
    await eventually(lambda: channel.written == b"from there", "it has come")
    pair.far.shutdown(socket.SHUT_WR)
    await eventually(lambda: channel.events == ["eof"], "the end has come")
    pair.pump.data_received(b"to there", None)
    assert await pair.hear(8) == b"to there"
    assert pair.ends == 0
    assert pair.pump.eof_received() is True
    assert await pair.hear(1) == b""
    await eventually(lambda: channel.events == ["eof", "close"], "both have ended")
    pair.pump.connection_lost(None)
    assert pair.ends == 1


async def test_the_channel_may_end_first(pair: Pair) -> None:
    channel = (await pair.opened()).channel
    pair.pump.eof_received()
    assert await pair.hear(1) == b""
    pair.far.send(b"still here")
    await eventually(lambda: channel.written == b"still here", "it has come")
    pair.far.shutdown(socket.SHUT_WR)
    await eventually(lambda: channel.events == ["close"], "both have ended")


async def test_a_broken_socket_closes_the_channel(pair: Pair) -> None:
    channel = (await pair.opened()).channel
    pair.far.close()
    pair.pump.data_received(bytes(4_000_000), None)
    await eventually(lambda: "close" in channel.events, "it is closed")
    pair.pump.connection_lost(None)


async def test_what_came_before_the_channel_is_there_waits_and_is_no_more_than_a_read(pair: Pair) -> None:
    sent = pair.stuff()
    await pair.pump.start()
    await asyncio.sleep(0)
    sent += pair.stuff()
    assert pair.stuff() == 0
    pair.pump.connection_made(pair.channel)
    pair.far.shutdown(socket.SHUT_WR)
    got = bytearray()

    def take() -> bool:
        got.extend(pair.channel.drain())
        return "eof" in pair.channel.events

    await eventually(take, "all of it has come")
    assert len(got) == sent


async def test_what_came_early_waits_for_room_on_the_connection_too(pair: Pair) -> None:
    await pair.pump.start()
    pair.pump.socket_data(b"hello")  # as an event loop does that reads before it is told not to
    pair.is_full = True
    pair.pump.connection_made(pair.channel)
    pair.far.send(b" there")
    assert await settled(lambda: len(pair.channel.written)) == 0
    pair.is_full = False
    pair.pump.connection_resumed()
    await eventually(lambda: pair.channel.written == b"hello there", "it goes on, in order")


async def test_what_came_before_the_socket_is_there_waits(pair: Pair) -> None:
    pair.pump.connection_made(pair.channel)
    assert pair.channel.is_paused
    pair.pump.data_received(b"at once, ", None)  # as a channel does that is closed with paused input
    pair.pump.eof_received()
    pair.pump.connection_lost(None)
    assert pair.ends == 0
    await pair.pump.start()
    assert await pair.hear(100) == b"at once, "
    await eventually(lambda: pair.ends == 1, "it has ended")


async def test_a_socket_that_begins_after_the_channel_is_read_and_written(pair: Pair) -> None:
    pair.far.send(b"waiting")
    pair.pump.connection_made(pair.channel)
    await pair.pump.start()
    assert not pair.channel.is_paused
    await eventually(lambda: pair.channel.written == b"waiting", "it has come")
    pair.pump.eof_received()
    assert await pair.hear(1) == b""


async def test_a_full_channel_stops_the_sender_and_a_drained_one_lets_it_go_on(pair: Pair) -> None:
    channel, sent = (await pair.opened()).channel, 0

    def stuff() -> int:
        nonlocal sent
        sent += pair.stuff()
        return sent

    await settled(stuff)
    assert len(channel.written) < HIGH_BYTES + 512 * 1024
    stopped_at = sent
    channel.drain()
    await eventually(lambda: stuff() > stopped_at, "it goes on")


async def test_a_full_connection_stops_every_sender(pair: Pair) -> None:
    channel = (await pair.opened()).channel
    pair.is_full = True
    pair.pump.connection_paused()
    pair.far.send(b"x")
    pair.pump.resume_writing()  # the channel's own room changes nothing
    assert await settled(lambda: len(channel.written)) == 0
    pair.is_full = False
    pair.pump.connection_resumed()
    await eventually(lambda: channel.written == b"x", "it goes on")


async def test_a_socket_that_is_not_read_stops_the_channel(pair: Pair) -> None:
    channel = (await pair.opened()).channel
    pair.pump.data_received(bytes(4_000_000), None)
    assert channel.is_paused
    assert len(await pair.hear(4_000_000)) == 4_000_000
    await eventually(lambda: not channel.is_paused, "it goes on")


async def test_closing_ends_both_sides_at_once_and_for_good(pair: Pair) -> None:
    await pair.opened()
    pair.pump.close()
    pair.pump.close()
    assert pair.channel.events[0] == "abort"
    assert pair.ends == 1
    assert await pair.hear(1) == b""
    pair.pump.connection_lost(None)
    assert pair.ends == 1


async def test_closing_before_it_has_begun_closes_the_socket(pair: Pair) -> None:
    pair.pump.close()
    assert await pair.hear(1) == b""
    await pair.pump.start()
    pair.pump.connection_made(pair.channel)
    assert pair.channel.events == ["close"]


async def test_closing_while_it_begins_closes_the_socket(pair: Pair) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(pair.pump.start())
        await asyncio.sleep(0)
        pair.pump.close()
    assert await pair.hear(1) == b""


async def test_what_is_written_still_goes_out_when_the_channel_is_closed(pair: Pair) -> None:
    await pair.opened()
    pair.pump.data_received(bytes(4_000_000), None)
    pair.pump.connection_lost(None)
    assert pair.ends == 0
    assert len(await pair.hear(4_000_001)) == 4_000_000
    await eventually(lambda: pair.ends == 1, "it has ended")


async def test_what_nobody_takes_is_given_up_in_time(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.ssh.pump.LINGER_S", 0.05)
    await pair.opened()
    pair.pump.data_received(bytes(4_000_000), None)
    pair.pump.connection_lost(None)
    await eventually(lambda: pair.ends == 1, "it has ended")


async def test_a_lost_connection_ends_the_socket_at_once(pair: Pair) -> None:
    await pair.opened()
    pair.pump.data_received(bytes(4_000_000), None)
    pair.pump.connection_lost(ConnectionResetError())
    assert pair.ends == 1


async def test_a_socket_taken_by_a_pump_that_is_over_is_closed() -> None:
    mine, far = socket.socketpair()
    pump = Pump(lambda pump: None, connection_is_full=lambda: False)
    pump.close()
    await pump.take(mine)
    assert far.recv(1) == b""
    far.close()


# --- in any order -----------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.sampled_from(["turn", "drain", "full", "free", "start", "open", "say", "send", "hear"]), max_size=40
)


@given(STEPS, st.integers(1, 200_000))
def test_nothing_is_lost_and_nothing_comes_out_of_order(steps: list[str], size: int) -> None:
    """Whatever happens between the two sides, in which order ever: each hears what the other one said."""

    async def run() -> None:
        pair, said, sent, got, heard = Pair(), bytearray(), bytearray(), bytearray(), bytearray()
        is_open = is_started = False

        async def step(name: str) -> None:
            nonlocal is_open, is_started
            match name:
                case "turn":
                    await asyncio.sleep(0)
                case "drain" if is_open:
                    got.extend(pair.channel.drain())
                case "full":
                    pair.is_full = True
                    pair.pump.connection_paused()
                case "free":
                    pair.is_full = False
                    pair.pump.connection_resumed()
                case "start" if not is_started:
                    is_started = True
                    await pair.pump.start()
                case "open" if not is_open:
                    is_open = True
                    pair.pump.connection_made(pair.channel)
                case "say" if is_open and not pair.channel.is_paused:
                    piece = bytes([len(said) % 251]) * size
                    said.extend(piece)
                    pair.pump.data_received(piece, None)
                case "send":
                    piece = bytes([len(sent) % 251]) * size
                    with suppress(BlockingIOError):
                        sent.extend(piece[: pair.far.send(piece)])
                case "hear":
                    with suppress(BlockingIOError):
                        heard.extend(pair.far.recv(65536))

        for name in (*steps, "open", "start", "free"):
            await step(name)
        pair.far.shutdown(socket.SHUT_WR)
        pair.pump.eof_received()

        def finish() -> bool:
            got.extend(pair.channel.drain())
            with suppress(BlockingIOError):
                heard.extend(pair.far.recv(1 << 20))
            return len(heard) == len(said) and bool(pair.channel.events)

        await eventually(finish, "both have ended")
        got.extend(pair.channel.written)
        pair.pump.close()
        await asyncio.sleep(0)
        pair.far.close()
        assert (got, heard) == (sent, said)
        assert pair.ends == 1

    asyncio.run(run())
