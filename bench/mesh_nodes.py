"""The nodes of `mesh.py`: a hub, workers that dial it, and a machine that reaches them, all on loopback."""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "_lib"))

from call_client import HOST, Order
from call_operations import SCOPE

from testkit.mesh import RUNS_AS_DAEMON, MeshNodes
from testkit.node import NodeProcess

__all__ = ["ALONE", "PAIR", "QUIC", "CallNode", "Mesh", "Workers"]

CLIENT = "bench"
SAY = "echo/say"


@dataclass(frozen=True, slots=True)
class Workers:
    """Workers that are exposed under one prefix, and dial the hub over one carrier."""

    prefix: str
    names: tuple[str, ...]
    carrier: str = "tls"


ALONE = Workers("alone", ("w1",))
PAIR = Workers("pair", ("w2", "w3"))
QUIC = Workers("quic", ("q1",), "quic")


class CallNode(NodeProcess):
    """A node that `call_node.py` runs, with or without its audit log."""

    def __init__(self, directory: Path, mode: str) -> None:
        super().__init__(directory)
        self._mode = mode

    def start(self) -> "CallNode":
        program = Path(__file__).with_name("call_node.py")
        words = [sys.executable, str(program), str(self.home), self._mode]
        with self.log_path.open("ab") as log:
            self.process = process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the node did not start:\n{self.log_text()}")
        self.port = int(line)
        return self


class Mesh:
    """A hub with these workers; the peer ``bench`` of all of them is whoever measures. `mode` is as `call_node.py` has
    it. A hub without workers can have `peers` of its own, by name with the lines of their entries."""

    def __init__(self, directory: Path, workers: Sequence[Workers], mode: str) -> None:
        directory.mkdir()
        self.nodes = MeshNodes(
            directory,
            workers=(),
            offers=("echo/*",),
            make=lambda place: CallNode(place, mode),  # type: ignore[arg-type]
        )
        for group in workers:
            self.nodes.carrier = group.carrier  # type: ignore[assignment]
            for name in group.names:
                self.nodes.add_worker(name)
                self.nodes.write_entry(name, expose=group.prefix)
        scopes = ", ".join(f'"{one.prefix}:*"' for one in workers)
        self.client = self.nodes.machine(
            CLIENT,
            f'scopes = ["{SCOPE}", "peer:*", {scopes}]',
            at_workers=f'scopes = ["{SCOPE}", "ssh:*"]\n{RUNS_AS_DAEMON}',
        )

    def start(self, stack: ExitStack) -> "Mesh":
        """Run it until the stack ends."""
        stack.callback(self.nodes.stop)
        self.nodes.start()
        return self

    @property
    def hub(self) -> NodeProcess:
        return self.nodes.hub

    def worker(self, name: str) -> NodeProcess:
        return self.nodes.workers[name]

    # --- calls --------------------------------------------------------------------------------------------------

    def direct(self, name: str, carrier: str = "tls") -> Order:
        """To a worker itself."""
        worker = self.worker(name)
        return Order(
            "",
            "alknet",
            worker.port,
            carrier=carrier,
            home=str(self.client.home),
            key=str(self.client.home / "keys" / "owner"),
            pids=(worker.pid,),
        )

    def by_peer(self, name: str, carrier: str = "tls") -> Order:
        """To that worker through the hub."""
        order = self.direct(name, carrier)
        return replace(order, port=self.hub.port, behind=name, pids=(self.hub.pid, *order.pids))

    def exposed(self, workers: Workers) -> Order:
        """To whichever of these workers the hub chooses."""
        order = self.by_peer(workers.names[0])
        pids = (self.hub.pid, *(self.worker(name).pid for name in workers.names))
        return replace(order, behind="", operation=f"{workers.prefix}/{SAY}", pids=pids)

    # --- SSH ----------------------------------------------------------------------------------------------------

    def ssh(self, name: str, *, through: bool, carrier: str = "tls") -> list[str]:
        """``alknet ssh`` to a worker, through the hub or not; the command is to follow."""
        client = [sys.executable, "-m", "alknet", "--home", str(self.client.home), "ssh", "--carrier", carrier]
        if through:
            return [*client, "-J", "hub", f"{CLIENT}@{name}"]
        return [*client, "--accept-new", f"{CLIENT}@{HOST}:{self.worker(name).port}"]
