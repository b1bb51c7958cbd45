"""Operations that call operations: under whose rights, which ones, and how they end together.

A handler's calls are judged by the authority of its operation, never by the rights of whoever called it: those were
tested once, at the gate. What it calls must be among its `calls`. Its children end with it: when it is cancelled, fails
or returns, a child that still runs is cancelled, unless it had begun and was to continue.
"""

import asyncio
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from alknet.access import Access
from alknet.call.context import Caller
from alknet.call.errors import CallError

if TYPE_CHECKING:
    from alknet.call.prepared import Prepared

__all__ = ["COMPOSED", "Family", "may_reach"]

COMPOSED = "composed"
"""The surface of calls that handlers make."""


def may_reach(calls: tuple[str, ...], name: str, *, peer: str | None = None) -> bool:
    """Whether `calls` (globs; for a peer's operations ``peer:name``) names the operation."""
    for pattern in calls:
        whose, separator, what = pattern.rpartition(":")
        if bool(separator) == (peer is not None) and fnmatchcase(name, what) and fnmatchcase(peer or "", whose):
            return True
    return False


class _Child:
    """A call that a handler has made."""

    def __init__(self, prepared: "Prepared", *, continue_running: bool) -> None:
        self.prepared = prepared
        self.continue_running = continue_running

    @property
    def is_spared(self) -> bool:
        """Whether it goes on when its parent has ended."""
        return self.continue_running and self.prepared.has_begun


class Family:
    """The children of one running call; the `Composer` of its context."""

    def __init__(self, parent: "Prepared") -> None:
        self._parent = parent
        self._children: dict[asyncio.Task[Any], _Child] = {}
        self._is_over = False

    async def call(self, name: str, value: Any, *, continue_running: bool) -> Any:
        parent, operation = self._parent, self._parent.operation
        self._check_open(name)
        if not may_reach(operation.calls, name):
            raise self._out_of_reach(name)
        caller = Caller(
            operation.authority,
            COMPOSED,
            connection=parent.caller.connection,
            remote=parent.caller.remote,
            parent=parent,
        )
        prepared = parent.dispatcher.prepare(name, value, caller, traceparent=parent.traceparent)
        child = _Child(prepared, continue_running=continue_running)
        task = parent.dispatcher.tasks.start(prepared.call(), name=name)
        self._children[task] = child
        task.add_done_callback(lambda task: self._children.pop(task, None))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise CallError("UNAVAILABLE", f"{name} was cancelled") from None
            if not child.is_spared:
                await _cancel({task: child})
            raise

    async def call_peer(self, peer: str, name: str, value: Any) -> Any:
        parent, operation = self._parent, self._parent.operation
        self._check_open(name)
        if not may_reach(operation.calls, name, peer=peer):
            raise self._out_of_reach(f"{peer}:{name}")
        access = Access(required_scopes=(f"peer:{peer}",))
        act = parent.dispatcher.gate.ask(
            operation.authority,
            "peer/call",
            f"{peer}:{name}",
            surface=COMPOSED,
            access=access,
            parent=parent.act.request_id,
            origin=parent.origin,
        )
        if not act.decision:
            raise CallError("FORBIDDEN", act.decision.reason, denial_id=act.decision.denial_id)
        loop = asyncio.get_running_loop()
        timeout_s = None if parent.deadline is None else max(0.001, parent.deadline - loop.time())
        outcome = "aborted"
        try:
            output = await parent.dispatcher.call_peer(
                peer, name, value, timeout_s=timeout_s, forwarded_for=parent.origin or ""
            )
            outcome = "ok"
            return output
        except CallError as exc:
            outcome = f"error {exc.code}"
            raise
        finally:
            act.done(outcome)

    async def end(self) -> None:
        """The handler has ended: nothing new begins, and what was not to continue is cancelled and waited for."""
        self._is_over = True
        if self._children:
            await _cancel({task: child for task, child in self._children.items() if not child.is_spared})

    def _check_open(self, name: str) -> None:
        if self._is_over:
            raise CallError("UNAVAILABLE", f"{self._parent.operation.spec.name} has ended and calls no {name} any more")

    def _out_of_reach(self, name: str) -> CallError:
        own = self._parent.operation.spec.name
        return CallError("NOT_FOUND", f"{name} is not among the operations that {own} may call (calls=…)")


async def _cancel(children: "dict[asyncio.Task[Any], _Child]") -> None:
    """Cancel tasks and wait for them; their own failures belong to nobody any more."""
    for task in children:
        task.cancel()
    if children:
        await asyncio.wait(children)
    for child in children.values():
        child.prepared.drop()
