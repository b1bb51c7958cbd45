"""The official SDK's server with our two handlers, for every transport: ``tools/list`` and ``tools/call``.

The SDK judges messages, versions and headers, speaks both revisions, and carries progress and cancellation.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    CallToolRequestParams,
    PaginatedRequestParams,
)

from alknet._version import __version__
from alknet.call.errors import CallError
from alknet.gateway.mcp.backend import Backend
from alknet.gateway.mcp.calling import Progress, call_tool
from alknet.gateway.mcp.listing import LIST_TTL_MS, CursorError, page_of
from alknet.gateway.mcp.results import Result
from alknet.gateway.mcp.tools import Revision
from alknet.tasks import Tasks

__all__ = ["MAX_LISTENERS", "REQUEST_CANCELLED", "Session", "ToolServer", "Turn"]

MAX_LISTENERS: Final = 256
"""Streams at the same time that tell their clients of changed lists."""
REQUEST_CANCELLED: Final = -32800
"""The JSON-RPC error of a request that was given up, as the SDK has it."""
INSTRUCTIONS: Final = (
    "Each tool is an operation of an alknet node; its title is the operation's name. You see what you may call."
    " Where you see only search, schema, call and batch, find operations with search."
)

_COMPLETE: Final = {"resultType": "complete"}

Ctx = ServerRequestContext[Any, Any]


@dataclass(slots=True, eq=False)
class Turn:
    """One request of a client, as the handlers see it."""

    backend: Backend
    max_tools: int
    is_general: bool = False
    """Only the four general tools are shown."""
    identity: Any = None
    session: "Session | None" = None
    is_call: bool = False
    """It has called a tool, and is to be answered."""
    is_listening: bool = False
    """It waits to be told of changed lists."""
    is_over: bool = False
    """It is being ended, because its caller may not go on."""
    running: set["asyncio.Task[Any]"] = field(default_factory=set)
    """The calls that it has begun."""

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        for task in tuple(self.running):
            task.cancel()


class Session:
    """What is known of a session of the old revision from the messages in it."""

    def __init__(self) -> None:
        self.is_initialized = False
        self.changed: Callable[[], Coroutine[Any, Any, None]] | None = None
        """Tells the client that its list has changed."""


class ToolServer(Server[Any]):
    """The SDK's server, which says in both revisions whether it `tells_changes` of lists: whoever runs it then does."""

    def __init__(self, turn_of: Callable[[Ctx], Turn], *, tells_changes: bool = True) -> None:
        self._tells_changes = tells_changes
        self.bus = InMemorySubscriptionBus()
        self.listening = ListenHandler(self.bus, max_subscriptions=MAX_LISTENERS)
        self._turn_of = turn_of
        self._tasks = Tasks("mcp")
        super().__init__(
            "alknet",
            version=__version__,
            title="alknet",
            instructions=INSTRUCTIONS,
            # No schema asks for headers that repeat arguments (see `tools`), so there is nothing to compare. Without
            # this the SDK would list all tools at each call.
            get_tool_input_schema=lambda name: None,
            on_subscriptions_listen=self.listening if tells_changes else None,
        )
        self.add_request_handler("tools/list", PaginatedRequestParams, self._list_tools)
        self.add_request_handler("tools/call", CallToolRequestParams, self._call_tool)
        self.middleware = [self._watch_initialize]  # spans are not recorded here: the audit log has every call

    def create_initialization_options(self, *args: Any, **options: Any) -> Any:
        return super().create_initialization_options(NotificationOptions(tools_changed=self._tells_changes), **options)

    async def aclose(self) -> None:
        """End what runs."""
        self.listening.close()
        await self._tasks.aclose()

    # --- handlers ---------------------------------------------------------------------------------------------------

    async def _list_tools(self, ctx: Ctx, params: PaginatedRequestParams | None) -> dict[str, Any]:
        turn, is_new = self._turn_of(ctx), Revision.of(ctx.protocol_version) is Revision.NEW
        cursor = None if params is None else params.cursor
        try:
            page = page_of(
                await turn.backend.tools(),
                Revision.of(ctx.protocol_version),
                cursor,
                max_tools=turn.max_tools,
                is_general=turn.is_general,
            )
        except CursorError as exc:
            raise MCPError(INVALID_PARAMS, str(exc)) from exc
        except CallError as exc:
            raise MCPError(INTERNAL_ERROR, str(exc)) from exc
        result: dict[str, Any] = json.loads(b"{%b}" % page.json())
        return result | _COMPLETE | {"ttlMs": LIST_TTL_MS, "cacheScope": "private"} if is_new else result

    async def _call_tool(self, ctx: Ctx, params: CallToolRequestParams) -> dict[str, Any]:
        turn = self._turn_of(ctx)
        revision = Revision.of(ctx.protocol_version)
        call = call_tool(turn.backend, revision, params.name, params.arguments or {}, _progress(ctx))
        result = (await self._run(turn, call)).wire()
        return result | _COMPLETE if revision is Revision.NEW else result

    async def _run(self, turn: Turn, call: Coroutine[Any, Any, Result]) -> Result:
        """In a task of its own: the SDK's cancellation comes again at each await, and a call that is cancelled has to
        wait for what it called."""
        task = self._tasks.start(call, name="call")
        turn.running.add(task)
        task.add_done_callback(turn.running.discard)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.cancelled():
            raise MCPError(REQUEST_CANCELLED, "Request cancelled")
        result: Result = task.result()
        return result

    async def _watch_initialize(self, ctx: Ctx, call_next: CallNext) -> HandlerResult:
        result = await call_next(ctx)
        session = self._turn_of(ctx).session if ctx.method == "initialize" else None
        if session is not None:
            session.is_initialized = True
            session.changed = ctx.session.send_tool_list_changed
        return result


def _progress(ctx: Ctx) -> Progress | None:
    meta = (ctx.params or {}).get("_meta")
    if not isinstance(meta, dict) or "progressToken" not in meta:
        return None

    async def tell(count: int, item: str) -> None:
        await ctx.session.report_progress(count, message=item)

    return tell
