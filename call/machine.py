"""The state of one session, for both ends and every carrier: envelopes in, events and envelopes out, no I/O.

A session is a set of calls in both directions. This side's own are `outbound`, the other side's are `inbound`; each is
bound to the stream that its request travelled on and ends with it. Correlation is by id, never by stream.

=================  ==========================  =============================================================
envelope           for                         effect
=================  ==========================  =============================================================
call.requested     a new inbound call          `Requested`, or a refusal that goes straight back
call.credit        an inbound subscription     `Credited`: so many more items may be sent
call.aborted       an inbound call             `Aborted`: it is no longer wanted
call.responded     an outbound call            `Answered`; for a subscription one item
call.completed     an outbound subscription    `Ended` without an error
call.error         an outbound call            `Ended` with the error
call.aborted       an outbound call            `Ended`: the other side gave it up
session.goaway     the session                 `GoAway`: no new calls, please finish
session.ping       the session                 ``session.pong`` with the same id goes straight back
session.pong       the session                 none but to be heard: whoever asked is answered
=================  ==========================  =============================================================

Byte channels share the ids and the streams with the calls; what their envelopes do: :mod:`alknet.call.channel_states`.

Whatever else comes is counted in `ignored` and has no effect: unknown types, unknown ids, what is late.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from alknet.call.channel_states import MAX_CHANNELS, ChannelStates
from alknet.call.envelopes import (
    MAX_CREDIT,
    MAX_ID_CHARS,
    MAX_REASON_CHARS,
    Aborted,
    Answered,
    BadField,
    Credited,
    Ended,
    Envelope,
    Event,
    GoAway,
    Refusal,
    aborted,
    error_payload,
    read_error,
    read_request,
    refusal,
)
from alknet.call.errors import CallError, never_sent

__all__ = ["DEFAULT_CREDIT", "Inbound", "Limits", "Machine", "Outbound"]

DEFAULT_CREDIT: Final = 32
"""Items of a subscription that are on their way at once."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What this side takes of the other."""

    in_flight: int = 1024
    """Inbound calls and subscriptions at the same time."""
    in_flight_bytes: int = 32 * 1024 * 1024
    """What the requests of these may measure together."""
    channels: int = MAX_CHANNELS
    """Byte channels at the same time, those of this side's among them."""


@dataclass(slots=True)
class Inbound:
    """A call of the other side, from its request until `finished`."""

    stream: int
    size: int
    credit: int | None
    """Items that may still be sent; None for what is not paced by credit."""
    is_wanted: bool = True


@dataclass(slots=True)
class Outbound:
    """A call of this side."""

    stream: int
    is_subscription: bool
    credit: int | None
    """Items that the other side may still send; None for a call, and where the other side knows no credit."""


class Machine:
    """One end. `prefix` makes this side's ids differ from the other's; `peer_features` is what the hello said.

    `has_streams`: the carrier has many. `channels_unavailable` says why there can be no byte channels at all."""

    def __init__(
        self,
        *,
        prefix: str,
        peer_features: tuple[str, ...] = (),
        limits: Limits | None = None,
        has_streams: bool = False,
        channels_unavailable: str = "",
    ) -> None:
        self.limits = limits or Limits()
        self.inbound: dict[str, Inbound] = {}
        self.outbound: dict[str, Outbound] = {}
        self.ignored: Counter[str] = Counter()
        self.is_draining = False
        """This side has said goaway: new inbound calls are refused."""
        self.peer_is_draining = False
        self.peer_has_credit = "credit" in peer_features
        """Otherwise nothing but the stream paces subscriptions, in both directions."""
        self.channels = ChannelStates(
            self.ignored,
            limit=self.limits.channels,
            has_streams=has_streams,
            unavailable=channels_unavailable,
        )
        self._peer_has_channels = "channels" in peer_features
        self._prefix = prefix
        self._count = 0
        self._in_flight_bytes = 0
        self._handlers = {
            "call.requested": self._requested,
            "call.responded": self._responded,
            "call.completed": self._completed,
            "call.error": self._failed,
            "call.aborted": self._aborted,
            "call.credit": self._credited,
            "session.goaway": self._going_away,
            "session.ping": self._pinged,
            "session.pong": self._answered_ping,
            "channel.open": self._channel_requested,
            **self.channels.handlers,
        }

    # --- what comes in ----------------------------------------------------------------------------------------------

    def receive(self, stream: int, envelope: Any, *, size: int = 0) -> Event | None:
        """Take one decoded envelope of `size` bytes. Never raises: what makes no sense is ignored and counted, and a
        request that makes none is refused."""
        if type(envelope) is not dict:
            self.ignored["no envelope"] += 1
            return None
        kind, id, payload = envelope.get("type"), envelope.get("id"), envelope.get("payload")
        handler = self._handlers.get(kind) if type(kind) is str else None
        if handler is None:
            self.ignored["unknown type"] += 1
            return None
        if type(id) is not str or not 0 < len(id) <= MAX_ID_CHARS or type(payload) is not dict:
            if kind != "session.goaway" or type(payload) is not dict:
                self.ignored["no envelope"] += 1
                return None
            id = ""
        return handler(stream, id, payload, size)

    def stream_ended(self, stream: int) -> list[Event]:
        """Nothing more can be sent or received on `stream`: what was bound to it is lost."""
        events: list[Event] = []
        for id, inbound in self.inbound.items():
            if inbound.stream == stream and inbound.is_wanted:
                inbound.is_wanted = False
                events.append(Aborted(id, "the stream was lost", is_lost=True))
        for id in [id for id, outbound in self.outbound.items() if outbound.stream == stream]:
            del self.outbound[id]
            error = CallError("UNAVAILABLE", "the connection was lost before the call ended")
            events.append(Ended(id, error, is_lost=True))
        return events + self.channels.stream_ended(stream)

    def _requested(self, stream: int, id: str, payload: Envelope, size: int) -> Event:
        if self.is_draining or id in self.inbound or id in self.channels.channels:
            return self._refuse_any(id)
        if len(self.inbound) >= self.limits.in_flight:
            return refusal(id, "RESOURCE_EXHAUSTED", f"more than {self.limits.in_flight} calls at the same time")
        if self._in_flight_bytes + size > self.limits.in_flight_bytes and self.inbound:
            return refusal(
                id, "RESOURCE_EXHAUSTED", f"requests of more than {self.limits.in_flight_bytes} bytes at the same time"
            )
        try:
            request = read_request(id, stream, payload)
        except BadField as exc:
            return refusal(id, "INVALID_INPUT", f"call.requested: {exc}")
        credit = request.credit if self.peer_has_credit else None
        self.inbound[id] = Inbound(stream, size, credit)
        self._in_flight_bytes += size
        return request

    def _channel_requested(self, stream: int, id: str, payload: Envelope, size: int) -> Event:
        if self.is_draining or id in self.inbound or id in self.channels.channels:
            return self._refuse_any(id)
        return self.channels.requested(stream, id, payload)

    def _refuse_any(self, id: str) -> Refusal:
        """Why nothing new can begin under this id."""
        if id in self.inbound or id in self.channels.channels:
            return refusal(id, "INVALID_INPUT", f"the id {id!r} is in use: each request needs one of its own")
        return refusal(id, "UNAVAILABLE", "the node is shutting down")

    def _responded(self, stream: int, id: str, payload: Envelope, size: int) -> Event | None:
        outbound = self.outbound.get(id)
        if outbound is None:
            self.ignored["unknown id"] += 1
            return None
        if not outbound.is_subscription:
            del self.outbound[id]
        elif outbound.credit is not None:
            if outbound.credit <= 0:
                del self.outbound[id]
                error = CallError("INTERNAL", "the other side sent more items than it had credit for")
                return Ended(id, error, reply=aborted(id, "more items than credit"))
            outbound.credit -= 1
        return Answered(id, payload.get("output"), size)

    def _completed(self, stream: int, id: str, payload: Envelope, size: int) -> Event | None:
        outbound = self.outbound.pop(id, None)
        if outbound is None:
            self.ignored["unknown id"] += 1
            return None
        if not outbound.is_subscription:
            return Ended(id, CallError("INTERNAL", "the other side completed a call without an answer"))
        return Ended(id)

    def _failed(self, stream: int, id: str, payload: Envelope, size: int) -> Event | None:
        if self.outbound.pop(id, None) is None:
            return self.channels.failed(id, payload)
        return Ended(id, read_error(payload))

    def _aborted(self, stream: int, id: str, payload: Envelope, size: int) -> Event | None:
        reason = payload.get("reason")
        words = reason[:MAX_REASON_CHARS] if type(reason) is str and reason else "no reason given"
        inbound = self.inbound.get(id)
        if inbound is not None and inbound.is_wanted:
            inbound.is_wanted = False
            return Aborted(id, words)
        if self.outbound.pop(id, None) is not None:
            error = CallError("UNAVAILABLE", f"the other side aborted the call: {words}")
            return Ended(id, error, is_aborted=True)
        self.ignored["unknown id"] += 1
        return None

    def _credited(self, stream: int, id: str, payload: Envelope, size: int) -> Event | None:
        inbound, n = self.inbound.get(id), payload.get("n")
        if inbound is None or inbound.credit is None or type(n) is not int or n < 1:
            self.ignored["unknown id" if inbound is None else "no credit"] += 1
            return None
        inbound.credit = min(inbound.credit + n, MAX_CREDIT)
        return Credited(id)

    def _pinged(self, stream: int, id: str, payload: Envelope, size: int) -> Event:
        return Refusal({"type": "session.pong", "id": id, "payload": {}})

    def _answered_ping(self, stream: int, id: str, payload: Envelope, size: int) -> None:
        """That it came is all there is to it."""

    def _going_away(self, stream: int, id: str, payload: Envelope, size: int) -> Event:
        self.peer_is_draining = True
        reason = payload.get("reason")
        return GoAway(reason[:MAX_REASON_CHARS] if type(reason) is str else "")

    # --- what goes out ----------------------------------------------------------------------------------------------

    def request(
        self, stream: int, name: str, value: Any, *, credit: int | None = None, **extra: Any
    ) -> tuple[str, Envelope]:
        """Begin a call (or, with `credit`, a subscription). `extra` are further fields of the payload."""
        id = self._new_id()
        payload = {"operationId": "/" + name, "input": value, **extra}
        if credit is not None:
            payload["credit"] = credit
        self.outbound[id] = Outbound(stream, credit is not None, credit if self.peer_has_credit else None)
        return id, {"type": "call.requested", "id": id, "payload": payload}

    def request_channel(self, stream: int, service: str, **fields: Any) -> tuple[str, Envelope]:
        """Ask for a byte channel; `fields` are further ones of the payload. What follows is the `channels`'."""
        if not self._peer_has_channels:
            raise CallError("UNAVAILABLE", "the other side does not know byte channels", retryable=False)
        id = self._new_id()
        return id, self.channels.request(stream, id, service, **fields)

    def respond(self, id: str, output: Any) -> Envelope | None:
        """The output, or an item; None when nobody wants it any more. An item uses up credit, which must be there."""
        inbound = self.inbound.get(id)
        if inbound is None or not inbound.is_wanted:
            return None
        if inbound.credit is not None:
            if inbound.credit <= 0:
                raise RuntimeError(f"an item of {id} was sent without credit")
            inbound.credit -= 1
        return {"type": "call.responded", "id": id, "payload": {"output": output}}

    def complete(self, id: str) -> Envelope | None:
        """An inbound subscription has ended by itself."""
        return {"type": "call.completed", "id": id, "payload": {}} if self._is_wanted(id) else None

    def fail(self, id: str, error: CallError) -> Envelope | None:
        """An inbound call has failed."""
        return {"type": "call.error", "id": id, "payload": error_payload(error)} if self._is_wanted(id) else None

    def finished(self, id: str) -> None:
        """Nothing of an inbound call, or for a byte channel of the other side's, runs any more: its place is free."""
        inbound = self.inbound.pop(id, None)
        if inbound is not None:
            self._in_flight_bytes -= inbound.size
        else:
            self.channels.finished(id)

    def abort(self, id: str, reason: str = "") -> Envelope | None:
        """Give up an outbound call; None when it is over already."""
        if self.outbound.pop(id, None) is None:
            return None
        return aborted(id, reason)

    def forget(self, id: str) -> None:
        """An outbound call was never sent."""
        self.outbound.pop(id, None)

    def grant(self, id: str, n: int) -> Envelope | None:
        """Let the other side send `n` more items of an outbound subscription; None where that means nothing to it."""
        outbound = self.outbound.get(id)
        if outbound is None or outbound.credit is None:
            return None
        outbound.credit += n
        return {"type": "call.credit", "id": id, "payload": {"n": n}}

    def goaway(self, deadline_s: float, reason: str = "") -> Envelope:
        """Refuse new inbound calls from now on, and say so and why."""
        self.is_draining = True
        payload = {"deadline_ms": round(deadline_s * 1000), **({"reason": reason} if reason else {})}
        return {"type": "session.goaway", "id": "session", "payload": payload}

    def credit_of(self, id: str) -> int | None:
        """How many items of an inbound subscription may be sent; None when nothing limits them."""
        inbound = self.inbound.get(id)
        return None if inbound is None else inbound.credit

    def _new_id(self) -> str:
        if self.peer_is_draining:
            raise never_sent("the other side is shutting down and takes no new calls")
        self._count += 1
        return f"{self._prefix}{self._count}"

    def _is_wanted(self, id: str) -> bool:
        inbound = self.inbound.get(id)
        return inbound is not None and inbound.is_wanted
