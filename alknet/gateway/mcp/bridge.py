"""MCP over stdin and stdout, in front of a node at the other end of a connection: for clients that start processes.

The node decides and serves; here is no more than the mapping. A connection that is lost is made anew with the next
request, so that a client which runs for days outlives the node's restarts.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

from mcp.server.stdio import stdio_server

from alknet.call.errors import CallError
from alknet.errors import AlknetError
from alknet.gateway.mcp.server import ToolServer, Turn
from alknet.gateway.mcp.tools import Tool, tool_names
from alknet.tasks import Tasks

__all__ = ["Connector", "LinkBackend", "Remote", "RemoteRun", "serve_stdio"]

LIST_TTL_S: Final = 30.0
"""How long a list of operations is taken for the current one."""
MIN_LIST_S: Final = 2.0
"""And how long at least, when a tool is called that is not in it."""
PAGE: Final = 1000
MAX_OPERATIONS: Final = 10_000
"""A node that lists more is asked no further."""
MAX_AT_ONCE: Final = 64
"""Schemas that are asked for at the same time."""


class Remote(Protocol):
    """A connection to a node, as `alknet.client.Peer` is one."""

    async def call(self, name: str, value: Any = None, /) -> Any:
        """The output; raises `CallError`."""

    async def batch(self, calls: Any) -> list[Any]:
        """The outputs, with a `CallError` in place of each that failed."""

    def subscribe(self, name: str, value: Any = None, /) -> Any:
        """A `Subscription`."""

    async def wait_closed(self) -> str:
        """Wait until the connection has ended."""


class Connector:
    """The connection, made when it is needed. `connect` makes one that lasts as long as its block."""

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Remote]]) -> None:
        self._connect = connect
        self._tasks = Tasks("mcp-bridge")
        self._remote: asyncio.Future[Remote] | None = None

    async def remote(self) -> Remote:
        """The connection that is open now; raises what `connect` raises where there can be none."""
        if self._remote is None or (self._remote.done() and self._remote.exception() is not None):
            self._remote = asyncio.get_running_loop().create_future()
            self._tasks.start(self._hold(self._remote), name="connection")
        return await asyncio.shield(self._remote)

    async def aclose(self) -> None:
        await self._tasks.aclose()

    async def _hold(self, remote: "asyncio.Future[Remote]") -> None:
        try:
            async with self._connect() as opened:
                remote.set_result(opened)
                await opened.wait_closed()
        except (AlknetError, OSError) as exc:
            if remote.done():  # it is the connection's end that failed
                return
            remote.set_exception(exc)
            remote.exception()  # whoever waits is told; nobody may be waiting any more
        finally:
            if not remote.done():
                remote.cancel()
            elif remote is self._remote and not remote.exception():
                self._remote = None


class RemoteRun:
    """A call of the node at the other end."""

    request_id = None

    def __init__(self, remote: Remote, name: str, value: Any, *, is_stream: bool) -> None:
        self._remote = remote
        self._name = name
        self._value = value
        self.is_stream = is_stream

    async def call(self) -> Any:
        return await self._remote.call(self._name, self._value)

    async def stream(self) -> AsyncIterator[Any]:
        async with self._remote.subscribe(self._name, self._value) as items:
            async for item in items:
                yield item


class LinkBackend:
    """The tools of the node at the other end, which knows who calls and decides what that is."""

    def __init__(self, connector: Connector, *, max_tools: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._connector = connector
        self._max_tools = max_tools
        self._clock = clock
        self._tools: dict[str, Tool] = {}
        self._kinds: dict[str, bool] = {}
        """Whether an operation is a subscription."""
        self._listed: float | None = None
        self._lock = asyncio.Lock()

    async def tools(self) -> Sequence[Tool]:
        await self._list(LIST_TTL_S)
        return tuple(self._tools.values())

    async def find(self, name: str) -> Tool | None:
        if name not in self._tools:
            await self._list(MIN_LIST_S)
        return self._tools.get(name)

    async def begin(
        self, operation: str, value: Any, *, peer: str | None = None, streaming: bool | None = None
    ) -> RemoteRun:
        if peer is not None:
            words = "this bridge is one node's; call what its peers bring at the node's own /mcp/gateway"
            raise CallError("INVALID_INPUT", words)
        remote = await self._reach()
        if operation not in self._kinds:
            await self._list(MIN_LIST_S)
        is_stream = self._kinds.get(operation, False) if streaming is None else streaming
        return RemoteRun(remote, operation, value, is_stream=is_stream)

    async def _reach(self) -> Remote:
        try:
            return await self._connector.remote()
        except CallError:
            raise
        except AlknetError as exc:
            raise CallError("UNAVAILABLE", f"the node cannot be reached: {exc}") from exc

    async def _list(self, max_age_s: float) -> None:
        """Ask for the operations, unless that was done within `max_age_s`; raises `CallError`."""
        async with self._lock:
            if self._listed is not None and self._clock() - self._listed < max_age_s:
                return
            remote = await self._reach()
            found = await _operations(remote)
            specs: Sequence[Mapping[str, Any]] = found
            if len(found) <= self._max_tools:  # else nobody is shown their schemas
                specs = await _described(remote, [one["name"] for one in found])
            names = tool_names(one["name"] for one in specs)
            self._tools = {names[one["name"]]: Tool(names[one["name"]], one) for one in specs}
            self._kinds = {one["name"]: one["kind"] == "subscription" for one in found}
            self._listed = self._clock()


async def _operations(remote: Remote) -> list[Mapping[str, Any]]:
    """What may be called, in the order of the names."""
    found: dict[str, Mapping[str, Any]] = {}
    cursor: Any = ""
    while isinstance(cursor, str) and len(found) < MAX_OPERATIONS:
        page = await remote.call("services/list", {"cursor": cursor, "limit": PAGE})
        if not isinstance(page, dict) or not isinstance(page.get("operations"), list):
            raise CallError("INTERNAL", "the node's list of operations makes no sense")
        found |= {one["name"]: one for one in page["operations"] if _is_spec(one)}
        after = page.get("next_cursor")
        cursor = after if isinstance(after, str) and after > cursor else None
    return sorted(found.values(), key=lambda one: str(one["name"]))


async def _described(remote: Remote, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """What each takes and answers; one that has gone meanwhile is left out."""
    found: list[Mapping[str, Any]] = []
    for start in range(0, len(names), MAX_AT_ONCE):
        part = names[start : start + MAX_AT_ONCE]
        specs = await remote.batch([("services/schema", {"name": name}) for name in part])
        found += [one for name, one in zip(part, specs, strict=True) if _is_spec(one) and one["name"] == name]
    return found


def _is_spec(one: Any) -> bool:
    return isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("kind"), str)


async def serve_stdio(
    connect: Callable[[], AbstractAsyncContextManager[Remote]], *, max_tools: int, is_general: bool = False
) -> None:
    """Speak MCP on this process's stdin and stdout until stdin ends; raises what the first `connect` raises."""
    connector = Connector(connect)
    try:
        await connector.remote()
        turn = Turn(LinkBackend(connector, max_tools=max_tools), max_tools, is_general)
        server = ToolServer(lambda ctx: turn, tells_changes=False)  # nobody tells this side
        try:
            async with stdio_server() as (messages, answers):
                await server.run(messages, answers, server.create_initialization_options())
        except* BrokenPipeError:
            pass  # the client has gone without a word
        finally:
            await server.aclose()
    finally:
        await connector.aclose()
