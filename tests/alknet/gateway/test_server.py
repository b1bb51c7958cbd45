"""The HTTP door as a part of a node: how it stops, and what a reload does to it."""

import asyncio
import logging
from typing import Any

import pytest

from alknet import operation
from alknet.gateway.problems import HttpError
from alknet.gateway.settings import GatewaySettings
from testkit import services
from testkit.gateway import GatewayDoor, request
from testkit.polling import eventually

PEERS = {"alice": ("*",), "bob": ("other",)}


def _door(**settings: Any) -> GatewayDoor:
    return GatewayDoor(services, peers=PEERS, settings=GatewaySettings(**({"mcp": False} | settings)))


async def _shutdown(door: GatewayDoor, seconds: float) -> None:
    await door.router.shutdown(asyncio.get_running_loop().time() + seconds)


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "headers"),
    [
        ("/call", {"operation": "test/wait", "input": {"mark": "m", "seconds": 0.1}}, ()),
        ("/ops/test/wait", {"mark": "m", "seconds": 0.1}, ()),
        ("/batch", [{"operation": "test/wait", "input": {"mark": "m", "seconds": 0.1}}] * 20, ()),
        ("/ops/slow/order", {}, (("Idempotency-Key", "k"),)),
    ],
    ids=["call", "ops", "batch", "kept"],
)
async def test_what_runs_is_finished_and_answered_while_the_node_stops(
    path: str, value: Any, headers: tuple[tuple[str, str], ...], caplog: pytest.LogCaptureFixture
) -> None:
    services.seen_marks.clear()

    @operation("slow/order", kind="mutation")
    async def order() -> str:
        """Order, slowly."""
        with services._Marked("m"):
            await asyncio.sleep(0.1)
        return "ordered"

    async with GatewayDoor(services, [order], peers=PEERS, settings=GatewaySettings(mcp=False)) as door:
        async with door.connect() as http, door.connect() as idle, asyncio.TaskGroup() as group:
            await idle.ask("GET", "/healthz")
            await http.send(http.asked("POST", path, value, *headers))
            await eventually(lambda: services.seen_marks, "it runs")
            group.create_task(_shutdown(door, 5))
            assert await idle.rest() == b""
            answer = await http.answer()
            assert answer.status == 200
            assert b"wait" in answer.body or b"ordered" in answer.body
            assert await http.rest() == b""
        assert door.bench.unmatched() == {}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_what_does_not_finish_is_told_so() -> None:
    async with _door() as door, door.connect() as http, asyncio.TaskGroup() as group:
        await http.send(http.asked("POST", "/ops/test/wait", {"mark": "late"}))
        await eventually(lambda: door.handler._calls.running, "it runs")
        group.create_task(_shutdown(door, 0.05))
        answer = await http.answer()
        assert (answer.status, answer.code, answer.value["retryable"]) == (503, "UNAVAILABLE", True)
        assert services.seen_marks["late"]["how"] == "CancelledError"


@pytest.mark.parametrize("name", ["test.wait", "test.endless"])
@pytest.mark.parametrize("mode", ["2025-11-25", "2026-07-28"])
async def test_a_tool_that_does_not_finish_is_told_so(mode: str, name: str) -> None:
    call: dict[str, Any] = {"name": name, "arguments": {"mark": f"late-{mode}-{name}"}}
    headers = [("Accept", "application/json, text/event-stream"), ("MCP-Protocol-Version", mode)]
    prefix = "io.modelcontextprotocol/"
    async with _door(mcp=True) as door, door.connect() as http, asyncio.TaskGroup() as group:
        if mode == "2025-11-25":
            hello = {"protocolVersion": mode, "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
            message = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}
            answer = await http.ask("POST", "/mcp", message, *headers)
            headers.append(("MCP-Session-Id", answer.headers["mcp-session-id"]))
        else:
            headers += [("Mcp-Method", "tools/call"), ("Mcp-Name", name)]
            call["_meta"] = {prefix + "protocolVersion": mode, prefix + "clientCapabilities": {}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        await http.send(http.asked("POST", "/mcp", message, *headers))
        await eventually(lambda: door.handler._calls.running, "it runs")
        group.create_task(_shutdown(door, 0.05))
        answer = await http.answer()
        assert answer.status == 200
        assert b"UNAVAILABLE" in answer.body


async def test_a_node_that_stops_is_not_ready_and_takes_no_calls() -> None:
    async with _door() as door, door.connect() as http, door.connect() as probe, door.connect() as other:
        await http.send(http.asked("POST", "/ops/test/wait", {"mark": "drain"}))
        await eventually(lambda: door.handler._calls.running, "it runs")
        # Connections on which a request is under way are still there, so these begin one.
        await probe.send(request("GET", "/readyz")[:-2])
        await other.send(other.asked("POST", "/ops/test/echo", {"value": 1})[:-1])
        await eventually(lambda: all(one.transport for one in door.handler._protocols), "all are open")
        await eventually(lambda: sum(bool(one._reading) for one in door.handler._protocols) == 2, "both have begun")
        async with asyncio.TaskGroup() as group:
            group.create_task(_shutdown(door, 0.5))
            await eventually(lambda: door.handler.app.is_draining, "it stops")
            for one in (probe, other):
                data = await one.rest()
                assert data == b"" or b" 503 " in data or b" 408 " in data
            await http.answer()


async def test_a_connection_that_has_not_begun_does_not_hold_up_the_end() -> None:
    async with _door() as door:
        async with door.connect() as http:
            await _shutdown(door, 0)
            assert await http.rest() == b""
        assert door.live == 0


async def test_readiness_says_that_the_node_stops() -> None:
    async with _door() as door, door.connect() as http:
        door.handler.app.is_draining = door.handler._calls.is_draining = True
        assert (await http.ask("GET", "/healthz", peer=None)).status == 200
        answer = await http.ask("GET", "/readyz", peer=None)
        assert (answer.status, answer.value) == (503, {"status": "draining"})
        answer = await http.call("test/identity")
        assert (answer.status, answer.headers["connection"]) == (503, "close")


# --- settings that change ---------------------------------------------------------------------------------------------


async def test_settings_count_from_the_next_request() -> None:
    async with _door() as door, door.connect() as http:
        large = {"operation": "test/echo", "input": {"value": "x" * 5000}}
        assert (await http.ask("POST", "/call", large)).status == 200
        assert (await http.ask("GET", "/docs")).status == 200
        door.set(max_body=2000, docs=False)
        assert (await http.ask("GET", "/docs")).status == 404
        assert (await http.ask("POST", "/call", large)).status == 413


async def test_a_reload_ends_what_it_forbids_and_nothing_else() -> None:
    async with _door() as door, door.connect() as http, door.connect() as other, door.connect() as nobody:
        await nobody.ask("GET", "/healthz", peer=None)
        await other.ask("GET", "/healthz")
        await other.call("test/identity", peer="bob")
        await http.send(http.asked("POST", "/ops/test/wait", {"mark": "forbidden"}))
        await eventually(lambda: door.handler._calls.running, "it runs")
        door.reload({"bob": ("other",)})
        answer = await http.answer()
        assert (answer.status, answer.code) == (403, "FORBIDDEN")
        assert answer.value["denial_id"].startswith("den_")
        assert await http.rest() == b""
        assert (await other.call("test/identity", peer="bob")).status == 200
        assert (await nobody.ask("GET", "/healthz", peer=None)).status == 200


async def test_an_operation_that_is_gone_ends_its_calls() -> None:
    async with _door() as door, door.connect() as http:
        await http.send(http.asked("POST", "/ops/test/wait", {"mark": "removed"}))
        await eventually(lambda: door.handler._calls.running, "it runs")
        door.bench.serve()
        door.router.recheck()
        answer = await http.answer()
        assert (answer.status, "not served any more" in answer.value["message"]) == (503, True)


async def test_mcp_can_be_left_out() -> None:
    async with _door() as door, door.connect() as http:
        assert (await http.ask("POST", "/mcp", {})).status == 404
    async with _door(mcp=True) as door, door.connect() as http:
        assert (await http.ask("POST", "/mcp", {})).status in (400, 406)
        assert (await http.ask("PUT", "/mcp/gateway", {})).headers["allow"] == "DELETE, GET, POST"
        for path in ("/mcp-more", "/mcp/more"):  # the first of which may be a route of somebody's
            answer = await http.ask("POST", path, {})
            assert (answer.status, "jsonrpc" in answer.value) == (404, path == "/mcp/more")


# --- the pages --------------------------------------------------------------------------------------------------------


async def test_pages_have_what_keeps_scripts_out() -> None:
    async with _door() as door, door.connect() as http:
        for path in ("/docs", "/docs/", "/docs/docs.js"):
            answer = await http.ask("GET", path, peer=None)
            assert (answer.status, "default-src 'none'" in answer.headers["content-security-policy"]) == (200, True)
        assert (
            (await http.ask("HEAD", "/docs/docs.js", peer=None)).headers["content-type"].startswith("text/javascript")
        )
        assert (await http.ask("POST", "/docs/docs.js", {}, peer=None)).status == 404


async def test_the_date_is_of_now() -> None:
    async with _door() as door, door.connect() as http:
        assert (await http.ask("GET", "/healthz")).headers["date"].endswith("GMT")


async def test_what_fails_in_the_gateway_itself_is_in_the_log_and_not_in_the_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def breaks(exchange: Any) -> None:
        raise RuntimeError("the secret of the gateway")

    async def breaks_late(exchange: Any) -> None:
        exchange.has_begun = True
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        await exchange.send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise HttpError(500, "INTERNAL", "late")

    async with _door() as door, door.connect() as http:
        door.handler.app.add("GET", "/breaks", breaks)
        door.handler.app.add("GET", "/late", breaks_late)
        answer = await http.ask("GET", "/breaks")
        assert (answer.status, answer.code, "secret" in answer.value["message"]) == (500, "INTERNAL", False)
        assert "route=/breaks" in caplog.text
        await http.send(http.asked("GET", "/late"))
        assert (await http.head()).status == 200
        assert not (await http.rest()).endswith(b"0\r\n\r\n")  # what is cut does not look complete


# --- every route asks -------------------------------------------------------------------------------------------------

IDENTITY = {"operation": "test/identity", "input": {}}
DECIDED = {
    # path of a route: a request for it, and the action that it must ask the decision for
    "/metrics": ("GET", "/metrics", None, "node/metrics"),
    "/search": ("GET", "/search", None, "services/list"),
    "/schema": ("GET", "/schema?name=services/list", None, "services/schema"),
    "/call": ("POST", "/call", IDENTITY, "test/identity"),
    "/batch": ("POST", "/batch", [IDENTITY], "test/identity"),
    "/subscribe": ("POST", "/subscribe", {"operation": "test/count", "input": {}}, "test/count"),
    "/ops/": ("POST", "/ops/test/identity", {}, "test/identity"),
    "/openapi.json": ("GET", "/openapi.json", None, "http/openapi"),
    "/ticket": ("POST", "/ticket", None, "call/connect"),
    "/alknet/call": ("GET", "/alknet/call", None, "call/connect"),
}
SILENT = {"/healthz", "/readyz", "/docs", "/docs/"}
"""They do nothing and tell nothing that is not the same for everybody."""


async def test_no_route_acts_without_a_decision() -> None:
    """(The routes of MCP and of services are decided where they are tested.)"""

    @operation("node/metrics", kind="query", scopes=["node:read"])
    async def metrics() -> str:
        """What the node counts."""
        return ""

    async with GatewayDoor(services, [metrics], peers=PEERS, settings=GatewaySettings(mcp=False)) as door:
        assert set(door.handler.app.paths) == DECIDED.keys() | SILENT, "say what a new route asks for"
        for method, path, value, action in DECIDED.values():
            door.bench.audit.records.clear()
            async with door.connect() as http:
                await http.ask(method, path, value, peer="bob")
            asked = [record for record in door.bench.audit.records if record["action"] == action]
            assert asked, path
            assert asked[0]["decision"] in ("allow", "deny")
