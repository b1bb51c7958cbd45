"""The forwards of ``alknet ssh`` and ``alknet forward`` through a node, as processes."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from testkit.as_user import Launcher
from testkit.carriers import alknet, running, wait_for
from testkit.echo import Address, connected, echoing, exchange
from testkit.node import DEADLINE_S, NodeProcess, free_port, wait_until

pytestmark = pytest.mark.interop

MIB = 1024 * 1024
STOP_S = 5.0
"""A client that is told to stop takes a fraction of a second, on a machine with nothing else to do."""


@pytest.fixture(scope="module")
def echo() -> Iterator[Address]:
    with echoing() as address:
        yield address


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher, echo: Address) -> Iterator[NodeProcess]:
    """A node whose peer `ann` may forward and nothing else, to the echo service and from one port."""
    node = NodeProcess(tmp_path_factory.mktemp("hub"), launcher=launcher)
    node.write_peer(
        "ann",
        f"""scopes = ["forward:local", "forward:remote"]
forward = [
    {{ action = "allow", direction = "local", target = "127.0.0.0/8:{echo[1]}" }},
    {{ action = "allow", direction = "remote", target = "127.0.0.0/8:{free_port()}" }},
]
""",
    )
    with node:
        yield node


class Client:
    """A process of ours, and what it says on stderr."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self._log = log

    def said(self) -> str:
        return self._log.read_text()

    def wait_said(self, text: str) -> str:
        def has_said() -> str:
            said = self.said()
            assert text in said or self.process.poll() is None, said
            return said if text in said else ""

        return str(wait_until(has_said, text))

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """What it exits with, within `STOP_S`."""
        began = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE_S)
        assert time.monotonic() - began < STOP_S
        return code


@contextmanager
def client(directory: Path, command: list[str]) -> Iterator[Client]:
    log = directory / "stderr"
    with log.open("wb") as stderr, running(command, stderr=stderr) as process:
        yield Client(process, log)


def as_ann(node: NodeProcess, command: str, *words: str) -> list[str]:
    return alknet(node, command, "--identity", str(node.keys / "ann"), *words, "ann@.")


def here(port: int) -> Address:
    return ("127.0.0.1", port)


@pytest.mark.parametrize("carrier", ["quic", "tls"])
def test_a_session_and_its_forwards_end_with_the_last_of_them(
    hub: NodeProcess, echo: Address, tmp_path: Path, carrier: str
) -> None:
    near, far, socks = free_port(), free_port(), free_port()
    path = tmp_path / "near"
    options = ["-L", f"{near}:127.0.0.1:{echo[1]}", "-L", f"{path}:localhost:{echo[1]}", "-D", str(socks)]
    behind = ["-R", f"127.0.0.1:{far}:localhost:{echo[1]}"]  # options may follow the peer, as with ssh
    command = [*alknet(hub, "ssh", "--carrier", carrier, *options, "."), *behind, "echo in; read x; exit 7"]
    blob = os.urandom(MIB)
    ended = len(_ended(hub))
    with client(tmp_path, command) as ssh:
        wait_for(ssh.process, b"in\n")
        for address in (here(near), here(far), str(path)):
            assert exchange(address, blob) == blob
        request = b"\5\1\0" + b"\5\1\0\3\tlocalhost" + echo[1].to_bytes(2, "big")  # type: ignore[union-attr]
        assert exchange(here(socks), request + blob) == b"\5\0" + b"\5\0\0\1" + bytes(6) + blob
        with connected(here(near)) as last:
            last.sendall(b"one")
            assert last.recv(3) == b"one"
            assert ssh.process.stdin is not None
            ssh.process.stdin.write(b"\n")
            ssh.process.stdin.flush()
            wait_until(lambda: len(_ended(hub)) == ended + 1, "the session has ended")
            last.sendall(b"two")
            assert last.recv(3) == b"two"
            assert ssh.process.poll() is None
        assert ssh.process.wait(DEADLINE_S) == 7
        assert ssh.said() == ""
        assert not path.exists()


def _ended(node: NodeProcess) -> list[str]:
    """The outcomes of commands."""
    return [line["outcome"] for line in node.audit() if line["action"] == "ssh/exec" and "outcome" in line]


def test_a_peer_without_any_session_forwards_what_its_rules_allow(
    hub: NodeProcess, echo: Address, tmp_path: Path
) -> None:
    near, denied = free_port(), free_port()
    options = ["-N", "-L", f"{near}:127.0.0.1:{echo[1]}", "-L", f"{denied}:127.0.0.1:1"]
    with client(tmp_path, as_ann(hub, "ssh", *options)) as ssh:
        wait_until(lambda: _answers(near), "it forwards")
        assert exchange(here(near), b"question") == b"question"
        assert exchange(here(denied), b"") == b""
        line = ssh.wait_said("refused: ").strip()
        assert re.search(rf"-L localhost:{denied} to 127\.0\.0\.1:1: refused: no rule .*\(den_\w+\)$", line), line
        denial = line.rpartition("(")[2].rstrip(")")
        assert any(record.get("denial_id") == denial for record in hub.audit())
        assert ssh.stop() == 255


def test_who_is_shut_out_hears_why(hub: NodeProcess, echo: Address, tmp_path: Path) -> None:
    near = free_port()
    with client(tmp_path, as_ann(hub, "ssh", "-N", "-L", f"{near}:127.0.0.1:{echo[1]}")) as ssh:
        wait_until(lambda: _answers(near), "it forwards")
        hub.alknet("peer", "disable", "ann")
        assert ssh.process.wait(DEADLINE_S) == 255
        assert "the connection was lost: access was taken away: peer 'ann' is disabled" in ssh.said()
    hub.alknet("peer", "enable", "ann")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_what_cannot_be_set_up_is_a_warning_or_the_end(hub: NodeProcess, echo: Address) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        option = ["-L", f"{taken.getsockname()[1]}:db:1"]
        warned = hub.alknet("ssh", *option, ".", "exit 7", check=False)
        assert warned.returncode == 7
        assert re.match(r"alknet: warning: -L localhost:\d+ to db:1: .*Address already in use\n$", warned.stderr)
        for strict in (["-N"], ["-o", "ExitOnForwardFailure=yes"]):
            ended = hub.alknet("ssh", *option, *strict, ".", check=False)
            assert ended.returncode == 255
            assert "Address already in use" in ended.stderr


def test_a_denied_listener_ends_forward_with_its_reason(hub: NodeProcess, echo: Address) -> None:
    hub.key("ann")
    command = as_ann(hub, "forward", "-R", f"127.0.0.1:{free_port()}:localhost:{echo[1]}")
    denied = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=DEADLINE_S, check=False)
    assert denied.returncode == 3, denied
    assert re.search(r"does not listen on 127.0.0.1:\d+: .*\(den_\w+\)", denied.stderr), denied.stderr


def test_a_stranger_cannot_forward(hub: NodeProcess) -> None:
    hub.key("stranger")
    words = ["--identity", str(hub.keys / "stranger"), "forward", "-L", f"{free_port()}:db:1", "."]
    assert hub.alknet(*words, check=False).returncode == 3


def test_the_agent_is_lent_where_that_is_asked_for(hub: NodeProcess, tmp_path: Path, launcher: Launcher) -> None:
    hub.key("lent")
    path = tmp_path / "agent"
    with running(["ssh-agent", "-D", "-a", str(path)]):
        wait_until(path.exists, "the agent listens")
        env = os.environ | {"SSH_AUTH_SOCK": str(path)}
        subprocess.run(["ssh-add", "-q", str(hub.keys / "lent")], env=env, check=True)
        for options, expected in ((["-A"], 0), ([], 2), (["-A", "-a"], 2)):
            command = ("--home", str(hub.home), "ssh", *options, ".", "ssh-add -l")
            result = launcher.run(command, env=env, timeout=DEADLINE_S)
            assert result.returncode == expected, result
            assert ("lent" in result.stdout) == (expected == 0)


def test_forwards_come_back_when_the_node_was_killed(tmp_path: Path, launcher: Launcher, echo: Address) -> None:
    near, far = free_port(), free_port()
    node = NodeProcess(tmp_path, launcher=launcher)
    with node:
        options = ["-L", f"{near}:127.0.0.1:{echo[1]}", "-R", f"127.0.0.1:{far}:127.0.0.1:{echo[1]}"]
        options += ["-R", f"127.0.0.1:0:127.0.0.1:{echo[1]}"]
        with client(tmp_path, alknet(node, "forward", *options, ".")) as forward:
            forward.wait_said("forwarding over tls")
            chosen = int(re.findall(r"Allocated port (\d+)", forward.said())[0])
            for port in (near, far, chosen):
                assert exchange(here(port), b"question") == b"question"
            assert node.process is not None
            os.killpg(node.process.pid, signal.SIGKILL)
            node.process.wait()
            node.edit_config(":0", f":{node.port}")
            node.start()
            for port in (near, far, chosen):  # the first of them waits until there is a connection
                wait_until(lambda port=port: _answers(port), "it listens again")
                assert exchange(here(port), b"question") == b"question"
            forward.wait_said("forwarding again over tls")
            assert len(re.findall("Allocated", forward.said())) == 1
            assert forward.stop(signal.SIGTERM) == 0
    wait_until(lambda: not _answers(far), "the node does not listen any more")
