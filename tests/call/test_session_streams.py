"""The streams of a session: which carriers have more than one, who keeps those that come, and what they may bring."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from alknet.alpn.memory import MemoryConnection
from alknet.alpn.streams import Stream
from alknet.call.channel import Channel
from alknet.call.codecs import MSGPACK
from alknet.call.frames import frame
from alknet.call.session_streams import MAX_REFUSED_STREAMS, SessionStreams, Sizes
from alknet.tasks import Tasks
from testkit.polling import eventually
from testkit.session_pair import memory_ends, one_stream_ends

ENOUGH = 1000

pytestmark = pytest.mark.usefixtures("nothing_is_left")


class End:
    """One end with its streams, and what they told."""

    def __init__(self, connection: MemoryConnection, main: Channel, *, most: int = ENOUGH) -> None:
        self.bodies: list[tuple[int, bytes]] = []
        self.ended: list[int] = []
        self.broken = 0
        self.kept: list[Stream] = []
        self.keeps = False
        self.is_slow = False
        self.go_on = asyncio.Event()
        """What a slow look waits for."""
        self.looked_at = 0
        self.tasks = Tasks("test")
        self.streams = SessionStreams(
            connection,
            main,
            MSGPACK,
            Sizes(most, most),
            on_bodies=lambda channel, bodies: self.bodies.extend((channel.number, body) for body in bodies),
            on_end=lambda channel: self.ended.append(channel.number),
            on_broken=self._break,
        )
        self.streams.adopt(main)
        if self.streams.has_many:
            self.tasks.start(self.streams.accept(self.tasks, self._join), name="accept")

    async def _join(self, stream: Stream) -> Stream | None:
        self.looked_at += 1
        if self.is_slow:
            await self.go_on.wait()
        if not self.keeps:
            return stream
        self.kept.append(stream)
        return None

    def _break(self) -> None:
        self.broken += 1


@asynccontextmanager
async def ends(carrier: str = "many streams", **how: int) -> AsyncIterator[tuple[MemoryConnection, End]]:
    """The other side's connection, and this end."""
    connect = memory_ends if carrier == "many streams" else one_stream_ends
    async with asyncio.timeout(10.0), connect() as (dialer, listener):
        assert isinstance(dialer, MemoryConnection)
        assert isinstance(listener, MemoryConnection)
        first = await dialer.open_stream()
        end = End(listener, await Channel.on(await listener.accept_stream()), **how)
        yield dialer, end
        first.reset()
        dialer.close()
        for channel in tuple(end.streams.by_number.values()):
            channel.abort()
        await end.tasks.aclose()


async def test_over_one_stream_there_is_no_other() -> None:
    async with ends("one stream") as (_, end):
        assert not end.streams.has_many
        assert await end.streams.open() is None
        assert list(end.streams.by_number) == [0]


async def test_each_further_stream_has_a_number_and_ends_by_itself() -> None:
    async with ends() as (dialer, end):
        own = await end.streams.open()
        assert own is not None
        theirs = await dialer.open_stream()
        await theirs.write(frame(b"a") + frame(b"b"))
        await eventually(lambda: len(end.bodies) == 2, "frames come")
        assert end.bodies == [(2, b"a"), (2, b"b")]
        assert sorted(end.streams.by_number) == [0, 1, 2]
        await theirs.aclose()
        own.close()
        await eventually(lambda: sorted(end.ended) == [1, 2], "their ends are told")
        assert list(end.streams.by_number) == [0]


async def test_without_a_connection_there_is_no_further_stream() -> None:
    async with ends() as (dialer, end):
        dialer.close()
        assert await end.streams.open() is None


async def test_what_somebody_else_keeps_is_his() -> None:
    async with ends() as (dialer, end):
        end.keeps = True
        theirs = await dialer.open_stream()
        await theirs.write(frame(b"raw"))
        await eventually(lambda: end.kept, "it is kept")
        assert await end.kept[0].read() == frame(b"raw")
        assert list(end.streams.by_number) == [0]


async def test_a_stream_that_is_slow_to_be_looked_at_holds_up_no_other() -> None:
    async with ends() as (dialer, end):
        end.is_slow = True
        await (await dialer.open_stream()).write(frame(b"slow"))
        await eventually(lambda: end.looked_at == 1, "the first one is looked at")
        end.is_slow = False
        await (await dialer.open_stream()).write(frame(b"x"))
        await eventually(lambda: end.bodies, "the other one is there")
        assert end.bodies == [(1, b"x")]
        end.go_on.set()
        await eventually(lambda: end.bodies == [(1, b"x"), (2, b"slow")], "the first one is there as well")


@pytest.mark.parametrize("size", [0, ENOUGH + 1])
async def test_what_is_no_frame_ends_its_stream_and_too_many_end_everything(size: int) -> None:
    async with ends() as (dialer, end):
        for number in range(MAX_REFUSED_STREAMS):
            assert end.broken == 0
            theirs = await dialer.open_stream()
            await theirs.write(size.to_bytes(4, "big"))
            await eventually(lambda number=number: len(end.ended) == number + 1, "it is ended")
        assert (end.broken, end.streams.refused) == (1, MAX_REFUSED_STREAMS)
        assert f"{MAX_REFUSED_STREAMS} streams were refused" in str(end.streams.main.error)


async def test_on_the_first_stream_once_is_enough() -> None:
    async with asyncio.timeout(10.0), memory_ends() as (dialer, listener):
        first = await dialer.open_stream()
        assert isinstance(listener, MemoryConnection)
        end = End(listener, await Channel.on(await listener.accept_stream()))
        await first.write(bytes(4))
        await eventually(lambda: end.broken, "it is ended")
        assert "a frame of 0 bytes" in str(end.streams.main.error)
        end.streams.main.abort()
        await end.tasks.aclose()
