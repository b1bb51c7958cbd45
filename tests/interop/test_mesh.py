"""A hub with workers that have dialled it: who gets a call, what is seen of whom, and how a call ends two hops away."""

import base64
import collections
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import websockets

import alknet as alknet_package
from alknet.call.errors import CallError
from alknet.call.operations import operation
from testkit.as_user import Launcher
from testkit.carriers import alknet, running, wait_for
from testkit.mesh import MeshNodes
from testkit.node import NodeProcess, wait_until

pytestmark = pytest.mark.interop

STOPPED_S = 0.3
"""Within so much time a handler stops two hops away."""
SLOW_S = 0.15
PLENTY = 40
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[MeshNodes]:
    """A hub with two workers, of which the second one is slow and may bring less."""
    slow = {"w2": {"SLOW_S": str(SLOW_S)}}
    mesh = MeshNodes(tmp_path_factory.mktemp("mesh"), launcher=launcher, environments=slow)
    mesh.write_entry("w2", offers=["mesh/who", "mesh/facts", "test/wait", "test/seen"])
    with mesh:
        yield mesh


@pytest.fixture(scope="module")
def carol(mesh: MeshNodes) -> NodeProcess:
    """A third machine, where no node runs."""
    machine = mesh.machine("carol")
    mesh.hub.alknet("config", "reload")
    return machine


@asynccontextmanager
async def calling(machine: NodeProcess, **how: Any) -> AsyncIterator[alknet_package.Peer]:
    async with alknet_package.connect("hub", home=machine.home, carrier="tls", **how) as hub:
        yield hub


@asynccontextmanager
async def behind(machine: NodeProcess, worker: str) -> AsyncIterator[alknet_package.Peer]:
    async with calling(machine) as hub:
        yield alknet_package.Peer(hub._link, behind=worker)


async def error_of(call: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        await call
    return caught.value


def seen(mesh: MeshNodes, worker: str, mark: str) -> Any:
    return json.loads(mesh.workers[worker].alknet("--json", "call", ".", "test/seen", f"mark={mark}").stdout)


# --- a named peer, and any of them -----------------------------------------------------------------------------------


async def test_a_named_peer_is_the_one_that_answers(mesh: MeshNodes, carol: NodeProcess) -> None:
    async with behind(carol, "w1") as w1, behind(carol, "w2") as w2:
        assert {await w1.call("mesh/who") for _ in range(10)} == {"w1"}
        assert {await w2.call("mesh/who") for _ in range(3)} == {"w2"}
        assert await w1.call("mesh/late", seconds=0) == "w1"
        error = await error_of(w2.call("mesh/late", seconds=0))  # which w1 would have
        assert (error.code, str(error)) == ("NOT_FOUND", "peer 'w2' offers no operation 'mesh/late'")


@pytest.mark.parametrize("policy", ["first", "round-robin", "least-latency"])
async def test_any_of_them_is_chosen_as_the_configuration_says(
    mesh: MeshNodes, carol: NodeProcess, policy: str
) -> None:
    set_routing(mesh, policy)
    order = list(mesh.attached())
    async with calling(carol) as hub:
        calls = [("w/mesh/who", {})] * PLENTY
        answers = collections.Counter(await hub.batch(calls) if policy != "first" else await hub.batch(calls[:4]))
    if policy == "first":
        assert answers == {order[0]: 4}
    elif policy == "round-robin":
        assert answers == {"w1": PLENTY // 2, "w2": PLENTY // 2}
    else:
        assert answers["w1"] > 2 * answers["w2"]
    route = mesh.mesh()["routes"]["w/mesh/who"]
    assert sum(one["calls"] for one in route["peers"].values()) >= sum(answers.values())


async def test_what_one_worker_offers_alone_goes_there_always(mesh: MeshNodes, carol: NodeProcess) -> None:
    set_routing(mesh, "round-robin")
    async with calling(carol) as hub:
        assert {await hub.call("w/mesh/late", seconds=0) for _ in range(6)} == {"w1"}


def set_routing(mesh: MeshNodes, policy: str) -> None:
    path = mesh.hub.home / "alknet.toml"
    path.write_text(re.sub(r"(?m)^routing = .*$", f'routing = "{policy}"', path.read_text()))
    mesh.hub.alknet("config", "reload")
    assert mesh.mesh()["routing"] == policy


# --- what is seen of them --------------------------------------------------------------------------------------------


async def test_what_a_worker_may_not_bring_never_appears(mesh: MeshNodes, carol: NodeProcess) -> None:
    async with calling(carol) as hub:
        own = await names(hub)
        peers = {one["peer"]: one["operations"] for one in (await hub.call("services/list-peers"))["peers"]}
        assert peers["w2"] == ["mesh/facts", "mesh/who", "test/seen", "test/wait"]
        assert "test/echo" in peers["w1"]
        assert not any("secret" in name or name.startswith("w/services/") for name in own)
        assert {f"w/{name}" for found in peers.values() for name in found} == {n for n in own if n.startswith("w/")}
        for call in (hub.call("w/hidden/secret"), hub.call("hidden/secret")):
            assert (await error_of(call)).code == "NOT_FOUND"
    async with behind(carol, "w1") as w1:
        assert (await error_of(w1.call("hidden/secret"))).code == "NOT_FOUND"
        assert (await error_of(w1.call("node/status"))).code == "NOT_FOUND"  # the hub itself would be let


async def names(peer: alknet_package.Peer) -> list[str]:
    return [one["name"] for one in (await peer.call("services/list", limit=1000))["operations"]]


reached: list[str] = []


@operation("mesh/who", kind="query")
async def who() -> str:
    """Of a caller's own; nobody else may get here."""
    reached.append("who")
    return "a caller"


@asynccontextmanager
async def over_websocket(node: NodeProcess, token: str) -> AsyncIterator[None]:
    """A caller that says, in a hello over a WebSocket, that it brings operations."""
    async with websockets.connect(
        f"ws://127.0.0.1:{node.port}/alknet/call",
        subprotocols=["alknet.call.v1"],
        additional_headers={"Authorization": f"Bearer {token}"},
    ) as socket:
        nonce = base64.b64encode(os.urandom(32)).decode()
        data = {"versions": [1], "features": ["credit", "serve"], "codecs": ["json"], "nonce": nonce}
        hello = {"type": "hello.start", "id": "hello", "payload": {"data": json.dumps(data)}}
        await socket.send(json.dumps(hello).encode())
        assert json.loads(await socket.recv())["type"] == "hello.challenge"
        assert json.loads(await socket.recv())["type"] == "hello.accepted"
        yield


@pytest.mark.parametrize("caller", ["a peer that offers nothing", "a token of a worker's", "a token over a WebSocket"])
async def test_what_a_caller_brings_is_never_routed_to(mesh: MeshNodes, carol: NodeProcess, caller: str) -> None:
    """Beside the workers' own: whoever holds no more than a token of a worker is not the worker."""
    before = mesh.attached()
    token = mesh.hub.alknet("token", "create", "--peer", "w1", "--scope", "*").stdout.strip()
    if caller == "a token over a WebSocket":
        bringing = over_websocket(mesh.hub, token)
    elif caller == "a token of a worker's":
        bringing = calling(carol, token=token, operations=[who])
    else:
        bringing = calling(carol, operations=[who])
    peer = "carol" if "offers nothing" in caller else "w1"
    set_routing(mesh, "round-robin")
    async with bringing, calling(carol) as hub:
        sessions = [one["peer"] for one in await hub.call("node/sessions")]
        assert peer in sessions
        answers = await hub.batch([("w/mesh/who", {})] * 8)
        assert set(answers) == {"w1", "w2"}
        if peer == "carol":
            error = await error_of(alknet_package.Peer(hub._link, behind="carol").call("mesh/who"))
            assert error.code in ("NOT_FOUND", "UNAVAILABLE")
            assert mesh.attached().get("carol", [{"operations": 0}])[0]["operations"] == 0
        else:
            assert await alknet_package.Peer(hub._link, behind="w1").call("mesh/who") == "w1"
            assert mesh.attached()["w1"] == before["w1"]
    assert not reached


# --- the end of a call, two hops away --------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["tls", "quic"])
@pytest.mark.parametrize("way", [["-J", "hub", "w1", "test/wait"], ["hub", "w/test/wait"]])
def test_ctrl_c_stops_the_handler(mesh: MeshNodes, carol: NodeProcess, way: list[str], carrier: str) -> None:
    worker = mesh.workers["w1"]
    mark = f"{carrier}-{len(way)}"
    worker_only(mesh)
    try:
        with running(alknet(carol, "call", "--carrier", carrier, *way, f"mark={mark}")) as caller:
            wait_until(lambda: seen(mesh, "w1", mark), "the handler runs")
            stopped = time.monotonic()
            caller.send_signal(signal.SIGINT)
            _, err = caller.communicate(timeout=10)
            ended = wait_until(lambda: (s := seen(mesh, "w1", mark))["how"] and s, "the handler has ended")
    finally:
        both(mesh)
    assert ended["how"] == "CancelledError"
    assert ended["ended"] - stopped < STOPPED_S
    assert (caller.returncode, b"Traceback" in err) == (130, False)
    assert outcome_of(worker, "test/wait") == "aborted"


def test_ctrl_c_ends_a_subscription_there(mesh: MeshNodes, carol: NodeProcess) -> None:
    for number, way in enumerate((["-J", "hub", "w1", "test/endless"], ["hub", "w/test/endless"])):
        mark = f"endless-{number}"
        with running(alknet(carol, "call", "--stream", *way, f"mark={mark}")) as caller:
            wait_for(caller, b"0\n")
            stopped = time.monotonic()
            caller.send_signal(signal.SIGINT)
            assert caller.wait(timeout=10) == 130
            ended = wait_until(lambda mark=mark: (s := seen(mesh, "w1", mark))["how"] and s, "the handler has ended")
        assert ended["ended"] - stopped < STOPPED_S


@pytest.mark.parametrize("way", [["-J", "hub", "w1"], ["hub"]])
@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_a_timeout_bounds_the_whole_way(mesh: MeshNodes, carol: NodeProcess, way: list[str], stream: list[str]) -> None:
    name = "test/endless" if stream else "test/compose"  # only w1 offers these
    mark = f"timeout-{len(way)}-{len(stream)}"
    name = name if len(way) > 1 else f"w/{name}"
    result = carol.alknet("call", *stream, "--timeout", "400ms", *way, name, f"mark={mark}", check=False)
    assert (result.returncode, "in time" in result.stderr) == (5, True)
    mark = mark if stream else f"{mark}-parent"
    ended = wait_until(lambda: (s := seen(mesh, "w1", mark))["how"] and s, "the handler has ended")
    assert ended["how"] in ("CancelledError", "GeneratorExit")
    assert ended["ended"] - ended["began"] < 0.4 + STOPPED_S


def worker_only(mesh: MeshNodes) -> None:
    """Let only the first worker serve what is exposed."""
    mesh.write_entry("w2", offers=["mesh/who", "mesh/facts", "test/wait", "test/seen"], expose=False)
    mesh.hub.alknet("config", "reload")


def both(mesh: MeshNodes) -> None:
    mesh.write_entry("w2", offers=["mesh/who", "mesh/facts", "test/wait", "test/seen"])
    mesh.hub.alknet("config", "reload")


def outcome_of(node: NodeProcess, operation: str) -> str:
    """How the last call of an operation went, as the node's audit log has it."""
    records = [one for one in node.audit() if one["action"] == operation and one["phase"] == "outcome"]
    return str(records[-1]["outcome"])
