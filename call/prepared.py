"""A call that may run: from the handler's start to its outcome, within its time."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from alknet.call.composition import Family
from alknet.call.context import Caller, OperationContext
from alknet.call.errors import PROTOCOL_CODES, CallError
from alknet.call.operations import Kind, Operation, Style
from alknet.call.schema import OutputError, check_details
from alknet.call.threads import Place
from alknet.errors import DeniedError, InvalidInputError, NotFoundError, UnavailableError
from alknet.gate import Act
from alknet.logs import event

if TYPE_CHECKING:
    from alknet.call.dispatch import Dispatcher, Question

__all__ = ["Prepared", "counted_as", "unexpected"]

log = logging.getLogger("alknet.call")

_END: Final = object()
_PASSED_ON: Final = (InvalidInputError, NotFoundError, DeniedError, UnavailableError)
"""What a handler may raise of alknet's own errors, with their own codes, instead of declaring them."""


class Prepared:
    """A call that may run: of an allowed caller, with a valid input. Run it once, with `call` or `stream`."""

    def __init__(
        self,
        dispatcher: "Dispatcher",
        operation: Operation,
        inputs: dict[str, Any],
        caller: Caller,
        act: Act,
        *,
        loop: asyncio.AbstractEventLoop,
        question: "Question",
        peer: str | None = None,
        deadline: float | None,
        traceparent: str | None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.operation = operation
        self.caller = caller
        self.act = act
        self.deadline = deadline
        self.traceparent = traceparent
        self.dispatcher = dispatcher
        self.question = question
        self.peer = peer
        """The peer whose operation it is; None for the node's own."""
        self.facts: dict[str, Any] = {}
        """What the audit line of its outcome has besides."""
        self._metadata = metadata
        self._inputs = inputs
        self._family: Family | None = None
        self.has_begun = False
        self._counted_as = counted_as(operation.spec.name, peer)
        self.was_cut_short = False
        """Whether it was ended from outside, by its deadline or by whoever runs it: nobody knows what was done."""
        self._expired = False
        self._is_revoked = False
        self._revocation: dict[str, Any] = {}
        """What the audit log has of it, for whoever looks for the denial id that the caller was told."""
        self._refusal: CallError | None = None
        """Why the handler was not begun."""
        self.loop = loop
        """On which it runs; to find the running one is a system call each time."""
        self._began = time.monotonic()  # the loop's own clock stands still in each of its rounds
        self.ended_because = "aborted"
        """What a cancellation means, for the audit log."""

    @property
    def is_stream(self) -> bool:
        return self.operation.spec.kind is Kind.SUBSCRIPTION

    @property
    def origin(self) -> str | None:
        """Who began the tree of calls that this one belongs to."""
        if self.caller.parent is not None:
            return self.caller.parent.origin
        return None if self.caller.identity is None else self.caller.identity.id

    @property
    def on_behalf_of(self) -> str | None:
        """Whom other nodes are told that the call is made for: whoever began the tree of calls, or whom that one named
        in turn. A claim, and nothing but a note for their audit logs."""
        if self.caller.parent is not None:
            return self.caller.parent.on_behalf_of
        return self.caller.forwarded_for or self.origin

    def drop(self, because: str = "dropped") -> None:
        """Nothing runs any more: one that never began is recorded as `because`."""
        if not self.has_begun:
            self.has_begun = True
            self._done(because)

    def revoked(self) -> CallError | None:
        """The refusal, when the current policy forbids what it allowed before."""
        if self._is_revoked:
            return None
        decision = self.dispatcher.still(self)
        if decision is None:
            self._is_revoked = True
            self.ended_because = "removed"
            return CallError("UNAVAILABLE", f"{self.operation.spec.name} is not served any more")
        if decision:
            return None
        self._is_revoked = True
        self.ended_because = "revoked"
        self._revocation = {"decision": "deny", "denial_id": decision.denial_id, "rule": decision.rule}
        return CallError("FORBIDDEN", f"access was taken away: {decision.words}", denial_id=decision.denial_id)

    async def call(self) -> Any:
        """The output; raises `CallError`. Cancelling it cancels the handler and what that has called."""
        self.has_begun = True
        timer = self._start_timer()
        outcome = "failed"
        facts: dict[str, Any] = {}
        try:
            output = await self._run()
            output = self.operation.render_output(output)
            outcome = "ok"
            return output
        except asyncio.CancelledError as exc:
            instead, outcome = self._cancelled(exc)
            if instead is not None:
                raise instead from None
            raise
        except (Exception, SystemExit) as exc:
            error = self._error(exc)
            outcome, facts = f"error {error.code}", _denial(exc)
            raise error from exc
        finally:
            if timer is not None:
                timer.cancel()
            try:
                if self._family is not None:
                    await self._family.end()
            finally:
                self._done(outcome, **facts)

    async def stream(self) -> AsyncGenerator[Any, None]:
        """The items of a subscription; raises `CallError`. Closing it ends the handler."""
        self.has_begun = True
        timer = self._start_timer()
        outcome, count = self.ended_because, 0
        facts: dict[str, Any] = {}
        items = self._items()
        try:
            async for item in items:
                count += 1
                yield self.operation.render_output(item)
            outcome = "ok"
        except GeneratorExit:
            outcome = self._why_ended()
            raise
        except asyncio.CancelledError as exc:
            instead, outcome = self._cancelled(exc)
            if instead is not None:
                raise instead from None
            raise
        except (Exception, SystemExit) as exc:
            error = self._error(exc)
            outcome, facts = f"error {error.code}", _denial(exc)
            raise error from exc
        finally:
            if timer is not None:
                timer.cancel()
            try:
                await self._close(items)
                if self._family is not None:
                    await self._family.end()
            finally:
                self._done(outcome, items=count, **facts)

    # --- the handler ------------------------------------------------------------------------------------------------

    def _run(self) -> Awaitable[Any]:
        if self.operation.forward is not None:
            return self.operation.forward.call(self, self._inputs)
        inputs = self._with_context()
        if self.operation.style is Style.ASYNC:
            return self.operation.handler(**inputs)  # type: ignore[no-any-return]
        return self._in_thread(partial(self.operation.handler, **inputs))

    def _items(self) -> AsyncIterator[Any]:
        if self.operation.forward is not None:
            return self.operation.forward.items(self, self._inputs)
        inputs = self._with_context()
        if self.operation.style is Style.ASYNC_STREAM:
            return self.operation.handler(**inputs)  # type: ignore[no-any-return]
        return self._from_thread(inputs)

    async def _from_thread(self, inputs: dict[str, Any]) -> AsyncIterator[Any]:
        place = await self._place(keeps=True)
        close: Callable[[], Any] | None = None
        try:
            iterator = await place.run(lambda: iter(self.operation.handler(**inputs)))
            close = getattr(iterator, "close", None)
            while (item := await place.run(partial(next, iterator, _END))) is not _END:
                yield item
        finally:
            if close is not None and not place.is_busy:
                closing, close = close, None
                try:
                    await asyncio.shield(place.run(closing))
                finally:
                    place.give_back()
            else:
                place.give_back(close)  # nobody waits for a function that is in its thread

    async def _in_thread(self, function: Callable[[], Any]) -> Any:
        place = await self._place()
        try:
            return await place.run(function)
        finally:
            place.give_back()

    async def _place(self, *, keeps: bool = False) -> Place:
        name, connection = self.operation.spec.name, self.caller.connection
        try:
            return await self.dispatcher.threads.place(name, peer=self.origin, connection=connection, keeps=keeps)
        except CallError as exc:
            self._refusal = exc
            raise

    def _with_context(self) -> dict[str, Any]:
        name = self.operation.context_parameter
        if name is None:
            return self._inputs
        caller = self.caller
        self._family = Family(self)
        context = OperationContext(
            operation=self.operation.spec.name,
            request_id=self.act.request_id,
            parent_request_id=None if caller.parent is None else caller.parent.act.request_id,
            identity=caller.identity,
            forwarded_for=caller.forwarded_for,
            connection=caller.connection,
            surface=caller.surface,
            deadline=self.deadline,
            traceparent=self.traceparent,
            metadata={} if self._metadata is None else dict(self._metadata),
            _composer=self._family,
            _clock=self.loop.time,
        )
        return self._inputs | {name: context}

    # --- time and ends ----------------------------------------------------------------------------------------------

    def _start_timer(self) -> asyncio.TimerHandle | None:
        if self.deadline is None:
            return None
        task = asyncio.current_task(self.loop)
        assert task is not None
        return self.loop.call_at(self.deadline, self._expire, task)

    def _expire(self, task: "asyncio.Task[Any]") -> None:
        self._expired = True
        task.cancel()

    def timed_out(self) -> CallError | None:
        """The error to raise instead of the `CancelledError` just caught, if that was the deadline's doing and nobody
        else cancelled as well. For whoever waits between two items; within them, `stream` raises it itself."""
        if not self._expired:
            return None
        task = asyncio.current_task()
        assert task is not None
        if task.uncancel() > 0:
            return None
        return CallError("TIMEOUT", f"{self.operation.spec.name} did not finish in time")

    def _is_late(self) -> bool:
        return self.deadline is not None and self.loop.time() >= self.deadline

    def _why_ended(self) -> str:
        return "error TIMEOUT" if self._expired else self.ended_because

    def _cancelled(self, exc: asyncio.CancelledError) -> tuple[CallError | None, str]:
        """(the error to raise instead, if any; the outcome). Where nobody cancelled this call, what its handler waited
        for was, and the handler did not deal with that."""
        task = asyncio.current_task()
        if not self._expired and task is not None and not task.cancelling():
            return unexpected(self.operation.spec.name, exc), "error INTERNAL"
        self.was_cut_short = True
        return self.timed_out(), self._why_ended()

    async def _close(self, items: AsyncIterator[Any]) -> None:
        """A handler that fails while it is closed fails for nobody but the log."""
        close = getattr(items, "aclose", None)
        if close is not None:
            try:
                await close()
            except Exception as exc:
                self._error(exc)

    def _error(self, exc: BaseException) -> CallError:
        """What the caller is told: declared errors as they are; of others no more than what finds them in the log."""
        if isinstance(exc, CallError) and exc is self._refusal:
            return exc
        spec = self.operation.spec
        if self.operation.forward is not None and isinstance(exc, CallError) and exc.code in PROTOCOL_CODES:
            return exc  # of the node that runs it, or of the way there
        declared = spec.error(exc.code) if isinstance(exc, CallError) else None
        if declared is not None and isinstance(exc, CallError):
            try:
                exc.details = check_details(declared, exc.details)
                return exc
            except OutputError as wrong:
                return unexpected(spec.name, wrong)
        if isinstance(exc, CallError) and exc.code == "TIMEOUT" and self._is_late():
            return CallError("TIMEOUT", f"{spec.name} did not finish in time")  # what it called was told so first
        if isinstance(exc, CallError):
            details = {"code": exc.code, "message": str(exc)[:1000]}
            if exc.denial_id is not None:
                details["denial_id"] = exc.denial_id
            return CallError("INTERNAL", f"{spec.name} failed with {exc.code}", details=details)
        if isinstance(exc, _PASSED_ON):
            denial_id = exc.denial_id if isinstance(exc, DeniedError) else None
            return CallError(exc.code, str(exc), denial_id=denial_id, hint=exc.hint)
        return unexpected(spec.name, exc)

    def _done(self, outcome: str, **facts: Any) -> None:
        if outcome == "revoked":
            facts |= self._revocation
        self.act.done(outcome, **self.facts, **facts)
        self.dispatcher.count(
            self._counted_as, time.monotonic() - self._began, failed=outcome.startswith(("error", "failed"))
        )


def counted_as(name: str, peer: str | None) -> str:
    """Under which name the calls of an operation are counted."""
    return name if peer is None else f"{peer}:{name}"


def _denial(exc: BaseException) -> dict[str, Any]:
    """What the audit log has of a refusal that only the handler could decide."""
    if not isinstance(exc, DeniedError) or exc.rule is None:
        return {}
    return {"decision": "deny", "denial_id": exc.denial_id, "rule": exc.rule}


def unexpected(name: str, exc: BaseException) -> CallError:
    """The error for what an operation should not have done: an id, under which the log has all of it."""
    error_id = "err_" + os.urandom(6).hex()
    if isinstance(exc, OutputError):
        log.error(event("wrong output", operation=name, error_id=error_id, reason=exc))
    else:
        log.error(event("operation failed", operation=name, error_id=error_id), exc_info=exc)
    return CallError("INTERNAL", f"{name} failed; the node's log has it as {error_id}")
