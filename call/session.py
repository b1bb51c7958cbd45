"""One session: calls in both directions over the streams of one connection, whoever dialled.

The shell around :class:`alknet.call.machine.Machine`: it carries envelopes between channels and machine, runs a task
for each inbound call and wakes whoever waits for an outbound one.
"""

import asyncio
import secrets
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Final

from alknet.alpn.streams import Connection
from alknet.call.byte_channel import ByteChannel
from alknet.call.byte_channels import NEEDED_CODEC, OPEN_TIMEOUT_S, ByteChannels
from alknet.call.channel import Channel
from alknet.call.codecs import Codec
from alknet.call.envelopes import (
    Aborted,
    Answered,
    ChannelClosed,
    ChannelJoined,
    ChannelRequested,
    Credited,
    Ended,
    GoAway,
    Refusal,
    Requested,
)
from alknet.call.errors import CallError, FrameError, never_sent
from alknet.call.heartbeat import wait_silent
from alknet.call.hello import SERVE
from alknet.call.machine import DEFAULT_CREDIT, Limits, Machine
from alknet.call.serving import Nobody, Server, Serving
from alknet.call.session_streams import SessionStreams, Sizes
from alknet.call.subscription import Subscription
from alknet.tasks import Tasks

__all__ = ["Session", "Sizes"]

MAX_OWN_STREAMS: Final = 64
"""Subscriptions that have a stream of their own where the carrier has many; further ones share the first."""
NO_EXTRA: Final[Mapping[str, str]] = {}
BATCH_AT_ONCE: Final = 256
"""Calls of one batch that are on their way together; well below what the other side takes at the same time."""
LINGER_S: Final = 5.0
"""What the other side may take to read what was sent on byte channels before this side closed the session."""
DEFAULT_TIMEOUT_S: Final = 30.0
GRACE_S: Final = 5.0
"""What a call without a timeout of its own may take longer than the other side's default, to hear of that from it."""


class Session:
    """Both ends use the same engine. Open one with :meth:`start`, after the hello."""

    def __init__(
        self,
        connection: Connection,
        channel: Channel,
        codec: Codec,
        *,
        sizes: Sizes,
        features: tuple[str, ...] = (),
        limits: Limits | None = None,
        server: Server | None = None,
        peer_timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.connection = connection
        self.sizes = sizes
        self.features = frozenset(features)
        """What the other side's hello said that it can do."""
        self.end_reason: str | None = None
        self._streams = SessionStreams(
            connection,
            channel,
            codec,
            sizes,
            on_bodies=self._received,
            on_end=self._stream_ended,
            on_broken=self._broken,
        )
        self._machine = Machine(
            prefix=secrets.token_hex(4) + ".",
            peer_features=features,
            limits=limits,
            has_streams=self._streams.has_many,
            channels_unavailable="" if codec.name == NEEDED_CODEC else f"byte channels need the codec {NEEDED_CODEC}",
        )
        self._main = channel
        self._codec = codec
        self.serving = Serving(self._machine, server or Nobody())
        self._peer_timeout_s = peer_timeout_s
        self._own_streams: dict[str, Channel] = {}
        self._calls: dict[str, asyncio.Future[Any]] = {}
        self._subscriptions: dict[str, Any] = {}
        self._tasks = Tasks("call")
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._byte_channels = ByteChannels(self._machine, connection, channel, codec)

    def start(self) -> None:
        """Take over the channel, and take the streams that the other side opens."""
        self._streams.adopt(self._main)
        if self._streams.has_many and not self._ended.is_set():
            self._tasks.start(self._streams.accept(self._tasks, self._byte_channels.join), name="accept")

    # --- calling ----------------------------------------------------------------------------------------------------

    async def call(self, name: str, value: Any = None, *, timeout_s: float | None = None, **extra: Any) -> Any:
        """Call an operation of the other side; its output, or `CallError`. Cancelling it cancels it there.

        `extra` are further fields of the request: peer, auth_token, forwarded_for, traceparent.
        """
        if timeout_s is not None:
            extra["timeout_ms"] = max(1, round(timeout_s * 1000))
        ends = self._loop.time() + (self._peer_timeout_s + GRACE_S if timeout_s is None else timeout_s)
        if self._main.is_full:
            await self._room_for(name, ends)
        id = self._send_request(self._main, name, value, **extra)
        future = self._calls[id] = self._loop.create_future()
        timer = self._loop.call_at(ends, self._expired, id, name)
        try:
            return await future
        except asyncio.CancelledError:
            self.drop(id)
            raise
        finally:
            timer.cancel()
            self._calls.pop(id, None)

    async def batch(
        self, calls: Sequence[tuple[str, Any] | tuple[str, Any, dict[str, str]]], *, timeout_s: float | None = None
    ) -> list[Any | CallError]:
        """Several calls, up to `BATCH_AT_ONCE` at a time: their outputs in order, a `CallError` in place of each that
        failed. Each is its name, its input and, where there are any, further fields of the request; `timeout_s` is for
        each of them, from when it is sent."""
        turns = asyncio.Semaphore(BATCH_AT_ONCE)

        async def one(name: str, value: Any, extra: Mapping[str, str] = NO_EXTRA) -> Any:
            async with turns:
                return await self.call(name, value, timeout_s=timeout_s, **extra)

        answers = await asyncio.gather(*(one(*call) for call in calls), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, CallError):
                raise answer
        return list(answers)

    def subscribe(
        self,
        name: str,
        value: Any = None,
        *,
        credit: int = DEFAULT_CREDIT,
        timeout_s: float | None = None,
        **extra: Any,
    ) -> Subscription:
        """Subscribe to an operation of the other side; it begins with the first item that is waited for.

        `extra` are further fields of the request, as for `call`.
        """
        is_paced = self._machine.peer_has_credit
        return Subscription(self, name, value, credit=credit, timeout_s=timeout_s, extra=extra, is_paced=is_paced)

    async def begin_subscription(
        self, subscription: Subscription, name: str, value: Any, credit: int, timeout_s: float | None, **extra: Any
    ) -> str:
        """Send the request of a subscription; its id. On a stream of its own where there can be one."""
        if timeout_s is not None:
            extra["timeout_ms"] = max(1, round(timeout_s * 1000))
        has_room = len(self._own_streams) < MAX_OWN_STREAMS
        channel = (await self._streams.open() if has_room else None) or self._main
        await channel.room()
        try:
            id = self._send_request(channel, name, value, credit=credit, **extra)
        except CallError:
            if channel is not self._main:
                channel.close()
            raise
        if channel is not self._main:
            self._own_streams[id] = channel
        # Weakly, so that a subscription that nobody holds any more is noticed.
        self._subscriptions[id] = weakref.ref(subscription)
        return id

    async def open_channel(
        self,
        service: str,
        *,
        peer: str | None = None,
        target: str | None = None,
        forwarded_for: str | None = None,
        timeout_s: float = OPEN_TIMEOUT_S,
    ) -> ByteChannel:
        """A byte channel to a service of the other side (``ssh``), at `target`, or of its peer `peer`; a `Stream`.

        Raises `CallError` as a call does. Cancelling it gives it up there. With the session it breaks.
        """
        if self._ended.is_set():
            raise self._lost()
        return await self._byte_channels.open(
            service, peer=peer, target=target, forwarded_for=forwarded_for, timeout_s=timeout_s
        )

    def grant(self, id: str, n: int) -> None:
        """Let the other side send `n` more items."""
        outbound = self._machine.outbound.get(id)
        envelope = self._machine.grant(id, n)
        if outbound is not None and (channel := self._streams.by_number.get(outbound.stream)) is not None:
            channel.post(envelope)

    def drop(self, id: str, reason: str = "") -> None:
        """Give up an outbound call or subscription, and tell the other side; nothing if it has ended."""
        outbound = self._machine.outbound.get(id)
        envelope = self._machine.abort(id, reason)
        if outbound is not None and (channel := self._streams.by_number.get(outbound.stream)) is not None:
            channel.post(envelope)
        self._over(id)

    def drop_soon(self, id: str) -> None:
        """`drop`, from wherever an object happens to be collected."""
        self._loop.call_soon_threadsafe(self.drop, id)

    async def _room_for(self, name: str, ends: float) -> None:
        try:
            async with asyncio.timeout_at(ends):
                await self._main.room()
        except TimeoutError:
            raise CallError("TIMEOUT", f"{name} was not sent in time: the other side does not read") from None

    def _send_request(self, channel: Channel, name: str, value: Any, **extra: Any) -> str:
        if self._ended.is_set() or not channel.is_open:
            raise never_sent(str(self._lost()))
        id, envelope = self._machine.request(channel.number, name, value, **extra)
        try:
            channel.say(envelope)
        except CallError:
            self._machine.forget(id)
            raise
        return id

    def _lost(self) -> CallError:
        return CallError("UNAVAILABLE", f"the connection has ended: {self.end_reason or 'it was lost'}")

    def _expired(self, id: str, name: str) -> None:
        future = self._calls.get(id)
        if future is not None and not future.done():
            future.set_exception(CallError("TIMEOUT", f"{name} was not answered in time"))
            self.drop(id, "deadline")

    # --- what arrives -----------------------------------------------------------------------------------------------

    def _received(self, channel: Channel, bodies: list[bytes]) -> None:
        for body in bodies:
            try:
                envelope = self._codec.decode(body)
            except FrameError as exc:
                self._streams.refuse(channel, exc)
                return
            happened = self._machine.receive(channel.number, envelope, size=len(body))
            if happened is not None:
                self._handle(channel, happened)
            if not channel.is_open:
                return
        self._streams.note_pending(channel)

    def _stream_ended(self, channel: Channel) -> None:
        if channel is self._main:
            self._end(str(channel.error) if channel.error is not None else "the connection was lost")
            return
        for happened in self._machine.stream_ended(channel.number):
            self._handle(channel, happened)

    def _broken(self) -> None:
        """The other side does not keep to the protocol."""
        self._main.post(self._machine.goaway(0.0, str(self._main.error)))
        self._main.close()

    def _handle(self, channel: Channel, happened: Any) -> None:
        kind = type(happened)
        if kind is Requested:
            self.serving.requested(channel, happened)
        elif kind is Answered:
            self._answered(happened)
        elif kind is Refusal:
            channel.post(happened.envelope)
        elif kind is Ended:
            if happened.reply is not None:
                channel.post(happened.reply)
            self._outbound_ended(happened)
        elif kind is Aborted:
            self.serving.cancel(happened.id, "lost" if happened.is_lost else "aborted")
        elif kind is Credited:
            self.serving.credited(happened.id)
        elif kind is GoAway and happened.reason:
            self.end_reason = self.end_reason or happened.reason
        elif kind is ChannelRequested:
            self.serving.channel_requested(self._byte_channels, channel, happened)
        elif kind is ChannelJoined:
            # No first frame of a stream of its own, or of one that no channel waits for.
            self._streams.refuse(channel, FrameError("channel.stream where there is no channel that waits for it"))
        else:
            self._byte_channels.handle(channel, happened)
            if kind is ChannelClosed:
                self.serving.channel_closed(happened.id)

    def _answered(self, answer: Answered) -> None:
        future = self._calls.get(answer.id)
        if future is not None:
            if not future.done():
                future.set_result(answer.output)
            return
        held = self._subscriptions.get(answer.id)
        subscription = None if held is None else held()
        if subscription is not None:
            subscription.received(answer.output, answer.size)

    def _outbound_ended(self, ended: Ended) -> None:
        future = self._calls.get(ended.id)
        if future is not None and not future.done():
            future.set_exception(ended.error or CallError("INTERNAL", "it ended without an answer"))
        held = self._subscriptions.get(ended.id)
        subscription = None if held is None else held()
        if subscription is not None:
            subscription.ended(ended)
        self._over(ended.id)

    def _over(self, id: str) -> None:
        self._subscriptions.pop(id, None)
        channel = self._own_streams.pop(id, None)
        if channel is not None:
            channel.close()

    # --- the end ----------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return not self._ended.is_set()

    async def wait_ended(self) -> None:
        await self._ended.wait()

    @property
    def is_calling(self) -> bool:
        """Whether a call of this side's runs there, or a byte channel is open."""
        return bool(self._machine.outbound or self._machine.channels.channels)

    def watch(self, patience_s: float) -> None:
        """From now on, end the session when the other side is silent for so long."""
        self.connection.watch(patience_s)
        if SERVE in self.features and self.connection.transport != "quic":  # which asks by itself
            self._tasks.start(self._give_up_silent(patience_s), name="heartbeat")

    async def _give_up_silent(self, patience_s: float) -> None:
        await wait_silent(self._main, patience_s=patience_s)
        self._end(f"nothing was heard for {patience_s:g} s")
        self.connection.close()

    def go_away(self, deadline_s: float, reason: str = "") -> None:
        """Refuse new calls from now on and ask the other side to finish."""
        self._main.post(self._machine.goaway(deadline_s, reason))

    async def aclose(self, reason: str = "") -> None:
        """Say why, end what runs in both directions, and close the streams."""
        if self.is_open:
            if reason:
                self.go_away(0.0, reason)
            # The first one last: with it the others end, and with them what they were still to say.
            channels = sorted(self._streams.by_number.values(), key=lambda channel: channel is self._main)
            self.end_reason = self.end_reason or reason or "this side closed the connection"
            # Credit for a byte channel may be on its way here when what was sent on it has not been read there.
            has_credit = self._machine.channels.were_used and not self._streams.has_many
            for channel in channels:
                channel.close(linger_s=LINGER_S if has_credit else 0.0)
            self._end(self.end_reason)
            for channel in channels:
                await channel.wait_closed()
        await self.serving.aclose()
        await self._tasks.aclose()

    def _end(self, reason: str) -> None:
        if self._ended.is_set():
            return
        self.end_reason = self.end_reason or reason
        self._ended.set()
        for channel in (self._main, *self._streams.by_number.values()):
            for happened in self._machine.stream_ended(channel.number):
                if isinstance(happened, Ended | ChannelClosed) and happened.error is not None:
                    happened.error = self._lost()
                self._handle(channel, happened)
        self._streams.abort()
        self.serving.end()
        self._tasks.cancel()
        self._streams.log_oddities(self._machine.ignored, self.end_reason)
