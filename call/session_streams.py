"""The streams of one session: the first one, those that either side opens further, and what they may bring."""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from alknet.alpn.errors import ConnectionClosed, StreamsExhausted
from alknet.alpn.streams import Connection, Stream
from alknet.call.channel import Channel
from alknet.call.codecs import Codec
from alknet.call.errors import FrameError
from alknet.logs import event
from alknet.tasks import Tasks

__all__ = ["SessionStreams", "Sizes"]

log = logging.getLogger("alknet.call")

MAX_UNDISPATCHED_BYTES: Final = 32 * 1024 * 1024
"""What may have arrived on all streams together of frames that are not whole yet."""
MAX_REFUSED_STREAMS: Final = 16
"""Streams on which the other side may send what is no frame, before the session is ended."""
CARRIERS_OF_MANY: Final = ("quic", "memory")
"""Transports on which a session has more streams than its first."""


class Sizes:
    """How large frames may be: what this side takes, and what the other side said that it takes."""

    __slots__ = ("inbound", "outbound")

    def __init__(self, inbound: int, outbound: int) -> None:
        self.inbound = inbound
        self.outbound = outbound


class SessionStreams:
    """`main` and the others on `connection`. What is on them goes to `on_bodies`, their end to `on_end`; `on_broken`
    hears that the other side has broken the protocol once too often, or on the first stream."""

    def __init__(
        self,
        connection: Connection,
        main: Channel,
        codec: Codec,
        sizes: Sizes,
        *,
        on_bodies: Callable[[Channel, list[bytes]], None],
        on_end: Callable[[Channel], None],
        on_broken: Callable[[], None],
    ) -> None:
        self.main = main
        self.has_many = connection.transport in CARRIERS_OF_MANY
        self.by_number: dict[int, Channel] = {}
        """Those that are open."""
        self.refused = 0
        """Streams on which the other side broke the protocol."""
        self._connection = connection
        self._codec = codec
        self._sizes = sizes
        self._on_bodies = on_bodies
        self._on_end = on_end
        self._on_broken = on_broken
        self._pending: dict[int, int] = {}
        """Bytes of frames that are not whole yet, of those that have any."""
        self._next_number = 1

    def adopt(self, channel: Channel) -> None:
        """From now on it belongs to the session."""
        channel.reader.max_frame = self._sizes.inbound
        channel.max_outbound = self._sizes.outbound
        channel.codec = self._codec
        channel.on_fault = self.refuse
        self.by_number[channel.number] = channel
        channel.take_over(self._on_bodies, self._ended)

    async def open(self) -> Channel | None:
        """A further stream of this side's; None where there can be none."""
        if not self.has_many:
            return None
        try:
            stream = await self._connection.open_stream()
        except (StreamsExhausted, ConnectionClosed):
            return None
        return await self._further(stream)

    async def accept(self, tasks: Tasks, join: Callable[[Stream], Awaitable[Stream | None]]) -> None:
        """Take the streams that the other side opens, but for those that `join` keeps, until the connection ends."""

        async def take(stream: Stream) -> None:
            if (rest := await join(stream)) is not None:
                await self._further(rest)

        with contextlib.suppress(ConnectionClosed):
            while True:
                tasks.start(take(await self._connection.accept_stream()), name="stream")

    def note_pending(self, channel: Channel) -> None:
        """Count what has arrived on it of a frame that is not whole yet."""
        pending = channel.reader.pending
        if pending or channel.number in self._pending:
            self._pending[channel.number] = pending
            if sum(self._pending.values()) > max(MAX_UNDISPATCHED_BYTES, self._sizes.inbound):
                self.refuse(channel, FrameError("too many bytes of frames that are not whole yet"))

    def refuse(self, channel: Channel, error: FrameError) -> None:
        """The other side broke the protocol on this stream: say what was wrong, and end it. The first one and too many
        end the session."""
        self.refused += 1
        if self.refused == 1:
            log.info(event("stream refused", connection=self._connection.id, reason=error))
        if not channel.is_open:
            return
        channel.error = error
        if channel is not self.main:
            channel.abort()
            if self.refused < MAX_REFUSED_STREAMS:
                return
            self.main.error = FrameError(f"{MAX_REFUSED_STREAMS} streams were refused, the last one for: {error}")
        self._on_broken()

    def log_oddities(self, ignored: Mapping[str, int], reason: str | None) -> None:
        """One line about all that was ignored or refused, once the session has ended."""
        odd = [f"{count} {what}" for what, count in sorted(ignored.items())]
        refused = self.refused if self.refused > 1 else None
        if odd or refused:
            pairs = {"refused_streams": refused, "ignored": ", ".join(odd) or None, "reason": reason}
            log.info(event("session ended", connection=self._connection.id, **pairs))

    def abort(self) -> None:
        """End those that are left."""
        for channel in tuple(self.by_number.values()):
            channel.abort()

    async def _further(self, stream: Stream) -> Channel:
        number, self._next_number = self._next_number, self._next_number + 1
        channel = await Channel.on(stream, number)
        self.adopt(channel)
        return channel

    def _ended(self, channel: Channel) -> None:
        self.by_number.pop(channel.number, None)
        self._pending.pop(channel.number, None)
        self._on_end(channel)
