"""Workers and hubs that are killed, stopped or forbidden things, and what becomes of calls meanwhile."""

import asyncio
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import alknet as alknet_package
from alknet.call.errors import CallError
from alknet.tasks import Tasks
from testkit.as_user import Launcher
from testkit.carriers import alknet, running, wait_for
from testkit.mesh import RUNS_AS_DAEMON, MeshNodes
from testkit.node import NodeProcess, wait_until
from testkit.polling import eventually

pytestmark = pytest.mark.interop

LOST_S = {"tls": 0.5, "quic": 5.0}
"""Within so much time a call fails whose worker was killed."""
SILENT_S = 6.0
"""The same for a worker that is there and does nothing, where the carrier can tell."""
REVOKED_S = 2.0
STOPPED_S = 1.0
"""What an idle node takes to stop at most; its drain time is twice that."""
CAROL = 'scopes = ["w:*", "peer:w1", "peer:w2", "mesh:*", "test:*", "node:read"]'


@pytest.fixture(params=["tls", "quic"])
def mesh(request: pytest.FixtureRequest, tmp_path: Path, launcher: Launcher) -> Iterator[MeshNodes]:
    with MeshNodes(tmp_path, launcher=launcher, carrier=request.param) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> Iterator[MeshNodes]:
    """A mesh for tests that leave it as it was."""
    with MeshNodes(tmp_path_factory.mktemp("mesh"), launcher=launcher) as mesh:
        yield mesh


def third_machine(mesh: MeshNodes, text: str = CAROL) -> NodeProcess:
    """Carol's, who may reach the workers through the hub, and log in there."""
    machine = mesh.machine("carol", text, at_workers=f'scopes = ["ssh:*"]\n{RUNS_AS_DAEMON}')
    for node in (mesh.hub, *mesh.workers.values()):
        node.alknet("config", "reload")
    return machine


class Hub:
    """A connection to the hub, and what runs over it."""

    def __init__(self, peer: alknet_package.Peer, tasks: Tasks) -> None:
        self.peer = peer
        self.items: Counter[str] = Counter()
        self._tasks = tasks

    def at(self, worker: str | None) -> alknet_package.Peer:
        return self.peer if worker is None else alknet_package.Peer(self.peer._link, behind=worker)

    def begin(
        self, worker: str | None, name: str, timeout_s: float = 60, **inputs: Any
    ) -> "asyncio.Task[tuple[Any, float]]":
        """A call; ends with (the output or the error, when)."""

        async def call() -> tuple[Any, float]:
            try:
                return await self.at(worker).call(name, inputs, timeout=timeout_s), time.monotonic()
            except CallError as exc:
                return exc, time.monotonic()

        return self._tasks.start(call(), name=name)

    async def follow(self, worker: str | None, name: str, **inputs: Any) -> "asyncio.Task[tuple[Any, float]]":
        """A subscription of which the first item is there; ends as `begin` does."""
        key = f"{worker}:{name}"
        before = self.items[key]

        async def follow() -> tuple[Any, float]:
            try:
                async with self.at(worker).subscribe(name, inputs) as items:
                    async for _ in items:
                        self.items[key] += 1
            except CallError as exc:
                return exc, time.monotonic()
            return None, time.monotonic()

        task = self._tasks.start(follow(), name=name)
        await eventually(lambda: self.items[key] > before, "the first item")
        return task


@asynccontextmanager
async def calling(machine: NodeProcess) -> AsyncIterator[Hub]:
    tasks = Tasks("calls")
    async with alknet_package.connect("hub", home=machine.home, carrier="tls") as peer:
        try:
            yield Hub(peer, tasks)
        finally:
            await tasks.aclose()


async def in_thread(function: Any, *arguments: Any) -> Any:
    """What blocks does so beside the event loop, which has calls to look after."""
    return await asyncio.to_thread(function, *arguments)


async def running_at(hub: Hub, worker: str, mark: str) -> None:
    async with asyncio.timeout(10):
        while not await hub.at(worker).call("test/seen", mark=mark):
            await asyncio.sleep(0.005)


# --- workers that are lost -------------------------------------------------------------------------------------------


async def test_a_worker_is_killed_and_comes_back(mesh: MeshNodes, request: pytest.FixtureRequest) -> None:
    carrier = request.node.callspec.params["mesh"]
    machine = await in_thread(third_machine, mesh)
    async with calling(machine) as hub:
        before = await in_thread(mesh.attached)
        lost = [
            hub.begin("w1", "test/wait", mark="lost"),
            await hub.follow("w1", "test/endless", mark="endless"),
            hub.begin("w1", "mesh/change", seconds=60),
        ]
        others = [hub.begin("w2", "test/wait", mark="other", seconds=1.5), await hub.follow("w2", "mesh/ticks")]
        await running_at(hub, "w1", "lost")
        killed = time.monotonic()
        await in_thread(mesh.workers["w1"].stop, signal.SIGKILL)
        for task in lost:
            error, ended = await task
            assert (error.code, "peer 'w1' was lost" in str(error)) == ("UNAVAILABLE", True)
            assert ended - killed < LOST_S[carrier]
        assert {await hub.peer.call("w/mesh/who") for _ in range(10)} == {"w2"}
        error, _ = await hub.begin("w1", "mesh/who")
        assert (error.code, str(error)) == ("UNAVAILABLE", "peer 'w1' is not connected")
        assert not others[1].done()
        assert (await others[0])[0] == "waited"

        await in_thread(mesh.start_worker, "w1")
        await in_thread(mesh.wait_settled, "w1")
        after = await in_thread(mesh.attached)
        assert after["w1"][0]["generation"] > before["w1"][0]["generation"]
        assert after["w1"][0]["operations"] == before["w1"][0]["operations"]
        assert after["w2"] == before["w2"]
        assert {await hub.peer.call("w/mesh/who") for _ in range(4)} == {"w1", "w2"}
        assert (await hub.begin("w1", "mesh/who"))[0] == "w1"
        assert not others[1].done()


@pytest.mark.parametrize("mesh", ["tls"], indirect=True)
async def test_calls_that_may_be_repeated_survive_the_death_of_their_worker(mesh: MeshNodes) -> None:
    """Half of them run at the one that dies; what is no query is not run again."""
    machine = await in_thread(third_machine, mesh)
    async with calling(machine) as hub:
        calls = [hub.begin(None, "w/mesh/late", seconds=1.0) for _ in range(6)]
        changes = [hub.begin(None, "w/mesh/change", seconds=1.0) for _ in range(6)]
        await running_count(mesh, 12)
        await in_thread(mesh.workers["w1"].stop, signal.SIGKILL)
        assert [(await task)[0] for task in calls] == ["w2"] * 6
        outcomes = [(await task)[0] for task in changes]
        assert [one for one in outcomes if isinstance(one, str)] == ["w2"] * 3
        assert {one.code for one in outcomes if not isinstance(one, str)} == {"UNAVAILABLE"}
        route = (await in_thread(mesh.mesh))["routes"]["w/mesh/late"]
        assert route["retries"] == 3


async def running_count(mesh: MeshNodes, wanted: int) -> None:
    """Wait until so many exposed calls are on their way at the workers."""

    def count() -> int:
        routes = mesh.mesh()["routes"]
        return sum(peer["in_flight"] for route in routes.values() for peer in route["peers"].values())

    await in_thread(wait_until, lambda: count() == wanted, f"{wanted} calls run")


async def test_the_late_end_of_an_old_connection_changes_nothing(lasting: MeshNodes) -> None:
    """A worker that has moved on while the hub still has its old connection: two processes with one key."""
    mesh, old = lasting, lasting.workers["w1"]
    machine = await in_thread(third_machine, mesh)
    new = await in_thread(twin, mesh, old)
    known = newest(mesh, "w1")[1]
    try:
        os.killpg(old.pid, signal.SIGSTOP)
        await in_thread(lambda: mesh.start_node(new, WORKER="new"))
        await in_thread(wait_until, lambda: newest(mesh, "w1") == (2, known), "the worker is here twice")
        async with calling(machine) as hub:
            running = await hub.follow("w1", "mesh/ticks")
            assert (await hub.begin("w1", "mesh/who"))[0] == "new"
            await in_thread(old.stop, signal.SIGKILL)
            await in_thread(wait_until, lambda: newest(mesh, "w1") == (1, known), "the old one has gone")
            assert (await hub.begin("w1", "mesh/who"))[0] == "new"
            assert {await hub.peer.call("w/mesh/who") for _ in range(4)} == {"new", "w2"}
            assert not running.done()
    finally:
        await in_thread(new.stop)
        await in_thread(mesh.start_worker, "w1")
        await in_thread(mesh.wait_settled)


def twin(mesh: MeshNodes, node: NodeProcess) -> NodeProcess:
    """A node on a copy of the home."""
    other = mesh.make_node(f"{node.directory.name}-twin")
    shutil.rmtree(other.home)
    shutil.copytree(node.home, other.home, ignore=shutil.ignore_patterns("lock"))
    return other


def newest(mesh: MeshNodes, worker: str) -> tuple[int, int]:
    """(how many connections it has, the operations over the newest one)."""
    attached = mesh.attached().get(worker, [])
    return len(attached), attached[0]["operations"] if attached else 0


@pytest.mark.parametrize("carrier", ["quic", "tls"])
async def test_a_worker_that_is_there_and_does_nothing_is_given_up(
    tmp_path: Path, launcher: Launcher, carrier: str
) -> None:
    """Also over TLS, where the kernel goes on answering for a process that is stopped."""
    with MeshNodes(tmp_path, launcher=launcher, carrier=carrier) as mesh:
        machine = third_machine(mesh)
        async with calling(machine) as hub:
            call = hub.begin("w1", "test/wait", mark="silent")
            await running_at(hub, "w1", "silent")
            stopped = time.monotonic()
            os.killpg(mesh.workers["w1"].pid, signal.SIGSTOP)
            error, ended = await call
            assert error.code == "UNAVAILABLE"
            assert ended - stopped < SILENT_S
            assert (await hub.begin(None, "w/mesh/who"))[0] == "w2"
            os.killpg(mesh.workers["w1"].pid, signal.SIGCONT)
            await in_thread(mesh.wait_settled, "w1")
            assert (await hub.begin("w1", "mesh/who"))[0] == "w1"


# --- nodes that stop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_come_back_to_a_hub_that_was_restarted(lasting: MeshNodes, number: int) -> None:
    lasting.hub.stop(number)
    lasting.start_node(lasting.hub)
    lasting.wait_settled()
    assert {name: len(attached) for name, attached in lasting.attached().items()} == {"w1": 1, "w2": 1}
    for name, worker in lasting.workers.items():
        (dial,) = worker.json("status")["dials"]
        assert (dial["state"], dial["problem"]) == ("connected", None), name


def test_nobody_is_waited_for_who_only_waits_for_changes(lasting: MeshNodes) -> None:
    """Each side of a mesh subscribes to the other's."""
    began = time.monotonic()
    assert lasting.workers["w2"].stop() == 0
    assert time.monotonic() - began < STOPPED_S
    lasting.start_worker("w2")
    lasting.wait_settled("w2")
    began = time.monotonic()
    assert lasting.hub.stop() == 0
    assert time.monotonic() - began < STOPPED_S
    lasting.start_node(lasting.hub)
    lasting.wait_settled()


async def test_a_hub_that_stops_lets_calls_through_it_finish(lasting: MeshNodes) -> None:
    mesh, machine = lasting, await in_thread(third_machine, lasting)
    command = alknet(machine, "ssh", "-J", "hub", "carol@w1", "echo there; sleep 60")
    with running(command) as session:
        await in_thread(wait_for, session, b"there\n")
        async with calling(machine) as hub:
            calls = [hub.begin("w1", "mesh/late", seconds=1.0), hub.begin(None, "w/mesh/late", seconds=1.0)]
            endless = await hub.follow("w1", "mesh/ticks")
            began = time.monotonic()
            stopping = asyncio.get_running_loop().run_in_executor(None, mesh.hub.stop)
            assert {(await task)[0] for task in calls} <= {"w1", "w2"}
            error, _ = await endless
            assert error.code == "UNAVAILABLE"
            assert await stopping == 0
            assert 1.0 < time.monotonic() - began < 4.0  # its drain time is 2 s
        assert await in_thread(lambda: session.wait(timeout=10)) == 255
    await in_thread(mesh.start_node, mesh.hub)
    await in_thread(mesh.wait_settled)


# --- access that is taken away ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "ends", "stays"),
    [
        ("disable", ["call w1", "stream w1", "ssh w1"], ["stream w2", "exposed ticks"]),
        ("offers", ["stream w1"], ["call w1", "stream w2", "exposed ticks", "ssh w1"]),
        ("expose", ["exposed w1"], ["call w1", "stream w1", "stream w2", "ssh w1"]),
        ("caller", ["call w1", "stream w1", "ssh w1"], ["stream w2", "exposed w1", "exposed ticks"]),
    ],
)
async def test_what_is_forbidden_ends_and_nothing_else(
    lasting: MeshNodes, change: str, ends: list[str], stays: list[str]
) -> None:
    mesh, machine = lasting, await in_thread(third_machine, lasting)
    command = alknet(machine, "ssh", "-J", "hub", "carol@w1", "echo there; sleep 60")
    try:
        with running(command) as session:
            await in_thread(wait_for, session, b"there\n")
            async with calling(machine) as hub:
                # `ticks` of both workers, exposed: wherever it goes on, it goes on at a worker that may.
                mark = os.urandom(4).hex()
                tasks = {
                    "call w1": hub.begin("w1", "mesh/late", seconds=60),
                    "stream w1": await hub.follow("w1", "test/endless", mark=mark),
                    "stream w2": await hub.follow("w2", "mesh/ticks"),
                }
                if change == "expose" or change == "caller":
                    tasks["exposed w1"] = await only_of_w1(mesh, hub)
                changed = time.monotonic()
                await in_thread(forbid, mesh, change)
                await in_thread(mesh.hub.alknet, "config", "reload")
                for name in set(ends) & set(tasks):
                    async with asyncio.timeout(10):
                        error, ended = await tasks[name]
                    assert ended - changed < REVOKED_S, name
                    assert error.code in ("FORBIDDEN", "UNAVAILABLE"), name
                    assert str(error), name
                if "ssh w1" in ends:
                    assert await in_thread(lambda: session.wait(timeout=10)) == 255
                    assert time.monotonic() - changed < REVOKED_S + 0.5
                for name in set(stays) & set(tasks):
                    assert not tasks[name].done(), name
                if "ssh w1" in stays:
                    assert session.poll() is None
    finally:
        await in_thread(allow, mesh)


async def only_of_w1(mesh: MeshNodes, hub: Hub) -> "asyncio.Task[tuple[Any, float]]":
    """An exposed subscription that runs at the first worker."""
    while True:
        before = (await in_thread(mesh.mesh))["routes"].get("w/mesh/ticks", {"peers": {}})["peers"]
        task = await hub.follow(None, "w/mesh/ticks")
        after = (await in_thread(mesh.mesh))["routes"]["w/mesh/ticks"]["peers"]
        if after.get("w1", {"calls": 0})["calls"] > before.get("w1", {"calls": 0})["calls"]:
            return task
        task.cancel()


def forbid(mesh: MeshNodes, change: str) -> None:
    if change == "disable":
        mesh.write_entry("w1", more="enabled = false")
    elif change == "offers":
        mesh.write_entry("w1", offers=["mesh/*"])
    elif change == "expose":
        mesh.write_entry("w1", expose=False)
    else:
        key = (mesh.directory / "carol" / "home" / "keys" / "owner.pub").read_text().strip()
        mesh.introduce(mesh.hub, "carol", key, CAROL.replace('"peer:w1", ', ""))


def allow(mesh: MeshNodes) -> None:
    mesh.write_entry("w1")
    mesh.hub.alknet("config", "reload")
    if "w1" not in mesh.attached():  # it waits longer and longer before it dials again
        mesh.workers["w1"].stop()
        mesh.start_worker("w1")
    mesh.wait_settled()
