"""The official MCP client, in both revisions of the protocol, against the tools of a node.

What is asserted of a call is asserted of the audit log, too: this door has no decisions of its own.
"""

import asyncio
import json
import time
from typing import Any

import jsonschema
import pytest
from mcp.shared.exceptions import MCPError

from alknet.gateway.mcp.app import McpSettings
from testkit import services
from testkit.bench import Bench
from testkit.mcp_bench import MODES, McpBench, error_of, serve_mcp
from testkit.polling import eventually
from testkit.services import seen_marks

pytestmark = [pytest.mark.interop, pytest.mark.parametrize("mode", MODES)]

PEERS = {"alice": ("*",), "bob": ("test:echo", "test:order", "matrix:*"), "carol": ()}
END_S = 0.2
"""Within so long a handler has to be cancelled whose caller gave up."""


@pytest.fixture
async def served() -> Any:
    async with Bench(services, peers=PEERS, resources={"shelf": ("read:*",)}) as bench, serve_mcp(bench) as running:
        yield running


async def every_tool(client: Any) -> list[Any]:
    tools, cursor = [], None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools


@pytest.mark.parametrize("peer", ["alice", "bob", "carol", None])
async def test_the_list_is_what_the_caller_may_call(mode: str, peer: str | None, served: McpBench) -> None:
    async with served.client(mode, peer) as client:
        names = [tool.name for tool in await every_tool(client)]
    identity = served.bench.caller(peer).identity
    operations = served.bench.dispatcher.registry.operations.values()
    assert names == [
        one.spec.name.replace("/", ".") for one in operations if served.bench.dispatcher.may(identity, one)
    ]
    assert names  # services/* at least


async def test_a_call_answers_with_a_value_that_fits_its_schema_and_the_same_as_text(
    mode: str, served: McpBench
) -> None:
    calls: list[tuple[str, dict[str, Any], Any]] = [
        ("test.digest", {"data": "YWJj"}, {"bytes": 3}),
        ("test.thread", {"value": 1}, 2),
        ("test.text", {"size": 3}, "xxx"),
        ("test.blob", {"size": 3}, "AAAA"),
        ("test.echo", {"value": [1, None, {"ä": None}]}, [1, None, {"ä": None}]),
        ("test.echo", {"value": None}, None),
        ("test.seen", {"mark": "nothing"}, None),
        ("test.count", {"to": 2}, None),
    ]
    async with served.client(mode) as client:
        tools = {tool.name: tool for tool in await every_tool(client)}
        for name, arguments, expected in calls:
            result = await client.call_tool(name, arguments)
            assert not result.is_error
            jsonschema.validate(result.structured_content, tools[name].output_schema)
            assert json.loads(result.content[0].text) == result.structured_content
            value = result.structured_content
            if isinstance(value, dict) and set(value) == {"result"}:
                value = value["result"]
            elif mode == "legacy":
                assert isinstance(value, dict)
            if isinstance(expected, dict):
                assert expected.items() <= value.items()
            elif name != "test.count":
                assert value == expected


async def test_a_declared_error_and_a_wrong_input_are_results_that_say_all(mode: str, served: McpBench) -> None:
    async with served.client(mode, "bob") as client:
        result = await client.call_tool("test.order", {"item": "pears", "amount": 5})
        error = error_of(result)
        assert error.pop("request_id").startswith("req_")
        expected = {"code": "SOLD_OUT", "message": "only 3 of pears are left", "retryable": False}
        assert error == expected | {"details": {"left": 3}}
        wrong = error_of(await client.call_tool("test.order", {"item": "pears", "amount": "many"}))
        assert (wrong["code"], wrong["details"][0]["path"]) == ("INVALID_INPUT", ["amount"])
    assert served.bench.outcomes("test/order") == ["error SOLD_OUT", "error INVALID_INPUT"]


async def test_a_denial_has_the_denial_id_of_every_door(mode: str, served: McpBench) -> None:
    with pytest.raises(Exception) as refused:
        served.bench.prepare("test/wait", {"mark": "m"}, peer="bob")
    async with served.client(mode, "bob") as client:
        for name, arguments in (
            ("test.wait", {"mark": "m"}),
            ("call", {"operation": "test/wait", "input": {"mark": "m"}}),
        ):
            error = error_of(await client.call_tool(name, arguments))
            assert error["code"] == "FORBIDDEN"
            assert error["denial_id"] == refused.value.denial_id  # type: ignore[attr-defined]
            assert error["denial_id"] in {r.get("denial_id") for r in served.bench.audit.records}


async def test_a_stranger_cannot_tell_what_is_denied_from_what_is_not_there(mode: str, served: McpBench) -> None:
    async with served.client(mode, None) as client:
        answers = [
            error_of(await client.call_tool(name, {}))
            for name in ("test.echo", "test.nothing", "matrix.inside", "nothing")
        ]
    for answer in answers:
        assert answer.pop("denial_id")
        assert answer.pop("request_id")
    assert answers == [{"code": "FORBIDDEN", "message": "authentication required", "retryable": False}] * 4


async def test_who_is_known_learns_what_is_not_there(mode: str, served: McpBench) -> None:
    async with served.client(mode) as client:
        for name in ("test.nothing", "matrix.inside"):
            assert error_of(await client.call_tool(name, {}))["code"] == "NOT_FOUND"


async def test_a_subscription_is_progress_and_one_result(mode: str, served: McpBench) -> None:
    told: list[tuple[float, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))

    async with served.client(mode) as client:
        result = await client.call_tool("test.numbers", {"to": 4}, progress_callback=on_progress)
        assert result.structured_content == {"items": [0, 1, 2, 3], "truncated": False}
        await eventually(lambda: len(told) == 4, "every item is told")
        assert told == [(number + 1.0, str(number)) for number in range(4)]
        quiet = await client.call_tool("test.numbers", {"to": 4})
        assert quiet.structured_content == result.structured_content


async def test_a_subscription_that_has_too_much_is_ended_and_says_so(mode: str, served: McpBench) -> None:
    async with served.client(mode) as client:
        result = await client.call_tool("test.paced", {"mark": f"long-{mode}"})
        assert len(result.structured_content["items"]) == 1000
        assert result.structured_content["truncated"]
        large = await client.call_tool("test.count", {"to": 900, "size": 2000})
        assert large.structured_content["truncated"]
        assert 100 < len(large.structured_content["items"]) < 150
    assert seen_marks[f"long-{mode}"]["how"] == "GeneratorExit"


@pytest.mark.parametrize(
    ("name", "options"),
    [("test.wait", {}), ("test.endless", {}), ("test.endless", {"progress": True}), ("call", {}), ("batch", {})],
)
async def test_a_call_that_is_cancelled_ends_its_handler(
    mode: str, name: str, options: dict[str, Any], served: McpBench
) -> None:
    mark = f"cancel-{mode}-{name}-{len(options)}"
    arguments: dict[str, Any] = {"mark": mark}
    if name in ("call", "batch"):
        call = {"operation": "test/wait", "input": arguments}
        arguments = call if name == "call" else {"calls": [call]}

    async def on_progress(*_: Any) -> None:
        pass

    async with served.client(mode) as client:
        progress = {"progress_callback": on_progress} if options else {}
        calling = asyncio.create_task(client.call_tool(name, arguments, **progress))  # noqa: TID251
        await eventually(lambda: mark in seen_marks, "it begins")
        began = time.monotonic()
        calling.cancel()
        await eventually(lambda: seen_marks[mark]["ended"] is not None, "it ends")
        assert seen_marks[mark]["ended"] - began < END_S
        assert seen_marks[mark]["how"] in ("CancelledError", "GeneratorExit")
        assert (await client.call_tool("test.thread", {"value": 1})).content[0].text  # and the connection goes on
    await eventually(lambda: not served.calls.running, "nothing runs")
    assert served.bench.unmatched() == {}


@pytest.mark.parametrize("name", ["test.wait", "test.endless"])
async def test_a_client_that_hangs_up_ends_its_handler(mode: str, name: str, served: McpBench) -> None:
    mark = f"gone-{mode}-{name}"
    async with served.raw(mode) as raw:
        request = raw.request("tools/call", {"name": name, "arguments": {"mark": mark}})
        calling = asyncio.create_task(raw.http.request(**request))  # noqa: TID251
        await eventually(lambda: mark in seen_marks, "it begins")
        began = time.monotonic()
        calling.cancel()  # which closes the connection
        await eventually(lambda: seen_marks[mark]["ended"] is not None, "it ends")
        assert seen_marks[mark]["ended"] - began < END_S
        assert (await raw.message("tools/call", {"name": "test.thread", "arguments": {"value": 1}}))["result"]
    await eventually(lambda: not served.calls.running, "nothing runs")
    assert served.bench.unmatched() == {}


async def test_access_that_is_taken_away_ends_a_call_with_the_denial(mode: str, served: McpBench) -> None:
    async with served.client(mode, "bob") as client:
        served.change(peers=PEERS | {"bob": ("test:*",)})
        for name in ("test.wait", "test.endless"):
            mark = f"revoked-{mode}-{name}"
            calling = asyncio.create_task(client.call_tool(name, {"mark": mark}))  # noqa: TID251
            await eventually(lambda mark=mark: mark in seen_marks, "it begins")
            served.change(peers=PEERS)
            error = error_of(await calling)
            assert error["code"] == "FORBIDDEN"
            assert error["denial_id"]
            served.change(peers=PEERS | {"bob": ("test:*",)})


async def test_batch(mode: str, served: McpBench) -> None:
    async with served.client(mode, "bob") as client:
        calls = [
            {"operation": "/test/echo", "input": {"value": 1}},
            {"operation": "test/order", "input": {"item": "pears", "amount": 9}},
            {"operation": "test/wait", "input": {"mark": "m"}},
            {"operation": "matrix/item"},
            {"name": "test/echo"},
        ]
        result = await client.call_tool("batch", {"calls": calls})
        results = result.structured_content["results"]
        assert [one["isError"] for one in results] == [False, True, True, True, True]
        assert results[0]["output"] == 1
        assert [one["error"]["code"] for one in results[1:]] == [
            "SOLD_OUT", "FORBIDDEN", "INVALID_OPERATION_TYPE", "INVALID_INPUT",
        ]  # fmt: skip
        assert results[2]["error"]["denial_id"]
        too_many = await client.call_tool("batch", {"calls": [calls[0]] * 51})
        assert error_of(too_many)["code"] == "INVALID_INPUT"


async def test_the_general_tools(mode: str, served: McpBench) -> None:
    async with served.client(mode, "bob", path="/gateway") as client:
        tools = {tool.name: tool for tool in await every_tool(client)}
        assert list(tools) == ["batch", "call", "schema", "search"]
        found = (await client.call_tool("search", {"query": "echo"})).structured_content
        jsonschema.validate(found, tools["search"].output_schema)
        assert [one["name"] for one in found["operations"]] == ["test/echo"]
        spec = (await client.call_tool("schema", {"name": "test/echo"})).structured_content
        assert spec["kind"] == "query"
        assert error_of(await client.call_tool("schema", {"name": "test/wait"}))["code"] == "NOT_FOUND"
        called = await client.call_tool("call", {"operation": "test/echo", "input": {"value": 7}})
        assert called.structured_content == {"result": 7}
        items = await client.call_tool("call", {"operation": "matrix/item"})
        assert items.structured_content == {"items": ["item"], "truncated": False}


async def test_many_operations_are_reached_by_the_general_tools(mode: str, served: McpBench) -> None:
    served.app.settings = McpSettings(max_tools=5)
    async with served.client(mode) as client:
        assert [tool.name for tool in await every_tool(client)] == ["batch", "call", "schema", "search"]
        assert not (await client.call_tool("test.thread", {"value": 1})).is_error  # its name is routed all the same
    async with served.client(mode, "carol") as client:
        assert "services.list" in [tool.name for tool in await every_tool(client)]


async def test_pages(mode: str, served: McpBench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served.client(mode) as client:
        whole = [tool.name for tool in await every_tool(client)]
        monkeypatch.setattr("alknet.gateway.mcp.listing.MAX_PAGE", 3)
        first = await client.list_tools()
        assert len(first.tools) == 3
        assert [tool.name for tool in await every_tool(client)] == whole
        for cursor in ("", "nonsense", "after:", "after:.."):
            with pytest.raises(MCPError) as refused:
                await client.list_tools(cursor=cursor)
            assert refused.value.error.code == -32602
    if mode != "legacy":
        assert (first.ttl_ms, first.cache_scope) == (60_000, "private")


async def test_a_changed_list_is_told(mode: str, served: McpBench) -> None:
    told: list[Any] = []

    async def on_message(message: Any) -> None:
        told.append(message)

    async def changed_now() -> None:
        served.change(peers=PEERS | {"bob": ("*",)})

    if mode == "legacy":
        async with served.client(mode, "bob", message_handler=on_message) as client:
            await client.list_tools()
            await eventually(lambda: served.app.in_flight == 1, "the client listens")
            await changed_now()
            await eventually(lambda: any("list_changed" in str(one) for one in told), "it is told")
    else:
        async with served.client(mode, "bob") as client, client.listen(tools_list_changed=True) as events:
            await changed_now()
            async with asyncio.timeout(5):
                event = await anext(aiter(events))
            assert type(event).__name__ == "ToolsListChanged"
