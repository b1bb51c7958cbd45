"""From a name and an input to a handler and its output: the one way in, whatever the door.

The order of the checks is the same everywhere: lookup, visibility, access, input, kind, handler. Access comes before
the input, so that a schema tells nothing to those who may not call. `Dispatcher.prepare` does all that does not wait;
what it returns is then run with :meth:`Prepared.call` or :meth:`Prepared.stream`.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

from alknet.access import Access, Authority, Decision, Identity
from alknet.call.changes import Changes
from alknet.call.context import Caller
from alknet.call.errors import CallError, unknown_operation
from alknet.call.operations import Kind, Operation, OperationSpec, Visibility
from alknet.call.permitted import Permitted
from alknet.call.prepared import Prepared, counted_as, unexpected
from alknet.call.registry import Registry
from alknet.call.threads import Threads
from alknet.gate import Act, Gate
from alknet.logs import event
from alknet.tasks import Tasks

__all__ = ["THREAD_NAME", "Dispatcher", "Peers", "Question", "Stats", "peer_access"]

log = logging.getLogger("alknet.call")

DEFAULT_TIMEOUT_S: Final = 30.0
ENDING_GRACE_S: Final = 2.0
"""What calls that were left to run get to end, when they are cancelled with the node."""
THREAD_NAME: Final = "alknet-operation"
_UNKNOWN: Final = Access(required_scopes=("*",))


class Question(NamedTuple):
    """What the access decision is asked about a call."""

    action: str
    resource: str | None
    access: Access


class Peers(Protocol):
    """The operations of connected peers."""

    def operation(self, peer: str, name: str) -> Operation:
        """What that very peer offers under this name; raises `CallError`."""

    def anywhere(self, name: str, may: Callable[[str], bool]) -> tuple[Operation, tuple[str, ...]] | None:
        """What some of the peers that `may` says yes to offer under this name, and which; None when nobody does."""

    def operations_of(self, peer: str) -> Mapping[str, OperationSpec]:
        """What a peer offers now, by name, in order."""

    def connected(self) -> Sequence[str]:
        """The peers that are here."""


@dataclass(slots=True)
class Stats:
    """What one operation has done since the node started."""

    calls: int = 0
    errors: int = 0
    seconds: float = 0.0
    """Spent in calls that have ended, subscriptions included."""


class _NoPeers:
    """Of somebody who is no node, and has no peers."""

    def operation(self, peer: str, name: str) -> Operation:
        raise CallError("UNAVAILABLE", f"peer {peer!r} is not connected: calls to peers go through a node")

    def anywhere(self, name: str, may: Callable[[str], bool]) -> tuple[Operation, tuple[str, ...]] | None:
        return None

    def operations_of(self, peer: str) -> Mapping[str, OperationSpec]:
        return {}

    def connected(self) -> Sequence[str]:
        return ()


class Dispatcher:
    """Serves the operations of a registry, which may be replaced whole while calls run: they end as they began."""

    def __init__(
        self,
        registry: Registry,
        gate: Gate,
        *,
        default_timeout_s: float = DEFAULT_TIMEOUT_S,
        peers: Peers | None = None,
    ) -> None:
        self.changes = Changes()
        """What may be called, and by whom, has changed."""
        self._registry = registry
        self.gate = gate
        self.default_timeout_s = default_timeout_s
        self.peers: Peers = peers or _NoPeers()
        self.permitted = Permitted(self)
        """Which operations each caller sees in lists."""
        self.stats: dict[str, Stats] = {}
        self.tasks = Tasks("composed")
        self.threads = Threads(THREAD_NAME)

    @property
    def registry(self) -> Registry:
        """What is served now."""
        return self._registry

    @registry.setter
    def registry(self, registry: Registry) -> None:
        self._registry = registry
        self.changes.happened()

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
        peer: str | None = None,
        streaming: bool | None = False,
        timeout_s: float | None = None,
        traceparent: str | None = None,
        metadata: dict[str, Any] | None = None,
        soon: bool = False,
    ) -> Prepared:
        """Everything up to the handler; raises `CallError`, and has then recorded the refusal.

        `peer` means what that connected peer offers under the name, and never anything else. `streaming` says what the
        caller can take: one answer, a subscription, or (None) whichever it is. `timeout_s` may shorten the time that a
        call has, and gives a subscription one. `metadata` is what the door tells the handler about this call. `soon`:
        see `Gate.ask`.
        """
        operation: Operation | None = None
        if peer is not None:
            # Before it is looked for: who may not call there does not learn who is connected.
            question = Question("peer/call", f"{peer}:{name}", peer_access(peer))
        else:
            operation, question = self._find(name, value, caller, soon=soon)
        act = self._ask(question, caller, soon=soon)
        if not act.decision:
            reason = act.decision.words if caller.identity is not None else "authentication required"
            raise _of(act, CallError("FORBIDDEN", reason, denial_id=act.decision.denial_id))
        try:
            if operation is None:
                assert peer is not None
                operation = self.peers.operation(peer, name)
            inputs = self._inputs(operation, value)
            is_stream = operation.spec.kind is Kind.SUBSCRIPTION
            if streaming is not None and streaming is not is_stream:
                wanted = "subscribe to it, do not call it" if is_stream else "call it, do not subscribe to it"
                raise CallError("INVALID_OPERATION_TYPE", f"{name} is a {operation.spec.kind}: {wanted}")
        except CallError as exc:
            act.done(f"error {exc.code}")
            if operation is not None:
                self.count(counted_as(name, peer), 0.0, failed=True)
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
            question=question,
            peer=peer,
            deadline=self._deadline(loop.time(), is_stream, timeout_s, caller),
            traceparent=traceparent,
            metadata=metadata,
        )

    def _find(self, name: str, value: Any, caller: Caller, *, soon: bool) -> tuple[Operation, Question]:
        """The node's own operation, or, for an operation that calls others, one that any of its peers offers."""
        operation = self.registry.get(name)
        if operation is None and caller.parent is not None:
            found = self.peers.anywhere(name, lambda peer: bool(self._still(caller.identity, name, peer)))
            if found is not None:
                return found[0], Question("peer/call", f"*:{name}", peer_access(*found[1]))
        if operation is None or (operation.spec.visibility is Visibility.INTERNAL and caller.parent is None):
            raise self._unknown(name, caller, soon=soon)
        # What a stranger hears does not depend on what is asked of the operation: it might not be there.
        resource = None if caller.identity is None else operation.resource_of(value)
        return operation, Question(operation.spec.name, resource, operation.spec.access)

    def _still(self, caller: Identity | Authority | None, name: str, peer: str) -> Decision:
        return self.gate.still(caller, "peer/call", f"{peer}:{name}", access=peer_access(peer))

    def still(self, prepared: Prepared) -> Decision | None:
        """Whether what runs may go on under the current policy; None when it is not served any more."""
        action, resource, access = prepared.question
        name = prepared.operation.spec.name
        if action != "peer/call":
            now = self.registry.get(name)
            if now is None:
                return None
            access = now.spec.access
        elif prepared.peer is not None:
            try:
                self.peers.operation(prepared.peer, name)
            except CallError:
                return None
        forward, peer = prepared.operation.forward, prepared.facts.get("routed_to")
        if forward is not None and peer is not None and not forward.reaches(peer):
            return None  # others may still serve it, but it does not run there
        return self.gate.still(prepared.caller.identity, action, resource, access=access)

    def may(self, identity: Identity | Authority | None, operation: Operation) -> bool:
        """Whether a caller sees the operation in lists."""
        spec = operation.spec
        if spec.visibility is Visibility.INTERNAL:
            return False
        return any(
            self.gate.still(identity, spec.name, resource, access=spec.access)
            for resource in (None, *self._resources(identity, spec))
        )

    def may_reach(self, identity: Identity | Authority | None, peer: str) -> bool:
        """Whether a caller may call what a peer offers."""
        return bool(self.gate.still(identity, "peer/call", None, access=peer_access(peer)))

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

    def _ask(self, question: Question, caller: Caller, *, soon: bool) -> Act:
        facts: dict[str, Any] = {}
        parent = caller.parent
        if parent is not None:
            facts = {"parent": parent.act.request_id, "origin": parent.origin}
        elif isinstance(caller.identity, Identity):
            facts = {"via": caller.identity.via}
        return self.gate.ask(
            caller.identity,
            question.action,
            question.resource,
            surface=caller.surface,
            access=question.access,
            soon=soon,
            connection=caller.connection,
            remote=caller.remote,
            forwarded_for=caller.forwarded_for,
            **facts,
        )

    def _unknown(self, name: str, caller: Caller, *, soon: bool) -> CallError:
        """A proven caller learns that there is no such operation; a stranger learns nothing, as if it were denied."""
        if caller.identity is None:
            act = self._ask(Question(name, None, _UNKNOWN), caller, soon=soon)
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


@lru_cache(maxsize=4096)
def peer_access(*peers: str) -> Access:
    """What calling an operation of one of these peers asks for."""
    scopes = tuple(f"peer:{peer}" for peer in peers)
    return Access(required_scopes=scopes) if len(scopes) == 1 else Access(required_scopes_any=scopes)


def _of(act: Act, error: CallError) -> CallError:
    error.request_id = act.request_id
    return error
