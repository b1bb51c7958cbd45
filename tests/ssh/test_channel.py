"""Channels: what a client may make the node keep, and what waits for room is sent when there is some."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import asyncssh
import pytest

from alknet.ssh import channel as channels
from alknet.ssh import forwarding
from alknet.ssh.channel import FIRST_WINDOW_BYTES, WINDOW_BYTES
from alknet.ssh.packets import MIN_PACKET_BYTES
from testkit.polling import eventually, settled
from testkit.ssh_forwards import ALL, HERE, allowing, reverse, serving, tell
from testkit.ssh_pair import Door


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    door = Door(policy=allowing(*ALL))
    yield door
    await door.aclose()


class Counting:
    """Either kind of session at the client: counts what comes, and reads only when it is told to."""

    def __init__(self) -> None:
        self.got = 0
        self.has_ended = False

    def connection_made(self, chan: Any) -> None:
        self.chan = chan

    def session_started(self) -> None:
        self.chan.pause_reading()

    def data_received(self, data: bytes, datatype: Any) -> None:
        self.got += len(data)

    def eof_received(self) -> bool:
        self.has_ended = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.has_ended = True


class CountingSession(Counting, asyncssh.SSHClientSession[bytes]):  # type: ignore[misc]
    pass


class CountingForward(Counting, asyncssh.SSHTCPSession[bytes]):  # type: ignore[misc]
    pass


SIZE = 1_000_000


@pytest.mark.parametrize("kind", ["session", "forward"])
async def test_what_waits_for_room_on_the_connection_is_sent_when_there_is_some(door: Door, kind: str) -> None:
    """The window opens while the connection has no room: nobody is going to open it a second time."""

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(SIZE))
        writer.close()

    async with serving(pour) as port, door.connect() as client:
        options: dict[str, Any] = {"encoding": None, "window": 64 * 1024}
        if kind == "session":
            chan, session = await client.create_session(CountingSession, f"head -c {SIZE} /dev/zero", **options)
        else:
            chan, session = await client.create_connection(CountingForward, HERE, port, **options)
        (ssh,) = door.handler._connections
        (ours,) = ssh._channels.values()
        await eventually(lambda: ours._send_paused and chan._recv_window == 0, "the window is full")
        ssh.pause_writing()
        chan.resume_reading()
        await eventually(lambda: ours._send_window > 0, "the client has made room")
        ssh.resume_writing()
        await eventually(lambda: session.has_ended, "all of it has come")
        assert session.got == SIZE


async def test_an_end_that_waits_for_room_is_sent_too(door: Door) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(70_000))
        writer.write_eof()
        await reader.read()
        writer.close()

    async with serving(say) as port, door.connect() as client:
        chan, session = await client.create_connection(CountingForward, HERE, port, encoding=None, window=64 * 1024)
        (ssh,) = door.handler._connections
        (ours,) = ssh._channels.values()
        await eventually(lambda: ours._send_state == "eof_pending", "only the end is left")
        ssh.pause_writing()
        chan.resume_reading()
        await eventually(lambda: ours._send_window > 0, "the client has made room")
        ssh.resume_writing()
        await eventually(lambda: session.has_ended, "its end has come")
        assert session.got == 70_000


async def test_the_window_of_a_forward_widens_as_it_is_read_and_within_a_bound(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "MAX_WIDENED_BYTES", WINDOW_BYTES)
    async with serving(reverse) as port, door.connect() as client:
        (ssh,) = door.handler._connections
        ours = []
        opened = [await client.open_connection(HERE, port, encoding=None) for _ in range(3)]
        ours = list(ssh._channels.values())
        assert {one._init_recv_window for one in ours} == {FIRST_WINDOW_BYTES}
        data = os.urandom(3 * WINDOW_BYTES)
        for reader, writer in opened:
            assert await tell(reader, writer, data) == data[::-1]
        assert max(one._init_recv_window for one in ours) == WINDOW_BYTES
        await eventually(lambda: not ssh._channels, "all have ended")
        assert ssh.forwarding._window_left == WINDOW_BYTES, "what they took is given back"


async def test_a_forward_that_nobody_reads_is_kept_little_of(door: Door) -> None:
    release = asyncio.Event()

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.close()

    async with serving(stall) as port, serving(reverse) as other, door.connect() as client:
        _, writer = await client.open_connection(HERE, port, encoding=None)
        (ssh,) = door.handler._connections
        (ours,) = ssh._channels.values()
        writer.write(bytes(64 * 1024 * 1024))
        await settled(lambda: ours._recv_window)
        assert sum(len(data) for data, _ in ours._recv_buf) <= ours._init_recv_window <= WINDOW_BYTES
        assert writer.channel.get_write_buffer_size() > 32 * 1024 * 1024, "the client has to wait"
        assert await tell(*await client.open_connection(HERE, other, encoding=None), b"abc") == b"cba"
        assert (await client.run("exit 5")).exit_status == 5
        writer.channel.abort()
        release.set()


async def test_tiny_packets_are_refused_before_anything_is_dialled(door: Door) -> None:
    called = []

    async def call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.append(1)
        writer.close()

    async with serving(call) as port, door.connect() as client:
        with pytest.raises(asyncssh.ChannelOpenError, match=str(MIN_PACKET_BYTES)):
            await client.create_connection(CountingForward, HERE, port, max_pktsize=MIN_PACKET_BYTES - 1)
        (ssh,) = door.handler._connections
        await eventually(lambda: not ssh._channels, "no channel is left")
    assert not called
    assert door.unfinished() <= {"ssh/login"}


async def test_what_was_sent_before_a_close_still_reaches_a_slow_target(door: Door) -> None:
    """Input that is paused when the client closes the channel: a session's is dropped, a forward's is not."""
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    may_read = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await may_read.wait()
        heard.set_result(await reader.read())
        writer.close()

    data = os.urandom(200_000)
    async with serving(slow) as port, door.connect() as client:
        _, writer = await client.open_connection(HERE, port, encoding=None)
        (ssh,) = door.handler._connections
        (ours,) = ssh._channels.values()
        ours.pause_reading()
        writer.write(data)
        writer.close()
        await eventually(lambda: not ssh._channels, "the channel has ended")
        may_read.set()
        async with asyncio.timeout(10):
            assert await heard == data


def test_the_first_window_is_the_smaller_one() -> None:
    assert channels.PACKET_BYTES < FIRST_WINDOW_BYTES < WINDOW_BYTES


async def test_a_client_that_leaves_with_requests_open_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The second one is still in the queue when the answer to the first comes too late."""
    asked, gone = asyncio.Event(), asyncio.Event()

    async def slowly(*_: Any) -> str:
        asked.set()
        await gone.wait()
        return ""

    monkeypatch.setattr(forwarding.Forwarding, "listen_for_agent", slowly)
    door = Door(policy=allowing(*ALL))
    async with door.connect() as client:
        channel, _ = await client.create_session(asyncssh.SSHClientSession[bytes], "cat", encoding=None)
        for _ in range(2):
            channel._send_request(b"auth-agent-req@openssh.com", want_reply=True)
        async with asyncio.timeout(5):
            await asked.wait()
        (ssh,) = door.handler._connections
        client.abort()
        await eventually(lambda: ssh not in door.handler._connections, "the client has left")
    gone.set()
    await door.aclose()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
