"""From a name and an input to a handler and its output: the one way in, whatever the door.

The order of the checks is the same everywhere: lookup, visibility, access, input, kind, handler. Access comes before
the input, so that a schema tells nothing to those who may not call. `Dispatcher.prepare` does all that does not wait;
what it returns is then run with :meth:`Prepared.call` or :meth:`Prepared.stream`.
"""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from alknet.access import Access, Authority, Identity
from alknet.call.context import Caller
from alknet.call.errors import CallError, unknown_operation
from alknet.call.operations import Kind, Operation, OperationSpec, Visibility
from alknet.call.prepared import Prepared, unexpected
from alknet.call.registry import Registry
from alknet.call.threads import Threads
from alknet.gate import Act, Gate
from alknet.logs import event
from alknet.tasks import Tasks

__all__ = ["THREAD_NAME", "Dispatcher", "PeerCaller", "Stats"]

log = logging.getLogger("alknet.call")

DEFAULT_TIMEOUT_S: Final = 30.0
ENDING_GRACE_S: Final = 2.0
"""What calls that were left to run get to end, when they are cancelled with the node."""
THREAD_NAME: Final = "alknet-operation"
_UNKNOWN: Final = Access(required_scopes=("*",))


class PeerCaller(Protocol):
    """Reaches the operations of connected peers."""

    async def __call__(
        self,
        peer: str,
        name: str,
        value: Any,
        *,
        timeout_s: float | None,
        forwarded_for: str | None,
        traceparent: str | None,
    ) -> Any:
        """Call it there; `CallError` UNAVAILABLE when the peer is not connected."""


@dataclass(slots=True)
class Stats:
    """What one operation has done since the node started."""

    calls: int = 0
    errors: int = 0
    seconds: float = 0.0
    """Spent in calls that have ended, subscriptions included."""


async def _nobody(peer: str, name: str, value: Any, **_: Any) -> Any:
    raise CallError("UNAVAILABLE", f"peer {peer!r} is not connected")


class Dispatcher:
    """Serves the operations of a registry, which may be replaced whole while calls run: they end as they began."""

    def __init__(
        self,
        registry: Registry,
        gate: Gate,
        *,
        default_timeout_s: float = DEFAULT_TIMEOUT_S,
        call_peer: PeerCaller = _nobody,
    ) -> None:
        self.registry = registry
        self.gate = gate
        self.default_timeout_s = default_timeout_s
        self.call_peer = call_peer
        self.stats: dict[str, Stats] = {}
        self.tasks = Tasks("composed")
        self.threads = Threads(THREAD_NAME)

    async def aclose(self) -> None:
        """End what was left to run on its own, and give the threads back (a function that is in one goes on)."""
        self.tasks.cancel()
        if left := await self.tasks.wait(timeout_s=ENDING_GRACE_S):
            log.error(event("operations did not end in time", count=left))
        self.threads.close()

    def prepare(
        self,
        name: str,
        value: Any,
        caller: Caller,
        *,
        streaming: bool | None = False,
        timeout_s: float | None = None,
        traceparent: str | None = None,
        metadata: dict[str, Any] | None = None,
        soon: bool = False,
    ) -> Prepared:
        """Everything up to the handler; raises `CallError`, and has then recorded the refusal.

        `streaming` says what the caller can take: one answer, a subscription, or (None) whichever it is. `timeout_s`
        may shorten the time that a call has, and gives a subscription one. `metadata` is what the door tells the
        handler about this call. `soon`: see `Gate.ask`.
        """
        operation = self.registry.get(name)
        if operation is None or (operation.spec.visibility is Visibility.INTERNAL and caller.parent is None):
            raise self._unknown(name, caller, soon=soon)
        spec = operation.spec
        # What a stranger hears does not depend on what is asked of the operation: it might not be there.
        resource = None if caller.identity is None else operation.resource_of(value)
        act = self._ask(spec.name, spec.access, resource, caller, soon=soon)
        if not act.decision:
            reason = act.decision.words if caller.identity is not None else "authentication required"
            raise _of(act, CallError("FORBIDDEN", reason, denial_id=act.decision.denial_id))
        try:
            inputs = self._inputs(operation, value)
            is_stream = spec.kind is Kind.SUBSCRIPTION
            if streaming is not None and streaming is not is_stream:
                wanted = "subscribe to it, do not call it" if is_stream else "call it, do not subscribe to it"
                raise CallError("INVALID_OPERATION_TYPE", f"{name} is a {spec.kind}: {wanted}")
        except CallError as exc:
            act.done(f"error {exc.code}")
            self.count(name, 0.0, failed=True)
            exc.request_id = act.request_id
            raise
        loop = asyncio.get_running_loop()
        return Prepared(
            self,
            operation,
            inputs,
            caller,
            act,
            loop=loop,
            resource=resource,
            deadline=self._deadline(loop.time(), is_stream, timeout_s, caller),
            traceparent=traceparent,
            metadata=metadata,
        )

    def may(self, identity: Identity | Authority | None, operation: Operation) -> bool:
        """Whether a caller sees the operation in lists."""
        spec = operation.spec
        if spec.visibility is Visibility.INTERNAL:
            return False
        return any(
            self.gate.still(identity, spec.name, resource, access=spec.access)
            for resource in (None, *self._resources(identity, spec))
        )

    def _resources(self, identity: Identity | Authority | None, spec: OperationSpec) -> Iterator[str]:
        """What the caller's own rules name of this type; a glob stands for all that it matches: it matches itself."""
        if identity is None:
            return
        peer = self.gate.policy.peers.get(identity.id) if isinstance(identity, Identity) else None
        if spec.access.resource_type is not None:
            holder = identity if isinstance(identity, Authority) else peer
            for entry in () if holder is None else holder.resources.get(spec.access.resource_type, ()):
                yield entry.partition(":")[2]
        if peer is not None and spec.access.rules is not None:
            yield from peer.ssh.commands or ()

    @staticmethod
    def _inputs(operation: Operation, value: Any) -> dict[str, Any]:
        try:
            return operation.parse_input(value)
        except CallError:
            raise
        except Exception as exc:  # of a validator that the operation's author wrote
            raise unexpected(operation.spec.name, exc) from exc

    def _ask(self, name: str, access: Access, resource: str | None, caller: Caller, *, soon: bool) -> Act:
        facts: dict[str, Any] = {}
        parent = caller.parent
        if parent is not None:
            facts = {"parent": parent.act.request_id, "origin": parent.origin}
        elif isinstance(caller.identity, Identity):
            facts = {"via": caller.identity.via}
        return self.gate.ask(
            caller.identity,
            name,
            resource,
            surface=caller.surface,
            access=access,
            soon=soon,
            connection=caller.connection,
            remote=caller.remote,
            forwarded_for=caller.forwarded_for,
            **facts,
        )

    def _unknown(self, name: str, caller: Caller, *, soon: bool) -> CallError:
        """A proven caller learns that there is no such operation; a stranger learns nothing, as if it were denied."""
        if caller.identity is None:
            act = self._ask(name, _UNKNOWN, None, caller, soon=soon)
            return _of(act, CallError("FORBIDDEN", "authentication required", denial_id=act.decision.denial_id))
        return unknown_operation(name)

    def _deadline(self, now: float, is_stream: bool, timeout_s: float | None, caller: Caller) -> float | None:
        """A call has the default time or less; nothing has more than the call that it is part of."""
        limit = timeout_s
        if not is_stream and (limit is None or limit > self.default_timeout_s):
            limit = self.default_timeout_s
        end = None if limit is None else now + limit
        above = None if caller.parent is None else caller.parent.deadline
        return end if above is None or (end is not None and end < above) else above

    def count(self, name: str, seconds: float, *, failed: bool) -> None:
        stats = self.stats.get(name)
        if stats is None:
            stats = self.stats[name] = Stats()
        stats.calls += 1
        stats.errors += failed
        stats.seconds += seconds


def _of(act: Act, error: CallError) -> CallError:
    error.request_id = act.request_id
    return error
