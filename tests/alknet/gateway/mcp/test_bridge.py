"""The tools of a node at the other end of a connection, with a node that does what the test says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from alknet.call.errors import CallError
from alknet.errors import UnavailableError
from alknet.gateway.mcp import bridge
from alknet.gateway.mcp.bridge import Connector, LinkBackend
from alknet.gateway.mcp.tools import Revision

SPECS = {
    "a/one": {"name": "a/one", "kind": "query", "output_schema": {"type": "object"}},
    "a/many": {"name": "a/many", "kind": "subscription", "output_schema": {}},
}


class Remote:
    """A node with these operations."""

    def __init__(self, specs: dict[str, Any]) -> None:
        self.specs = specs
        self.page = 1000
        self.calls: list[tuple[str, Any]] = []
        self.closed = asyncio.Event()

    async def call(self, name: str, value: Any = None, /) -> Any:
        self.calls.append((name, value))
        if name == "services/list":
            names = [one for one in sorted(self.specs) if one > value["cursor"]]
            shown = [{"name": one, "kind": self.specs[one]["kind"], "summary": ""} for one in names[: self.page]]
            return {"operations": shown, "next_cursor": names[self.page - 1] if len(names) > self.page else None}
        return name

    async def batch(self, calls: Any) -> list[Any]:
        self.calls += calls
        gone = CallError("NOT_FOUND", "gone")
        return [self.specs.get(value["name"], gone) for _, value in calls]

    @asynccontextmanager
    async def subscribe(self, name: str, value: Any = None, /) -> AsyncIterator[Any]:
        async def items() -> AsyncIterator[int]:
            yield 1
            yield 2

        yield items()

    async def wait_closed(self) -> str:
        await self.closed.wait()
        return "closed"


class Far:
    """Where connections lead."""

    def __init__(self, specs: dict[str, Any] = SPECS) -> None:
        self.specs = dict(specs)
        self.made: list[Remote] = []
        self.is_down = False
        self.now = 0.0

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Remote]:
        if self.is_down:
            raise UnavailableError("nobody is there")
        self.made.append(Remote(self.specs))
        yield self.made[-1]


@pytest.fixture
async def far() -> Far:
    return Far()


@pytest.fixture
async def backend(far: Far) -> Any:
    connector = Connector(far.connect)
    yield LinkBackend(connector, max_tools=10, clock=lambda: far.now)
    await connector.aclose()


async def test_tools_are_what_the_node_lists(far: Far, backend: LinkBackend) -> None:
    assert [tool.name for tool in await backend.tools()] == ["a.many", "a.one"]
    tool = await backend.find("a.one")
    assert tool is not None
    assert tool.describe(Revision.OLD)["outputSchema"] == {"type": "object"}


async def test_a_list_is_kept_for_a_while_and_asked_for_anew_for_what_is_not_in_it(
    far: Far, backend: LinkBackend
) -> None:
    await backend.tools()
    (remote,) = far.made
    before = len(remote.calls)
    await backend.tools()
    assert len(remote.calls) == before
    far.specs["a/new"] = {"name": "a/new", "kind": "query"}
    remote.specs = far.specs
    assert await backend.find("a.new") is None  # it was listed a moment ago
    far.now = bridge.MIN_LIST_S
    assert await backend.find("a.new") is not None
    far.specs.pop("a/new")
    far.now += bridge.LIST_TTL_S
    assert [tool.name for tool in await backend.tools()] == ["a.many", "a.one"]


async def test_all_pages_are_asked_for(far: Far, backend: LinkBackend) -> None:
    await (await backend._connector.remote()).call("warm/up")
    far.made[0].page = 1
    assert len(await backend.tools()) == 2


async def test_schemas_are_not_asked_for_where_nobody_is_shown_them(far: Far) -> None:
    far.specs = {f"a/n{number}": {"name": f"a/n{number}", "kind": "query"} for number in range(11)}
    connector = Connector(far.connect)
    backend = LinkBackend(connector, max_tools=10)
    assert len(await backend.tools()) == 11
    assert {name for name, _ in far.made[0].calls} == {"services/list"}
    await connector.aclose()


async def test_what_makes_no_sense_is_left_out(far: Far, backend: LinkBackend) -> None:
    far.specs |= {
        "a/bad": {"name": "b/other", "kind": "query"},
        "a/odd": {"name": "a/odd", "kind": 3},
    }
    assert [tool.name for tool in await backend.tools()] == ["a.many", "a.one"]


async def test_calls_and_subscriptions_go_to_the_node(far: Far, backend: LinkBackend) -> None:
    run = await backend.begin("a/one", {"x": 1})
    assert not run.is_stream
    assert await run.call() == "a/one"
    assert far.made[0].calls[-1] == ("a/one", {"x": 1})
    many = await backend.begin("a/many", {})
    assert many.is_stream
    assert [item async for item in many.stream()] == [1, 2]
    unknown = await backend.begin("a/unknown", {})  # the node is to say so
    assert not unknown.is_stream


async def test_the_nodes_peers_are_not_reached_through_it(far: Far, backend: LinkBackend) -> None:
    with pytest.raises(CallError, match="/mcp/gateway") as refused:
        await backend.begin("a/one", {}, peer="w1")
    assert refused.value.code == "INVALID_INPUT"


async def test_a_lost_connection_is_made_anew_with_the_next_request(far: Far, backend: LinkBackend) -> None:
    await backend.tools()
    far.is_down = True
    far.made[0].closed.set()
    while backend._connector._remote is not None:
        await asyncio.sleep(0)
    for _ in range(2):
        with pytest.raises(CallError, match="nobody is there") as lost:
            await backend.begin("a/one", {})
        assert (lost.value.code, lost.value.retryable) == ("UNAVAILABLE", True)
    far.is_down = False
    assert await (await backend.begin("a/one", {})).call() == "a/one"
    assert len(far.made) == 2


async def test_those_who_wait_at_the_same_time_share_a_connection(far: Far) -> None:
    connector = Connector(far.connect)
    first, second = await asyncio.gather(connector.remote(), connector.remote())
    assert first is second
    waiting = asyncio.gather(connector.remote())
    waiting.cancel()  # which takes it from nobody else
    assert await connector.remote() is first
    await connector.aclose()
    assert len(far.made) == 1
