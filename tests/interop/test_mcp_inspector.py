"""The MCP Inspector's command line against a running node, in both eras of the protocol."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testkit.as_user import Launcher
from testkit.node import NodeProcess
from testkit.service_nodes import service_node

pytestmark = [pytest.mark.interop, pytest.mark.parametrize("era", ["legacy", "modern"])]

PROGRAMS = Path(__file__).resolve().parents[2] / "build" / "npm" / "node_modules" / ".bin"


class Inspector:
    """Runs the program as the peer that a token is of."""

    def __init__(self, node: NodeProcess, directory: Path, peer: str) -> None:
        assert (PROGRAMS / "mcp-inspector").exists(), "run tests/_lib/npm-programs.sh"
        self._url = f"http://127.0.0.1:{node.port}"
        self._token = node.alknet("token", "create", "--peer", peer, "--scope", "*").stdout.strip()
        self._env = {"PATH": os.environ["PATH"], "HOME": str(directory)}  # where it keeps what it remembers

    def __call__(self, era: str, method: str, *options: str, path: str = "/mcp") -> tuple[Any, Any]:
        """(what it prints, what it says of a failure)."""
        program = [str(PROGRAMS / "node"), str(PROGRAMS / "mcp-inspector"), "--cli", self._url + path]
        how = ["--transport", "http", "--protocol-era", era, "--quiet"]
        header = ["--header", f"Authorization: Bearer {self._token}"]
        result = subprocess.run(
            [*program, *how, *header, "--method", method, *options],
            capture_output=True,
            text=True,
            timeout=60,
            env=self._env,
        )
        return json.loads(result.stdout or "null"), json.loads(result.stderr or "null")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[NodeProcess]:
    with service_node(tmp_path_factory.mktemp("node"), launcher) as node:
        node.write_peer("agent", 'scopes = ["test:typed", "test:order", "test:numbers"]')
        node.alknet("config", "reload")
        yield node


@pytest.fixture(scope="module")
def inspector(node: NodeProcess, tmp_path_factory: pytest.TempPathFactory) -> Inspector:
    return Inspector(node, tmp_path_factory.mktemp("inspector"), "agent")


def test_it_lists_what_the_agent_may_call(era: str, node: NodeProcess, inspector: Inspector) -> None:
    listed, failure = inspector(era, "tools/list", "--strict")  # which fails for schemas that clients do not take
    allowed = [one["name"] for one in node.json("ops", "--identity", str(node.keys / "agent"))]
    assert [tool["name"] for tool in listed["tools"]] == [name.replace("/", ".") for name in allowed]
    assert failure is None


def test_it_calls_and_subscribes(era: str, inspector: Inspector) -> None:
    arguments = json.dumps({"name": "a", "count": 2, "options": {"ä": [None]}})
    result, _ = inspector(era, "tools/call", "--tool-name", "test.typed", "--tool-args-json", arguments)
    assert not result["isError"]
    assert result["structuredContent"]["options"] == {"ä": [None]}
    result, _ = inspector(era, "tools/call", "--tool-name", "test.numbers", "--tool-arg", "to=3")
    assert result["structuredContent"] == {"items": [0, 1, 2], "truncated": False}


def test_it_shows_errors_and_denials(era: str, node: NodeProcess, inspector: Inspector) -> None:
    order = json.dumps({"item": "pears", "amount": 9})
    result, failure = inspector(era, "tools/call", "--tool-name", "test.order", "--tool-args-json", order)
    assert result["isError"]
    error = json.loads(result["content"][0]["text"])
    assert (error["code"], error["details"]) == ("SOLD_OUT", {"left": 3})
    assert failure["error"]["code"] == "tool_is_error"
    call = json.dumps({"operation": "test/echo"})  # it calls no tool that is not listed
    options = ("--tool-name", "call", "--tool-args-json", call)
    result, _ = inspector(era, "tools/call", *options, path="/mcp/gateway")
    error = json.loads(result["content"][0]["text"])
    assert error["code"] == "FORBIDDEN"
    assert {line.get("denial_id") for line in node.audit() if line["action"] == "test/echo"} == {error["denial_id"]}
