"""Who calls, what a handler knows of the call that it serves, and how it calls other operations."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from alknet.access import Authority, Identity
from alknet.errors import UsageError

if TYPE_CHECKING:
    from alknet.call.prepared import Prepared

__all__ = ["Caller", "Composer", "OperationContext", "WayBack", "input_of"]


class WayBack(Protocol):
    """The other direction of the connection that a call came over."""

    async def call(self, name: str, value: Any = None, *, timeout_s: float | None = None, **extra: Any) -> Any:
        """Call an operation that whoever is at the other end offers; raises `CallError`."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and through which door."""

    identity: Identity | Authority | None
    surface: str
    connection: str | None = None
    remote: str | None = None
    forwarded_for: str | None = None
    parent: "Prepared | None" = None
    """The call whose handler makes this one."""
    back: WayBack | None = field(default=None, repr=False, compare=False)
    """None where the connection has no other direction, and for calls that handlers make."""

    def forwarding_for(self, whom: str) -> "Caller":
        """The same one, who says that it calls for `whom`."""
        return Caller(self.identity, self.surface, self.connection, self.remote, whom, self.parent, self.back)


class Composer(Protocol):
    """Who makes the calls of a handler; given by the dispatcher."""

    @property
    def is_over(self) -> bool:
        """Whether the handler's own call has ended."""

    async def call(self, name: str, value: Any, *, continue_running: bool) -> Any:
        """Call an operation of this node under the handler's authority."""

    async def call_peer(self, peer: str, name: str, value: Any) -> Any:
        """Call an operation of a connected peer under the handler's authority."""

    async def call_caller(self, name: str, value: Any) -> Any:
        """Call an operation that the caller offers on the connection that its call came over."""


@dataclass(slots=True, kw_only=True)
class OperationContext:
    """One call, as its handler sees it.

    `identity` is who called: a proven peer, nobody (None), or, for a call made by another operation, that operation's
    authority. `metadata` is this call's own: it comes from nowhere and goes nowhere. `deadline` is in event-loop time.
    """

    operation: str
    request_id: str
    """Finds the call in the audit log."""
    parent_request_id: str | None = None
    identity: Identity | Authority | None = None
    forwarded_for: str | None = None
    """On whose behalf the caller says that it calls: a claim, never a reason to allow anything."""
    connection: str | None = None
    """Over which connection, as `node/sessions` lists it."""
    surface: str = ""
    """The door that the call came through: ``quic``, ``tls``, ``ssh``, ``memory``, or ``composed``."""
    deadline: float | None = None
    traceparent: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    _composer: Composer = field(repr=False)
    _clock: Callable[[], float] = field(repr=False)

    def remaining_s(self) -> float | None:
        """Seconds until the deadline of the whole call tree; None when there is none."""
        return None if self.deadline is None else max(0.0, self.deadline - self._clock())

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for this call any more. A plain function cannot be stopped: one that takes long looks
        here now and then, and returns."""
        return self._composer.is_over

    def call(self, name: str, value: Any = None, /, *, continue_running: bool = False, **inputs: Any) -> Awaitable[Any]:
        """Call another operation of this node: ``await ctx.call("fs/read", path="a")``.

        It is judged by what this operation was granted (`authority`), may only be one of its `calls`, and is cancelled
        with this one; with `continue_running` it is left to finish if it had begun. Raises `CallError`.
        """
        return self._composer.call(name, input_of(name, value, inputs), continue_running=continue_running)

    def call_peer(self, peer: str, name: str, value: Any = None, /, **inputs: Any) -> Awaitable[Any]:
        """Call an operation of a peer that is connected to this node; cancelling it cancels it there."""
        return self._composer.call_peer(peer, name, input_of(name, value, inputs))

    def call_caller(self, name: str, value: Any = None, /, **inputs: Any) -> Awaitable[Any]:
        """Call an operation that whoever made this call offers on the same connection: ``await
        ctx.call_caller("ui/confirm", question="Sure?")``.

        Offering it is the grant, so no authority is needed; this operation's `calls` must have it as ``caller:NAME``.
        Cancelling it cancels it there. Raises `CallError`: NOT_FOUND for what the caller does not offer, UNAVAILABLE
        where a call has no way back (a plain HTTP request, MCP, ``ssh NODE op``, a call that an operation made).
        """
        return self._composer.call_caller(name, input_of(name, value, inputs))


def input_of(name: str, value: Any, inputs: dict[str, Any]) -> Any:
    if value is not None and inputs:
        raise UsageError(
            f"{name} is called with a whole input and with single fields ({', '.join(inputs)})", hint="give one of both"
        )
    return inputs if value is None else value
