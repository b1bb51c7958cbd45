"""``alknet mcp``: the official client starts it as a process, in front of a running node."""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from testkit.as_user import Launcher
from testkit.mcp_bench import MODES, error_of
from testkit.node import NodeProcess, wait_until
from testkit.polling import eventually
from testkit.service_nodes import service_node

pytestmark = pytest.mark.interop

END_S = 0.5
"""What a handler may take to hear of it over two connections, with a process on the way that others slow down."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    with service_node(tmp_path_factory.mktemp("node"), launcher) as node:
        node.write_peer("little", 'scopes = ["test:typed", "test:thread", "matrix:item"]')
        node.alknet("config", "reload")
        yield node


def bridge(node: NodeProcess, *options: str) -> StdioServerParameters:
    arguments = ["-m", "alknet", "--home", str(node.home), "mcp", *options]
    return StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))


@asynccontextmanager
async def client(node: NodeProcess, mode: str, *options: str) -> Any:
    async with Client(bridge(node, *options), mode=mode, cache=None) as client:
        yield client


async def seen(client: Any, mark: str) -> Any:
    return (await client.call_tool("test.seen", {"mark": mark})).structured_content["result"]


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_lists_calls_is_refused_and_subscribes(mode: str, node: NodeProcess) -> None:
    told = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))

    identity = ("--identity", str(node.keys / "little"))
    async with client(node, mode, *identity) as little:
        names = [tool.name for tool in (await little.list_tools()).tools]
        allowed = [one["name"] for one in node.json("ops", *identity)]
        assert names == [name.replace("/", ".") for name in allowed]
        (output,) = [t.output_schema for t in (await little.list_tools()).tools if t.name == "test.thread"]
        assert output["type"] == ("object" if mode == "legacy" else "integer")
        result = await little.call_tool("test.thread", {"value": 1})
        assert result.structured_content == ({"result": 2} if mode == "legacy" else 2)
        wrong = error_of(await little.call_tool("test.thread", {"value": "one"}))
        assert (wrong["code"], wrong["details"][0]["path"]) == ("INVALID_INPUT", ["value"])
        denied = error_of(await little.call_tool("test.echo", {}))
        assert denied["code"] == "FORBIDDEN"
        assert denied["denial_id"] in [line.get("denial_id") for line in node.audit()]
        items = await little.call_tool("matrix.item", {}, progress_callback=on_progress)
        assert items.structured_content == {"items": ["item"], "truncated": False}
        await eventually(lambda: told == [(1.0, '"item"')], "the item is told")
        found = (await little.call_tool("search", {"query": "typed"})).structured_content
        assert [one["name"] for one in found["operations"]] == ["test/typed"]
        called = await little.call_tool("call", {"operation": "test/thread", "input": {"value": 2}})
        assert called.structured_content == {"result": 3}
        calls = [{"operation": "test/thread", "input": {"value": 3}}, {"operation": "test/echo"}]
        both = (await little.call_tool("batch", {"calls": calls})).structured_content["results"]
        assert both[0]["output"] == 4
        assert both[1]["error"]["denial_id"] == denied["denial_id"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["test.wait", "test.endless"])
async def test_what_is_cancelled_here_is_cancelled_there(mode: str, name: str, node: NodeProcess) -> None:
    mark = f"bridge-{mode}-{name}"
    async with client(node, mode) as owner:
        calling = asyncio.create_task(owner.call_tool(name, {"mark": mark}))  # noqa: TID251
        while await seen(owner, mark) is None:
            await asyncio.sleep(0.01)
        began = time.monotonic()
        calling.cancel()
        while (found := await seen(owner, mark))["ended"] is None:
            await asyncio.sleep(0.01)
        assert found["ended"] - began < END_S


async def test_many_operations_are_reached_by_four_tools(node: NodeProcess) -> None:
    for options in (("--max-tools", "2"), ("--gateway",)):
        async with client(node, "auto", *options) as owner:
            assert [tool.name for tool in (await owner.list_tools()).tools] == ["batch", "call", "schema", "search"]
            assert (await owner.call_tool("test.numbers", {"to": 1})).structured_content["items"] == [0]


async def test_it_outlives_the_node(tmp_path: Path, launcher: Launcher) -> None:
    with NodeProcess(tmp_path, launcher=launcher) as node:
        node.edit_config('"127.0.0.1:0"', f'"127.0.0.1:{node.port}"')
        async with client(node, "auto") as owner:
            assert (await owner.call_tool("services.list", {})).structured_content["operations"]
            await asyncio.to_thread(node.stop)
            error = error_of(await owner.call_tool("services.list", {}))
            assert (error["code"], error["retryable"]) == ("UNAVAILABLE", True)
            await asyncio.to_thread(node.start)
            assert (await owner.call_tool("services.list", {})).structured_content["operations"]


def test_a_node_that_cannot_be_reached_is_said_on_stderr(tmp_path: Path, launcher: Launcher) -> None:
    node = NodeProcess(tmp_path, launcher=launcher)
    result = node.alknet("mcp", check=False)
    assert (result.returncode, result.stdout) == (5, "")
    assert "no node runs" in result.stderr


def test_config_is_ready_to_paste(node: NodeProcess) -> None:
    found = node.json("mcp", "--config")
    assert set(found) == {"claude-desktop", "claude-code", "cursor", "vscode", "generic"}
    url = f"http://127.0.0.1:{node.port}/mcp"
    assert found["vscode"]["http"]["servers"]["alknet"]["url"] == url
    assert found["claude-desktop"]["http"] is None
    server = node.json("mcp", "--config", "claude-code", "--gateway")
    assert server["http"]["mcpServers"]["alknet"]["url"] == url + "/gateway"
    assert server["stdio"]["mcpServers"]["alknet"]["args"][-4:] == ["--home", str(node.home), "mcp", "--gateway"]
    text = node.alknet("mcp", "--config", "cursor").stdout
    blocks = re.findall(r"^\{.*?^\}", text, re.MULTILINE | re.DOTALL)
    assert [next(iter(json.loads(block))) for block in blocks] == ["mcpServers", "mcpServers"]
    assert "alknet token create" in text
    far = node.json("mcp", "--config", "generic", "hub.example.org:7000")
    assert far["http"]["mcpServers"]["alknet"]["url"] == "https://hub.example.org:7000/mcp"
    assert far["stdio"]["mcpServers"]["alknet"]["args"][-1] == "hub.example.org:7000"


async def test_what_config_prints_starts_a_bridge(node: NodeProcess, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(node.alknet("token", "create", "--peer", "little", "--scope", "matrix:*").stdout)
    options = ("--token-file", str(file), "--carrier", "tls", "--max-tools", "50")
    server = node.json("mcp", *options, "--config", "generic")["stdio"]["mcpServers"]["alknet"]
    assert server["args"][-7:] == ["mcp", *options]
    async with Client(StdioServerParameters(**server), mode="auto") as little:
        names = [tool.name for tool in (await little.list_tools()).tools]
        about = ["services.changed", "services.list", "services.list-peers", "services.schema"]
        assert names == ["matrix.item", *about, "test.identity"]
        assert (await little.call_tool("matrix.item", {})).structured_content["items"] == ["item"]


def test_the_token_does_not_come_from_stdin(node: NodeProcess) -> None:
    result = node.alknet("mcp", "--token-file", "-", check=False, input="alk_")
    assert (result.returncode, result.stdout) == (2, "")
    assert "stdin is the MCP client's" in result.stderr


def test_a_client_that_reads_no_more_ends_it_in_silence(node: NodeProcess) -> None:
    import subprocess

    arguments = [sys.executable, "-m", "alknet", "--home", str(node.home), "mcp"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "gone", "version": "1"}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
        process.stdout.close()
        _, words = process.communicate(json.dumps(message).encode() + b"\n", timeout=10)
        assert (process.returncode, words) == (0, b"")


def test_ctrl_c_ends_it(node: NodeProcess) -> None:
    import signal
    import subprocess

    arguments = [sys.executable, "-m", "alknet", "--home", str(node.home), "mcp", "-v"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        wait_until(lambda: process.stderr.readline(), "it reaches the node")  # type: ignore[union-attr]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == -signal.SIGINT
