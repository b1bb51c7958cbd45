"""The short way answers as the SDK does, or not at all."""

import copy
import json
from typing import Any

import pytest

from alknet.gateway.mcp import app
from alknet.gateway.mcp.app import McpSettings
from alknet.gateway.mcp.brief import MAX_ENVELOPES, Envelopes
from testkit import services
from testkit.bench import Bench
from testkit.mcp_bench import MODES, McpBench, RawMcp, message_of, serve_mcp

PEERS = {"alice": ("*",), "bob": ("test:echo", "test:order")}


@pytest.fixture
async def served() -> Any:
    async with Bench(services, peers=PEERS) as bench, serve_mcp(bench) as running:
        yield running


class Ways:
    """How many requests went which way."""

    def __init__(self, served: McpBench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.short = 0
        self.is_open = True
        answer = served.app._brief.answer

        async def counted(*facts: Any) -> bytes | None:
            found = await answer(*facts) if self.is_open else None
            self.short += found is not None
            return found

        monkeypatch.setattr(served.app._brief, "answer", counted)


def same(message: Any) -> Any:
    """Without what differs from call to call."""
    message = copy.deepcopy(message)
    result = message.get("result", {})
    error = result.get("_meta", {}).get("alknet/error", {})
    if "request_id" in error:
        assert json.loads(result["content"][0]["text"]) == error
        error["request_id"] = "req"
        result["content"][0]["text"] = "with an id"
    return message


CALLS: list[tuple[str, dict[str, Any]]] = [
    ("tools/list", {}),
    ("tools/call", {"name": "test.echo", "arguments": {"value": [1, 1.5, None, "ä\n\u2028\"", {"k": None}]}}),
    ("tools/call", {"name": "test.echo", "arguments": {}}),
    ("tools/call", {"name": "test.echo"}),
    ("tools/call", {"name": "test.digest", "arguments": {"data": "YWJj"}}),
    ("tools/call", {"name": "test.blob", "arguments": {"size": 300}}),
    ("tools/call", {"name": "test.thread", "arguments": {"value": 1}}),
    ("tools/call", {"name": "test.thread", "arguments": {"value": "one"}}),
    ("tools/call", {"name": "test.order", "arguments": {"item": "pears", "amount": 4}}),
    ("tools/call", {"name": "test.order", "arguments": {"item": "pears", "amount": 1}}),
    ("tools/call", {"name": "test.wide", "arguments": {}}),
    ("tools/call", {"name": "search", "arguments": {"query": "echo"}}),
    ("tools/call", {"name": "schema", "arguments": {"name": "test/order"}}),
    ("tools/call", {"name": "call", "arguments": {"operation": "test/thread", "input": {"value": 4}}}),
]  # fmt: skip
ON_THE_LONG_WAY: list[tuple[str, dict[str, Any]]] = [
    ("tools/list", {"cursor": ""}),
    ("tools/list", {"cursor": 3}),
    ("tools/list", {"more": 1}),
    ("tools/call", {"name": "test.numbers", "arguments": {"to": 2}}),
    ("tools/call", {"name": "test.nothing", "arguments": {}}),
    ("tools/call", {"name": "test.echo", "arguments": []}),
    ("tools/call", {"name": 3, "arguments": {}}),
    ("tools/call", {"arguments": {}}),
    ("tools/call", {"name": "call", "arguments": {"operation": "test/numbers", "input": {"to": 2}}}),
    ("tools/call", {"name": "call", "arguments": {"operation": 3}}),
    ("tools/call", {"name": "batch", "arguments": {"calls": []}}),
    ("tools/other", {}),
    ("ping", {}),
]


@pytest.mark.parametrize("peer", ["alice", "bob", None])
@pytest.mark.parametrize("mode", MODES)
async def test_both_ways_give_the_same_message(
    mode: str, peer: str | None, served: McpBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = Ways(served, monkeypatch)
    async with served.raw(mode, peer) as raw:
        await raw.post("tools/list")  # the envelope is judged
        for method, params in CALLS:
            for id in (7, "seven"):
                ways.is_open = False
                long = await raw.post(method, params, id=id)
                ways.is_open, before = True, ways.short
                short = await raw.post(method, params, id=id)
                is_short = ways.short > before
                assert is_short or params.get("name") == "test.wide", (method, params)
                assert same(message_of(short)) == same(message_of(long))
                assert short.status_code == long.status_code == 200
                assert short.headers.get("mcp-session-id") == long.headers.get("mcp-session-id")


@pytest.mark.parametrize("mode", MODES)
async def test_what_may_be_wrong_or_may_take_long_is_the_sdks(
    mode: str, served: McpBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served.raw(mode) as raw:
        await raw.post("tools/list")
        ways = Ways(served, monkeypatch)
        for method, params in ON_THE_LONG_WAY:
            assert (await raw.post(method, params)).status_code in (200, 400, 404), (method, params)
        for id in (1.5, True, None, [1]):
            request = raw.request("tools/list")
            request["json"]["id"] = id
            await raw.http.request(**request)
        for key, value in (("jsonrpc", "1.0"), ("more", 1), ("params", [])):
            request = raw.request("tools/list")
            request["json"][key] = value
            await raw.http.request(**request)
        for headers in (
            {"accept": "application/json"},
            {"accept": "*/*"},
            {"content-type": "text/plain"},
        ):
            await raw.post("tools/list", **headers)
        progress = {"name": "test.echo", "_meta": {**(raw.meta if raw.is_new else {}), "progressToken": 1}}
        assert (await raw.post("tools/call", progress)).status_code == 200
        assert ways.short == 0
        await raw.post("tools/list")
        assert ways.short == 1


async def test_headers_that_contradict_the_body_are_the_sdks_to_refuse(
    served: McpBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served.raw("2026-07-28") as raw:
        call = {"name": "test.echo", "arguments": {}}
        await raw.post("tools/call", call)
        ways = Ways(served, monkeypatch)
        for headers in (
            {"mcp_method": "tools/list"},
            {"mcp_name": "test.order"},
            {"mcp_protocol_version": "2099-01-01"},
        ):
            answer = await raw.post("tools/call", call, **headers)
            assert answer.status_code == 400, headers
        for name in ("mcp-method", "mcp-name", "mcp-protocol-version", "accept", "content-type"):
            request = raw.request("tools/call", call)
            request["headers"] = [*request["headers"].items(), (name, request["headers"][name])]
            await raw.http.request(**request)
        for meta in (
            raw.meta | {"io.modelcontextprotocol/protocolVersion": "2025-11-25"},
            {"io.modelcontextprotocol/protocolVersion": "2026-07-28"},
            {},
        ):
            raw.meta, kept = meta, raw.meta
            assert (await raw.post("tools/call", call)).status_code == 400
            raw.meta = kept
        assert ways.short == 0


async def test_an_envelope_is_judged_once_and_a_bad_one_each_time(
    served: McpBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = Ways(served, monkeypatch)
    async with served.raw("2026-07-28") as raw:
        for _ in range(3):
            assert (await raw.post("tools/list")).status_code == 200
        assert ways.short == 2
        raw.meta = raw.meta | {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        assert (await raw.post("tools/list")).status_code == 200
        assert ways.short == 3  # a trace is another one each time
        raw.meta = raw.meta | {"io.modelcontextprotocol/clientInfo": {"name": 3}}
        for _ in range(3):
            assert (await raw.post("tools/list")).status_code == 400
        assert ways.short == 3


async def test_sessions_that_did_not_begin_are_not_known(served: McpBench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served.http() as http:
        raw = RawMcp(http, served.url, "legacy")
        hello = await raw.post("initialize", {"protocolVersion": "2025-11-25"})  # without what it has to say
        assert "error" in message_of(hello)
        raw.session = hello.headers["mcp-session-id"]
        ways = Ways(served, monkeypatch)
        while (answer := await raw.post("tools/list")).status_code != 404:  # it ends a moment after its answer
            assert "result" not in answer.text
        assert ways.short == 0


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_that_takes_long_is_kept_alive(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SWEEP_S", 0.02)
    async with Bench(services) as bench, serve_mcp(bench) as served, served.raw(mode) as raw:
        await raw.post("tools/list")
        ways = Ways(served, monkeypatch)
        call = {"name": "test.wait", "arguments": {"mark": f"long-{mode}", "seconds": 0.2}}
        answer = await raw.post("tools/call", call)
        assert (ways.short, answer.headers["content-type"]) == (1, "text/event-stream")
        assert answer.headers.get("mcp-session-id") == raw.session
        assert ": ping" in answer.text
        assert message_of(answer)["result"]["isError"] is False


async def test_lists_for_many_operations_go_the_short_way_too(
    served: McpBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.app.settings = McpSettings(max_tools=2)
    ways = Ways(served, monkeypatch)
    async with served.raw("legacy") as raw:
        listed = await raw.message("tools/list")
        assert [tool["name"] for tool in listed["result"]["tools"]] == ["batch", "call", "schema", "search"]
        assert ways.short == 1


def test_envelopes_are_kept_within_bounds() -> None:
    known = Envelopes()
    one = {"io.modelcontextprotocol/clientInfo": {"name": "x" * 4000}}
    known.judged_good(one)
    assert one not in known
    for number in range(MAX_ENVELOPES + 1):
        known.judged_good({"io.modelcontextprotocol/clientInfo": {"name": str(number)}})
    assert {"io.modelcontextprotocol/clientInfo": {"name": "0"}} not in known
    assert {"io.modelcontextprotocol/clientInfo": {"name": str(MAX_ENVELOPES)}} in known
    for other in (None, [], {"com.example/other": 1}, {"traceparent": 3}):
        known.judged_good(other)
        assert other not in known
