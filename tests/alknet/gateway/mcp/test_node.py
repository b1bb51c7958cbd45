"""The tools of a node, and who may call which."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from alknet import operation
from alknet.call.errors import CallError
from alknet.call.operations import served_by
from alknet.call.routes import HttpRoute
from alknet.gateway.calls import Calls
from alknet.gateway.mcp import node
from alknet.gateway.mcp.listing import page_of
from alknet.gateway.mcp.node import Directory, NodeBackend
from alknet.gateway.mcp.tools import Revision
from testkit import services
from testkit.bench import Bench

PEERS = {"alice": ("*",), "bob": ("test:echo",)}
PUBLIC = ["services/list", "services/list-peers", "services/schema"]
BOBS = ["services/changed", *PUBLIC, "test/echo", "test/identity"]


@operation("more/one", kind="query")
async def more() -> str:
    """One that comes with a reload."""
    return "more"


@operation("more/open", kind="subscription", public=True)
async def more_open() -> AsyncIterator[int]:
    """One that anybody may hold open."""
    yield 1
    await asyncio.Event().wait()


@pytest.fixture
async def bench() -> Any:
    async with Bench(services, peers=PEERS) as bench:
        yield bench


async def names(directory: Directory, identity: Any) -> list[str]:
    return [tool.operation for tool in await directory.visible(identity)]


async def test_a_tool_is_kept_as_long_as_its_operation_stays_the_same(bench: Bench) -> None:
    directory = Directory(Calls(bench.dispatcher))
    alice, bob = (bench.caller(peer).identity for peer in ("alice", "bob"))
    assert await names(directory, bob) == BOBS
    tool = directory.find("test.echo")
    bench.gate.policy = bench.policy(PEERS | {"bob": ("test:text",)})
    bob = bench.caller("bob").identity
    assert "test/text" in await names(directory, bob)
    assert directory.find("test.echo") is tool
    assert directory.find("more.one") is None
    registry = bench.dispatcher.registry
    one = served_by((more,))[0]
    assert not isinstance(one, HttpRoute)
    bench.dispatcher.registry = registry.beside({"more/one": one})
    assert directory.find("more.one") is not None
    assert directory.find("test.echo") is tool  # and the JSON that was made of it
    assert "more/one" in await names(directory, alice)
    bench.dispatcher.registry = registry
    assert directory.find("more.one") is None
    assert directory.find("test.echo") is tool
    bench.serve(services.text)
    assert directory.find("test.echo") is None
    assert await names(directory, None) == PUBLIC


async def test_a_name_that_is_too_long_is_found_by_what_its_tool_is_called(bench: Bench) -> None:
    long = "more/" + "x" * 70

    @operation(long, kind="query", public=True)
    async def plain() -> int:
        """One that anybody may call."""
        return 1

    (one,) = served_by((plain,))
    assert not isinstance(one, HttpRoute)
    bench.dispatcher.registry = bench.dispatcher.registry.beside({long: one})
    directory = Directory(Calls(bench.dispatcher))
    (tool,) = [tool for tool in await directory.visible(None) if tool.operation == long]
    assert len(tool.name) == 64
    assert directory.find(tool.name) is tool
    assert directory.find(long.replace("/", ".")) is None


async def test_internal_operations_have_no_tool(bench: Bench) -> None:
    directory = Directory(Calls(bench.dispatcher))
    assert directory.find("matrix.inside") is None
    assert "matrix/inside" not in await names(directory, bench.caller("alice").identity)


async def test_tools_are_made_when_they_are_looked_at(bench: Bench) -> None:
    directory = Directory(Calls(bench.dispatcher))
    tools = await directory.visible(bench.caller("alice").identity)
    assert len(tools) > 20
    assert directory._tools == {}
    page = page_of(tools, Revision.NEW, "after:test/text", max_tools=100, is_general=False)
    assert [json.loads(one)["title"] for one in page.tools] == ["test/thread", "test/typed", "test/wait"]
    assert len(directory._tools) < 10
    again = page_of(tools, Revision.NEW, None, max_tools=3, is_general=False)
    assert len(again.tools) == 4  # the general ones
    assert len(directory._tools) < 10


async def test_which_operations_answer_once(bench: Bench) -> None:
    directory = Directory(Calls(bench.dispatcher))
    assert [directory.is_plain(name) for name in ("test/echo", "test/count", "no/such")] == [True, False, False]
    assert directory.is_plain("test/echo", "nobody") is False


async def test_a_stranger_holds_nothing_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over the call protocol; who is known may subscribe for as long as they like."""
    monkeypatch.setattr(node, "LIFETIME_S", 0.05)
    bench.serve(services, more_open)
    calls = Calls(bench.dispatcher)
    stranger = NodeBackend(Directory(calls), calls, bench.caller(None), None, lambda caller: None)
    run = await stranger.begin("more/open", {})
    with pytest.raises(CallError) as ended:
        assert [item async for item in run.stream()] == []
    assert ended.value.code == "TIMEOUT"
    alice = NodeBackend(Directory(calls), calls, bench.caller("alice"), None, lambda caller: None)
    known = await alice.begin("more/open", {})
    assert known.prepared.act is not None
    known.prepared.drop()
