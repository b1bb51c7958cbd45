"""MCP over HTTP: sessions, whose they are and when they end, and what is no message at all."""

import asyncio
import contextlib
import json
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from alknet import operation
from alknet.call.errors import CallError
from alknet.call.frames import HELLO_MAX_FRAME
from alknet.call.operations import Operation, served_by
from alknet.gateway.mcp import app, messages, sessions
from testkit import services
from testkit.bench import Bench
from testkit.mcp_bench import MODES, McpBench, RawMcp, error_of, message_of, serve_mcp
from testkit.polling import eventually
from testkit.services import seen_marks

PEERS = {"alice": ("*",), "bob": ("test:*",)}
CALL = {"name": "test.thread", "arguments": {"value": 1}}


@operation("more/one", kind="query")
async def more() -> str:
    """One that a peer brings."""
    return "more"


@pytest.fixture
async def served() -> Any:
    async with Bench(services, peers=PEERS) as bench, serve_mcp(bench) as running:
        yield running


# --- sessions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["bob", None])
async def test_somebody_elses_session_is_as_if_it_were_not_there(other: str | None, served: McpBench) -> None:
    async with served.raw("legacy") as mine, served.http(other) as http:
        theirs = RawMcp(http, served.url, "legacy")
        answers = []
        for session in (mine.session, "0" * 32):
            theirs.session = session
            for method, params in (("tools/call", CALL), ("tools/list", {}), ("ping", {}), ("initialize", {})):
                answers.append(await theirs.post(method, params))
            headers = {"mcp-session-id": str(session), "accept": "text/event-stream"}
            answers.append(await http.get(served.url, headers=headers))
            answers.append(await http.delete(served.url, headers=headers))
            answers.append(await theirs.post("notifications/cancelled", {"requestId": 1}, id=None))
        assert {answer.status_code for answer in answers} == {404}
        assert len({answer.content for answer in answers}) == 1
        assert (await mine.message("tools/call", CALL))["result"]["isError"] is False


async def test_a_cancellation_in_another_session_changes_nothing(served: McpBench) -> None:
    async with served.raw("legacy") as mine, served.raw("legacy") as other:
        call = {"name": "test.wait", "arguments": {"mark": "other-session", "seconds": 0.3}}
        calling = asyncio.create_task(mine.message("tools/call", call, id=5))  # noqa: TID251
        await eventually(lambda: "other-session" in seen_marks, "it begins")
        await other.post("notifications/cancelled", {"requestId": 5}, id=None)
        assert (await calling)["result"]["isError"] is False


async def test_a_cancelled_request_is_answered_with_an_error(served: McpBench) -> None:
    async with served.raw("legacy") as raw:
        for name in ("test.wait", "test.endless"):  # one on the short way, one on the SDK's
            call = {"name": name, "arguments": {"mark": f"cancelled-{name}"}}
            calling = asyncio.create_task(raw.message("tools/call", call, id="c"))  # noqa: TID251
            await eventually(lambda name=name: f"cancelled-{name}" in seen_marks, "it begins")
            await raw.post("notifications/cancelled", {"requestId": "c"}, id=None)
            answer = await calling
            assert answer == {
                "jsonrpc": "2.0", "id": "c", "error": {"code": -32800, "message": "Request cancelled"},
            }  # fmt: skip


async def test_a_session_that_its_client_ends_is_gone_with_its_calls(served: McpBench) -> None:
    async with served.raw("legacy") as raw:
        names = ("test.wait", "test.endless")
        calls = [{"name": name, "arguments": {"mark": f"deleted-{name}"}} for name in names]
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(raw.post("tools/call", c, id=n)) for n, c in enumerate(calls)]
            await eventually(lambda: all(f"deleted-{name}" in seen_marks for name in names), "they begin")
            assert (await raw.http.delete(served.url, headers={"mcp-session-id": str(raw.session)})).status_code == 200
        assert all("isError" not in task.result().text for task in running)
        await eventually(lambda: not served.calls.running, "nothing runs")
        assert (await raw.post("tools/list")).status_code == 404


async def test_who_loses_the_credential_loses_sessions_and_streams(served: McpBench) -> None:
    async with served.raw("legacy", "bob") as raw, served.raw("legacy") as alice, served.http("bob") as http:
        listening = RawMcp(http, served.url, "2026-07-28")
        headers = {"mcp-session-id": str(raw.session), "accept": "text/event-stream"}
        request = listening.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        async with raw.http.stream("GET", served.url, headers=headers) as stream, http.stream(**request) as listen:
            assert stream.status_code == listen.status_code == 200
            served.change(peers={"alice": ("*",)})
            async with asyncio.timeout(5):
                assert [line async for line in stream.aiter_lines() if "data:" in line] == []
                assert len([line async for line in listen.aiter_lines() if "data:" in line]) == 1  # that it listens
        assert (await raw.post("tools/list")).status_code == 404
        assert (await alice.post("tools/list")).status_code == 200


async def test_an_identity_has_so_many_sessions_and_the_idlest_makes_room(
    served: McpBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_PER_IDENTITY", 2)
    async with served.raw("legacy") as first, served.raw("legacy") as second, served.raw("legacy", "bob") as bob:
        await first.post("tools/list")
        async with served.raw("legacy") as third:
            assert (await second.post("tools/list")).status_code == 404
            for raw in (first, third, bob):
                assert (await raw.post("tools/list")).status_code == 200


async def test_strangers_share_few_sessions_and_throw_nobody_out(
    served: McpBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_ANONYMOUS", 1)
    async with served.raw("legacy", None) as first, served.http(None) as http:
        refused = await RawMcp(http, served.url, "legacy").post("initialize", {})
        assert refused.status_code == 503
        assert (await first.post("tools/list")).status_code == 200


async def test_all_sessions_together_are_bounded(served: McpBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 1)
    async with served.raw("legacy"), served.http("bob") as http:
        assert (await RawMcp(http, served.url, "legacy").post("initialize", {})).status_code == 503
    async with served.raw("2026-07-28") as raw:  # which needs none
        assert (await raw.post("tools/list")).status_code == 200


async def test_idle_sessions_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SWEEP_S", 0.01)
    monkeypatch.setattr(sessions, "IDLE_S", 0.05)
    async with Bench(services) as bench, serve_mcp(bench) as served, served.raw("legacy") as raw:
        await eventually(lambda: not served.app._sessions.all(), "it is swept")
        assert (await raw.post("tools/list")).status_code == 404


async def test_a_session_with_a_request_in_it_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SWEEP_S", 0.01)
    async with Bench(services) as bench, serve_mcp(bench) as served, served.raw("legacy") as raw:
        call = {"name": "test.wait", "arguments": {"mark": "busy", "seconds": 0.2}}
        async with asyncio.TaskGroup() as group:
            answer = group.create_task(raw.message("tools/call", call))
            await eventually(lambda: any(one.in_flight for one in served.app._sessions.all()), "it runs")
            monkeypatch.setattr(sessions, "IDLE_S", 0.02)
        assert answer.result()["result"]["isError"] is False


async def test_streams_of_changes_are_bounded_for_each_caller(
    served: McpBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "MAX_LISTENING", 1)
    async with served.raw("2026-07-28") as raw, served.raw("2026-07-28", "bob") as bob:
        request = raw.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        async with raw.http.stream(**request) as first:
            assert first.status_code == 200
            assert (await raw.http.request(**request)).status_code == 503
            async with bob.http.stream(**request) as other:
                assert other.status_code == 200


async def test_what_peers_bring_is_told_without_a_reload(served: McpBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "CHANGES_PAUSE_S", 0.01)
    told: dict[str, list[Any]] = {}

    async def note(mode: str, message: Any) -> None:
        told[mode].append(message)

    dispatcher = served.bench.dispatcher
    own = dispatcher.registry
    (one,) = served_by((more,))
    assert isinstance(one, Operation)
    async with AsyncExitStack() as stack:
        clients = {}
        for mode in MODES:
            told[mode] = []
            handler = partial(note, mode)
            clients[mode] = await stack.enter_async_context(served.client(mode, message_handler=handler))
        listening = await stack.enter_async_context(clients["2026-07-28"].listen(tools_list_changed=True))
        await eventually(lambda: served.app.in_flight == 2, "both listen")
        for registry, is_there in ((own.beside({"more/one": one}), True), (own, False)):
            dispatcher.registry = registry
            async with asyncio.timeout(10):
                await anext(listening)
            await eventually(lambda: told["legacy"], "the session is told")
            told["legacy"].clear()
            for client in clients.values():
                names = [tool.name for tool in (await client.list_tools()).tools]
                assert ("more.one" in names) is is_there


async def test_a_call_may_name_the_peer_whose_operation_is_meant(served: McpBench) -> None:
    served.bench.connect("w1", "w1/only")
    for mode in MODES:
        async with served.client(mode) as client, served.client(mode, "bob") as bob:
            asked = {"operation": "w1/only", "input": {"x": 1}, "peer": "w1"}
            for _ in range(2):  # the SDK answers the first request of a client, and not the second
                result = await client.call_tool("call", asked)
                assert result.structured_content == {"result": "w1:w1/only"}
            batch = await client.call_tool("batch", {"calls": [asked]})
            assert batch.structured_content["results"][0]["output"] == "w1:w1/only"
            found = await client.call_tool("search", {"peer": "w1"})
            assert [one["name"] for one in found.structured_content["operations"]] == ["w1/only"]
            unknown = await client.call_tool("call", {**asked, "operation": "test/echo"})
            assert error_of(unknown)["code"] == "NOT_FOUND"
            assert error_of(await bob.call_tool("call", asked))["code"] == "FORBIDDEN"
    assert served.bench.unmatched() == {}


async def test_what_stays_as_long_as_a_session_or_a_stream_is_short(served: McpBench) -> None:
    """It takes many times as much memory as it has bytes."""
    hello = {"protocolVersion": "2025-11-25", "clientInfo": {"name": "raw", "version": "1"}}
    large = {**hello, "capabilities": {"experimental": {"x": {str(number): [] for number in range(3000)}}}}
    async with served.http() as http, served.raw("legacy") as raw, served.raw("2026-07-28") as new:
        for one in (RawMcp(http, served.url, "legacy"), raw):
            assert (await one.post("initialize", large)).status_code == 413
        listen = {"notifications": {"resourceSubscriptions": [f"file:///{number}" for number in range(2000)]}}
        assert (await new.post("subscriptions/listen", listen)).status_code == 413
        call = {"name": "test.echo", "arguments": {"value": large}}
        assert (await raw.message("tools/call", call))["result"]["isError"] is False
        assert len(served.app._sessions) == 1


async def test_a_strangers_messages_and_streams_have_their_bounds(
    served: McpBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "LIFETIME_S", 0.2)
    async with served.raw("legacy", None) as raw, served.raw("2026-07-28", None) as new:
        call = {"name": "test.identity", "arguments": {"value": "x" * HELLO_MAX_FRAME}}
        assert (await raw.post("tools/call", call)).status_code == 413
        assert (await new.post("tools/call", call)).status_code == 413
        headers = {"mcp-session-id": str(raw.session), "accept": "text/event-stream"}
        listen = new.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        for request in ({"method": "GET", "url": served.url, "headers": headers}, listen):
            async with raw.http.stream(**request) as stream, asyncio.timeout(5):
                assert stream.status_code == 200
                async for _ in stream.aiter_lines():  # it ends, and as it should
                    pass
        await eventually(lambda: served.app.in_flight == 0, "nothing is held")


# --- what ends and what is refused ---------------------------------------------------------------------------------


async def test_it_ends_with_calls_listeners_and_sessions_open(served: McpBench) -> None:
    async with served.raw("legacy") as raw, served.raw("2026-07-28") as new, asyncio.TaskGroup() as group:
        listen = new.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        listening = group.create_task(new.http.request(**listen))
        call = {"name": "test.endless", "arguments": {"mark": "ending"}}
        calling = group.create_task(raw.message("tools/call", call))
        await eventually(lambda: "ending" in seen_marks and served.app.in_flight == 2, "both run")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await served.calls.drain(began + 0.1)
        await served.app.aclose(began + 1)
        assert loop.time() - began < 1
        assert (await calling)["result"]["_meta"]["alknet/error"]["code"] == "UNAVAILABLE"
        assert (await listening).status_code == 200
        assert served.app.in_flight == 0


async def test_each_call_of_a_batch_is_asked_about() -> None:
    asked = []

    def admit(caller: Any) -> None:
        asked.append((caller.surface, caller.remote))
        if len(asked) > 3:
            raise CallError("RESOURCE_EXHAUSTED", "too many calls a second")

    async with Bench(services) as bench, serve_mcp(bench, admit=admit) as served, served.raw("2026-07-28") as raw:
        calls = [{"operation": "test/echo"}] * 5
        answer = await raw.message("tools/call", {"name": "batch", "arguments": {"calls": calls}})
        results = answer["result"]["structuredContent"]["results"]
        assert [one["isError"] for one in results] == [False] * 3 + [True] * 2
        assert set(asked) == {("mcp", "127.0.0.1")}
        assert {record["surface"] for record in bench.audit.records} == {"mcp"}


async def test_what_a_stranger_asks_for_is_counted_too() -> None:
    def admit(caller: Any) -> None:
        raise CallError("RESOURCE_EXHAUSTED", "too many calls a second")

    async with Bench(services) as bench, serve_mcp(bench, admit=admit) as served, served.http(None) as http:
        for mode in MODES:
            raw = RawMcp(http, served.url, mode)
            for method in ("initialize", "tools/list", "ping"):
                assert (await raw.post(method, {})).status_code == 429
            assert (await http.get(served.url)).status_code == 429


@pytest.mark.parametrize("mode", MODES)
async def test_bodies_that_are_no_messages(mode: str, served: McpBench) -> None:
    async with served.raw(mode) as raw:
        request = raw.request("tools/list")
        del request["json"]
        for body in (b"", b"{", b"[" * 100 + b"]" * 100, b"[[0]," * 60_000, b"\xff", b'{"a":NaN}', b"1" * 5000):
            answer = await raw.http.request(**request, content=body)
            assert answer.status_code == 400, body[:20]
            assert answer.json()["error"]["code"] == -32700
        for value in ([], [{"jsonrpc": "2.0", "id": 1, "method": "ping"}], 3, None, {}, {"jsonrpc": "2.0"}):
            answer = await raw.http.request(**request, content=json.dumps(value).encode())
            assert answer.status_code == 400, value
        assert (await raw.post("tools/list")).status_code == 200


async def test_a_body_that_is_too_long(served: McpBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_BODY_BYTES", 1000)
    async with served.raw("2026-07-28") as raw:
        call = {"name": "test.echo", "arguments": {"value": "x" * 1000}}
        assert (await raw.post("tools/call", call)).status_code == 413


async def test_other_paths(served: McpBench) -> None:
    async with served.http() as http:
        for path in ("/other", "/gateway/x", "x"):
            assert (await http.post(served.url + path)).status_code == 404


async def test_requests_without_a_session_that_need_one(served: McpBench) -> None:
    async with served.http() as http:
        raw = RawMcp(http, served.url, "legacy")
        assert (await raw.post("tools/list")).status_code == 400
        assert (await http.get(served.url, headers={"accept": "text/event-stream"})).status_code == 400
        assert (await http.delete(served.url)).status_code in (400, 405)
        assert not served.app._sessions.all()


async def test_a_session_named_twice_is_none(served: McpBench) -> None:
    async with served.raw("legacy") as raw:
        request = raw.request("tools/list")
        request["headers"] = [*request["headers"].items(), ("mcp-session-id", "other")]
        assert (await raw.http.request(**request)).status_code == 404


async def test_the_answer_outlives_a_client_that_hangs_up_at_once(served: McpBench) -> None:
    """A client may close its connection with the last byte of the answer to `initialize`; the session stays."""
    for _ in range(5):
        async with served.raw("legacy") as raw:
            session = raw.session
        async with served.http() as http:
            again = RawMcp(http, served.url, "legacy")
            again.session = session
            assert message_of(await again.post("tools/call", CALL))["result"]["isError"] is False


async def test_a_session_whose_client_hung_up_before_its_answer_is_none(served: McpBench) -> None:
    """Whenever that is, both sides of the table say the same."""
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}}
    async with served.http() as http:
        for number in range(50):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(number * 0.0003):  # which closes the connection
                    await RawMcp(http, served.url, "legacy").post("initialize", hello)
    await eventually(lambda: served.app.in_flight == 0, "nothing is begun any more")
    ours = {session.id for session in served.app._sessions.all()}
    await eventually(lambda: set(served.app._manager._server_instances) == ours, "the SDK has the same")
    assert len(served.app._sessions) == len(ours)
