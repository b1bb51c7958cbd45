"""The tools of this node: what its dispatcher serves, for each caller what that caller may call.

A tool is made when somebody asks for it, and is kept as long as its operation stays the same: there may be thousands,
of peers that come and go, and few are ever shown.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, overload

from alknet.call.anonymous import LIFETIME_S
from alknet.call.context import Caller
from alknet.call.errors import CallError
from alknet.call.operations import Operation, Visibility
from alknet.call.permitted import Permitted
from alknet.call.prepared import Prepared
from alknet.call.registry import Registry
from alknet.gateway.calls import Calls
from alknet.gateway.mcp.tools import MAX_TOOL_NAME_CHARS, Tool, operation_named, tool_names

__all__ = ["Directory", "NodeBackend", "NodeRun", "Tools"]


class Tools(Sequence[Tool]):
    """The tools of some operations, in their order, each made when it is looked at."""

    def __init__(self, operations: Sequence[Operation], tool_of: Callable[[Operation], Tool]) -> None:
        self._operations = operations
        self._tool_of = tool_of

    def __len__(self) -> int:
        return len(self._operations)

    @overload
    def __getitem__(self, index: int) -> Tool: ...
    @overload
    def __getitem__(self, index: slice) -> "Tools": ...
    def __getitem__(self, index: int | slice) -> "Tool | Tools":
        if isinstance(index, slice):
            return Tools(self._operations[index], self._tool_of)
        return self._tool_of(self._operations[index])

    def __iter__(self) -> Iterator[Tool]:
        return map(self._tool_of, self._operations)


class Directory:
    """The tools of a node, and who may call which, as `permitted` knows; it may be shared."""

    def __init__(self, calls: Calls, permitted: Permitted | None = None) -> None:
        self._dispatcher = calls.dispatcher
        self._permitted = permitted or calls.dispatcher.permitted
        self._registry: Registry | None = None
        self._cut: dict[str, str] = {}
        """The operations whose names are too long for a tool, by the names that their tools have instead."""
        self._names: dict[str, str] = {}
        """And the other way round."""
        self._tools: dict[str, tuple[Operation, Tool]] = {}
        """Those that were made, by their operations' names."""

    def find(self, name: str) -> Tool | None:
        """The tool with this name, whoever asks. Of internal operations there is none."""
        self._renew()
        operation = self._dispatcher.registry.get(self._cut.get(name) or operation_named(name))
        if operation is None or operation.spec.visibility is Visibility.INTERNAL:
            return None
        tool = self._tool_of(operation)
        return tool if tool.name == name else None

    async def visible(self, identity: Any) -> Tools:
        """What this caller may call, in the order of the operations' names."""
        operations = await self._permitted.of(identity)
        return Tools(operations, self._tool_of)

    def is_plain(self, name: str, peer: str | None = None) -> bool:
        """Whether this names an operation, of the node or of that connected peer, that answers once."""
        if peer is None:
            found = self._dispatcher.registry.get(name)
            return found is not None and not found.style.is_stream
        try:
            return not self._dispatcher.peers.operation(peer, name).style.is_stream
        except CallError:
            return False

    def _tool_of(self, operation: Operation) -> Tool:
        self._renew()
        name = operation.spec.name
        known = self._tools.get(name)
        if known is not None and known[0] is operation:
            return known[1]
        tool = Tool(self._names.get(name) or tool_names([name])[name], operation.spec.describe())
        if self._dispatcher.registry.get(name) is operation:
            self._tools[name] = operation, tool
        return tool

    def _renew(self) -> None:
        registry = self._dispatcher.registry
        if registry is self._registry:
            return
        self._registry = registry
        self._tools = {name: known for name, known in self._tools.items() if registry.operations.get(name) is known[0]}
        long = [name for name in registry.operations if len(name) > MAX_TOOL_NAME_CHARS]
        self._names = tool_names(long, is_taken=lambda cut: operation_named(cut) in registry.operations)
        self._cut = {cut: name for name, cut in self._names.items()}


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
        return await self._directory.visible(self.caller.identity)

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
