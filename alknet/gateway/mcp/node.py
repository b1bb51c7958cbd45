"""The tools of this node: what its dispatcher serves, for each caller what that caller may call.

Lists are kept: they are the same until operations, policy or an expiry change, and clients ask for them often.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from alknet.access import Identity, Policy
from alknet.call.anonymous import LIFETIME_S
from alknet.call.context import Caller
from alknet.call.operations import Operation, Visibility
from alknet.call.prepared import Prepared
from alknet.call.registry import Registry
from alknet.gateway.calls import Calls
from alknet.gateway.mcp.tools import Tool, tool_names

__all__ = ["Directory", "NodeBackend", "NodeRun"]

MAX_LISTS: Final = 256
"""That are kept, of different callers. A list holds references only: all share the tools."""


@dataclass(frozen=True, slots=True)
class _List:
    tools: Sequence[Tool]
    until: float
    """Seconds since 1970: then a credential or a peer ends."""


class Directory:
    """The tools of a node, and who may call which."""

    def __init__(self, calls: Calls) -> None:
        self._dispatcher = calls.dispatcher
        self._registry: Registry | None = None
        self._policy: Policy | None = None
        self._tools: dict[str, tuple[Tool, Operation]] = {}
        """By their names; of internal operations there are none."""
        self._lists: dict[Identity | None, _List] = {}

    def find(self, name: str) -> Tool | None:
        """The tool with this name, whoever asks."""
        self._renew()
        found = self._tools.get(name)
        return None if found is None else found[0]

    def visible(self, identity: Any) -> Sequence[Tool]:
        """What this caller may call, in the order of the operations' names."""
        self._renew()
        known = self._lists.get(identity)
        now = self._dispatcher.gate.clock.wall()
        if known is None or now >= known.until:
            if known is None and len(self._lists) >= MAX_LISTS:
                del self._lists[next(iter(self._lists))]
            may = self._dispatcher.may
            tools = tuple(tool for tool, operation in self._tools.values() if may(identity, operation))
            known = self._lists[identity] = _List(tools, self._until(identity, now))
        return known.tools

    def is_plain(self, name: str) -> bool:
        """Whether this names an operation that answers once."""
        found = self._dispatcher.registry.get(name)
        return found is not None and not found.style.is_stream

    def _until(self, identity: Identity | None, now: float) -> float:
        if identity is None:
            return float("inf")
        peer = self._dispatcher.gate.policy.peers.get(identity.id)
        ends = (identity.expires_at, None if peer is None else peer.expires_at)
        return min((end for end in ends if end is not None and end > now), default=float("inf"))

    def _renew(self) -> None:
        registry, policy = self._dispatcher.registry, self._dispatcher.gate.policy
        if registry is not self._registry:
            shown = [one for one in registry.operations.values() if one.spec.visibility is not Visibility.INTERNAL]
            names = tool_names(one.spec.name for one in shown)
            self._tools = {
                name: (Tool(name, one.spec.describe()), one) for one in shown for name in (names[one.spec.name],)
            }
            self._registry = registry
            self._lists.clear()
        if policy is not self._policy:
            self._policy = policy
            self._lists.clear()


class NodeRun:
    """A prepared call of this node, run within the gateway's bounds and ended with what ends the gateway's calls."""

    __slots__ = ("_calls", "prepared")

    def __init__(self, calls: Calls, prepared: Prepared) -> None:
        self._calls = calls
        self.prepared = prepared

    @property
    def is_stream(self) -> bool:
        return self.prepared.is_stream

    @property
    def request_id(self) -> str:
        return self.prepared.act.request_id

    async def call(self) -> Any:
        return await self._calls.call(self.prepared)

    def stream(self) -> AsyncIterator[Any]:
        return self._calls.stream(self.prepared)


class NodeBackend:
    """The tools of this node for one request. `admit` is asked before each call, and refuses with a `CallError`."""

    __slots__ = ("_admit", "_calls", "_directory", "caller", "traceparent")

    def __init__(
        self,
        directory: Directory,
        calls: Calls,
        caller: Caller,
        traceparent: str | None,
        admit: Callable[[Caller], None],
    ) -> None:
        self._directory = directory
        self._calls = calls
        self._admit = admit
        self.caller = caller
        self.traceparent = traceparent

    async def tools(self) -> Sequence[Tool]:
        return self._directory.visible(self.caller.identity)

    async def find(self, name: str) -> Tool | None:
        return self._directory.find(name)

    async def begin(
        self, operation: str, value: Any, *, peer: str | None = None, streaming: bool | None = None
    ) -> NodeRun:
        self._admit(self.caller)
        prepared = self._calls.prepare(
            operation,
            value,
            self.caller,
            peer=peer,
            streaming=streaming,
            timeout_s=LIFETIME_S if self.caller.identity is None else None,
            traceparent=self.traceparent,
        )
        return NodeRun(self._calls, prepared)
