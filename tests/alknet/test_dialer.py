"""Connections that a node keeps up: two real nodes in this process, which are stopped, changed and lied to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from alknet import dialer
from alknet.access import Identity
from alknet.call import mesh
from alknet.call.context import Caller
from alknet.call.errors import CallError
from alknet.call.operations import operation
from alknet.config.addresses import ListenAddress
from alknet.config.create import make_home
from alknet.config.home import Home
from alknet.keys import PublicKey, write_key_pair
from alknet.node import Node
from testkit.node import free_port
from testkit.polling import eventually


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer, "FIRST_WAIT_S", 0.05)
    monkeypatch.setattr(dialer, "MOST_WAIT_S", 0.1)
    monkeypatch.setattr(mesh, "PAUSE_S", 0.02)


class Site:
    """The homes of a hub and of a worker that dials it."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.hub, self.worker = Home(directory / "hub"), Home(directory / "worker")
        for home in (self.hub, self.worker):
            make_home(home, listen=(ListenAddress("127.0.0.1", self.port),), own_keys=())
        self.go_on = asyncio.Event()
        self.begun = asyncio.Event()
        self.write_hub()
        self.write_entry()
        self.write_dial('[[dial]]\npeer = "hub"\n')

    @staticmethod
    def key(home: Home) -> str:
        return home.node_key.with_name("node.pub").read_text().strip()

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o600)

    def write_hub(self, more: str = "", *, node_key: str | None = None, offers: str = '["hub/*"]') -> None:
        """The hub's entry at the worker."""
        node_key = f'node_key = "{node_key or self.key(self.hub)}"' if node_key != "" else ""
        text = f'addresses = ["{self.address}"]\n{node_key}\noffers = {offers}\nscopes = ["work:*"]\n{more}\n'
        self._write(self.worker.peer("hub"), text)

    def write_entry(self, more: str = "") -> None:
        """The worker's entry at the hub."""
        text = f'keys = ["{self.key(self.worker)}"]\noffers = ["work/*"]\nscopes = ["hub:*"]\nexpose = "w"\n{more}\n'
        self._write(self.hub.peer("w1"), text)

    def write_dial(self, text: str) -> None:
        whole = self.worker.config.read_text().split("[[dial]]")[0]
        self._write(self.worker.config, whole + text)

    def operations(self) -> tuple[Any, Any]:
        @operation("work/name", kind="query")
        async def name() -> str:
            return "worker"

        @operation("work/wait", kind="query")
        async def wait() -> str:
            self.begun.set()
            await self.go_on.wait()
            return "waited"

        return name, wait

    @asynccontextmanager
    async def run_hub(self) -> AsyncIterator[Node]:
        @operation("hub/name", kind="query")
        async def name() -> str:
            return "hub"

        async with Node(self.hub, listen=[self.address], operations=[name]) as node:
            yield node

    @asynccontextmanager
    async def run_worker(self) -> AsyncIterator[Node]:
        async with Node(self.worker, listen=["127.0.0.1:0"], operations=self.operations()) as node:
            yield node


@pytest.fixture
def site(tmp_path: Path) -> Site:
    tmp_path.chmod(0o700)
    return Site(tmp_path)


def brought(node: Node, peer: str) -> list[str]:
    return list(node._mesh.operations_of(peer))


def dial_of(node: Node) -> dict[str, Any]:
    (found,) = node.status()["dials"]
    return dict(found)


async def called(node: Node, name: str) -> Any:
    """What an exposed operation answers to the node's owner."""
    key = PublicKey.parse(node.home.owner_key.with_name("owner.pub").read_text())
    owner = Caller(Identity("owner", frozenset({"*"}), f"key:{key.fingerprint}"), "test")
    return await node._dispatcher.prepare(name, None, owner).call()


async def joined(hub: Node) -> None:
    await eventually(lambda: "w/work/name" in hub.registry.operations, "the hub exposes what the worker brings")


async def test_each_side_has_what_the_other_one_may_bring(site: Site) -> None:
    async with site.run_hub() as hub, site.run_worker() as worker:
        await joined(hub)
        await eventually(lambda: brought(worker, "hub"), "the worker has what the hub brings")
        assert (brought(hub, "w1"), brought(worker, "hub")) == (["work/name", "work/wait"], ["hub/name"])
        assert await called(hub, "w/work/name") == "worker"
        shown = dial_of(worker)
        (connection,) = worker.router.connections
        assert shown == {
            "peer": "hub",
            "addresses": [site.address],
            "state": "connected",
            "connection": connection.id,
            "transport": "tls",
            "attempts": 1,
            "connected": 1,
            "problem": None,
            "next_at": None,
        }
        assert connection.identity is not None
        assert (connection.identity.id, connection.identity.via) == ("hub", "dial:hub")
    assert hub.status()["mesh"]["attached"] == []


async def test_a_node_that_is_not_there_is_dialled_until_it_is_and_again_when_it_is_lost(site: Site) -> None:
    async with site.run_worker() as worker:
        await eventually(lambda: dial_of(worker)["attempts"] > 1, "it is tried more than once")
        await eventually(lambda: dial_of(worker)["state"] == "waiting", "it waits")
        shown = dial_of(worker)
        assert (shown["connection"], shown["connected"]) == (None, 0)
        assert site.address in shown["problem"]
        assert shown["next_at"].endswith("Z")
        for _ in range(2):
            async with site.run_hub() as hub:
                await joined(hub)
                assert await called(hub, "w/work/name") == "worker"
                assert [one["peer"] for one in hub.status()["mesh"]["attached"]] == ["w1"]
            await eventually(lambda: brought(worker, "hub") == [], "what the hub brought is gone")
        assert dial_of(worker)["connected"] == 2


async def test_a_connection_that_the_operator_ends_is_dialled_again(site: Site) -> None:
    async with site.run_hub() as hub, site.run_worker() as worker:
        await joined(hub)
        first = dial_of(worker)["connection"]
        worker.end_connection(first)
        await eventually(lambda: dial_of(worker)["connection"] not in (None, first), "there is a new connection")
        await joined(hub)
        (connection,) = hub.router.connections
        hub.end_connection(connection.id)
        await eventually(lambda: dial_of(worker)["connected"] == 3, "and another one")
        await joined(hub)


async def test_a_node_with_another_key_is_refused_and_that_is_said(site: Site, tmp_path: Path) -> None:
    write_key_pair(tmp_path / "other", "other")
    site.write_hub(node_key=(tmp_path / "other.pub").read_text().strip())
    async with site.run_hub() as hub, site.run_worker() as worker:
        await eventually(lambda: dial_of(worker)["problem"], "the reason is known")
        assert "hub" in dial_of(worker)["problem"]
        assert "key" in dial_of(worker)["problem"]
        assert dial_of(worker)["connected"] == 0
        assert hub.status()["mesh"]["attached"] == worker.status()["mesh"]["attached"] == []


async def test_a_node_whose_key_nobody_has_said_is_not_trusted_and_what_to_do_is_said(site: Site) -> None:
    site.write_hub(node_key="")
    async with site.run_hub(), site.run_worker() as worker:
        await eventually(lambda: dial_of(worker)["problem"], "the reason is known")
        assert "key" in dial_of(worker)["problem"]
        assert (dial_of(worker)["connected"], worker.status()["mesh"]["attached"]) == (0, [])


async def test_a_node_that_does_not_know_this_one_lets_it_in_nowhere(site: Site) -> None:
    site.write_entry("enabled = false")
    async with site.run_hub() as hub, site.run_worker() as worker:
        await eventually(lambda: dial_of(worker)["problem"], "the reason is known")
        assert dial_of(worker)["connected"] == 0
        site.write_entry()
        await hub.reload("test")
        await joined(hub)
        assert dial_of(worker)["problem"] is None


async def test_what_is_dialled_changes_with_the_configuration(site: Site) -> None:
    site.write_dial("")
    async with site.run_hub() as hub, site.run_worker() as worker:
        assert worker.status()["dials"] == []
        site.write_dial('[[dial]]\npeer = "hub"\n')
        await worker.reload("test")
        await joined(hub)
        first = dial_of(worker)["connection"]
        site.write_hub("display_name = 'The hub'")
        await worker.reload("test")
        assert dial_of(worker)["connection"] == first, "nothing that counts has changed"
        site.write_dial(f'[[dial]]\npeer = "hub"\naddress = "localhost:{site.port}"\ncarrier = "tls"\n')
        await worker.reload("test")
        await eventually(lambda: dial_of(worker)["connection"] not in (None, first), "it is dialled anew")
        assert dial_of(worker)["addresses"] == [f"localhost:{site.port}"]
        await eventually(lambda: len(hub.router.connections) == 1, "the old connection has ended")
        site.write_hub("enabled = false")
        await worker.reload("test")
        assert worker.status()["dials"] == []
        await eventually(lambda: not hub.router.connections, "and the new one")
        await eventually(lambda: "w/work/name" not in hub.registry.operations, "what it brought is gone")


async def test_what_a_dialled_peer_brings_need_not_be_taken(site: Site) -> None:
    site.write_dial('[[dial]]\npeer = "hub"\nimport = false\n')
    async with site.run_hub() as hub, site.run_worker() as worker:
        await joined(hub)
        assert brought(worker, "hub") == []
        site.write_dial('[[dial]]\npeer = "hub"\n')
        await worker.reload("test")
        await eventually(lambda: brought(worker, "hub") == ["hub/name"], "now it is taken")


async def test_a_node_that_stops_lets_calls_of_the_one_it_has_dialled_end(site: Site) -> None:
    async with site.run_hub() as hub, asyncio.TaskGroup() as group, site.run_worker() as worker:
        await joined(hub)
        call = group.create_task(called(hub, "w/work/wait"))
        await eventually(site.begun.is_set, "the call runs")
        stopping = group.create_task(worker.stop())
        await eventually(lambda: worker._dialer._is_stopping, "it stops")
        site.go_on.set()
        assert await stopping == 0, "nothing had to be cut"
        assert await call == "waited"
        await eventually(lambda: brought(hub, "w1") == [], "it is gone")
        with pytest.raises(CallError):
            await called(hub, "w/work/name")


async def test_taking_the_peer_away_ends_the_connection_and_what_it_brought(site: Site) -> None:
    async with site.run_hub() as hub, site.run_worker() as worker:
        await joined(hub)
        site.hub.peer("w1").unlink()
        await hub.reload("test")
        await eventually(lambda: "w/work/name" not in hub.registry.operations, "what it brought is gone")
        await eventually(lambda: dial_of(worker)["problem"], "the worker knows why")
        assert hub.status()["mesh"]["attached"] == []
