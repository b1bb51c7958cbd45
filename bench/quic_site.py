"""The node that `quic.py` measures, and how much of everything is done."""

import getpass
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from quic_client import Order
from servers import PEER

from testkit.node import NodeProcess

__all__ = ["DEADLINE_S", "Effort", "Site", "cpu_s"]

DEADLINE_S: Final = 300.0
ROOM: Final = 20_000
"""What the node's limits are raised to: every client here comes from one address and is one peer."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done. `slow_bytes` is what a transfer over QUIC has, `fast_bytes` one over TLS or TCP."""

    rounds: int
    slow_bytes: int
    fast_bytes: int
    handshakes: int
    idle: int
    watch_s: float


class Site:
    """A node, and the certificate and the keys that belong to it."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        directory.mkdir()
        self.node = node = NodeProcess(directory)
        for name, usual in (
            ("connections", 4096),
            ("connections_per_address", 100),
            ("half_open", 1000),
            ("connections_per_peer", 256),
        ):
            node.edit_config(f"\n{name} = {usual}\n", f"\n{name} = {ROOM}\n")
        node.edit_config('login_grace = "30s"', 'login_grace = "1h"')
        node.write_peer("bench", PEER.format(user=getpass.getuser()))
        stack.enter_context(node)
        self.process = psutil.Process(node.pid)

    def order(self, act: str, bare_port: int, **rest: Any) -> Order:
        host_key = (self.node.home / "keys" / "ssh_host_ed25519_key.pub").read_text().split()[:2]
        key = str(self.node.keys / "bench")
        return Order(act, self.node.port, bare_port, "bench", key, " ".join(host_key), **rest)


def cpu_s(process: psutil.Process) -> float:
    """Processor time of the process itself; a node's commands are its children and do not count."""
    times = process.cpu_times()
    return times.user + times.system
