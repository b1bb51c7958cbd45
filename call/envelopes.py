"""What the envelopes of a session say, as values: events for what comes in, payloads for what goes out.

Every field from outside is checked here: its type, its bounds. What a field may be is said in the words of the refusal.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from alknet.call.errors import CallError
from alknet.call.operations import MAX_NAME_CHARS

__all__ = [
    "MAX_CREDIT",
    "MAX_ID_CHARS",
    "MAX_REASON_CHARS",
    "MAX_TIMEOUT_MS",
    "Aborted",
    "Answered",
    "BadField",
    "ChannelClosed",
    "ChannelCredited",
    "ChannelData",
    "ChannelEnded",
    "ChannelJoined",
    "ChannelOpened",
    "ChannelRequested",
    "Credited",
    "Ended",
    "Envelope",
    "Event",
    "GoAway",
    "Refusal",
    "Requested",
    "aborted",
    "error_payload",
    "read_channel_request",
    "read_error",
    "read_request",
    "refusal",
]

MAX_ID_CHARS: Final = 64
MAX_CREDIT: Final = 65_536
MAX_REASON_CHARS: Final = 1000
MAX_TEXT_CHARS: Final = 256
"""A peer's name, a token, whom a call is forwarded for."""
MAX_TIMEOUT_MS: Final = 366 * 24 * 3600 * 1000
MAX_TARGET_CHARS: Final = 512
"""What a byte channel is to reach: a host and a port, a path."""
MAX_CHANNEL_CREDIT: Final = 1 << 30
"""Bytes that may be sent on a byte channel beyond what was taken; credit above counts as this."""
_CODE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}\Z")
_DENIAL: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_SERVICE: Final = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")

Envelope = dict[str, Any]


@dataclass(slots=True)
class Requested:
    """The other side calls. Answer with `respond`, `complete` or `fail`; say `finished` when nothing runs any more."""

    id: str
    stream: int
    name: str
    input: Any
    peer: str | None = None
    auth_token: str | None = field(default=None, repr=False)
    forwarded_for: str | None = None
    timeout_s: float | None = None
    credit: int | None = None
    traceparent: str | None = None


@dataclass(slots=True)
class Credited:
    """More items of an inbound subscription may be sent."""

    id: str


@dataclass(slots=True)
class Aborted:
    """The other side does not want an inbound call any more, or cannot get its answer: its stream is lost."""

    id: str
    reason: str
    is_lost: bool = False


@dataclass(slots=True)
class Answered:
    """The output of a call, or an item of a subscription."""

    id: str
    output: Any
    size: int = 0
    """Bytes of the envelope that it came in."""


@dataclass(slots=True)
class Ended:
    """An outbound call is over: completed (no error), failed, aborted by the other side, or lost with its stream."""

    id: str
    error: CallError | None = None
    is_aborted: bool = False
    is_lost: bool = False
    reply: Envelope | None = None
    """To be sent back: the other side does not know yet that it is over."""


@dataclass(slots=True)
class GoAway:
    """The other side takes no new calls and ends the session when those that run have ended, or before."""

    reason: str = ""


@dataclass(slots=True)
class Refusal:
    """To be sent back at once, on the stream that the request came on."""

    envelope: Envelope


@dataclass(slots=True)
class ChannelRequested:
    """The other side asks for a byte channel. Answer with `accept` or `refuse`; say `finished` when nothing of it runs
    any more."""

    id: str
    stream: int
    service: str
    """What it is to lead to: ``ssh``, and others."""
    target: str | None = None
    """Where that is, for a service that leads on: ``host:port``, a path."""
    peer: str | None = None
    """At which peer of this node, if not here."""
    forwarded_for: str | None = None
    credit: int = 0
    """Bytes that this side may send at first; 0 where the channel has a stream of its own."""


@dataclass(slots=True)
class ChannelOpened:
    """The other side has accepted a byte channel of this side's."""

    id: str


@dataclass(slots=True)
class ChannelJoined:
    """The stream that this came on says that it is the one of the byte channel `id`, and nothing but its bytes follows.

    `is_due`: there is such a channel, and it waits for its stream. `is_late`: there was, and this side has given it up
    meanwhile, of which the other side could not know."""

    id: str
    is_due: bool
    is_late: bool = False


@dataclass(slots=True)
class ChannelData:
    """Bytes of a byte channel, within its credit."""

    id: str
    data: bytes


@dataclass(slots=True)
class ChannelCredited:
    """The other side has consumed `n` bytes of a byte channel: so many more may be sent."""

    id: str
    n: int


@dataclass(slots=True)
class ChannelEnded:
    """The other side has sent all that it will send on a byte channel."""

    id: str


@dataclass(slots=True)
class ChannelClosed:
    """A byte channel is over: closed or refused by the other side, closed for what the other side did, or lost."""

    id: str
    error: CallError
    is_finished: bool = False
    """The other side had sent everything: what has arrived is whole, and may still be read."""
    is_lost: bool = False
    """With the stream that it was opened on."""
    reply: Envelope | None = None
    """To be sent back: the other side does not know yet that it is over."""


Event = (
    Requested
    | Credited
    | Aborted
    | Answered
    | Ended
    | GoAway
    | Refusal
    | ChannelRequested
    | ChannelOpened
    | ChannelJoined
    | ChannelData
    | ChannelCredited
    | ChannelEnded
    | ChannelClosed
)


class BadField(ValueError):
    """A field of a request is not what it must be; the message says which and what it must be."""


def read_request(id: str, stream: int, payload: Envelope) -> Requested:
    """The request in a ``call.requested``; raises `BadField`."""
    name = payload.get("operationId")
    if type(name) is not str or not 0 < len(name) <= MAX_NAME_CHARS + 1:
        raise BadField(f"operationId is not a text of at most {MAX_NAME_CHARS} characters")
    request = Requested(id, stream, name.removeprefix("/"), payload.get("input"))
    if len(payload) > 2 or "input" not in payload:
        request.peer = _optional_text(payload, "peer")
        request.auth_token = _optional_text(payload, "auth_token")
        request.forwarded_for = _optional_text(payload, "forwarded_for")
        request.timeout_s = _timeout(payload.get("timeout_ms"))
        request.credit = _credit(payload.get("credit"))
        trace = payload.get("traceparent")  # a mark for tools: a wrong one is no reason to fail (W3C Trace Context)
        request.traceparent = trace if type(trace) is str and _TRACEPARENT.match(trace) else None
    return request


def read_channel_request(id: str, stream: int, payload: Envelope, *, has_credit: bool) -> ChannelRequested:
    """The request in a ``channel.open``, which must have `credit` where that paces the channel; raises `BadField`."""
    service, credit = payload.get("service"), payload.get("credit")
    if type(service) is not str or not _SERVICE.match(service):
        raise BadField("service is not a name of at most 32 lower-case letters, digits and hyphens")
    if has_credit and (type(credit) is not int or credit < 1):
        raise BadField("credit is not a whole number of bytes above 0")
    return ChannelRequested(
        id,
        stream,
        service,
        _optional_text(payload, "target", MAX_TARGET_CHARS),
        _optional_text(payload, "peer"),
        _optional_text(payload, "forwarded_for"),
        min(credit, MAX_CHANNEL_CREDIT) if has_credit and type(credit) is int else 0,
    )


def _optional_text(payload: Envelope, name: str, most: int = MAX_TEXT_CHARS) -> str | None:
    value = payload.get(name)
    if value is not None and (type(value) is not str or not 0 < len(value) <= most):
        raise BadField(f"{name} is not a text of 1 to {most} characters")
    return value


def _timeout(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value <= MAX_TIMEOUT_MS:
        raise BadField("timeout_ms is not a number of milliseconds above 0")
    return float(value) / 1000


def _credit(value: Any) -> int | None:
    if value is not None and (type(value) is not int or not 0 < value <= MAX_CREDIT):
        raise BadField(f"credit is not a whole number from 1 to {MAX_CREDIT}")
    return value


def error_payload(error: CallError) -> dict[str, Any]:
    """`error` as ``call.error`` says it."""
    payload = {"code": error.code, "message": str(error), "retryable": error.retryable}
    if error.details is not None:
        payload["details"] = error.details
    if error.denial_id is not None:
        payload["denial_id"] = error.denial_id
    return payload


def read_error(payload: Mapping[str, Any]) -> CallError:
    """The error in a ``call.error``, whatever the other side put there."""
    code, message, denial = payload.get("code"), payload.get("message"), payload.get("denial_id")
    retryable = payload.get("retryable")
    return CallError(
        code if type(code) is str and _CODE.match(code) else "INTERNAL",
        message[:MAX_REASON_CHARS] if type(message) is str else "the other side gave no reason",
        details=payload.get("details"),
        retryable=retryable if type(retryable) is bool else None,
        denial_id=denial if type(denial) is str and _DENIAL.match(denial) else None,
    )


def refusal(id: str, code: str, message: str) -> Refusal:
    """A ``call.error`` that answers a request at once."""
    error = CallError(code, message)
    return Refusal({"type": "call.error", "id": id, "payload": error_payload(error)})


def aborted(id: str, reason: str) -> Envelope:
    """A ``call.aborted``."""
    return {"type": "call.aborted", "id": id, "payload": {"reason": reason} if reason else {}}
