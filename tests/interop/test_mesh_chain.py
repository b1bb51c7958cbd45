"""More than one node between caller and worker: a hub whose exposed operations another node exposes again."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

import pytest

import alknet
from alknet.call.errors import CallError
from testkit.as_user import Launcher
from testkit.mesh import MeshNodes, node_public_key
from testkit.node import NodeProcess, wait_until

pytestmark = pytest.mark.interop

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACE = f"00-{TRACE_ID}-b7ad6b7169203331-01"
STOPPED_S = 0.3
STILL_S = 1.5
"""Two nodes have agreed when for so long nothing has changed: longer than an import waits."""
HOPS = 4
"""Nodes that an import follows, `remote_specs.MAX_HOPS`."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[MeshNodes]:
    """A worker behind a hub behind ``edge``, which dan's machine knows; the names get a prefix at each."""
    mesh = MeshNodes(tmp_path_factory.mktemp("chain"), launcher=launcher, workers=("w1",))
    edge = mesh.make_node("edge")
    mesh.introduce(mesh.hub, "edge", node_public_key(edge), 'scopes = ["w:*", "mesh:*", "test:*"]')
    hub = f'addresses = ["{mesh.address}"]\nnode_key = "{node_public_key(mesh.hub)}"'
    mesh.introduce(edge, "hub", node_public_key(mesh.hub), f'{hub}\noffers = ["w/*"]\nexpose = "far"')
    mesh.dial(edge, "hub")
    dan = mesh.machine("dan", "enabled = false")  # nobody's at the hub
    key = (dan.home / "keys" / "owner.pub").read_text().strip()
    mesh.introduce(edge, "dan", key, 'scopes = ["far:*", "w:*", "mesh:*", "test:*"]')
    with mesh:
        mesh.start_node(edge)
        try:
            mesh.introduce(
                dan, "edge", node_public_key(edge), f'addresses = ["127.0.0.1:{edge.port}"]\n'
                f'node_key = "{node_public_key(edge)}"',
            )  # fmt: skip
            wait_until(lambda: edge.json("status")["mesh"]["exposed"], "edge exposes what the hub exposes")
            yield mesh
        finally:
            edge.stop()


def calling(mesh: MeshNodes) -> AbstractAsyncContextManager[alknet.Peer]:
    return alknet.connect("edge", home=mesh.directory / "dan" / "home", carrier="tls")


async def test_who_called_first_and_what_is_traced_is_known_at_the_end(mesh: MeshNodes) -> None:
    async with calling(mesh) as edge:
        call = edge._session.call("far/w/mesh/facts", {}, timeout_s=5, traceparent=TRACE)
        facts = await call
    assert (facts["worker"], facts["peer"], facts["forwarded_for"]) == ("w1", "hub", "dan")
    assert facts["traceparent"].split("-")[1] == TRACE_ID
    assert 3.0 < facts["remaining_s"] <= 5.0
    (hub,) = [one for one in mesh.hub.audit() if one["action"] == "w/mesh/facts" and one["phase"] == "outcome"]
    assert (hub["peer"], hub["forwarded_for"]) == ("edge", "dan")
    worker = [one for one in mesh.workers["w1"].audit() if one["action"] == "mesh/facts" and one["phase"] == "outcome"]
    assert [(one["peer"], one["forwarded_for"], one["outcome"]) for one in worker] == [("hub", "dan", "ok")]


async def test_nobody_gets_further_than_each_node_lets_him(mesh: MeshNodes) -> None:
    """What the nodes on the way ask for comes together; none is asked for less because another one has agreed."""
    async with calling(mesh) as edge:
        assert await edge.call("far/w/mesh/who") == "w1"
        narrow(mesh, 'scopes = ["w:*", "mesh:facts"]')
        with pytest.raises(CallError) as caught:
            await edge.call("far/w/mesh/who")
        assert caught.value.code in ("FORBIDDEN", "NOT_FOUND")
        narrow(mesh, 'scopes = ["w:*", "mesh:*", "test:*"]')
        await known_again(edge)


def narrow(mesh: MeshNodes, text: str) -> None:
    key = (mesh.directory / "edge" / "home" / "keys" / "node.pub").read_text().strip()
    mesh.introduce(mesh.hub, "edge", key, text)
    mesh.hub.alknet("config", "reload")


async def known_again(edge: alknet.Peer) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await edge.call("far/w/mesh/who")
                return
            except CallError:
                await asyncio.sleep(0.02)


async def test_its_end_is_the_end_everywhere(mesh: MeshNodes) -> None:
    async with calling(mesh) as edge:
        with pytest.raises(CallError) as caught:
            await edge.call("far/w/test/wait", mark="timeout", timeout=0.4)
        assert caught.value.code == "TIMEOUT"
        seen = await ended(edge, "timeout")
        assert seen["ended"] - seen["began"] < 0.4 + STOPPED_S
        async with asyncio.TaskGroup() as group:
            task = group.create_task(edge.call("far/w/test/wait", mark="given up"))
            while not await edge.call("far/w/test/seen", mark="given up"):
                await asyncio.sleep(0.005)
            stopped = time.monotonic()
            task.cancel()
        assert (await ended(edge, "given up"))["ended"] - stopped < STOPPED_S


async def ended(edge: alknet.Peer, mark: str) -> dict[str, float]:
    async with asyncio.timeout(10):
        while True:
            seen: dict[str, float] = await edge.call("far/w/test/seen", mark=mark)
            if seen["ended"]:
                return seen
            await asyncio.sleep(0.005)


def test_two_nodes_that_hand_everything_to_each_other_agree(mesh: MeshNodes) -> None:
    """Each exposes what the other one has, and so what it has itself, again and again: up to a point."""
    names = ("left", "right")
    left, right = (mesh.make_node(name, ["testkit.mesh_services"]) for name in names)
    everything = 'scopes = ["*"]\noffers = ["*"]\n'
    mesh.introduce(right, "left", node_public_key(left), f'{everything}expose = "l"')
    try:
        mesh.start_node(right, WORKER="right")
        address = f'addresses = ["127.0.0.1:{right.port}"]\nnode_key = "{node_public_key(right)}"\n'
        mesh.introduce(left, "right", node_public_key(right), f'{everything}{address}expose = "r"')
        mesh.dial(left, "right")
        mesh.start_node(left, WORKER="left")
        found = settled(left)
        depths = {sum(part in ("l", "r") for part in name.split("/")) for name in found}
        assert depths == set(range(HOPS + 1))
        (deepest,) = [name for name in found if name.endswith("mesh/who") and name.startswith("r/l/r/l/")]
        assert left.alknet("call", ".", deepest).stdout.strip() == "left"
        assert left.alknet("call", ".", "r/mesh/who").stdout.strip() == "right"
        assert any("nodes further on" in one["problem"] for one in left.json("status")["mesh"]["attached"])
    finally:
        for node in (left, right):
            node.__exit__()


def settled(node: NodeProcess) -> list[str]:
    """Its operations, once they have been the same for a while."""
    last: tuple[list[str], float] = [], 0.0

    def is_still() -> bool:
        nonlocal last
        now = [one["name"] for one in node.json("ops")]
        if now != last[0]:
            last = now, time.monotonic()
        return any(name.startswith("r/l") for name in now) and time.monotonic() - last[1] > STILL_S

    wait_until(is_still, "nothing changes any more")
    return last[0]
