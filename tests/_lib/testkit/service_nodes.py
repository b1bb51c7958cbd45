"""Nodes that serve `testkit.services`, and processes that offer the same operations to a node that they dial."""

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any
from unittest.mock import patch

from testkit.as_user import Launcher
from testkit.carriers import running, wait_for
from testkit.node import DEADLINE_S, NodeProcess

__all__ = ["LIBRARY", "OFFERED", "offering", "service_node"]

LIBRARY = Path(__file__).resolve().parents[1]
OFFERED = b"offered\n"
SCRIPT = """
import asyncio, sys
import alknet
from testkit import services

async def main(home, peer, identity, carrier):
    async with alknet.connect(peer, home=home, identity=identity, carrier=carrier, operations=[services]) as node:
        print("offered", flush=True)
        await node.wait_closed()

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def service_node(
    directory: Path, launcher: Launcher, *, modules: Sequence[str] = ("testkit.services",)
) -> Iterator[NodeProcess]:
    """A running node; its operations are imported in a process of its own, and commands are forks of `launcher`."""
    node = NodeProcess(directory, launcher=launcher)
    node.edit_config("modules = []", f"modules = {json.dumps(modules)}")
    node.launcher = None
    with patch.dict(os.environ, PYTHONPATH=str(LIBRARY)):
        node.start()
    node.launcher = launcher
    try:
        yield node
    finally:
        node.__exit__()


@contextmanager
def offering(node: NodeProcess, peer: str, carrier: str) -> Iterator["Popen[bytes]"]:
    """Another process, which has dialled the node as `peer` and offers the operations to it."""
    arguments: list[Any] = [node.home, f"{peer}@.", node.keys / peer, carrier]
    env = os.environ | {"PYTHONPATH": str(LIBRARY)}
    with running([sys.executable, "-c", SCRIPT, *map(str, arguments)], env=env) as process:
        wait_for(process, OFFERED)
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # it says goodbye: over UDP its silence alone would be noticed late
            process.communicate(timeout=DEADLINE_S)
