"""From a tool's name to its answer, without any transport."""

import asyncio
from typing import Any

import pytest

from alknet import operation
from alknet.gateway.calls import Calls
from alknet.gateway.mcp.calling import MAX_PROGRESS_CHARS, call_tool
from alknet.gateway.mcp.node import Directory, NodeBackend
from alknet.gateway.mcp.tools import Revision
from testkit import services
from testkit.bench import Bench
from testkit.polling import eventually
from testkit.services import seen_marks

LONG = "x" * 70


@operation("long/" + LONG, kind="query")
async def long_name() -> str:
    """One whose tool has a cut name."""
    return "long"


@operation("test/fails-late")
async def fails_late() -> Any:
    """Two items, and then an error."""
    yield 1
    yield 2
    raise RuntimeError("of its own")


@pytest.fixture
async def bench() -> Any:
    async with Bench(services, long_name, fails_late, peers={"alice": ("*",), "bob": ()}) as bench:
        yield bench


def backend(bench: Bench, peer: str | None = "alice") -> NodeBackend:
    calls = Calls(bench.dispatcher)
    return NodeBackend(Directory(calls), calls, bench.caller(peer), None, lambda caller: None)


async def call(
    bench: Bench, name: str, arguments: Any = None, *, peer: str | None = "alice", progress: Any = None
) -> Any:
    result = await call_tool(backend(bench, peer), Revision.NEW, name, arguments or {}, progress)
    wire = result.wire()
    return wire["_meta"]["alknet/error"] if result.is_error else wire["structuredContent"]


async def test_a_cut_name_is_routed_to_its_operation(bench: Bench) -> None:
    (tool,) = [tool for tool in await backend(bench).tools() if tool.operation.startswith("long/")]
    assert len(tool.name) == 64
    assert await call(bench, tool.name) == "long"
    assert (await call(bench, "long." + LONG))["code"] == "NOT_FOUND"  # only what the table has is a tool's name


async def test_a_name_that_is_far_too_long_is_cut_before_it_is_written_down(bench: Bench) -> None:
    answer = await call(bench, "a." * 10_000, peer=None)
    assert answer["code"] == "FORBIDDEN"
    assert len(bench.audit.records[-1]["action"]) == 128
    answer = await call(bench, "call", {"operation": "a/" * 10_000})
    assert answer["code"] == "INVALID_INPUT"


async def test_a_denied_tool_is_denied_by_name(bench: Bench) -> None:
    answer = await call(bench, "test.echo", peer="bob")
    assert (answer["code"], answer["denial_id"]) == ("FORBIDDEN", bench.audit.records[-1]["denial_id"])
    assert "test.echo" not in [tool.name for tool in await backend(bench, "bob").tools()]


async def test_items_before_an_error_are_told_with_it(bench: Bench) -> None:
    answer = await call(bench, "test.fails-late")
    assert (answer["code"], answer["items"]) == ("INTERNAL", [1, 2])


async def test_a_long_item_is_cut_in_progress_and_whole_in_the_end(bench: Bench) -> None:
    told = []

    async def progress(count: int, item: str) -> None:
        told.append((count, item))

    answer = await call(bench, "test.count", {"to": 2, "size": 20_000}, progress=progress)
    assert [count for count, _ in told] == [1, 2]
    assert all(len(item) == MAX_PROGRESS_CHARS and item.endswith("…") for _, item in told)
    assert [len(item["text"]) for item in answer["items"]] == [20_000, 20_000]


async def test_a_client_that_cannot_be_told_any_more_ends_the_subscription(bench: Bench) -> None:
    async def progress(count: int, item: str) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await call(bench, "test.paced", {"mark": "untold"}, progress=progress)
    assert seen_marks["untold"]["how"] == "GeneratorExit"


async def test_cancelling_ends_the_handler_and_what_it_calls(bench: Bench) -> None:
    calling = asyncio.create_task(call(bench, "test.compose", {"mark": "tree"}))  # noqa: TID251
    await eventually(lambda: "tree" in seen_marks, "the child runs")
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert {seen_marks[mark]["how"] for mark in ("tree", "tree-parent")} == {"CancelledError"}
    assert bench.unmatched() == {}
