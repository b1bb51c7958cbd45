"""Stock ssh, scp, sftp, rsync and git as one peer of a node: over plain TCP, and through ``alknet proxy``.

What goes through the proxy shares one connection, which a master of stock ssh keeps (``ControlMaster``).
"""

import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from testkit.carriers import alknet, running, wait_for
from testkit.node import NodeProcess, wait_until

__all__ = ["PROXY", "TCP", "Forwarded", "StockClients", "unfinished"]

TCP, PROXY = "tcp", "proxy"
"""Names of hosts in the clients' configuration: the node, and the way to it."""
TIMEOUT_S = 300.0


def unfinished(node: NodeProcess) -> list[str]:
    """Stop the node, and return what its audit log says that somebody began, and not how it ended."""
    node.stop()
    begun = {}
    for line in node.audit():
        if line.get("phase") == "intent" and "request_id" in line:
            begun[line["request_id"]] = line["action"]
        else:
            begun.pop(line.get("request_id"), None)
    return sorted(begun.values())


class Forwarded:
    """What was forwarded; `port` is the one that the node chose where it was asked to."""

    def __init__(self, client: "subprocess.Popen[bytes] | None", port: int) -> None:
        self.client = client
        self.port = port


class StockClients:
    """The clients of `peer`. Use as a context manager; `directory` is theirs."""

    def __init__(self, node: NodeProcess, directory: Path, peer: str) -> None:
        self.node = node
        self.peer = peer
        self.directory = directory / f"of-{peer}"
        self.directory.mkdir()
        self.config = self.directory / "config"
        self._master = ExitStack()
        common = [
            "HostName 127.0.0.1",
            f"Port {node.port}",
            f"User {peer}",
            f"IdentityFile {node.home / 'keys' / 'owner' if peer == 'owner' else node.keys / peer}",
            "IdentitiesOnly yes",
            "IdentityAgent none",
            "BatchMode yes",
            f"UserKnownHostsFile {node.home / 'keys' / 'known_hosts'}",
        ]
        proxy = [
            f"ProxyCommand {shlex.join(alknet(node, 'proxy', '.'))}",
            f"ControlPath {self.directory / 'master'}",
        ]
        self.config.write_text("\n".join([f"Host {PROXY}", *proxy, f"Host {TCP} {PROXY}", *common, ""]))

    def __enter__(self) -> "StockClients":
        return self

    def __exit__(self, *_: object) -> None:
        self._master.close()

    @property
    def env(self) -> dict[str, str]:
        """The environment of the clients, which names no agent and no terminal."""
        return {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "SSH_", "XDG_"))}

    @property
    def ssh(self) -> list[str]:
        """The command line of ssh up to the host."""
        return ["ssh", "-F", str(self.config)]

    def add_host(self, name: str, *settings: str) -> None:
        """Teach the clients another host, which they reach as `settings` say."""
        self.config.write_text("\n".join([f"Host {name}", *settings, self.config.read_text()]))

    def begin(self, host: str) -> None:
        """Have what the clients of `host` share; nothing over plain TCP."""
        if host == PROXY and not (self.directory / "master").exists():
            command = [*self.ssh, "-M", "-N", "-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo ready", PROXY]
            master = self._master.enter_context(running(command, stdin=subprocess.DEVNULL, env=self.env))
            wait_for(master, b"ready\n")
            wait_until((self.directory / "master").exists, "the master takes clients")

    def run(
        self, *command: str, check: bool = True, env: Mapping[str, str] | None = None, **keywords: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Run a client to its end; `check` wants exit code 0."""
        if PROXY in " ".join(command):
            self.begin(PROXY)
        if "input" not in keywords:
            keywords["stdin"] = subprocess.DEVNULL
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, env=self.env | dict(env or {}), **keywords
        )
        assert not check or result.returncode == 0, (command, result.returncode, result.stderr, result.stdout)
        return result

    def on(self, host: str, *words: str, check: bool = True, **keywords: Any) -> "subprocess.CompletedProcess[str]":
        """Run ``ssh HOST WORD…``."""
        return self.run(*self.ssh, host, *words, check=check, **keywords)

    def sftp(self, host: str, *lines: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Have sftp carry out `lines`; the first that fails ends it."""
        batch = "".join(f"{line}\n" for line in lines)
        return self.run("sftp", "-q", "-F", str(self.config), "-b", "-", host, input=batch, check=check)

    def scp(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run ``scp WORD…``."""
        return self.run("scp", "-q", "-F", str(self.config), *words, check=check)

    def master(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Tell the master something: ``ssh -O …``."""
        return self.run(*self.ssh, *words, PROXY, check=check)

    @contextmanager
    def forwarding(self, host: str, *options: str) -> Iterator[Forwarded]:
        """Have ssh forward as `options` say, without a session: a client of its own over TCP, the master otherwise."""
        if host == PROXY:
            said = self.master("-O", "forward", *options).stdout
            yield Forwarded(None, int(said or 0))
            self.master("-O", "cancel", *options)
            return
        ready = ["-o", "ExitOnForwardFailure=yes", "-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo ready"]
        with running([*self.ssh, "-N", *ready, *options, host], stdin=subprocess.DEVNULL, env=self.env) as client:
            wait_for(client, b"ready\n")
            port = 0
            if any(":0:" in option or option.startswith("0:") for option in options):
                assert client.stderr is not None
                line = client.stderr.readline().decode()  # Allocated port N for remote forward to …
                assert line.startswith("Allocated port "), line
                port = int(line.split()[2])
            yield Forwarded(client, port)
