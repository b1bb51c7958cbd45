"""Operations that call operations: under whose rights, which ones, and how they end together.

A handler's calls are judged by the authority of its operation, never by the rights of whoever called it: those were
tested once, at the gate. What it calls must be among its `calls`. Its children end with it: when it is cancelled, fails
or returns, a child that still runs is cancelled, unless it had begun and was to continue.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from alknet.access import Access
from alknet.call.context import Caller
from alknet.call.errors import CallError
from alknet.gate import Act
from alknet.logs import event

if TYPE_CHECKING:
    from alknet.call.prepared import Prepared

__all__ = ["COMPOSED", "Family", "may_reach", "may_reach_caller"]

log = logging.getLogger("alknet.call")

COMPOSED = "composed"
"""The surface of calls that handlers make."""
CALLER: Final = "caller"
"""What stands in `calls` for whoever has made the call, where a peer's id would."""
CHILDREN_GRACE_S: Final = 2.0
"""What a child that is cancelled may take to end before its parent's answer goes out without it."""


def may_reach(calls: tuple[str, ...], name: str, *, peer: str | None = None) -> bool:
    """Whether `calls` (globs; for a peer's operations ``peer:name``) names the operation."""
    for pattern in calls:
        whose, separator, what = pattern.rpartition(":")
        if whose == CALLER or bool(separator) != (peer is not None):
            continue
        if fnmatchcase(name, what) and fnmatchcase(peer or "", whose):
            return True
    return False


def may_reach_caller(calls: tuple[str, ...], name: str) -> bool:
    """Whether `calls` names an operation that the caller brings: ``caller:name``, where only the name may be a glob."""
    return any(
        pattern.startswith(CALLER + ":") and fnmatchcase(name, pattern.removeprefix(CALLER + ":")) for pattern in calls
    )


class _Child:
    """A call that a handler has made. `run` is it; `drop` records that it never began, if it did not."""

    def __init__(
        self,
        name: str,
        run: Callable[[], Awaitable[Any]],
        drop: Callable[[], None],
        is_spared: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name = name
        self.run = run
        self.drop = drop
        self.is_spared = is_spared
        """Whether it goes on when its parent has ended."""


class Family:
    """The children of one running call; the `Composer` of its context."""

    def __init__(self, parent: "Prepared") -> None:
        self._parent = parent
        self._children: dict[asyncio.Task[Any], _Child] = {}
        self.is_over = False
        """Whether that call has ended; read by other threads."""

    async def call(self, name: str, value: Any, *, continue_running: bool) -> Any:
        self._check_open(name)
        if not may_reach(self._parent.operation.calls, name):
            raise self._out_of_reach(name)
        prepared = self._prepare(name, value)
        return await self._have(
            _Child(name, prepared.call, prepared.drop, lambda: continue_running and prepared.has_begun)
        )

    async def call_peer(self, peer: str, name: str, value: Any) -> Any:
        whole_name = f"{peer}:{name}"
        self._check_open(name)
        if not may_reach(self._parent.operation.calls, name, peer=peer):
            raise self._out_of_reach(whole_name)
        prepared = self._prepare(name, value, peer=peer)
        return await self._have(_Child(whole_name, prepared.call, prepared.drop))

    def _prepare(self, name: str, value: Any, *, peer: str | None = None) -> "Prepared":
        parent = self._parent
        caller = Caller(
            parent.operation.authority,
            COMPOSED,
            connection=parent.caller.connection,
            remote=parent.caller.remote,
            parent=parent,
        )
        return parent.dispatcher.prepare(name, value, caller, peer=peer, traceparent=parent.traceparent, soon=True)

    async def call_caller(self, name: str, value: Any) -> Any:
        parent, operation = self._parent, self._parent.operation
        whole_name = f"{CALLER}:{name}"
        self._check_open(whole_name)
        if not may_reach_caller(operation.calls, name):
            raise self._out_of_reach(whole_name)
        back = parent.caller.back
        if back is None:
            raise CallError("UNAVAILABLE", f"{name} cannot be called: the caller's call came without a way back")
        act = parent.dispatcher.gate.ask(
            operation.authority,
            "caller/call",
            name,
            surface=COMPOSED,
            access=Access(public=True),  # offering it to this node was the grant
            connection=parent.caller.connection,
            parent=parent.act.request_id,
            origin=parent.origin,
        )
        if not act.decision:  # the audit log may be required, and not to be had
            raise CallError("FORBIDDEN", act.decision.words, denial_id=act.decision.denial_id)

        async def there(timeout_s: float | None, traceparent: str | None) -> Any:
            extra = {} if traceparent is None else {"traceparent": traceparent}
            return await back.call(name, value, timeout_s=timeout_s, **extra)

        run = partial(self._run_elsewhere, act, there)
        return await self._have(_Child(whole_name, run, partial(act.done, "dropped")))

    async def _run_elsewhere(self, act: Act, there: Callable[..., Awaitable[Any]]) -> Any:
        """`there` makes the call, within the time that is left."""
        parent = self._parent
        loop = asyncio.get_running_loop()
        timeout_s = None if parent.deadline is None else max(0.001, parent.deadline - loop.time())
        outcome = "aborted"
        try:
            output = await there(timeout_s=timeout_s, traceparent=parent.traceparent)
            outcome = "ok"
            return output
        except CallError as exc:
            outcome = f"error {exc.code}"
            raise
        finally:
            act.done(outcome)

    async def _have(self, child: _Child) -> Any:
        """Run a child; when whoever waits for it is cancelled, so is the child."""
        task = self._parent.dispatcher.tasks.start(_ended(child.run), name=child.name)
        self._children[task] = child
        task.add_done_callback(self._left)
        try:
            output, error = await asyncio.shield(task)
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if task.cancelled() and own is not None and not own.cancelling():
                raise CallError("UNAVAILABLE", f"{child.name} was cancelled") from None
            if not child.is_spared():
                await _cancel((task,))
            raise
        if error is not None:
            raise error
        return output

    def _left(self, task: "asyncio.Task[Any]") -> None:
        self._children.pop(task).drop()

    async def end(self) -> None:
        """The handler has ended: nothing new begins, and what was not to continue is cancelled and waited for."""
        self.is_over = True
        if self._children:
            await _cancel([task for task, child in self._children.items() if not child.is_spared()])

    def _check_open(self, name: str) -> None:
        if self.is_over:
            raise CallError("UNAVAILABLE", f"{self._parent.operation.spec.name} has ended and calls no {name} any more")

    def _out_of_reach(self, name: str) -> CallError:
        own = self._parent.operation.spec.name
        return CallError("NOT_FOUND", f"{name} is not among the operations that {own} may call (calls=…)")


async def _ended(call: Callable[[], Awaitable[Any]]) -> tuple[Any, CallError | None]:
    """(the output, or the error): a call that fails is for the handler to deal with, and no task that has failed."""
    try:
        return await call(), None
    except CallError as exc:
        return None, exc


async def _cancel(tasks: "Iterable[asyncio.Task[Any]]") -> None:
    """Cancel tasks and wait for them, at most `CHILDREN_GRACE_S`; their own failures belong to nobody any more."""
    tasks = tuple(tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        _, stubborn = await asyncio.wait(tasks, timeout=CHILDREN_GRACE_S)
        for task in stubborn:
            log.warning(event("a composed call does not end", task=task.get_name()))
