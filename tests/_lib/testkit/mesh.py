"""A hub and the workers that dial it, as real nodes; and machines from which people reach the workers through the hub.

::

    with MeshNodes(tmp_path, launcher=launcher, workers=("w1", "w2")) as mesh:
        mesh.workers["w1"].stop(signal.SIGKILL)
        mesh.wait_gone("w1")
        carol = mesh.machine("carol", 'scopes = ["w:*", "peer:*"]')
        carol.alknet("call", "-J", mesh.address, "w2", "test/identity")

Everything that the nodes know about each other stands in their configuration files, as it does where people run them.
"""

import json
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Literal
from unittest.mock import patch

from testkit.as_user import Launcher
from testkit.node import NodeProcess, free_port, wait_until

__all__ = ["EXPOSED", "LIBRARY", "OFFERS", "RUNS_AS_DAEMON", "MeshNodes", "host_public_key", "node_public_key"]

LIBRARY: Final = Path(__file__).resolve().parents[1]
MODULES: Final = ("testkit.services", "testkit.mesh_services")
OFFERS: Final = ("test/*", "mesh/*")
EXPOSED: Final = "w"
"""The prefix under which the hub exposes what the workers bring."""
RUNS_AS_DAEMON: Final = '[ssh]\nuser = "root"\nas_daemon = true\nshell = "/bin/sh"'


class MeshNodes:
    """A hub, and workers that dial it. A context manager; `start` and `stop` do the same.

    The workers' peer entries at the hub have `offers` and, unless `expose` is None, expose them under that prefix; the
    hub holds every scope at the workers. `modules` are what the workers serve, `hub_modules` what the hub does;
    `environments` has variables of single workers besides. `write_entry` writes a worker's entry at the hub anew,
    `write_hub` the hub's at a worker.
    """

    def __init__(
        self,
        directory: Path,
        *,
        launcher: Launcher | None = None,
        workers: Iterable[str] = ("w1", "w2"),
        carrier: Literal["auto", "quic", "tls"] = "tls",
        offers: Sequence[str] = OFFERS,
        expose: str | None = EXPOSED,
        modules: Sequence[str] = MODULES,
        hub_modules: Sequence[str] = (),
        routing: str | None = None,
        host: str = "127.0.0.1",
        environments: Mapping[str, Mapping[str, str]] | None = None,
        make: Callable[[Path], NodeProcess] | None = None,
    ) -> None:
        """`make` makes the nodes, if they are to be somewhere else: it gets the directory, named as the node is."""
        self.directory = directory
        self.launcher = launcher
        self.address = f"{host}:{free_port()}"
        self.carrier = carrier
        self._offers, self._expose = tuple(offers), expose
        self._environments = dict(environments or {})
        self._modules = tuple(modules)
        self._machines: dict[str, NodeProcess] = {}
        self._make = make
        self.hub = self.make_node("hub", hub_modules, listen=self.address)
        if routing is not None:
            self.hub.edit_config('routing = "round-robin"', f'routing = "{routing}"')
        self.workers: dict[str, NodeProcess] = {}
        for name in workers:
            self.add_worker(name)

    # --- making them ------------------------------------------------------------------------------------------------

    def make_node(self, name: str, modules: Sequence[str] = (), *, listen: str = "127.0.0.1:0") -> NodeProcess:
        """A node that is not started and knows nobody."""
        directory = self.directory / name
        directory.mkdir()
        node = NodeProcess(directory, launcher=self.launcher) if self._make is None else self._make(directory)
        node.edit_config("127.0.0.1:0", listen)
        if modules:
            node.edit_config("modules = []", f"modules = {json.dumps(list(modules))}")
        return node

    def add_worker(self, name: str) -> NodeProcess:
        """One more worker, which is not started yet."""
        worker = self.workers[name] = self.make_node(name, self._modules)
        self.write_entry(name)
        self.write_hub(name)
        self.dial(worker, "hub", carrier=self.carrier)
        return worker

    def write_entry(
        self,
        worker: str,
        *,
        offers: Sequence[str] | None = None,
        expose: str | Literal[False] | None = None,
        more: str = "",
    ) -> None:
        """The worker's entry at the hub. What is None is as for all; `expose` False exposes nothing; `more` are further
        lines. A running hub notices by itself."""
        expose = self._expose if expose is None else expose or None
        lines = [f"offers = {json.dumps(list(self._offers if offers is None else offers))}"]
        lines += [f'expose = "{expose}"'] if expose else []
        self.introduce(self.hub, worker, node_public_key(self.workers[worker]), "\n".join([*lines, more]))

    def write_hub(self, worker: str, text: str = f'scopes = ["*"]\n{RUNS_AS_DAEMON}') -> None:
        """The hub's entry at a worker: what the hub may do there."""
        key = node_public_key(self.hub)
        lines = f'node_key = "{key}"\naddresses = ["{self.address}"]\n{text}'
        self.introduce(self.workers[worker], "hub", key, lines)

    def machine(self, name: str, text: str = 'scopes = ["*"]', *, at_workers: str | None = None) -> NodeProcess:
        """A home where no node runs, whose owner is the peer `name` of the hub, with these further lines in its entry;
        a peer of the workers too, with those of `at_workers`. The same one for the same name, told anew."""
        machine = self._machines.get(name) or self._machines.setdefault(name, self.make_node(name))
        key = (machine.home / "keys" / "owner.pub").read_text().strip()
        self.introduce(self.hub, name, key, text)
        for worker in self.workers.values() if at_workers is not None else ():
            self.introduce(worker, name, key, at_workers or "")
        self.trust(machine)
        return machine

    def trust(self, machine: NodeProcess) -> None:
        """Tell a machine the hub's keys, and each worker's, under the names that they have at the hub."""
        self.introduce(
            machine,
            "hub",
            node_public_key(self.hub),
            f'addresses = ["{self.address}"]\nnode_key = "{node_public_key(self.hub)}"\n'
            f'host_key = "{host_public_key(self.hub)}"',
        )
        for name, worker in self.workers.items():
            self.introduce(machine, name, node_public_key(worker), f'host_key = "{host_public_key(worker)}"')

    @staticmethod
    def introduce(node: NodeProcess, name: str, key: str, text: str = "") -> None:
        """Write the entry of the peer `name` with that key at `node`, whole and at once."""
        path = node.home / "peers.d" / f"{name}.toml"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(f'keys = ["{key}"]\n{text}\n')
        temporary.chmod(0o600)
        temporary.rename(path)

    @staticmethod
    def dial(node: NodeProcess, peer: str, *, carrier: str = "tls") -> None:
        """Let `node` keep up a connection to that peer of its."""
        path = node.home / "alknet.toml"
        path.write_text(f'{path.read_text()}\n[[dial]]\npeer = "{peer}"\ncarrier = "{carrier}"\n')

    # --- running them -----------------------------------------------------------------------------------------------

    def start_node(self, node: NodeProcess, **environment: str) -> NodeProcess:
        """Start a node that finds the test kit's modules."""
        with patch.dict(os.environ, {"PYTHONPATH": str(LIBRARY), **environment}):
            return node.start()

    def start_worker(self, name: str) -> NodeProcess:
        return self.start_node(self.workers[name], WORKER=name, **self._environments.get(name, {}))

    def start(self) -> "MeshNodes":
        """Start all, and wait until the hub has the operations of all."""
        self.start_node(self.hub)
        for name in self.workers:
            self.start_worker(name)
        self.wait_settled()
        return self

    def stop(self) -> None:
        """Stop what runs, workers first; what is stopped (SIGSTOP) goes on for that."""
        with ExitStack() as stack:
            for node in (self.hub, *self.workers.values()):
                if node.process is not None and node.process.poll() is None:
                    os.killpg(node.pid, signal.SIGCONT)
                stack.callback(node.__exit__)

    def __enter__(self) -> "MeshNodes":
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- what the hub knows -----------------------------------------------------------------------------------------

    def mesh(self) -> dict[str, Any]:
        """What the hub's status says about its mesh."""
        status: dict[str, Any] = self.hub.json("status")
        mesh: dict[str, Any] = status["mesh"]
        return mesh

    def attached(self) -> dict[str, list[dict[str, Any]]]:
        """The connections that bring operations, by peer, the newest first."""
        found: dict[str, list[dict[str, Any]]] = {}
        for one in self.mesh()["attached"]:
            found.setdefault(one["peer"], []).append(one)
        return found

    def wait_settled(self, *names: str) -> None:
        """Wait until each of these workers (all, if none is named) has one connection, and its operations are known and
        exposed."""
        wanted = names or tuple(self.workers)

        def are_here() -> bool:
            mesh = self.mesh()
            attached = {name: [one for one in mesh["attached"] if one["peer"] == name] for name in wanted}
            known = all(len(found) == 1 and found[0]["operations"] for found in attached.values())
            return known and mesh["is_settled"]

        try:
            wait_until(are_here, f"{', '.join(wanted)} have brought their operations")
        except AssertionError as exc:
            ends = [node.log_text()[-1000:] for node in (self.hub, *self.workers.values())]
            raise AssertionError(
                f"{exc}; the hub knows {self.attached()}; the logs end with\n" + "\n".join(ends)
            ) from None

    def wait_gone(self, name: str) -> None:
        """Wait until the hub has no connection of that worker."""
        wait_until(lambda: name not in self.attached(), f"{name} has gone")


def node_public_key(node: NodeProcess) -> str:
    """What `node` proves when it is dialled, and when it dials."""
    return (node.home / "keys" / "node.pub").read_text().strip()


def host_public_key(node: NodeProcess) -> str:
    """What its SSH door proves."""
    return (node.home / "keys" / "ssh_host_ed25519_key.pub").read_text().strip()
