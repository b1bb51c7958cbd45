"""Sessions over a carrier that is chosen, and a port with a test's own handler behind it."""

import asyncio
import contextlib
import hashlib
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from alknet.access import Identity
from alknet.alpn.admission import Admission, AdmissionLimits
from alknet.alpn.first_byte import Opening
from alknet.alpn.port import Port
from alknet.alpn.quic_listener import QuicListener
from alknet.alpn.router import Router
from alknet.alpn.streams import Connection, Stream
from alknet.alpn.tls_listener import TlsIdentity, TlsListener
from alknet.certificates import Certificate, make_certificate
from testkit.node import NodeProcess

__all__ = [
    "ALICE",
    "alknet",
    "listening",
    "processes",
    "proxied",
    "running",
    "send_digest",
    "session",
    "wait_for",
]

ALICE = Identity("alice", frozenset(), "test")


def alknet(node: NodeProcess, *words: str) -> list[str]:
    """The command line ``alknet --home HOME WORD…``; run it with ``cwd="/"``."""
    return [sys.executable, "-m", "alknet", "--home", str(node.home), *words]


def proxied(node: NodeProcess, *words: str) -> list[str]:
    """The options with which stock ssh reaches the node through ``alknet proxy``; `words` are the proxy's options."""
    return ["-o", f"ProxyCommand={shlex.join(alknet(node, 'proxy', *words, '.'))}"]


def session(node: NodeProcess, carrier: str, *words: str) -> list[str]:
    """The command line of a session on the node: stock ssh over "tcp" or through the "proxy", or ``alknet ssh``."""
    if carrier in ("tcp", "proxy"):
        return node.ssh_command(*words, options=proxied(node) if carrier == "proxy" else ())
    return alknet(node, "ssh", "--carrier", carrier, ".", *words)


@contextmanager
def running(command: Sequence[str], **keywords: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with pipes for its streams unless `keywords` say otherwise; what still runs afterwards is killed."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd="/", **(pipes | keywords)) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def wait_for(process: "subprocess.Popen[bytes]", line: bytes) -> None:
    """Wait until the process has printed the line."""
    assert process.stdout is not None
    printed = process.stdout.readline()
    assert printed == line, process.communicate()


def processes(*command: str) -> list[psutil.Process]:
    """Those that run exactly this command line."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["cmdline"] == list(command) and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


@dataclass(frozen=True)
class _Door:
    alpns: tuple[str, ...]
    serve: Callable[[Connection], Awaitable[None]]

    async def handle(self, connection: Connection) -> None:
        await self.serve(connection)

    def recheck(self) -> None:
        pass

    async def shutdown(self, deadline: float) -> None:
        pass


@asynccontextmanager
async def listening(
    serve: Callable[[Connection], Awaitable[None]],
    *alpns: str,
    hosts: Sequence[str] = ("127.0.0.1",),
    port: int = 0,
    certificate: Certificate | None = None,
) -> AsyncIterator[int]:
    """A port with TLS and QUIC in this process, whose connections `serve` gets; yields its number."""
    router = Router([_Door(alpns, serve)])
    admission = Admission(AdmissionLimits())
    identity = TlsIdentity.of(certificate or make_certificate(("localhost", "127.0.0.1")), alpns)
    tls, quic = TlsListener(identity, router.dispatch), QuicListener(admission, identity, router.dispatch)
    listener = Port(admission, {Opening.TLS: tls}, quic)
    listener.listen(hosts, port)
    try:
        yield listener.addresses[0].port
    finally:
        listener.stop_accepting()
        tls.stop_accepting()
        await router.shutdown(asyncio.get_running_loop().time())
        await asyncio.sleep(0)  # the last datagrams leave
        quic.close()


async def send_digest(connection: Connection) -> None:
    """A handler: each stream is read to its end, and answered with the SHA-256 of what came."""

    async def answer(stream: Stream) -> None:
        digest = hashlib.sha256()
        while data := await stream.read():
            digest.update(data)
        await stream.write(digest.hexdigest().encode())
        await stream.aclose()

    connection.logged_in(ALICE)
    with contextlib.suppress(Exception):  # whatever ends a connection ends its streams
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(answer(await connection.accept_stream()))
