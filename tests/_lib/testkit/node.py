"""A real node in a process of its own, on a home of its own, and stock ssh to enter it.

The node listens on a free port of 127.0.0.1 and ::1. Nothing here sleeps: every wait ends with an event and has a
deadline that is far beyond what the machine needs.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from testkit.as_user import Launched, Launcher

__all__ = ["DEADLINE_S", "NodeProcess", "free_port", "make_key", "own_seconds", "wait_in_foreground", "wait_until"]

DEADLINE_S = 20.0
PORTS = range(20_000, 30_000)
"""Of these `free_port` takes one. The kernel gives none of them to a socket that asks for any."""

reserved_ports: list[socket.socket] = []


def wait_until(condition: Callable[[], Any], what: str, *, timeout_s: float = DEADLINE_S) -> Any:
    """Poll `condition` until it gives something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while True:
        began = time.monotonic()
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        # A question that takes long, such as a command, leaves the processor half of the time to what is waited for.
        time.sleep(min(max(0.01, time.monotonic() - began), 0.1))


def free_port() -> int:
    """A TCP and UDP port that nobody has on 127.0.0.1 and ::1, and that no test gets again while this process runs.

    A socket with an abstract name keeps it from the other processes that run tests here.
    """
    for port in random.sample(PORTS, len(PORTS)):
        reservation = socket.socket(socket.AF_UNIX)
        try:
            reservation.bind(f"\0alknet-test-port-{port}")
            for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with socket.socket(family, kind) as sock:
                        sock.bind((host, port))
        except OSError:
            reservation.close()
            continue
        reserved_ports.append(reservation)
        return port
    raise AssertionError("all ports for tests are taken")


def own_seconds(number: int) -> str:
    """About so many seconds, for a `sleep` that a test finds again: not even other runs of the tests have the same."""
    return f"{number}.{os.getpid()}"


def make_key(path: Path, kind: str = "ed25519") -> str:
    """Make a key pair with ssh-keygen; returns the public line."""
    command = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", path.name, "-f", str(path)]
    subprocess.run(command, check=True)
    return path.with_name(path.name + ".pub").read_text().strip()


def wait_in_foreground(*command: str) -> None:
    """Wait until `command` is what its terminal's keys go to. Before that the shell itself takes a Ctrl-C, and then
    waits for a command that never heard of it."""

    def is_there() -> bool:
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if (path / "cmdline").read_bytes().split(b"\0")[:-1] == [word.encode() for word in command]:
                    fields = (path / "stat").read_text().rpartition(")")[2].split()
                    return fields[2] == fields[5]  # its process group, and the terminal's foreground group
        return False

    wait_until(is_there, f"{command} is in the foreground")


class NodeProcess:
    """``alknet serve`` on a home under `directory`. Use as a context manager, or call `start` and `stop`.

    With a `launcher` it and the commands are forks of that, which takes a fraction of the time; a `user` needs one.
    The owner's sessions have the given shell. /bin/sh reads none of the files with which whoever runs the tests has
    set up their own; another peer has the shell of its user.
    """

    def __init__(
        self,
        directory: Path,
        *,
        launcher: Launcher | None = None,
        user: str | None = None,
        shell: str = "/bin/sh",
    ) -> None:
        if user is not None:
            shutil.chown(directory, user)
        self.directory = directory
        self.home = directory / "home"
        self.keys = directory / "keys"
        self.keys.mkdir(exist_ok=True)
        self.launcher = launcher
        self.user = user
        self.log_path = directory / "node.log"
        self.process: subprocess.Popen[bytes] | Launched | None = None
        self.port = 0
        self.alknet("init", "--no-user-keys", "--listen", "127.0.0.1:0")
        owner = self.home / "peers.d" / "owner.toml"
        owner.write_text(owner.read_text().replace("[ssh]\n", f'[ssh]\nshell = "{shell}"\n'))

    # --- the command line -------------------------------------------------------------------------------------

    def alknet(self, *arguments: str, check: bool = True, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run ``alknet --home HOME …`` as the node's user."""
        arguments = ("--home", str(self.home), *arguments)
        if self.launcher is not None:
            result = self.launcher.run(arguments, env=self._env(), user=self.user, input=input, timeout=60)
        else:
            assert self.user is None
            command = [sys.executable, "-m", "alknet", *arguments]
            result = subprocess.run(
                command, capture_output=True, text=True, timeout=60, env=self._env(), cwd="/", input=input
            )
        if check and result.returncode:
            raise AssertionError(f"{arguments}: exit {result.returncode}: {result.stderr}{result.stdout}")
        return result

    def json(self, *arguments: str) -> Any:
        """The JSON that a command prints."""
        return json.loads(self.alknet("--json", *arguments).stdout)

    # --- the process ------------------------------------------------------------------------------------------

    def start(self) -> "NodeProcess":
        arguments = ["--home", str(self.home), "serve"]
        with open(os.devnull, "rb") as stdin, self.log_path.open("ab") as log:
            if self.launcher is not None:
                streams = (stdin.fileno(), log.fileno(), log.fileno())
                self.process = self.launcher.start(
                    arguments, streams=streams, env=self._env(), user=self.user, session=True
                )
            else:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "alknet", *arguments],
                    stdin=stdin,
                    stdout=log,
                    stderr=log,
                    env=self._env(),
                    cwd="/",
                    start_new_session=True,
                )
        self.port = wait_until(self._listening_port, f"node listens; log:\n{self.log_text()}")
        wait_until(self._watches_files, "node watches its files")  # it begins to after it has begun to listen
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop the node and return its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
        return self.process.wait(timeout=DEADLINE_S)

    def __enter__(self) -> "NodeProcess":
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def _listening_port(self) -> int:
        from alknet.lock import find_running

        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the node ended with {self.process.returncode}:\n{self.log_text()}")
        running = find_running(self.home / "lock")
        return running.addresses[0][1] if running else 0

    def _watches_files(self) -> bool:
        descriptors = Path(f"/proc/{self.pid}/fdinfo")
        for name in os.listdir(descriptors):
            with contextlib.suppress(FileNotFoundError):
                if "inotify wd:" in (descriptors / name).read_text():
                    return True
        return False

    # --- what it left behind ----------------------------------------------------------------------------------

    def log_text(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def audit(self) -> list[dict[str, Any]]:
        """Every line of the audit log."""
        path = self.home / "audit" / "audit.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    # --- peers and clients ------------------------------------------------------------------------------------

    def key(self, name: str) -> str:
        """The public line of the key `name`, made when it is first asked for."""
        path = self.keys / name
        if not path.exists():
            make_key(path)
            if self.user:
                shutil.chown(path, self.user)
        return path.with_name(name + ".pub").read_text().strip()

    def write_peer(self, name: str, text: str = "", *, key: str | None = None) -> None:
        """Write ``peers.d/NAME.toml`` with the key `key` (else one named like the peer) in front of `text`."""
        path = self.home / "peers.d" / f"{name}.toml"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(f'keys = ["{self.key(key or name)}"]\n{text}\n')
        temporary.chmod(0o600)
        if self.user:
            shutil.chown(temporary, self.user)
        temporary.rename(path)

    def edit_config(self, old: str, new: str) -> None:
        """Replace one text in ``alknet.toml``."""
        path = self.home / "alknet.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def ssh_command(
        self, *arguments: str, key: str = "owner", login: str | None = None, options: Sequence[str] = ()
    ) -> list[str]:
        """Stock ssh to this node with exactly the key `key`; `arguments` follow the host."""
        identity = self.home / "keys" / "owner" if key == "owner" else self.keys / key
        base = ["ssh", "-F", "none", "-p", str(self.port), "-i", str(identity)]
        for option in (
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "BatchMode=yes",
            f"UserKnownHostsFile={self.home / 'keys' / 'known_hosts'}",
        ):
            base += ["-o", option]
        return [*base, *options, f"{login or key}@127.0.0.1", *arguments]

    def ssh(
        self,
        *arguments: str,
        key: str = "owner",
        login: str | None = None,
        options: Sequence[str] = (),
        **keywords: Any,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run stock ssh to its end."""
        keywords.setdefault("stdin", subprocess.DEVNULL if "input" not in keywords else None)
        if keywords["stdin"] is None:
            del keywords["stdin"]
        return subprocess.run(
            self.ssh_command(*arguments, key=key, login=login, options=options),
            capture_output=True,
            timeout=60,
            env=self._env(),
            **keywords,
        )

    def _env(self) -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if not k.startswith(("SSH_", "XDG_"))}
