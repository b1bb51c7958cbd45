"""The byte channels of one session, for both ends and every carrier: envelopes in, events and envelopes out, no I/O.

Either side opens channels. One of the other side's is accepted or refused by somebody who may take his time; then
bytes go both ways until each side has ended its direction, or one of them has closed the whole. A channel is bound to
the stream of envelopes that it was opened on and ends with it.

=================  ==========================  ==============================================================
envelope           for                         effect
=================  ==========================  ==============================================================
channel.open       a new channel               `ChannelRequested`, or a refusal that goes straight back
channel.opened     one of this side's          `ChannelOpened`
call.error         one of this side's          `ChannelClosed`: it was refused
channel.data       an open one                 `ChannelData`, or `ChannelClosed` if there was no credit for it
channel.credit     an open one                 `ChannelCredited`: so many more bytes may be sent
channel.eof        an open one                 `ChannelEnded`: no more data will come
channel.close      any                         `ChannelClosed`
channel.stream     one of the other side's     `ChannelJoined`: here is the stream that it was to have
=================  ==========================  ==============================================================

Over one stream, data are envelopes, paced by credit in bytes, which is granted as they are consumed. Where the carrier
has many, a channel has a stream of its own, which brings data, ends and pacing with it; ``channel.stream`` is the first
thing on it, and three of the envelopes above mean nothing.

Whatever else comes is counted in `ignored` and has no effect, above all what was on its way when a channel was closed.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from alknet.call.envelopes import (
    MAX_CHANNEL_CREDIT,
    MAX_REASON_CHARS,
    BadField,
    ChannelClosed,
    ChannelCredited,
    ChannelData,
    ChannelEnded,
    ChannelJoined,
    ChannelOpened,
    Envelope,
    Event,
    error_payload,
    read_channel_request,
    read_error,
    refusal,
)
from alknet.call.errors import CallError

__all__ = ["MAX_CHANNELS", "WINDOW_BYTES", "ChannelState", "ChannelStates", "State"]

MAX_CHANNELS: Final = 256
"""Byte channels of one connection, both directions and those that are still being opened together."""
WINDOW_BYTES: Final = 1024 * 1024
"""What may be unread of one channel; the other side stops then."""
GRANT_BYTES: Final = 64 * 1024
"""Credit is given back in pieces of so much: so that it costs few envelopes, and still tells the other side in time how
fast its bytes are consumed."""
MAX_GIVEN_UP: Final = MAX_CHANNELS
"""Channels whose stream may still come although they are over; of older ones it counts as the other side's fault."""


class State(Enum):
    """Of one channel. A closed one is forgotten, as soon as nothing of it runs any more."""

    OPENING = auto()
    OPEN = auto()
    HALF_SENT = auto()
    """This side has ended its direction."""
    HALF_RECEIVED = auto()
    """The other side has."""
    ENDED = auto()
    """Both have: nothing but the closing is left."""
    CLOSED = auto()


class _Step(Enum):
    ACCEPTED = auto()
    EOF_SENT = auto()
    EOF_RECEIVED = auto()


_NEXT: Final = {
    (State.OPENING, _Step.ACCEPTED): State.OPEN,
    (State.OPEN, _Step.EOF_SENT): State.HALF_SENT,
    (State.OPEN, _Step.EOF_RECEIVED): State.HALF_RECEIVED,
    (State.HALF_SENT, _Step.EOF_RECEIVED): State.ENDED,
    (State.HALF_RECEIVED, _Step.EOF_SENT): State.ENDED,
}
_SENDING: Final = frozenset({State.OPEN, State.HALF_RECEIVED})
_RECEIVING: Final = frozenset({State.OPEN, State.HALF_SENT})


@dataclass(slots=True)
class ChannelState:
    """One channel."""

    stream: int
    is_ours: bool
    state: State = State.OPENING
    credit: int = 0
    """Bytes that this side may send."""
    granted: int = 0
    """Bytes that the other side may send."""
    consumed: int = 0
    """Bytes that were read and not granted again yet."""
    is_served: bool = False
    """Somebody here runs for it, and it keeps its place until he has finished."""
    is_joined: bool = False
    """Its own stream has come."""

    def advance(self, step: _Step) -> bool:
        """Whether it was the time for `step`."""
        after = _NEXT.get((self.state, step))
        if after is not None:
            self.state = after
        return after is not None


class ChannelStates:
    """One end. `has_streams`: channels have a stream of their own. `unavailable` says why there can be none at all."""

    def __init__(
        self, ignored: Counter[str], *, limit: int = MAX_CHANNELS, has_streams: bool = False, unavailable: str = ""
    ) -> None:
        self.ignored = ignored
        self.channels: dict[str, ChannelState] = {}
        self.has_streams = has_streams
        self.unavailable = unavailable
        self.limit = limit
        self.were_used = False
        """There has been a channel."""
        self._given_up: deque[str] = deque(maxlen=MAX_GIVEN_UP)
        self.handlers: dict[str, Callable[[int, str, Envelope, int], Event | None]] = {
            "channel.opened": self._opened,
            "channel.close": self._close_received,
        }
        if has_streams:
            self.handlers["channel.stream"] = self._joined
        else:
            self.handlers |= {
                "channel.data": self._data,
                "channel.credit": self._credited,
                "channel.eof": self._eof_received,
            }

    # --- what comes in ----------------------------------------------------------------------------------------------

    def requested(self, stream: int, id: str, payload: Envelope) -> Event:
        """``channel.open`` with an id that is not in use."""
        if self.unavailable:
            return refusal(id, "INVALID_INPUT", self.unavailable)
        if len(self.channels) >= self.limit:
            return refusal(id, "RESOURCE_EXHAUSTED", self._too_many)
        try:
            request = read_channel_request(id, stream, payload, has_credit=not self.has_streams)
        except BadField as exc:
            return refusal(id, "INVALID_INPUT", f"channel.open: {exc}")
        self.channels[id] = ChannelState(stream, is_ours=False, credit=request.credit, is_served=True)
        self.were_used = True
        return request

    def failed(self, id: str, payload: Envelope) -> Event | None:
        """``call.error`` for what is no call."""
        channel = self.channels.get(id)
        if channel is None or not channel.is_ours or channel.state is not State.OPENING:
            return self._ignore("unknown id")
        self._close(id, channel)
        return ChannelClosed(id, read_error(payload))

    def stream_ended(self, stream: int) -> list[Event]:
        """Nothing more can be sent or received on `stream`."""
        events: list[Event] = []
        for id, channel in list(self.channels.items()):
            if channel.stream == stream and channel.state is not State.CLOSED:
                closed = self._closed_by(id, channel, "the connection was lost")
                closed.is_lost = True
                events.append(closed)
        return events

    def _opened(self, stream: int, id: str, payload: Envelope, size: int) -> Event | None:
        channel, credit = self.channels.get(id), payload.get("credit")
        if channel is None or not channel.is_ours:
            return self._ignore("unknown id")
        if not self.has_streams and (type(credit) is not int or credit < 1):
            return self._broken(id, channel, "channel.opened without credit")
        if not channel.advance(_Step.ACCEPTED):
            return self._ignore("out of order")
        channel.credit = 0 if type(credit) is not int else min(credit, MAX_CHANNEL_CREDIT)
        return ChannelOpened(id)

    def _joined(self, stream: int, id: str, payload: Envelope, size: int) -> Event | None:
        channel = self.channels.get(id)
        if channel is None or channel.is_ours or channel.state is not State.OPEN or channel.is_joined:
            return ChannelJoined(id, is_due=False, is_late=id in self._given_up)
        channel.is_joined = True
        return ChannelJoined(id, is_due=True)

    def _data(self, stream: int, id: str, payload: Envelope, size: int) -> Event | None:
        channel, data = self.channels.get(id), payload.get("data")
        if channel is None or channel.state is State.CLOSED:
            return self._ignore("unknown id")
        if channel.state not in _RECEIVING:
            return self._broken(id, channel, "data out of order")
        if type(data) is not bytes or not data:
            return self._broken(id, channel, "data that are no bytes")
        if len(data) > channel.granted:
            return self._broken(id, channel, "more bytes than credit")
        channel.granted -= len(data)
        return ChannelData(id, data)

    def _credited(self, stream: int, id: str, payload: Envelope, size: int) -> Event | None:
        channel, n = self.channels.get(id), payload.get("n")
        if channel is None or channel.state is State.CLOSED:
            return self._ignore("unknown id")
        if channel.state is State.OPENING or type(n) is not int or n < 1:
            return self._ignore("no credit")
        channel.credit = min(channel.credit + n, MAX_CHANNEL_CREDIT)
        return ChannelCredited(id, n)

    def _eof_received(self, stream: int, id: str, payload: Envelope, size: int) -> Event | None:
        channel = self.channels.get(id)
        if channel is None or channel.state is State.CLOSED:
            return self._ignore("unknown id")
        return ChannelEnded(id) if channel.advance(_Step.EOF_RECEIVED) else self._ignore("out of order")

    def _close_received(self, stream: int, id: str, payload: Envelope, size: int) -> Event | None:
        channel, reason = self.channels.get(id), payload.get("reason")
        if channel is None or channel.state is State.CLOSED:
            return self._ignore("unknown id")
        words = f": {reason[:MAX_REASON_CHARS]}" if type(reason) is str and reason else ""
        return self._closed_by(id, channel, f"the other side closed the channel{words}")

    # --- what goes out ----------------------------------------------------------------------------------------------

    def request(self, stream: int, id: str, service: str, **fields: Any) -> Envelope:
        """Ask for a channel; `fields` are further ones of the payload. Raises `CallError` where there can be none."""
        if self.unavailable:
            raise CallError("UNAVAILABLE", self.unavailable, retryable=False)
        if len(self.channels) >= self.limit:
            raise CallError("RESOURCE_EXHAUSTED", self._too_many)
        channel = self.channels[id] = ChannelState(stream, is_ours=True)
        self.were_used = True
        return _envelope("open", id, service=service, **fields, **self._first_grant(channel))

    def accept(self, id: str) -> Envelope | None:
        """A channel of the other side's is open; None when it is not wanted any more."""
        channel = self.channels.get(id)
        if channel is None or not channel.advance(_Step.ACCEPTED):
            return None
        return _envelope("opened", id, **self._first_grant(channel))

    def refuse(self, id: str, error: CallError) -> Envelope | None:
        """One of the other side's is not opened; None when it is not wanted any more."""
        channel = self.channels.get(id)
        if channel is None or channel.state is not State.OPENING:
            return None
        self._close(id, channel)
        return {"type": "call.error", "id": id, "payload": error_payload(error)}

    def finished(self, id: str) -> None:
        """Nobody here runs for a channel of the other side's any more: its place is free once it is closed."""
        channel = self.channels.get(id)
        if channel is not None:
            channel.is_served = False
            if channel.state is State.CLOSED:
                del self.channels[id]

    def credit_of(self, id: str) -> int:
        """How many bytes may be sent now."""
        channel = self.channels.get(id)
        return channel.credit if channel is not None and channel.state in _SENDING else 0

    def data(self, id: str, data: bytes) -> Envelope:
        """Bytes, for which there must be credit."""
        channel = self.channels[id]
        if channel.state not in _SENDING or len(data) > channel.credit:
            raise RuntimeError(f"{len(data)} bytes of {id} were sent without credit")
        channel.credit -= len(data)
        return {"type": "channel.data", "id": id, "payload": {"data": data}}

    def consumed(self, id: str, count: int) -> Envelope | None:
        """`count` bytes were read: the credit for more, once that is worth an envelope."""
        channel = self.channels.get(id)
        if channel is None or channel.state not in _RECEIVING:
            return None
        channel.consumed += count
        if channel.consumed < GRANT_BYTES:
            return None
        n, channel.consumed = channel.consumed, 0
        channel.granted += n
        return _envelope("credit", id, n=n)

    def eof(self, id: str) -> Envelope | None:
        """This side sends no more; None if that is known already."""
        channel = self.channels.get(id)
        return _envelope("eof", id) if channel is not None and channel.advance(_Step.EOF_SENT) else None

    def close(self, id: str, reason: str = "") -> Envelope | None:
        """End a channel in both directions; None when it is over already. What the other side had not ended before is
        cut for it."""
        channel = self.channels.get(id)
        if channel is None or channel.state is State.CLOSED:
            return None
        self._close(id, channel)
        return _envelope("close", id, **({"reason": reason[:MAX_REASON_CHARS]} if reason else {}))

    # --- inside -----------------------------------------------------------------------------------------------------

    @property
    def _too_many(self) -> str:
        return f"more than {self.limit} byte channels on one connection" if self.limit else "byte channels need a login"

    def _first_grant(self, channel: ChannelState) -> dict[str, int]:
        if self.has_streams:
            return {}
        channel.granted = WINDOW_BYTES
        return {"credit": WINDOW_BYTES}

    def _closed_by(self, id: str, channel: ChannelState, words: str) -> ChannelClosed:
        is_finished = channel.state in (State.HALF_RECEIVED, State.ENDED)
        self._close(id, channel)
        return ChannelClosed(id, CallError("UNAVAILABLE", words), is_finished)

    def _broken(self, id: str, channel: ChannelState, words: str) -> ChannelClosed:
        """The other side broke the protocol on this channel: it is closed, and the session goes on."""
        self.ignored[words] += 1
        self._close(id, channel)
        error = CallError("INTERNAL", f"the other side broke the protocol of byte channels: {words}")
        return ChannelClosed(id, error, reply=_envelope("close", id, reason=words))

    def _close(self, id: str, channel: ChannelState) -> None:
        if self.has_streams and not channel.is_ours and channel.state is State.OPEN and not channel.is_joined:
            self._given_up.append(id)
        channel.state = State.CLOSED
        if not channel.is_served:
            del self.channels[id]

    def _ignore(self, what: str) -> Event | None:
        self.ignored[what] += 1
        return None


def _envelope(kind: str, id: str, **payload: Any) -> Envelope:
    return {"type": f"channel.{kind}", "id": id, "payload": payload}
