"""A node as ``alknet serve`` runs it, with the operations of `call.py`, and with or without its audit log.

``python call_node.py HOME audit|silent`` prints its port. Silent is for the figures of a node without that log, which
no configuration turns off: the records are made as ever, and thrown away where they would be written.

``python call_node.py HOME carrier`` serves TLS and QUIC with the certificate of HOME and nothing above them, for the
memory that a connection takes before anybody has spoken on it.
"""

import asyncio
import gc
import sys
from pathlib import Path
from typing import Any

import call_operations
import uvloop

from alknet.alpn.admission import Admission, AdmissionLimits
from alknet.alpn.first_byte import Opening
from alknet.alpn.port import Port
from alknet.alpn.quic_listener import QuicListener
from alknet.alpn.router import Router
from alknet.alpn.streams import Connection
from alknet.alpn.tls_listener import TlsIdentity, TlsListener
from alknet.call.carried import ALPN
from alknet.certificates import read_certificate
from alknet.cli.daemon import GC_THRESHOLDS
from alknet.config.home import Home
from alknet.node import Node
from alknet.nofile import raise_limit

HOST = "127.0.0.1"
ROOM = AdmissionLimits(connections=20_000, connections_per_address=20_000, half_open=20_000)
"""Every client here comes from one address."""


class Silence:
    """An audit log that keeps nothing."""

    def write(self, record: Any, *, more: Any = None, soon: bool = False) -> None:
        pass

    def close(self) -> None:
        pass


class Waiting:
    """A handler that waits until the connection is gone."""

    alpns = (ALPN,)

    async def handle(self, connection: Connection) -> None:
        await connection.wait_closed()

    def recheck(self) -> None:
        pass

    async def shutdown(self, deadline: float) -> None:
        pass


async def serve(home: Path, *, is_audited: bool) -> None:
    async with Node(home, operations=[call_operations]) as node:
        if not is_audited:
            node.gate._audit = Silence()
        gc.freeze()  # as the daemon does
        gc.set_threshold(*GC_THRESHOLDS)
        print(node.addresses[0].rpartition(":")[2], flush=True)
        await node.run()


async def serve_carrier(home: Home) -> None:
    admission, router = Admission(ROOM), Router([Waiting()])
    identity = TlsIdentity.of(read_certificate(home.tls_certificate, home.tls_key), router.alpns)
    quic = QuicListener(admission, identity, router.dispatch)
    port = Port(admission, {Opening.TLS: TlsListener(identity, router.dispatch)}, quic)
    port.listen((HOST,), 0)
    print(port.addresses[0].port, flush=True)
    await asyncio.Event().wait()


def main() -> None:
    home, what = Home(Path(sys.argv[1])), sys.argv[2]
    raise_limit()
    uvloop.run(serve_carrier(home) if what == "carrier" else serve(home.path, is_audited=what == "audit"))


if __name__ == "__main__":
    main()
