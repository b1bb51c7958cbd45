"""A byte channel of a session owes what a stream of a carrier owes, whichever way its bytes travel."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from alknet.alpn.errors import ConnectionClosed
from alknet.alpn.quic import MAX_SEND_BYTES
from alknet.alpn.streams import MAX_BUFFERED_BYTES, BaseConnection, Connection, Stream
from alknet.alpn.windows import STREAM_BYTES
from alknet.call.channel_states import WINDOW_BYTES
from alknet.call.errors import CallError
from alknet.call.session import Session
from alknet.tasks import Tasks
from testkit.session_pair import Channels, memory_ends, session_pair
from tests.alpn.conformance import Carrier, Ends, ManyStreams
from tests.alpn.test_streams import quic_connections, tls_connections


class SessionConnection(BaseConnection):
    """A session as a carrier, whose streams are byte channels."""

    def __init__(self, session: Session, channels: Channels) -> None:
        below = session.connection
        super().__init__(alpn=below.alpn, transport=below.transport, remote=below.remote)
        self.channel_binding = below.channel_binding
        self.peer_certificates = below.peer_certificates
        self._session = session
        self._channels = channels
        self._streams: list[Any] = []
        self._tasks = Tasks("session-connection")
        self._tasks.start(self._wait_ended(), name="wait")

    async def open_stream(self) -> Stream:
        try:
            return self._add(await self._session.open_channel("pipe"))
        except CallError as exc:
            raise ConnectionClosed(str(exc)) from exc

    async def accept_stream(self) -> Stream:
        accepted = self._tasks.start(self._channels.accepted.get(), name="accept")
        ended = self._tasks.start(self._closed.wait(), name="ended")
        done, _ = await asyncio.wait({accepted, ended}, return_when=asyncio.FIRST_COMPLETED)
        if accepted not in done:
            accepted.cancel()
            raise ConnectionClosed("the session has ended")
        ended.cancel()
        return self._add(accepted.result())

    def close(self, code: int = 0, reason: str = "") -> None:
        for stream in self._streams:
            stream.reset()
        self._tasks.start(self._session.aclose(), name="close")

    def _add(self, stream: Stream) -> Stream:
        self._streams.append(stream)
        return stream

    async def _wait_ended(self) -> None:
        await self._session.wait_ended()
        self._closed.set()


@asynccontextmanager
async def over(carrier: Any) -> AsyncIterator[Ends]:
    """Sessions on a connection of `carrier`."""
    channels = Channels(), Channels()
    async with carrier() as ends, session_pair(ends, servers=channels) as sessions:
        connections: tuple[Connection, ...] = tuple(map(SessionConnection, sessions, channels))
        yield connections[0], connections[1]


class TestOverMemory(ManyStreams):
    carrier = Carrier(partial(over, memory_ends), most_held_bytes=4 * MAX_BUFFERED_BYTES)


on_uvloop = pytest.mark.asyncio(loop_factories=["uvloop"])
"""Which nodes run on. A channel is the same on any loop, as those over memory show, and so is each carrier, as its own
tests show; here are only the bytes of one in the other."""


@on_uvloop
class TestOverTls(ManyStreams):
    # The window, and what a transport holds for an attached one.
    carrier = Carrier(partial(over, tls_connections), most_held_bytes=WINDOW_BYTES + 2 * MAX_BUFFERED_BYTES)


@on_uvloop
class TestOverQuic(ManyStreams):
    carrier = Carrier(
        partial(over, quic_connections), most_held_bytes=STREAM_BYTES + MAX_SEND_BYTES + 4 * MAX_BUFFERED_BYTES
    )
