"""The servers of `call.py` and `mesh.py`, each a process of its own, and the clients that are sent to them."""

import json
import secrets
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "_lib"))

from call_client import Order
from call_nats import configuration as nats_configuration
from call_operations import SCOPE

from alknet.certificates import make_certificate, write_certificate
from testkit.node import NodeProcess, free_port, wait_until

__all__ = ["AIOQUIC", "GRPC", "NATS", "Peers", "Server", "ask", "program", "start_node"]

DEADLINE_S = 120.0
ROOM = 20_000
"""What the node's limits are raised to: every client here comes from one address and is one peer."""
NATS_SERVER = "/usr/sbin/nats-server"
GRPC, NATS, AIOQUIC = "grpc", "nats", "aioquic"


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, and the order that reaches it, to be filled in."""

    order: Order
    process: psutil.Process


def ask(order: Order, act: str, **rest: Any) -> dict[str, float]:
    """What a client of `call_client.py` printed."""
    described = json.dumps(asdict(replace(order, act=act, **rest)))
    command = [sys.executable, program("call_client.py"), described]
    result = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    if result.returncode:
        raise RuntimeError(f"{described}: {result.stderr}")
    answer: dict[str, float] = json.loads(result.stdout)
    return answer


def program(name: str) -> str:
    return str(Path(__file__).with_name(name))


def run(stack: ExitStack, *command: str) -> tuple[int, int]:
    """Start one of the programs here, until the stack ends; the port that it prints, and its process id."""
    name, *rest = command
    words = [sys.executable, program(name), *rest]
    process = stack.enter_context(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
    stack.callback(process.terminate)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{name} did not start")
    return int(line), process.pid


def start_node(stack: ExitStack, directory: Path, mode: str) -> Server:
    """`call_node.py` on a home of its own, in which the peer ``bench`` may use the operations."""
    directory.mkdir()
    node = NodeProcess(directory)  # makes the home
    for name, usual in (
        ("connections", 4096),
        ("connections_per_address", 100),
        ("half_open", 1000),
        ("connections_per_peer", 256),
    ):
        node.edit_config(f"\n{name} = {usual}\n", f"\n{name} = {ROOM}\n")
    node.write_peer("bench", f'scopes = ["{SCOPE}"]')
    port, pid = run(stack, "call_node.py", str(node.home), mode)
    asked = "carrier" if mode == "carrier" else "alknet"
    order = Order("", asked, port, home=str(node.home), key=str(node.keys / "bench"), pids=(pid,))
    return Server(order, psutil.Process(pid))


class Peers:
    """The certificate and the token of those that are no nodes, and how they are started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = directory / "peers.crt", directory / "peers.key"
        write_certificate(make_certificate(("localhost",)), *self._files)  # of the kind that a node makes
        self.certificate, self.key = map(str, self._files)
        self.token = secrets.token_hex(16)

    def start(self, stack: ExitStack, name: str) -> Server:
        if name == GRPC:
            port, pid = run(stack, "call_grpc.py", self.certificate, self.key, self.token)
            pids = (pid,)
        elif name == AIOQUIC:
            port, pid = run(stack, "call_quic.py", self.certificate, self.key)
            pids = (pid,)
        else:
            broker = self._start_nats(stack, port := free_port())
            _, pid = run(stack, "call_nats.py", self.certificate, str(port), self.token)
            pids = (pid, broker)
        order = Order("", name, port, certificate=self.certificate, token=self.token, pids=pids)
        return Server(order, psutil.Process(pid))

    def _start_nats(self, stack: ExitStack, port: int) -> int:
        settings = self.directory / "nats.conf"
        settings.write_text(nats_configuration(port, self.certificate, self.key, self.token))
        process = stack.enter_context(subprocess.Popen([NATS_SERVER, "-c", str(settings)], stderr=subprocess.DEVNULL))
        stack.callback(process.terminate)

        def listens() -> bool:
            return any(c.laddr.port == port for c in psutil.Process(process.pid).net_connections("tcp"))

        wait_until(listens, "nats-server listens")
        return process.pid
