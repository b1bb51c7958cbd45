"""The connection on its stream: everything is passed on, and the room is watched."""

import asyncio

from alknet.alpn.memory import memory_pair
from alknet.ssh.carried import Carried


class _Ssh(asyncio.Protocol):
    """What asyncssh's connection gets to hear."""

    def __init__(self) -> None:
        self.data = b""
        self.has_ended = asyncio.Event()
        self.is_lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.has_ended.set()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost.set()


async def test_what_the_carrier_says_reaches_the_connection() -> None:
    here, there = memory_pair(alpn="alknet/ssh")
    transport, ssh = await Carried(await here.open_stream()).create_connection(_Ssh, "host", 1)
    assert ssh.transport is transport
    stream = await there.accept_stream()
    await stream.write(b"one")
    await stream.write_eof()
    async with asyncio.timeout(5):
        await ssh.has_ended.wait()
        assert ssh.data == b"one"
        assert not ssh.is_lost.is_set()
        transport.abort()
        await ssh.is_lost.wait()


async def test_a_carrier_that_takes_no_more_has_no_room() -> None:
    here, there = memory_pair(alpn="alknet/ssh")
    carried = Carried(await here.open_stream())
    transport, _ = await carried.create_connection(_Ssh, "host", 1)
    stream = await there.accept_stream()
    changes: asyncio.Queue[bool] = asyncio.Queue()
    carried.room.on_change = lambda: changes.put_nowait(carried.room.is_full)
    size = 0
    async with asyncio.timeout(5):
        while changes.empty():
            transport.write(bytes(64 * 1024))
            size += 64 * 1024
            await asyncio.sleep(0)
        assert await changes.get() is True
        assert size < 4 * 1024 * 1024
        while changes.empty():
            size -= len(await stream.read())
        assert await changes.get() is False
    transport.abort()
