"""The tools of a node, and who may call which."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from alknet import operation
from alknet.access import Identity
from alknet.call.errors import CallError
from alknet.gateway.calls import Calls
from alknet.gateway.mcp import node
from alknet.gateway.mcp.node import Directory, NodeBackend
from testkit import services
from testkit.bench import Bench

PEERS = {"alice": ("*",), "bob": ("test:echo",)}


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


def names(directory: Directory, identity: Any) -> list[str]:
    return [tool.operation for tool in directory.visible(identity)]


async def test_a_list_is_kept_until_operations_or_policy_change(bench: Bench) -> None:
    directory = Directory(Calls(bench.dispatcher))
    alice, bob = (bench.caller(peer).identity for peer in ("alice", "bob"))
    assert names(directory, bob) == ["services/list", "services/schema", "test/echo", "test/identity"]
    assert directory.visible(alice) is directory.visible(alice)
    tool = directory.find("test.echo")
    bench.gate.policy = bench.policy(PEERS | {"bob": ("test:text",)})
    bob = bench.caller("bob").identity
    assert "test/text" in names(directory, bob)
    assert directory.find("test.echo") is tool  # and its schemas as they were
    assert directory.find("more.one") is None
    bench.serve(services, more)
    assert directory.find("more.one") is not None
    assert "more/one" in names(directory, alice)
    assert names(directory, None) == ["services/list", "services/schema", "test/identity"]


async def test_internal_operations_have_no_tool(bench: Bench) -> None:
    directory = Directory(Calls(bench.dispatcher))
    assert directory.find("matrix.inside") is None
    assert "matrix/inside" not in names(directory, bench.caller("alice").identity)


async def test_a_list_ends_with_the_credential(bench: Bench) -> None:
    directory = Directory(Calls(bench.dispatcher))
    now = bench.gate.clock.wall()
    bench.gate.clock = Clock(now)  # type: ignore[assignment]
    token = Identity("alice", frozenset({"*"}), "key:SHA256:alice", now + 10)
    assert directory._until(token, now) == now + 10
    first = directory.visible(token)
    assert directory.visible(token) is first
    bench.gate.clock.now = now + 11  # type: ignore[attr-defined]
    assert directory.visible(token) is not first


async def test_so_many_lists_are_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "MAX_LISTS", 2)
    directory = Directory(Calls(bench.dispatcher))
    identities = [bench.caller(peer).identity for peer in ("alice", "bob", None)]
    lists = [directory.visible(identity) for identity in identities]
    assert len(directory._lists) == 2
    assert directory.visible(identities[2]) is lists[2]
    assert directory.visible(identities[0]) == lists[0]


async def test_which_operations_answer_once(bench: Bench) -> None:
    directory = Directory(Calls(bench.dispatcher))
    assert [directory.is_plain(name) for name in ("test/echo", "test/count", "no/such")] == [True, False, False]


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


class Clock:
    """The bench's clock, at a time of the test's."""

    def __init__(self, now: float) -> None:
        self.now = now

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now
