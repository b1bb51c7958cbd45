"""The byte channels of one session: opened from this side and from the other, over the streams that it has."""

import asyncio
from typing import Final

from alknet.alpn.errors import ConnectionClosed, StreamBroken, StreamClosed, StreamsExhausted
from alknet.alpn.streams import Connection, Stream
from alknet.call.byte_channel import ByteChannel, OwnStream, ReplayedStream, SharedStream
from alknet.call.channel import Channel
from alknet.call.codecs import Codec
from alknet.call.envelopes import (
    ChannelClosed,
    ChannelCredited,
    ChannelData,
    ChannelEnded,
    ChannelJoined,
    ChannelOpened,
    ChannelRequested,
    Event,
)
from alknet.call.errors import CallError, FrameError
from alknet.call.frames import LENGTH_BYTES, frame
from alknet.call.machine import Machine
from alknet.call.pacing import Path

__all__ = ["NEEDED_CODEC", "OPEN_TIMEOUT_S", "ByteChannels"]

OPEN_TIMEOUT_S: Final = 30.0
"""What opening a channel may take, unless said otherwise: somebody may have to be reached for it."""
STREAM_TIMEOUT_S: Final = 10.0
"""What the stream of a channel may take to come once the channel is open."""
MAX_JOIN_BYTES: Final = 256
"""A longer first frame is not the one that names a channel."""
NEEDED_CODEC: Final = "msgpack"
"""The codec that has bytes."""


class ByteChannels:
    """What `machine` knows of channels, done on `connection`; `main` is the stream that this side opens them on."""

    def __init__(self, machine: Machine, connection: Connection, main: Channel, codec: Codec) -> None:
        self._machine = machine
        self._states = machine.channels
        self._connection = connection
        self._main = main
        self._codec = codec
        self._loop = asyncio.get_running_loop()
        self._path = Path()
        self._carried: dict[str, SharedStream | OwnStream] = {}
        self._opening: dict[str, asyncio.Future[None]] = {}

    # --- from this side -----------------------------------------------------------------------------------------------

    async def open(
        self, service: str, *, peer: str | None, target: str | None, forwarded_for: str | None, timeout_s: float
    ) -> ByteChannel:
        """See `Session.open_channel`."""
        said = {"peer": peer, "target": target, "forwarded_for": forwarded_for}
        fields = {name: value for name, value in said.items() if value is not None}
        id, envelope = self._machine.request_channel(self._main.number, service, **fields)
        carried = self._carry(id, self._main)
        opened = self._opening[id] = self._loop.create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._main.room()
                self._main.say(envelope)
                await opened
                if isinstance(carried, OwnStream):
                    carried.joined(await self._own_stream(id))
        except TimeoutError:
            carried.reset("deadline")
            raise CallError("TIMEOUT", f"the channel to {service} was not opened in time") from None
        except BaseException:
            carried.reset()
            raise
        finally:
            self._opening.pop(id, None)
        return ByteChannel(carried, service)

    async def _own_stream(self, id: str) -> Stream:
        try:
            stream = await self._connection.open_stream()
            try:
                await stream.write(frame(self._codec.encode({"type": "channel.stream", "id": id, "payload": {}})))
            except BaseException:
                stream.reset()
                raise
        except StreamsExhausted as exc:
            raise CallError("RESOURCE_EXHAUSTED", f"the channel got no stream: {exc}") from exc
        except (ConnectionClosed, StreamBroken, StreamClosed) as exc:
            raise CallError("UNAVAILABLE", f"the channel got no stream: {exc}") from exc
        return stream

    # --- from the other side ------------------------------------------------------------------------------------------

    def accept(self, frames: Channel, request: ChannelRequested) -> ByteChannel:
        """The channel that was asked for. Broken already if it is not wanted any more."""
        envelope = self._states.accept(request.id)
        carried = self._carry(request.id, frames)
        if envelope is None:
            self._carried.pop(request.id)
            carried.lost("the other side gave up the channel", is_finished=False, with_session=False)
        else:
            frames.post(envelope)
            if isinstance(carried, OwnStream):
                self._loop.call_later(STREAM_TIMEOUT_S, self._expired, carried)
        return ByteChannel(carried, request.service)

    def refuse(self, frames: Channel, request: ChannelRequested, error: CallError) -> None:
        """It is not to be; nothing if it is not wanted any more."""
        frames.post(self._states.refuse(request.id, error))

    async def join(self, stream: Stream) -> Stream | None:
        """Look what a stream of the other side's begins with: None when it was a channel's, which has it now, and else
        the stream, as if nothing had been read."""
        early = bytearray()
        try:
            while len(early) < (wanted := _wanted(early)):
                data = await stream.read()
                if not data:
                    break
                early += data
        except (StreamBroken, StreamClosed):
            stream.reset()
            return None
        except asyncio.CancelledError:
            stream.reset()
            raise
        joined = self._joined(bytes(early[LENGTH_BYTES:wanted])) if len(early) >= wanted > LENGTH_BYTES else None
        if joined is None or not (joined.is_due or joined.is_late):
            return ReplayedStream(stream, bytes(early))
        carried = self._carried.get(joined.id)
        if isinstance(carried, OwnStream) and joined.is_due:
            carried.joined(ReplayedStream(stream, bytes(early[wanted:])))
        else:
            stream.reset()
        return None

    def _joined(self, body: bytes) -> ChannelJoined | None:
        try:
            envelope = self._codec.decode(body)
        except FrameError:
            return None
        if type(envelope) is not dict or envelope.get("type") != "channel.stream":
            return None
        happened = self._machine.receive(-1, envelope, size=len(body))
        return happened if isinstance(happened, ChannelJoined) else None

    def _expired(self, carried: OwnStream) -> None:
        if not carried.has_stream:
            words = "the stream of the channel did not come"
            self._main.post(self._states.close(carried.id, words))
            carried.lost(words, is_finished=False, with_session=False)

    # --- what happens -------------------------------------------------------------------------------------------------

    def handle(self, frames: Channel, happened: Event) -> None:
        """An event of a channel that exists."""
        if isinstance(happened, ChannelOpened):
            opened = self._opening.get(happened.id)
            if opened is not None and not opened.done():
                opened.set_result(None)
        elif isinstance(happened, ChannelClosed):
            if happened.reply is not None:
                frames.post(happened.reply)
            self._closed(happened)
        elif isinstance(happened, ChannelData | ChannelEnded | ChannelCredited):
            carried = self._carried.get(happened.id)
            if isinstance(carried, SharedStream):
                carried.happened(happened)

    def _closed(self, closed: ChannelClosed) -> None:
        carried = self._carried.pop(closed.id, None)
        if carried is not None:
            carried.lost(str(closed.error), is_finished=closed.is_finished, with_session=closed.is_lost)
        opening = self._opening.get(closed.id)
        if opening is not None and not opening.done():
            opening.set_exception(closed.error)

    def _carry(self, id: str, frames: Channel) -> SharedStream | OwnStream:
        carried: SharedStream | OwnStream
        if self._states.has_streams:
            carried = OwnStream(id, self._states, frames.post)
        else:
            carried = SharedStream(id, self._states, frames, self._path)
        carried.on_over = lambda: self._carried.pop(id, None)
        self._carried[id] = carried
        return carried


def _wanted(early: bytearray) -> int:
    """How many bytes to look at: the length, and then the frame if it can be one that names a channel."""
    size = int.from_bytes(early[:LENGTH_BYTES], "big") if len(early) >= LENGTH_BYTES else 0
    return LENGTH_BYTES + (size if size <= MAX_JOIN_BYTES else 0)
