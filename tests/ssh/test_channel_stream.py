"""A subsystem's channel as a stream."""

import asyncio

import pytest

from alknet.access import Identity
from alknet.alpn.errors import StreamBroken, StreamClosed
from alknet.alpn.streams import MAX_BUFFERED_BYTES, Connection, Stream
from testkit.ssh_pair import Door, policy_with

Outcome = "asyncio.Future[object]"


def _door(serve) -> Door:  # type: ignore[no-untyped-def]
    return Door(policy=policy_with(), subsystems={"it": serve})


async def test_unread_data_stops_the_client_and_then_arrives_whole() -> None:
    go, total = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def serve(stream: Stream, identity: Identity, connection: Connection) -> int:
        await go.wait()
        size = 0
        while data := await stream.read(100_000):
            assert len(data) <= 100_000
            size += len(data)
        total.set_result(size)
        return 0

    door = _door(serve)
    async with door.connect() as client:
        process = await client.create_process(subsystem="it", encoding=None)
        for _ in range(200):
            process.stdin.write(b"x" * 65536)
        await asyncio.sleep(0.2)
        unsent = process.channel.get_write_buffer_size()
        assert unsent > 200 * 65536 - 3 * 1024 * 1024 - MAX_BUFFERED_BYTES  # window and buffer took the rest
        go.set()
        process.stdin.write_eof()
        async with asyncio.timeout(10):
            assert await total == 200 * 65536
    await door.aclose()


async def test_writing_waits_for_a_client_that_does_not_read() -> None:
    sent = 0

    async def serve(stream: Stream, identity: Identity, connection: Connection) -> int:
        nonlocal sent
        for _ in range(200):
            await stream.write(b"x" * 65536)
            sent += 1
        return 0

    door = _door(serve)
    async with door.connect() as client:
        process = await client.create_process(subsystem="it", encoding=None, window=65536)
        await asyncio.sleep(0.2)
        stopped_at = sent
        assert stopped_at < 40
        async with asyncio.timeout(10):
            assert len(await process.stdout.read()) == 200 * 65536
    await door.aclose()


async def test_a_client_that_leaves_breaks_the_stream() -> None:
    seen = asyncio.get_running_loop().create_future()

    async def serve(stream: Stream, identity: Identity, connection: Connection) -> int:
        try:
            await stream.read()
        except StreamBroken as exc:
            seen.set_result(exc)
        return 0

    door = _door(serve)
    async with door.connect() as client:
        process = await client.create_process(subsystem="it", encoding=None)
        process.channel.abort()
        async with asyncio.timeout(5):
            assert isinstance(await seen, StreamBroken)
    await door.aclose()


async def test_use_after_closing_it_is_this_sides_mistake() -> None:
    seen = asyncio.get_running_loop().create_future()

    async def serve(stream: Stream, identity: Identity, connection: Connection) -> int:
        await stream.aclose()
        await stream.aclose()
        with pytest.raises(StreamClosed):
            await stream.read()
        with pytest.raises(StreamClosed):
            await stream.write(b"x")
        seen.set_result(True)
        return 0

    door = _door(serve)
    async with door.connect() as client:
        await client.create_process(subsystem="it", encoding=None)
        async with asyncio.timeout(5):
            assert await seen
    await door.aclose()


async def test_half_close_leaves_the_other_direction_open() -> None:
    async def serve(stream: Stream, identity: Identity, connection: Connection) -> int:
        await stream.write(b"first")
        await stream.write_eof()
        assert await stream.read() == b"afterwards"
        return 4

    door = _door(serve)
    async with door.connect() as client:
        process = await client.create_process(subsystem="it", encoding=None)
        assert await process.stdout.read() == b"first"
        process.stdin.write(b"afterwards")
        process.stdin.write_eof()
        assert (await process.wait()).exit_status == 4
    await door.aclose()
