"""OpenSSH's server on a free port of 127.0.0.1, and how our client enters it: it has no carrier for plain TCP, so that
is a reach of its own."""

import asyncio
import contextlib
import getpass
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from alknet.alpn.streams import Connection, Stream
from alknet.alpn.tcp import TcpConnection
from alknet.errors import UnavailableError
from alknet.keys import PublicKey
from alknet.ssh.client import Target
from alknet.ssh.trust import HostTrust
from testkit.node import DEADLINE_S, free_port, make_key, wait_until

__all__ = ["Sshd", "sshd_in"]

SSHD = "/usr/sbin/sshd"  # it wants to be started by its absolute path


@dataclass
class Sshd:
    """A server; `start` and `kill` may follow each other."""

    directory: Path
    port: int
    target: Target
    """How our client enters it, with the one key that it knows."""
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            command = [SSHD, "-D", "-e", "-f", str(self.directory / "config")]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._listens, "sshd listens")

    def connections(self) -> list[psutil.Process]:
        """The processes that serve connections."""
        return psutil.Process(self.process.pid).children(recursive=True) if self.process else []

    def kill(self) -> None:
        """End the server and its connections, at once and without a word."""
        connections = self.connections()
        for process in connections:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(connections, timeout=DEADLINE_S)  # until then their ports are taken
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def signal_connections(self, number: signal.Signals) -> None:
        for process in self.connections():
            process.send_signal(number)

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.directory / "log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def sshd_in(directory: Path, *settings: str) -> Iterator[Sshd]:
    """A running server with everything in `directory`; `settings` are lines of its configuration."""
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it confines its unprivileged half
    host_key, client_key = make_key(directory / "host"), make_key(directory / "client")
    (directory / "authorized_keys").write_text(client_key + "\n")
    port = free_port()
    lines = [
        "ListenAddress 127.0.0.1",
        f"Port {port}",
        f"HostKey {directory / 'host'}",
        f"AuthorizedKeysFile {directory / 'authorized_keys'}",
        "PidFile none",
        "StrictModes no",
        "UsePAM no",
        "UseDNS no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "MaxStartups 100",
        *settings,
    ]
    (directory / "config").write_text("".join(f"{line}\n" for line in lines))
    target = Target(
        addresses=(("127.0.0.1", port),),
        user=getpass.getuser(),
        identity=directory / "client",
        trust=HostTrust(pin=PublicKey.parse(host_key)),
        name="the stock server",
    )

    @asynccontextmanager
    async def reach(
        *, carriers: Sequence[str], report: Callable[[str], None]
    ) -> AsyncIterator[tuple[Connection, Stream]]:
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except OSError as exc:
            sock.close()
            raise UnavailableError(f"the stock server cannot be reached: {exc}") from exc
        connection = TcpConnection(sock, alpn="alknet/ssh", remote=None)
        try:
            yield connection, await connection.accept_stream()
        finally:
            connection.close()

    server = Sshd(directory, port, replace(target, reach=reach))
    server.start()
    try:
        yield server
    finally:
        server.kill()
