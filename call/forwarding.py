"""How a call reaches the peer that serves it: one named peer, or whichever of several the routing chooses.

Nothing of a forwarded call runs here but the decision. Input and output pass as they are, because the node that serves
the operation checks both; the time that is left, the trace and the word on whose behalf it is go along; cancelling here
cancels there.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final

from alknet.call.breaker import Outcome
from alknet.call.errors import CallError
from alknet.call.overlays import Attachment, Overlays
from alknet.call.routing import Attempt, Route, outcome_of

if TYPE_CHECKING:
    from alknet.call.prepared import Prepared

__all__ = ["PeerForward", "RoutedForward", "not_there"]

SOON_S: Final = 0.001
"""What a call gets at least whose time is just over: the other side is to say so itself."""
NEARLY_S: Final = 0.1
"""The caller's time may be over by so much before the same time is over here, and is then given up from there."""
TRIED_ELSEWHERE: Final = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})
"""Errors after which an idempotent operation is tried at another peer."""


def not_there(overlays: Overlays, peer: str, name: str, *, is_known: bool) -> CallError:
    """Why `peer` serves no `name` now."""
    if not is_known:
        return CallError("NOT_FOUND", f"there is no peer {peer!r}")
    attached = overlays.of(peer)
    if not attached:
        return CallError("UNAVAILABLE", f"peer {peer!r} is not connected")
    if not any(attachment.is_filled for attachment in attached):
        return CallError("UNAVAILABLE", f"peer {peer!r} has just connected, and its operations are not known yet")
    return CallError("NOT_FOUND", f"peer {peer!r} offers no operation {name!r}", details={"operation": name})


class PeerForward:
    """To that very peer, over its newest connection that has the operation."""

    def __init__(self, overlays: Overlays, peer: str, name: str) -> None:
        self._overlays = overlays
        self._peer = peer
        self._name = name

    async def call(self, prepared: "Prepared", value: Any) -> Any:
        return await _call(self._attachment(), self._name, prepared, value)

    async def items(self, prepared: "Prepared", value: Any) -> AsyncGenerator[Any, None]:
        async with aclosing(_items(self._attachment(), self._name, prepared, value)) as items:
            async for item in items:
                yield item

    def reaches(self, peer: str) -> bool:
        return peer == self._peer

    def _attachment(self) -> Attachment:
        found = self._overlays.find(self._peer, self._name)
        if found is None:
            raise not_there(self._overlays, self._peer, self._name, is_known=True)
        return found


class RoutedForward:
    """To one of the peers that `candidates` gives, and to another one where that failed and may be repeated."""

    def __init__(
        self, overlays: Overlays, name: str, candidates: Callable[[], Sequence[str]], route: Callable[[], Route]
    ) -> None:
        self._overlays = overlays
        self._name = name
        self._candidates = candidates
        self._route = route

    async def call(self, prepared: "Prepared", value: Any) -> Any:
        trip = _Trip(self, prepared)
        while True:
            attachment, attempt = trip.next()
            try:
                output = await _call(attachment, self._name, prepared, value)
            except CallError as exc:
                trip.failed(attempt, exc)
            except BaseException:
                trip.cancelled(attempt)
                raise
            else:
                trip.ended(attempt, Outcome.OK)
                return output

    def reaches(self, peer: str) -> bool:
        return peer in self._candidates()

    async def items(self, prepared: "Prepared", value: Any) -> AsyncGenerator[Any, None]:
        trip = _Trip(self, prepared)
        while True:
            attachment, attempt = trip.next()
            try:
                async with aclosing(_items(attachment, self._name, prepared, value)) as items:
                    async for item in items:
                        trip.answered(attempt)
                        yield item
            except CallError as exc:
                trip.failed(attempt, exc)
            except BaseException:
                trip.cancelled(attempt)
                raise
            else:
                trip.ended(attempt, Outcome.OK)
                return


class _Trip:
    """One call on its way to one of several peers: which were tried, and what came of it."""

    def __init__(self, forward: RoutedForward, prepared: "Prepared") -> None:
        self._forward = forward
        self._prepared = prepared
        self._loop = prepared.loop
        self._tried: list[str] = []
        self._has_answered = False
        self._failure: CallError | None = None
        self._is_retry = False
        self._route = forward._route()

    def next(self) -> tuple[Attachment, Attempt]:
        """Where to go now; raises `CallError` when there is nobody (else)."""
        forward, now = self._forward, self._loop.time()
        route = self._route = forward._route()
        while True:
            candidates = forward._candidates()
            peer = route.choose(candidates, now, self._tried)
            if peer is None:
                raise self._failure or self._nobody(route, candidates, now)
            self._tried.append(peer)
            attachment = forward._overlays.find(peer, forward._name)
            if attachment is None:
                continue
            if self._is_retry and not route.may_retry():
                assert self._failure is not None
                raise self._failure
            self._prepared.facts["routed_to"] = peer
            return attachment, route.begun(peer, now, is_retry=self._is_retry)

    def answered(self, attempt: Attempt) -> None:
        if not self._has_answered:
            self._has_answered = True
            self._route.answered(attempt, self._loop.time())

    def ended(self, attempt: Attempt, outcome: Outcome) -> None:
        self._route.ended(attempt, self._loop.time(), outcome)

    def cancelled(self, attempt: Attempt) -> None:
        """Nobody waits for it any more; if that is because its time is over, the peer has not answered in time."""
        now, deadline = self._loop.time(), self._prepared.deadline
        is_late = deadline is not None and now >= deadline - NEARLY_S
        outcome = outcome_of("TIMEOUT", now - attempt.began) if is_late else Outcome.CANCELLED
        self._route.ended(attempt, now, outcome)

    def failed(self, attempt: Attempt, error: CallError) -> None:
        """Note it; raises it where the call is not to be repeated."""
        now = self._loop.time()
        self._route.ended(attempt, now, outcome_of(error.code, now - attempt.began))
        is_unknown_there = error.code == "NOT_FOUND" and error.details == {"operation": self._forward._name}
        never_ran = is_unknown_there or not error.was_sent
        may_repeat = self._prepared.operation.spec.idempotent and error.code in TRIED_ELSEWHERE
        if self._has_answered or not (never_ran or may_repeat):
            raise error
        self._failure = error
        self._is_retry = not never_ran

    def _nobody(self, route: Route, candidates: Sequence[str], now: float) -> CallError:
        name = self._prepared.operation.spec.name
        if not candidates:
            return CallError("UNAVAILABLE", f"no peer that serves {name} is connected")
        wait_s = max(0.0, route.passes_at(candidates, now) - now)
        return CallError(
            "UNAVAILABLE",
            f"every peer that serves {name} has failed lately ({', '.join(candidates[:5])}); the next call is let"
            f" through in {wait_s:.1f} s",
        )


async def _call(attachment: Attachment, name: str, prepared: "Prepared", value: Any) -> Any:
    who = attachment.take(prepared.origin)
    try:
        return await attachment.session.call(name, value, timeout_s=_time_left(prepared), **_extra(prepared))
    except CallError as exc:
        raise _told(attachment, exc) from exc
    finally:
        attachment.leave(who)


async def _items(attachment: Attachment, name: str, prepared: "Prepared", value: Any) -> AsyncGenerator[Any, None]:
    who = attachment.take(prepared.origin)
    try:
        subscription = attachment.session.subscribe(name, value, timeout_s=_time_left(prepared), **_extra(prepared))
        async with subscription as items:
            async for item in items:
                yield item
    except CallError as exc:
        raise _told(attachment, exc) from exc
    finally:
        attachment.leave(who)


def _time_left(prepared: "Prepared") -> float | None:
    if prepared.deadline is None:
        return None
    return max(SOON_S, prepared.deadline - prepared.loop.time())


def _extra(prepared: "Prepared") -> dict[str, str]:
    extra = {}
    if (behalf := prepared.on_behalf_of) is not None:
        extra["forwarded_for"] = behalf
    if prepared.traceparent is not None:
        extra["traceparent"] = prepared.traceparent
    return extra


def _told(attachment: Attachment, error: CallError) -> CallError:
    """The error as the caller is told it, who has to know which node it is of where that is not obvious."""
    peer, words = attachment.peer, str(error)
    if error.code == "FORBIDDEN":
        words = f"peer {peer!r} refused: {words}"
    elif error.code == "INTERNAL":  # whose log it is that has more
        words = f"peer {peer!r}: {words}"
    elif error.code == "UNAVAILABLE":
        words = f"peer {peer!r}: {words}" if attachment.session.is_open else f"peer {peer!r} was lost: {words}"
    told = CallError(error.code, words, details=error.details, retryable=error.retryable, denial_id=error.denial_id)
    told.was_sent = error.was_sent
    return told
