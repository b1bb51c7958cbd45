"""Two sessions that face each other on a carrier, without a door and without a hello."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from alknet.access import Identity
from alknet.alpn.dial import first_stream
from alknet.alpn.memory import memory_pair
from alknet.alpn.streams import Connection, Stream
from alknet.call.channel import Channel
from alknet.call.channel_serving import ByteService
from alknet.call.codecs import CODECS
from alknet.call.envelopes import ChannelRequested
from alknet.call.errors import CallError
from alknet.call.hello import FEATURES
from alknet.call.machine import Limits
from alknet.call.serving import Nobody, Server
from alknet.call.session import Session, Sizes

__all__ = ["ALICE", "Channels", "Service", "memory_ends", "one_stream_ends", "session_pair"]

ALICE = Identity("alice", frozenset(), "key:SHA256:alice")
MAX_FRAME = 1024 * 1024

Ends = tuple[Connection, Connection]


@asynccontextmanager
async def memory_ends() -> AsyncIterator[Ends]:
    """A carrier with many streams."""
    dialer, listener = memory_pair(alpn="alknet/call")
    try:
        yield dialer, listener
    finally:
        dialer.close()


@asynccontextmanager
async def one_stream_ends() -> AsyncIterator[Ends]:
    """A carrier whose sessions use its first stream alone, as over TLS."""
    async with memory_ends() as ends:
        for end in ends:
            end.transport = "tls"
        yield ends


@asynccontextmanager
async def session_pair(
    ends: Ends,
    *,
    servers: tuple[Server, Server] | None = None,
    codec: str = "msgpack",
    features: tuple[str, ...] = FEATURES,
    limits: Limits | None = None,
) -> AsyncIterator[tuple[Session, Session]]:
    """The dialer's session and the listener's; what `servers` serve is for the other one."""
    dialer, listener = ends
    listener.logged_in(ALICE)
    near = await Channel.on(await first_stream(dialer))
    near.send(b"\xc0")  # over QUIC a stream is seen when something comes on it
    far = await Channel.on(await listener.accept_stream())
    await far.next_body()
    near_server, far_server = servers or (Nobody(), Nobody())
    sessions = tuple(
        Session(
            end,
            channel,
            CODECS[codec],
            sizes=Sizes(MAX_FRAME, MAX_FRAME),
            features=features,
            limits=limits,
            server=server,
        )
        for end, channel, server in ((dialer, near, near_server), (listener, far, far_server))
    )
    for session in sessions:
        session.start()
    try:
        yield sessions[0], sessions[1]
    finally:
        for server in (near_server, far_server):
            if isinstance(server, Channels):
                server.let_go()
        for session in sessions:
            with suppress(ConnectionError):
                await session.aclose()


class Service:
    """What a test runs on a channel."""

    def __init__(self, serve: Callable[[Stream], Awaitable[None]]) -> None:
        self._serve = serve
        self.denial: CallError | None = None
        """Set it, and let the session recheck, to take the permission away."""
        self.ended = asyncio.Event()

    async def run(self, stream: Stream) -> None:
        try:
            await self._serve(stream)
        finally:
            self.ended.set()

    def revoked(self) -> CallError | None:
        return self.denial


class Channels(Nobody):
    """A server of byte channels: the service ``pipe`` hands the other end of each to the test, in `accepted`."""

    def __init__(self) -> None:
        self.requests: list[ChannelRequested] = []
        self.services: list[Service] = []
        self.accepted: asyncio.Queue[Stream] = asyncio.Queue()
        self.may_accept = asyncio.Event()
        """What a request waits for."""
        self.may_accept.set()
        self.streams: list[Stream] = []
        """All that were accepted."""
        self.cancelled = 0
        """Requests that were given up before they had been accepted."""

    def let_go(self) -> None:
        """Reset all that were accepted, so that nobody waits for them."""
        for stream in self.streams:
            stream.reset()

    async def accept_channel(self, request: ChannelRequested) -> ByteService:
        self.requests.append(request)
        if request.service != "pipe":
            return await super().accept_channel(request)
        try:
            await self.may_accept.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        service = Service(self._hand_over)
        self.services.append(service)
        return service

    async def _hand_over(self, stream: Stream) -> None:
        self.streams.append(stream)
        self.accepted.put_nowait(stream)
        await stream.wait_over()  # type: ignore[attr-defined]
