"""The SDK's server with our handlers, without a transport."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from alknet._version import __version__
from alknet.call.errors import CallError
from alknet.gateway.mcp.server import Session, ToolServer, Turn
from alknet.gateway.mcp.tools import Tool
from testkit.mcp_bench import MODES

pytestmark = pytest.mark.parametrize("mode", MODES)

SPEC = {"name": "a/b", "kind": "query", "input_schema": {"type": "object"}, "output_schema": {"type": "object"}}


class Backend:
    """One tool, which waits until it is let go."""

    is_stream = False
    request_id = None

    def __init__(self) -> None:
        self.began, self.goes_on = asyncio.Event(), asyncio.Event()
        self.error: CallError | None = None
        self.how = ""

    async def tools(self) -> Sequence[Tool]:
        if self.error is not None:
            raise self.error
        return [Tool("a.b", SPEC)]

    async def find(self, name: str) -> Tool | None:
        return Tool("a.b", SPEC)

    async def begin(
        self, operation: str, value: Any, *, peer: str | None = None, streaming: bool | None = None
    ) -> "Backend":
        return self

    async def call(self) -> Any:
        self.began.set()
        try:
            await self.goes_on.wait()
            self.how = "answered"
            return {"called": True}
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)  # what it called ends first
            self.how = "cancelled, and cleaned up"
            raise

    def stream(self) -> AsyncIterator[Any]:
        raise NotImplementedError


@pytest.fixture
def turn() -> Turn:
    return Turn(Backend(), 100, session=Session())


@pytest.fixture
async def server(turn: Turn) -> Any:
    made = ToolServer(lambda ctx: turn)
    yield made
    await made.aclose()


async def test_it_says_who_it_is_and_that_lists_change(mode: str, server: ToolServer, turn: Turn) -> None:
    async with Client(server, mode="legacy" if mode == "legacy" else "auto", cache=None) as client:
        assert (client.server_info.name, client.server_info.version) == ("alknet", __version__)
        assert client.server_capabilities.tools.list_changed
        assert "search" in client.instructions
    if mode == "legacy":
        assert turn.session is not None
        assert turn.session.is_initialized


async def test_where_nobody_is_told_of_changes_nothing_is_promised(mode: str, turn: Turn) -> None:
    server = ToolServer(lambda ctx: turn, tells_changes=False)
    async with Client(server, mode="legacy" if mode == "legacy" else "auto", cache=None) as client:
        assert not client.server_capabilities.tools.list_changed
        if mode != "legacy":
            with pytest.raises(MCPError):
                async with client.listen(tools_list_changed=True):
                    pass
    await server.aclose()


async def test_a_list_that_cannot_be_had_is_an_error(mode: str, server: ToolServer, turn: Turn) -> None:
    turn.backend.error = CallError("UNAVAILABLE", "the node cannot be reached")  # type: ignore[attr-defined]
    async with Client(server, mode=mode, cache=None) as client:
        with pytest.raises(MCPError, match="cannot be reached"):
            await client.list_tools()


async def test_a_call_that_is_cancelled_cleans_up_in_peace(mode: str, server: ToolServer, turn: Turn) -> None:
    backend: Any = turn.backend
    async with Client(server, mode=mode, cache=None) as client:
        calling = asyncio.create_task(client.call_tool("a.b", {}))  # noqa: TID251
        await backend.began.wait()
        calling.cancel()
        while turn.running:
            await asyncio.sleep(0)
        assert backend.how == "cancelled, and cleaned up"


async def test_a_turn_that_nobody_waits_for_is_cancelled(mode: str, server: ToolServer, turn: Turn) -> None:
    backend: Any = turn.backend
    async with Client(server, mode=mode, cache=None) as client:
        calling = asyncio.create_task(client.call_tool("a.b", {}))  # noqa: TID251
        await backend.began.wait()
        turn.cancel()
        with pytest.raises(MCPError, match="Request cancelled") as cancelled:
            await calling
        assert cancelled.value.error.code == -32800
        assert backend.how == "cancelled, and cleaned up"
        backend.goes_on.set()
        assert (await client.call_tool("a.b", {})).structured_content == {"called": True}
