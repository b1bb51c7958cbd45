"""The official MCP client against a node's own port: what the gateway's HTTP does for these requests."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from testkit.as_user import Launcher
from testkit.mcp_bench import MODES, RawMcp, error_of
from testkit.node import NodeProcess
from testkit.polling import eventually
from testkit.service_nodes import service_node

pytestmark = pytest.mark.interop

END_S = 0.2
WAITING = ("test.wait", "test.endless")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    with service_node(tmp_path_factory.mktemp("node"), launcher) as node:
        node.write_peer("agent", 'scopes = ["test:*"]')
        node.alknet("config", "reload")
        yield node


def token(node: NodeProcess, peer: str, scope: str = "*") -> str:
    return node.alknet("token", "create", "--peer", peer, "--scope", scope).stdout.strip()


@asynccontextmanager
async def http(text: str | None) -> Any:
    headers = {} if text is None else {"authorization": f"Bearer {text}"}
    async with httpx2.AsyncClient(headers=headers, timeout=20) as client:
        yield client


@asynccontextmanager
async def client(node: NodeProcess, text: str | None, mode: str) -> Any:
    async with http(text) as requests:
        transport = streamable_http_client(f"http://127.0.0.1:{node.port}/mcp", http_client=requests)
        async with Client(transport, mode=mode, cache=None) as opened:
            yield opened


@pytest.mark.parametrize("mode", [*MODES, "auto"])
async def test_a_token_sees_what_it_may_call_and_is_refused_the_rest(mode: str, node: NodeProcess) -> None:
    async with client(node, token(node, "agent", "test:typed"), mode) as agent:
        names = [tool.name for tool in (await agent.list_tools()).tools]
        discovery = ["services.changed", "services.list", "services.list-peers", "services.schema"]
        assert names == [*discovery, "test.identity", "test.typed"]
        found = (await agent.call_tool("test.identity", {})).structured_content
        assert found == {"peer": "agent", "surface": "mcp"}
        denied = error_of(await agent.call_tool("test.echo", {}))
    assert denied["denial_id"] in [line.get("denial_id") for line in node.audit()]
    async with client(node, None, mode) as stranger:
        assert (await stranger.call_tool("test.identity", {})).structured_content["peer"] is None
        assert error_of(await stranger.call_tool("test.typed", {}))["message"] == "authentication required"


@pytest.mark.parametrize("mode", MODES)
async def test_items_come_as_they_are_made(mode: str, node: NodeProcess) -> None:
    told: list[str | None] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append(message)

    async with client(node, token(node, "agent"), mode) as agent:
        call = agent.call_tool("test.endless", {"mark": f"told-{mode}"}, progress_callback=on_progress)
        calling = asyncio.create_task(call)  # noqa: TID251
        await eventually(lambda: told == ["0"], "the first item is told while the subscription goes on")
        calling.cancel()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WAITING)
async def test_a_client_that_hangs_up_ends_its_handler(mode: str, name: str, node: NodeProcess) -> None:
    mark = f"hangs-up-{mode}-{name}"
    async with http(token(node, "agent")) as requests:
        raw = RawMcp(requests, f"http://127.0.0.1:{node.port}/mcp", mode)
        await raw.open()

        async def seen() -> Any:
            answer = await raw.message("tools/call", {"name": "test.seen", "arguments": {"mark": mark}})
            return answer["result"]["structuredContent"]["result"]

        call = raw.request("tools/call", {"name": name, "arguments": {"mark": mark}})
        calling = asyncio.create_task(requests.request(**call))  # noqa: TID251
        while await seen() is None:
            await asyncio.sleep(0.005)
        began = time.monotonic()
        calling.cancel()
        while (found := await seen())["ended"] is None:
            await asyncio.sleep(0.005)
        assert found["ended"] - began < END_S


async def test_a_session_is_of_its_token(node: NodeProcess) -> None:
    url = f"http://127.0.0.1:{node.port}/mcp"
    async with http(token(node, "agent")) as mine, http(token(node, "agent")) as other, http(None) as nobody:
        raw = RawMcp(mine, url, "legacy")
        await raw.open()
        for requests in (other, nobody):
            theirs = RawMcp(requests, url, "legacy")
            theirs.session = raw.session
            assert (await theirs.post("tools/list")).status_code == 404
        assert (await raw.post("tools/list")).status_code == 200


async def test_a_revoked_token_ends_sessions_streams_and_calls(node: NodeProcess) -> None:
    text = token(node, "agent")
    url = f"http://127.0.0.1:{node.port}/mcp"
    async with http(text) as requests, asyncio.TaskGroup() as group:
        raw = RawMcp(requests, url, "legacy")
        await raw.open()
        headers = {"mcp-session-id": str(raw.session), "accept": "text/event-stream"}
        calls = [
            group.create_task(raw.post("tools/call", {"name": name, "arguments": {"mark": f"revoked-{name}"}}))
            for name in WAITING
        ]
        async with requests.stream("GET", url, headers=headers) as stream:
            for name in WAITING:
                while (
                    '"began"'
                    not in (
                        await raw.post("tools/call", {"name": "test.seen", "arguments": {"mark": f"revoked-{name}"}})
                    ).text
                ):
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(node.alknet, "token", "revoke", text)
            async with asyncio.timeout(5):
                told = [line async for line in stream.aiter_lines() if "data:" in line]
        # The node may have noticed a moment before that there is a new token.
        assert [line for line in told if "list_changed" not in line] == []
    assert all('"isError":false' not in call.result().text for call in calls)


async def test_a_browser_of_another_site_is_refused(node: NodeProcess) -> None:
    async with http(token(node, "agent")) as requests:
        raw = RawMcp(requests, f"http://127.0.0.1:{node.port}/mcp", "2026-07-28")
        for headers in ({"origin": "http://evil.example"}, {"host": "evil.example"}):
            assert (await raw.post("tools/list", **headers)).status_code == 403
        refused = await requests.post(raw.url, content=json.dumps({}), headers={"authorization": "Bearer alk_wrong"})
        assert refused.status_code == 401
