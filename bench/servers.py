"""The SSH servers that are measured beside each other, and the one stock client that enters them all.

Each listens on 127.0.0.1 with a directory, a host key and a process of its own, and lets in the same client key. The
client's command line differs between them in nothing but the port and the file that holds the host key.

No session reads the user's own start-up files, which can take longer than everything that is measured: sshd's shell
has another home, and the other two run commands by ``/bin/sh``, which reads none.
"""

import getpass
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "_lib"))

from testkit.node import NodeProcess, free_port, make_key, wait_until

__all__ = ["CIPHER", "KEX", "NAMES", "PEER", "ClientFailedError", "Server", "patiently", "run_client", "start_servers"]

CIPHER = "aes128-gcm@openssh.com"
KEX = "curve25519-sha256"
"""Named, because the three would not agree on the same one: not every server has a post-quantum exchange."""
NAMES = ("sshd", "asyncssh", "alknet")
PEER = """\
scopes = ["ssh:exec", "sftp:*", "forward:*"]
[ssh]
user = "{user}"
shell = "/bin/sh"
sftp_root = "/"
[[forward]]
action = "allow"
direction = "local"
target = "127.0.0.0/8:*"
[[forward]]
action = "allow"
direction = "remote"
target = "127.0.0.0/8:*"
"""
"""What the node knows of the client."""
SSHD = "/usr/sbin/sshd"  # it wants to be started by its absolute path
STOP_S = 10.0
DEADLINE_S = 120.0
TRIES = 10
"""How often something is tried before the run is given up. Every broken try is counted and shown."""


@dataclass(slots=True)
class Server:
    """A running server and how to enter it."""

    name: str
    port: int
    process: psutil.Process
    client_key: Path
    known_hosts: Path
    broken: int = 0
    """How often a client that should have been served was not."""

    def options(self) -> list[str]:
        """What ssh, sftp and scp need to know to get in."""
        settings = {
            "Port": str(self.port),
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "GlobalKnownHostsFile": "none",
            "KexAlgorithms": KEX,
        }
        options = ["-F", "none", "-c", CIPHER, "-i", str(self.client_key)]
        for name, value in settings.items():
            options += ["-o", f"{name}={value}"]
        return options

    @property
    def destination(self) -> str:
        return f"{getpass.getuser()}@127.0.0.1"

    def ssh(self, command: str | None, *options: str) -> list[str]:
        """Stock ssh that runs `command` there, if that is one."""
        return ["ssh", *self.options(), *options, self.destination, *([] if command is None else [command])]

    def rss_bytes(self) -> int:
        """Resident memory of the server, the processes that it has forked to serve connections included."""
        total = 0
        for process in self._family():
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total

    def cpu_s(self) -> float:
        """Processor time used so far by the server and all that it has started, what has ended included."""
        total = 0.0
        for process in self._family():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system + times.children_user + times.children_system
        return total

    def _family(self) -> tuple[psutil.Process, ...]:
        return (self.process, *self.process.children(recursive=True))


class ClientFailedError(Exception):
    """The client did not get what it came for."""


def run_client(command: list[str], stdin: IO[bytes] | int = subprocess.DEVNULL) -> tuple[float, str]:
    """Run the client to its end: how long that took in seconds, and what it wrote to stderr."""
    began = time.perf_counter()
    result = subprocess.run(
        command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S
    )
    took_s = time.perf_counter() - began
    if result.returncode:
        raise ClientFailedError(f"{command}: exit {result.returncode}: {result.stderr}")
    return took_s, result.stderr


def patiently(server: Server, act: Callable[[], float]) -> float:
    """The time that `act` takes when it works. Bare asyncssh breaks a connection now and then when it is busy: its
    redirection closes a pipe that is closed already, and takes the connection along."""
    for _ in range(TRIES):
        try:
            return act()
        except ClientFailedError as exc:
            server.broken += 1
            failure = exc
    raise failure


@contextmanager
def start_servers(directory: Path, names: Sequence[str] = NAMES) -> Iterator[list[Server]]:
    """Start the servers called `names`; all of them have ended when the context has."""
    client_key = directory / "client"
    public = make_key(client_key)
    starters = {"sshd": _start_sshd, "asyncssh": _start_asyncssh, "alknet": _start_alknet}
    with ExitStack() as stack:
        servers = []
        for name in names:
            own = directory / name
            own.mkdir()
            port, pid, host_key = starters[name](stack, own, public)
            known_hosts = own / "known_hosts"
            known_hosts.write_text(f"[127.0.0.1]:{port} {host_key}\n")
            servers.append(Server(name, port, psutil.Process(pid), client_key, known_hosts))
        yield servers


_Started = tuple[int, int, str]
"""Port, process id and public host key."""


def _start_sshd(stack: ExitStack, directory: Path, client_public: str) -> _Started:
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it confines its unprivileged half
    host_public = make_key(directory / "host")
    (directory / "authorized_keys").write_text(client_public + "\n")
    port = free_port()
    config = directory / "config"
    config.write_text(
        f"""\
ListenAddress 127.0.0.1
Port {port}
HostKey {directory / "host"}
AuthorizedKeysFile {directory / "authorized_keys"}
PidFile none
StrictModes no
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintLastLog no
SetEnv HOME={directory}
MaxStartups 100
Subsystem sftp internal-sftp
"""
    )
    process = _start(stack, directory, [SSHD, "-D", "-e", "-f", str(config)])
    wait_until(lambda: _listens(process, port, directory / "log"), "sshd listens")
    return port, process.pid, host_public


def _start_asyncssh(stack: ExitStack, directory: Path, client_public: str) -> _Started:
    host_public = make_key(directory / "host")
    (directory / "authorized_keys").write_text(client_public + "\n")
    program = Path(__file__).with_name("bare_asyncssh.py")
    command = [sys.executable, str(program), str(directory / "host"), str(directory / "authorized_keys")]
    process = _start(stack, directory, command)
    log = directory / "log"
    wait_until(lambda: process.poll() is not None or log.read_text().endswith("\n"), "asyncssh listens")
    return int(log.read_text()), process.pid, host_public


def _start_alknet(stack: ExitStack, directory: Path, client_public: str) -> _Started:
    node = NodeProcess(directory)
    key = directory / "keys" / "bench.pub"
    key.write_text(client_public + "\n")
    key.with_suffix("").touch()  # the kit makes a key only where there is none
    node.write_peer("bench", PEER.format(user=getpass.getuser()))
    stack.enter_context(node)
    host_public = " ".join((node.home / "keys" / "ssh_host_ed25519_key.pub").read_text().split()[:2])
    return node.port, node.pid, host_public


def _start(stack: ExitStack, directory: Path, command: list[str]) -> "subprocess.Popen[bytes]":
    """Start a server in a process group of its own, which is ended with the stack."""
    log = stack.enter_context((directory / "log").open("ab"))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    stack.callback(_stop, process)
    return process


def _stop(process: "subprocess.Popen[bytes]") -> None:
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    for member in family:  # sshd's connections have process groups of their own
        try:
            member.terminate()
        except psutil.NoSuchProcess:
            continue
    try:
        process.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _listens(process: "subprocess.Popen[bytes]", port: int, log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the server ended with {process.returncode}:\n{log.read_text()}")
    return any(c.laddr.port == port for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN")
