"""Starting, stopping, and everything that can be wrong before a node is up."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from testkit.as_user import Launcher
from testkit.node import NodeProcess, free_port, own_seconds, wait_until

pytestmark = pytest.mark.interop

ALKNET = [sys.executable, "-m", "alknet"]
EXIT_START = 7


def _up(home: Path, *arguments: str) -> "pexpect.spawn[str]":
    command = [*ALKNET, "up", "--home", str(home), *arguments]
    return pexpect.spawn(command[0], command[1:], timeout=20, encoding="utf-8", dimensions=(40, 300), cwd="/")


def _printed_ssh(up: "pexpect.spawn[str]") -> list[str]:
    up.expect(r"\n  (ssh [^\r\n]+)")
    assert up.match
    line = shlex.split(up.match[1])
    up.expect_exact("Ctrl-C stops it.")
    return line


Fails = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def fails(launcher: Launcher) -> Fails:
    """Runs ``alknet ARGUMENT…`` to its end; returns the exit code and what stands in stderr."""

    def run(*arguments: str) -> tuple[int, list[str]]:
        result = launcher.run(arguments, env=os.environ, timeout=20)
        return result.returncode, result.stderr.splitlines()

    return run


def test_up_prints_a_line_that_works_and_ctrl_c_drains_and_exits_0(tmp_path: Path) -> None:
    port = free_port()
    up = _up(tmp_path / "a home", "--listen", f"127.0.0.1:{port}")
    line = _printed_ssh(up)
    entered = subprocess.run([*line, "echo in; exit 4"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    assert (entered.stdout, entered.returncode) == (b"in\n", 4)
    up.sendintr()
    up.expect(pexpect.EOF)
    up.close()
    assert up.exitstatus == 0


@pytest.mark.parametrize(
    ("settings", "printed"),
    [
        ("", "http://127.0.0.1:{port}/docs"),
        ("plaintext_loopback = false", "https://127.0.0.1:{port}/docs"),
        ("docs = false", "http://127.0.0.1:{port}/ops/NAME"),
        ("enabled = false", None),
    ],
)
def test_up_prints_where_its_operations_are_called_over_http(
    settings: str, printed: str | None, tmp_path: Path
) -> None:
    home, port = tmp_path / "home", free_port()
    subprocess.run([*ALKNET, "--home", str(home), "init", "--no-user-keys"], check=True, capture_output=True)
    (home / "alknet.toml").write_text(f"[gateway]\n{settings}\n")
    up = _up(home, "--listen", f"127.0.0.1:{port}")
    up.expect_exact("Ctrl-C stops it.")
    assert re.findall(r"https?://\S+", up.before or "") == ([printed.format(port=port)] if printed else [])
    up.sendintr()
    up.expect(pexpect.EOF)


def test_a_second_start_finds_the_same_home_and_identity(tmp_path: Path) -> None:
    homes = []
    for _ in range(2):
        up = _up(tmp_path / "home", "--listen", f"127.0.0.1:{free_port()}")
        _printed_ssh(up)
        up.sendintr()
        up.expect(pexpect.EOF)
        files = sorted(p for p in (tmp_path / "home").rglob("*") if p.parent.name in ("keys", "peers.d"))
        homes.append({path: path.read_text() for path in files if path.is_file()})
    assert homes[0] == homes[1]
    assert len(homes[0]) == 10


def test_your_own_ssh_keys_let_you_in_unless_you_decline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = subprocess.run(
        [*ALKNET, "--home", str(tmp_path / "a"), "init", "--no-user-keys"], capture_output=True, text=True, check=True
    )
    assert "may enter" not in result.stderr
    assert len(re.findall("ssh-ed25519", (tmp_path / "a/peers.d/owner.toml").read_text())) == 1


def test_ipv6_loopback_is_served_too(node: NodeProcess) -> None:
    command = [word.replace("owner@127.0.0.1", "owner@::1") for word in node.ssh_command("exit 8")]
    assert subprocess.run(command, timeout=20, check=False).returncode == 8


def test_several_addresses_are_served(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    home = tmp_path / "home"
    listen = [word for port in ports for word in ("--listen", f"127.0.0.1:{port}")]
    up = _up(home, *listen)
    line = _printed_ssh(up)
    for port in ports:
        command = [str(port) if word == str(ports[0]) else word for word in line]
        assert subprocess.run([*command, "exit 6"], stdin=subprocess.DEVNULL, timeout=20, check=False).returncode == 6
    up.sendintr()
    up.expect(pexpect.EOF)


def test_a_taken_port_gives_two_clear_lines(fails: Fails, node: NodeProcess, tmp_path: Path) -> None:
    code, lines = fails("up", "--home", str(tmp_path / "other"), "--no-user-keys", "--listen", f"127.0.0.1:{node.port}")
    assert code == EXIT_START
    assert lines[-2:] == [
        f"alknet: cannot listen on 127.0.0.1:{node.port} (TCP): Address already in use",
        "  hint: another program, perhaps another node, has it: stop that, or choose another address with --listen"
        " or node.listen",
    ]


def test_a_second_node_on_the_same_home_is_refused(fails: Fails, node: NodeProcess) -> None:
    code, lines = fails("serve", "--home", str(node.home))
    assert code == EXIT_START
    assert lines[0] == f"alknet: {node.home}: a node already runs on this home (process {node.pid})"


def test_a_home_that_cannot_be_made(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, lines = fails("up", "--home", str(tmp_path / "file" / "home"))
    assert code == EXIT_START
    assert "a home cannot be made here" in lines[0]
    assert lines[1].startswith("  hint: ")


def test_a_loose_key_file(fails: Fails, node: NodeProcess) -> None:
    node.stop()
    key = node.home / "keys" / "ssh_host_ed25519_key"
    key.chmod(0o644)
    code, lines = fails("serve", "--home", str(node.home))
    assert code == EXIT_START
    assert lines[0] == f"alknet: {key}: holds a secret but has mode 0644, so that others can open it"
    assert lines[1].startswith(f"  hint: chmod 600 {key}")


@pytest.mark.parametrize("what", ["missing", "garbage", "encrypted"])
def test_a_host_key_that_cannot_be_used(fails: Fails, node: NodeProcess, what: str) -> None:
    node.stop()
    key = node.home / "keys" / "ssh_host_ed25519_key"
    if what == "missing":
        key.unlink()
    elif what == "garbage":
        key.write_text("not a key\n")
    else:
        subprocess.run(["ssh-keygen", "-q", "-p", "-N", "passphrase", "-f", str(key)], check=True)
    code, lines = fails("serve", "--home", str(node.home))
    assert (code, str(key) in lines[0]) == (EXIT_START, True)
    assert "Traceback" not in "\n".join(lines)


def test_a_broken_configuration(fails: Fails, node: NodeProcess) -> None:
    node.stop()
    (node.home / "alknet.toml").write_text("[node]\nlisten = 7\n")
    code, lines = fails("serve", "--home", str(node.home))
    assert code == EXIT_START
    assert f"{node.home / 'alknet.toml'}:2: node.listen" in lines[0]


def test_a_home_without_a_node(fails: Fails, tmp_path: Path) -> None:
    code, lines = fails("serve", "--home", str(tmp_path))
    assert (code, "there is no node here" in lines[0]) == (EXIT_START, True)


def test_sigterm_lets_running_work_finish_within_the_drain(node: NodeProcess) -> None:
    work = subprocess.Popen(node.ssh_command("echo in; sleep 1; echo done"), stdout=subprocess.PIPE)
    assert work.stdout is not None
    assert work.stdout.readline() == b"in\n"
    began = time.monotonic()
    assert node.stop(signal.SIGTERM) == 0
    assert work.communicate(timeout=5)[0] == b"done\n"
    assert time.monotonic() - began < 2 + 1


def test_what_does_not_finish_is_told_and_ended(node: NodeProcess) -> None:
    sleep = f"sleep {own_seconds(1020)}"
    work = subprocess.Popen(node.ssh_command(f"echo in; exec {sleep}"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert work.stdout is not None
    assert work.stdout.readline() == b"in\n"
    idle = subprocess.Popen(node.ssh_command(options=["-N"]), stderr=subprocess.PIPE)
    wait_until(lambda: len(node.json("sessions")) == 2, "both are connected")
    assert node.stop(signal.SIGTERM) == 0
    for client in (work, idle):
        assert b"the node is shutting down" in client.communicate(timeout=5)[1]
    assert subprocess.run(["pgrep", "-f", sleep], check=False).returncode == 1


def test_killed_and_started_again_it_serves_as_before(node: NodeProcess) -> None:
    node.stop(signal.SIGKILL)
    node.start()
    assert node.ssh("exit 5").returncode == 5


def test_systemd_is_told_when_it_is_ready(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(20)
        os.environ["NOTIFY_SOCKET"] = str(path)
        try:
            with NodeProcess(tmp_path) as node:
                assert sock.recv(100) == b"READY=1"
                os.kill(node.pid, signal.SIGHUP)
                assert sock.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
                assert sock.recv(100) == b"READY=1"
                node.stop()
                assert sock.recv(100) == b"STOPPING=1"
        finally:
            del os.environ["NOTIFY_SOCKET"]


def test_up_prints_json_for_programs(tmp_path: Path) -> None:
    command = [*ALKNET, "--json", "up", "--home", str(tmp_path / "h"), "--no-user-keys", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/") as up:
        assert up.stdout is not None
        started = json.loads(up.stdout.readline())
        assert started["addresses"][0].startswith("127.0.0.1:")
        assert subprocess.run([*shlex.split(started["ssh"]), "exit 3"], check=False).returncode == 3
        up.send_signal(signal.SIGINT)
        assert up.wait(20) == 0


STUCK = {
    "a function": "def stuck(mark: str) -> None:\n    pathlib.Path(mark).touch()\n    time.sleep(600)\n",
    "a coroutine": (
        "async def stuck(mark: str) -> None:\n"
        "    pathlib.Path(mark).touch()\n"
        "    while True:\n"
        "        try:\n"
        "            await asyncio.sleep(600)\n"
        "        except asyncio.CancelledError:\n"
        "            pass\n"
    ),
}


@pytest.mark.parametrize("kind", STUCK)
def test_a_handler_that_does_not_end_does_not_keep_the_process(tmp_path: Path, kind: str) -> None:
    service = f"import asyncio, time, pathlib, alknet\n@alknet.operation('stuck/sleep', kind='query')\n{STUCK[kind]}"
    (tmp_path / "stuck_service.py").write_text(service)
    node = NodeProcess(tmp_path)
    node.edit_config("modules = []", 'modules = ["stuck_service"]')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        node.start()
    command = [*ALKNET, "--home", str(node.home), "call", ".", "stuck/sleep", f"mark={tmp_path}/in"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as call:
        wait_until(lambda: (tmp_path / "in").exists(), "the handler runs")
        assert node.stop(signal.SIGTERM) == 0
        assert call.wait(20) != 0
