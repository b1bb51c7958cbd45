"""The calls of HTTP clients while they run: within their bounds, ended when they are forbidden or the node stops."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, Protocol, TypeVar

from alknet.alpn.admission import source_of
from alknet.call.anonymous import ANONYMOUS_LIMITS
from alknet.call.context import Caller
from alknet.call.dispatch import Dispatcher
from alknet.call.errors import CallError
from alknet.call.prepared import Prepared

__all__ = ["Calls", "Revocable"]

T = TypeVar("T")

SHUTTING_DOWN: Final = "the node is shutting down"
SLOWEST_END_S: Final = 2.0
"""What handlers may take to clean up after the drain deadline."""


class Revocable(Protocol):
    """What runs for a caller."""

    caller: Caller

    def revoked(self) -> CallError | None:
        """The refusal, when the current policy forbids what it allowed before."""


class _Running:
    __slots__ = ("refusal", "task", "what", "who")

    def __init__(self, what: Revocable, who: str, task: "asyncio.Task[Any]") -> None:
        self.what = what
        self.who = who
        self.task = task
        self.refusal: CallError | None = None


class Calls:
    """Runs prepared calls, each in the task of its request."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.max_in_flight = 1024
        self.is_draining = False
        self._running: set[_Running] = set()
        self._in_flight: dict[str, int] = {}
        self._idle = asyncio.Event()
        """Set when the last one has ended, once nothing more begins."""

    @property
    def running(self) -> int:
        return len(self._running)

    def prepare(
        self,
        name: str,
        value: Any,
        caller: Caller,
        *,
        peer: str | None = None,
        streaming: bool | None = False,
        timeout_s: float | None = None,
        traceparent: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Prepared:
        """As `Dispatcher.prepare`; refuses what would be too many calls of one caller at the same time."""
        self.check_room(caller)
        return self.dispatcher.prepare(
            name,
            value,
            caller,
            peer=peer,
            streaming=streaming,
            timeout_s=timeout_s,
            traceparent=traceparent,
            metadata=metadata,
        )

    def check_room(self, caller: Caller) -> None:
        """Raise `CallError` where nothing more may begin for this caller."""
        if self.is_draining:
            raise CallError("UNAVAILABLE", SHUTTING_DOWN)
        limit = self.max_in_flight if caller.identity is not None else ANONYMOUS_LIMITS.in_flight
        if self._in_flight.get(_who(caller), 0) >= limit:
            raise CallError("RESOURCE_EXHAUSTED", f"{limit} calls are running already; wait for one of them")

    async def call(self, prepared: Prepared) -> Any:
        """The output; raises `CallError`, also when access is taken away meanwhile."""
        return await self.run(prepared, prepared.call)

    async def run(self, what: Revocable, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` gives, while that is allowed to `what`."""
        running = self._begin(what)
        try:
            return await work()
        except asyncio.CancelledError:
            _raise_refusal(running)
            raise
        finally:
            self._over(running)

    async def stream(self, prepared: Prepared) -> AsyncGenerator[Any, None]:
        """The items; raises `CallError`, also when access is taken away meanwhile."""
        running = self._begin(prepared)
        try:
            async with aclosing(prepared.stream()) as items:
                async for item in items:
                    yield item
        except asyncio.CancelledError:
            _raise_refusal(running)
            timed_out = prepared.timed_out()
            if timed_out is not None:
                raise timed_out from None
            raise
        finally:
            self._over(running)

    def _begin(self, what: Revocable) -> _Running:
        task = asyncio.current_task()
        assert task is not None
        who = _who(what.caller)
        running = _Running(what, who, task)
        self._running.add(running)
        self._in_flight[who] = self._in_flight.get(who, 0) + 1
        return running

    def _over(self, running: _Running) -> None:
        self._running.discard(running)
        left = self._in_flight[running.who] - 1
        if left:
            self._in_flight[running.who] = left
        else:
            del self._in_flight[running.who]
        if self.is_draining and not self._running:
            self._idle.set()

    def recheck(self) -> None:
        """End what the current policy forbids, each with the refusal."""
        for running in tuple(self._running):
            refusal = running.what.revoked()
            if refusal is not None:
                _end(running, refusal)

    async def drain(self, deadline: float) -> None:
        """Begin nothing new; let what runs finish until `deadline` (event-loop time), and end it then."""
        self.is_draining = True
        if not self._running:
            self._idle.set()
        for until in (deadline, deadline + SLOWEST_END_S):
            try:
                async with asyncio.timeout_at(until):
                    await self._idle.wait()
                return
            except TimeoutError:
                for running in tuple(self._running):
                    _end(running, CallError("UNAVAILABLE", SHUTTING_DOWN))


def _end(running: _Running, refusal: CallError) -> None:
    if running.refusal is None:
        running.refusal = refusal
        running.task.cancel()


def _raise_refusal(running: _Running) -> None:
    """Instead of the cancellation, if that was the gateway's own and nobody else cancelled as well."""
    if running.refusal is not None and running.task.uncancel() == 0:
        raise running.refusal from None


def _who(caller: Caller) -> str:
    """Whose calls count together: a peer's, or those of nobody in particular from one address."""
    if caller.identity is not None:
        return caller.identity.id
    return "anonymous " + ("-" if caller.remote is None else source_of(caller.remote))
