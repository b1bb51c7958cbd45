"""One byte channel of a session as a `Stream`: over the session's envelopes, or over a stream of its own.

Whoever gets a `ByteChannel` holds a stream like any other; how its bytes travel is below it, in `SharedStream` and
`OwnStream`.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, Protocol

from alknet.alpn.attach import StreamTransport
from alknet.alpn.errors import StreamBroken, StreamClosed
from alknet.alpn.streams import READ_SIZE, Stream
from alknet.call.channel import Channel
from alknet.call.channel_states import ChannelStates
from alknet.call.envelopes import ChannelCredited, ChannelData, ChannelEnded, Envelope
from alknet.call.pacing import Pace, Path

__all__ = ["MAX_DATA_BYTES", "ByteChannel", "Carried", "OwnStream", "ReplayedStream", "SharedStream"]

MAX_DATA_BYTES: Final = 16 * 1024
"""Of one ``channel.data``: a call beside a full channel waits for no more than a few of them."""
REASON_TIMEOUT_S: Final = 1.0
"""What the reason for the end of a channel with a stream of its own may take to come after that end."""
ENVELOPE_BYTES: Final = 256
"""More than an envelope has beside its data."""


class Carried(Stream, Protocol):
    """How the bytes of a channel travel."""

    def check_open(self) -> None:
        """Raise `StreamClosed` if this side has closed it."""

    def reset(self, reason: str = "") -> None:
        """End it at once, and tell the other side why."""

    def lost(self, words: str, *, is_finished: bool, with_session: bool) -> None:
        """It is over, and not by this side: `words` say why. `is_finished`: everything has been sent to this side
        before; `with_session`: the whole session is over."""

    async def wait_over(self) -> None:
        """Wait until this side has closed it, and nothing is left to send."""

    @property
    def is_whole(self) -> bool:
        """Whether all that the other side sends is here, so that it can be read even if the session ends."""


class ByteChannel:
    """A channel of this side's or the other's; `service` is what it leads to."""

    def __init__(self, carried: Carried, service: str) -> None:
        self.service = service
        self._carried = carried
        self._is_used = False
        self._transport: StreamTransport | None = None

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        self._use()
        return await self._carried.read(max_bytes)

    async def write(self, data: bytes) -> None:
        self._use()
        await self._carried.write(data)

    async def write_eof(self) -> None:
        self._use()
        await self._carried.write_eof()

    def reset(self, reason: str = "") -> None:
        """End both directions at once; `reason` is for people at the other end."""
        self._carried.reset(reason)
        if self._transport is not None:
            self._transport.abort()

    async def aclose(self) -> None:
        if self._transport is not None:
            self._transport.close()
        else:
            await self._carried.aclose()

    async def wait_over(self) -> None:
        """Wait until this side has closed it, and what it has written is on its way."""
        await self._carried.wait_over()

    @property
    def is_whole(self) -> bool:
        """Whether all that the other side sends is here, and waits to be read."""
        return self._carried.is_whole

    async def attach(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        if self._is_used:
            raise StreamClosed("the stream is in use already")
        self._use()
        self._carried.check_open()
        self._transport = StreamTransport.start(self._carried, protocol)
        return self._transport

    def _use(self) -> None:
        if self._transport is not None:
            raise StreamClosed("the stream was handed to a protocol")
        self._is_used = True


class _Ends:
    """What the two ways to travel have in common: how a channel ends, and who hears of it."""

    def __init__(self, id: str, states: ChannelStates, post: Callable[[Envelope | None], None]) -> None:
        self.id = id
        self._states = states
        self._post = post
        self._is_closed = False
        """By this side."""
        self._lost_because = ""
        self._over = asyncio.Event()
        self.on_over: Callable[[], object] = lambda: None
        """Hears that this side has closed it."""

    def check_open(self) -> None:
        if self._is_closed:
            raise StreamClosed("the channel was closed by this side")

    async def wait_over(self) -> None:
        await self._over.wait()

    def _end(self) -> None:
        self._over.set()
        self.on_over()


class SharedStream(_Ends):
    """Bytes in the envelopes of a stream that is not the channel's alone, paced by credit."""

    def __init__(self, id: str, states: ChannelStates, frames: Channel, path: Path) -> None:
        super().__init__(id, states, frames.post)
        self._frames = frames
        self._pace = Pace(path)
        self._loop = asyncio.get_running_loop()
        self._unread = bytearray()
        self._is_finished = False
        """The other side has sent everything."""
        self._eof_sent = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        while True:
            self.check_open()
            if self._unread:
                return self._take(max_bytes)
            if self._is_finished:
                return b""
            if self._lost_because:
                raise StreamBroken(self._lost_because)
            self._reader = self._loop.create_future()
            await self._reader

    async def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while True:
            self._check_writable()
            if not rest:
                return
            size = min(len(rest), self._states.credit_of(self.id), self._pace.room, MAX_DATA_BYTES, self._most)
            if not size:
                self._writer = self._loop.create_future()
                await self._writer
                continue
            await self._frames.room()
            self._check_writable()
            self._frames.say(self._states.data(self.id, bytes(rest[:size])))
            self._pace.sent(size, self._loop.time())
            rest = rest[size:]
            await asyncio.sleep(0)  # between two pieces it is the turn of calls

    async def write_eof(self) -> None:
        self.check_open()
        self._eof_sent = True
        self._post(self._states.eof(self.id))

    def reset(self, reason: str = "") -> None:
        if not self._is_closed:
            self._close(reason)

    async def aclose(self) -> None:
        if not self._is_closed:
            await self.write_eof()
            self._close("")

    async def attach(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        return StreamTransport.start(self, protocol)

    @property
    def is_whole(self) -> bool:
        return self._is_finished and not self._is_closed

    # --- what the session tells ---------------------------------------------------------------------------------------

    def happened(self, event: ChannelData | ChannelEnded | ChannelCredited) -> None:
        if isinstance(event, ChannelData):
            self._unread += event.data
            _wake(self._reader)
        elif isinstance(event, ChannelEnded):
            self._is_finished = True
            _wake(self._reader)
        else:
            self._pace.granted(event.n, self._loop.time())
            _wake(self._writer)

    def lost(self, words: str, *, is_finished: bool, with_session: bool) -> None:
        self._lost_because = words
        if not is_finished:
            self._unread.clear()
        _wake(self._reader)
        _wake(self._writer)

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def _most(self) -> int:
        """What fits into a frame that the other side takes."""
        return max(1, self._frames.max_outbound - ENVELOPE_BYTES)

    def _take(self, max_bytes: int) -> bytes:
        if len(self._unread) <= max_bytes:
            data, self._unread = bytes(self._unread), bytearray()
        else:
            data = bytes(self._unread[:max_bytes])
            del self._unread[:max_bytes]
        self._post(self._states.consumed(self.id, len(data)))
        return data

    def _close(self, reason: str) -> None:
        self._is_closed = True
        self._unread.clear()
        self._post(self._states.close(self.id, reason))
        _wake(self._reader)
        _wake(self._writer)
        self._end()

    def _check_writable(self) -> None:
        self.check_open()
        if self._eof_sent:
            raise StreamClosed("the channel was finished by this side")
        if self._lost_because:
            raise StreamBroken(self._lost_because)


class OwnStream(_Ends):
    """Bytes on a stream of the channel's own, which may still be on its way."""

    def __init__(self, id: str, states: ChannelStates, post: Callable[[Envelope | None], None]) -> None:
        super().__init__(id, states, post)
        self._stream: Stream | None = None
        self._has_come = asyncio.Event()
        self._is_told = asyncio.Event()
        """It is over, and it is known why."""

    def joined(self, stream: Stream) -> None:
        """Here is its stream."""
        self._stream = stream
        self._has_come.set()

    @property
    def has_stream(self) -> bool:
        return self._stream is not None

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        stream = self._stream or await self._arrival()
        try:
            return await stream.read(max_bytes)
        except StreamBroken as exc:
            # A reset has no words: they come on another stream, perhaps later.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REASON_TIMEOUT_S):
                    await self._is_told.wait()
            raise self._broken(exc) from exc
        except StreamClosed as exc:
            raise self._broken(exc) from exc

    async def write(self, data: bytes) -> None:
        stream = self._stream or await self._arrival()
        if self._lost_because:
            raise StreamBroken(self._lost_because)
        try:
            await stream.write(data)
        except (StreamBroken, StreamClosed) as exc:
            raise self._broken(exc) from exc

    async def write_eof(self) -> None:
        stream = self._stream or await self._arrival()
        try:
            await stream.write_eof()
        except (StreamBroken, StreamClosed) as exc:
            raise self._broken(exc) from exc

    def reset(self, reason: str = "") -> None:
        if not self._is_closed:
            self._is_closed = True
            # The reset may overtake the frame that names the stream, and says nothing of why.
            self._post(self._states.close(self.id, reason))
            if self._stream is not None:
                self._stream.reset()
            self._has_come.set()
            self._is_told.set()
            self._end()

    async def aclose(self) -> None:
        if self._stream is None:
            self.reset()
        elif not self._is_closed:
            self._is_closed = True
            self._states.close(self.id)
            self._is_told.set()
            try:
                await self._stream.aclose()
            finally:
                self._end()

    async def attach(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        return StreamTransport.start(self, protocol)

    @property
    def is_whole(self) -> bool:
        return False  # nobody knows before it was read

    def lost(self, words: str, *, is_finished: bool, with_session: bool) -> None:
        self._lost_because = words
        self._has_come.set()
        self._is_told.set()
        # With its session, the stream ends by itself: what it has delivered whole can still be read.
        if self._stream is not None and not with_session:
            self._stream.reset()

    async def _arrival(self) -> Stream:
        await self._has_come.wait()
        self.check_open()
        if self._stream is None:
            raise StreamBroken(self._lost_because)
        return self._stream

    def _broken(self, exc: StreamBroken | StreamClosed) -> StreamBroken | StreamClosed:
        """What a failure of the stream means for the channel."""
        return StreamBroken(self._lost_because) if self._lost_because and not self._is_closed else exc


class ReplayedStream:
    """A stream of which some bytes were read already: they are read again first."""

    def __init__(self, stream: Stream, early: bytes) -> None:
        self._stream = stream
        self._early = early
        self.write = stream.write
        self.write_eof = stream.write_eof
        self.reset = stream.reset
        self.aclose = stream.aclose

    async def read(self, max_bytes: int = READ_SIZE) -> bytes:
        if not self._early:
            return await self._stream.read(max_bytes)
        data, self._early = self._early[:max_bytes], self._early[max_bytes:]
        return data

    async def attach(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        return StreamTransport.start(self, protocol)


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
