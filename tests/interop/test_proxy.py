"""``alknet proxy``: stock ssh and git through QUIC and TLS, and the ends of what it carries."""

import asyncio
import hashlib
import os
import shlex
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from alknet.alpn.streams import Connection
from testkit.carriers import ALICE, alknet, listening, processes, proxied, running, session, wait_for
from testkit.node import NodeProcess, own_seconds, wait_until

pytestmark = pytest.mark.interop

MIB = 1024 * 1024
CARRIERS = ("quic", "tls")
SOON_S = 5.0
CUT_S = 2.0
"""How long a node may have a connection whose client's proxy was ended."""
SSH_ALPN = "alknet/ssh"


def run(command: list[str], **keywords: object) -> "subprocess.CompletedProcess[bytes]":
    keywords = {"stdin": subprocess.DEVNULL, "capture_output": True, "check": False, "cwd": "/", **keywords}
    if "input" in keywords:
        del keywords["stdin"]
    return subprocess.run(command, timeout=60, **keywords)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("carrier", CARRIERS)
def test_stock_ssh_goes_through_it(node: NodeProcess, carrier: str) -> None:
    through = proxied(node, "--carrier", carrier)
    result = node.ssh("echo out; echo err >&2; exit 7", options=through)
    assert (result.returncode, result.stdout, result.stderr) == (7, b"out\n", b"err\n")
    blob = os.urandom(16 * MIB)
    digest = hashlib.sha256(blob).hexdigest().encode()
    assert node.ssh("sha256sum", options=through, input=blob).stdout.split()[0] == digest
    assert node.ssh("exit 255", options=through).returncode == 255


def test_git_clones_and_pushes_through_it(node: NodeProcess, tmp_path: Path) -> None:
    def git(*words: str, at: Path) -> str:
        made = subprocess.run(["git", *words], cwd=at, env=env, check=True, capture_output=True, text=True, timeout=60)
        return made.stdout

    config, origin, work = tmp_path / "ssh_config", tmp_path / "origin", tmp_path / "work"
    config.write_text(node.alknet("ssh-config").stdout)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "SSH_"))} | {
        "GIT_SSH_COMMAND": shlex.join(["ssh", "-F", str(config), "-o", "BatchMode=yes", "-o", "IdentityAgent=none"]),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    origin.mkdir()
    git("init", "--quiet", "--bare", ".", at=origin)
    git("clone", "--quiet", f"ssh://alknet{origin}", str(work), at=tmp_path)
    (work / "blob").write_bytes(os.urandom(4 * MIB))
    git("add", "blob", at=work)
    git("commit", "--quiet", "--message", "one", at=work)
    git("push", "--quiet", "origin", "HEAD:refs/heads/main", at=work)
    git("clone", "--quiet", "--branch", "main", f"ssh://alknet{origin}", "again", at=tmp_path)
    assert (tmp_path / "again" / "blob").read_bytes() == (work / "blob").read_bytes()
    asked = {line["resource"].split()[0] for line in node.audit() if line["action"] == "ssh/exec"}
    assert asked == {"git-upload-pack", "git-receive-pack"}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_proxy_that_is_ended_ends_the_nodes_connection(node: NodeProcess, carrier: str, number: int) -> None:
    command = node.ssh_command(f"echo in; exec sleep {own_seconds(1101)}", options=proxied(node, "--carrier", carrier))
    with running(command) as ssh:
        wait_for(ssh, b"in\n")
        (proxy,) = [p for p in psutil.Process(ssh.pid).children(recursive=True) if "proxy" in p.cmdline()]
        proxy.send_signal(number)
        wait_until(lambda: ended(node) == "hung up", "the node has ended the session", timeout_s=CUT_S)
        wait_until(lambda: not processes("sleep", own_seconds(1101)), "the command is gone", timeout_s=CUT_S)
        assert ssh.wait(SOON_S) == 255
    assert node.json("sessions") == []


def ended(node: NodeProcess) -> str | None:
    outcomes = [line.get("outcome") for line in node.audit() if line["action"] == "ssh/exec"]
    return outcomes[-1] if outcomes else None


def test_a_client_that_has_gone_leaves_no_proxy_and_no_command(node: NodeProcess) -> None:
    """ssh that is killed cannot tell its proxy: that sees the end of its stdin."""
    command = session(node, "proxy", f"echo in; exec sleep {own_seconds(1102)}")
    with running(command, stderr=None) as ssh:
        wait_for(ssh, b"in\n")
        proxies = [p for p in psutil.Process(ssh.pid).children(recursive=True) if "proxy" in p.cmdline()]
        ssh.kill()
        psutil.wait_procs(proxies, timeout=SOON_S)
    assert not any(proxy.is_running() and proxy.status() != psutil.STATUS_ZOMBIE for proxy in proxies)
    wait_until(lambda: not processes("sleep", own_seconds(1102)), "the command is gone", timeout_s=CUT_S)


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_each_direction_ends_by_itself_and_nothing_is_lost(node: NodeProcess, carrier: str) -> None:
    payload, answer = os.urandom(20 * MIB), os.urandom(5 * MIB)
    ends: list[str] = []

    async def serve(connection: Connection) -> None:
        connection.logged_in(ALICE)
        stream = await connection.accept_stream()
        digest = hashlib.sha256()
        while data := await stream.read():
            digest.update(data)
        ends.append(digest.hexdigest())
        await stream.write(answer)  # its stdin has ended, its stdout has not
        await stream.aclose()

    async with listening(serve, SSH_ALPN) as port:
        command = alknet(node, "proxy", "--carrier", carrier, f"127.0.0.1:{port}")
        result = await asyncio.to_thread(run, command, input=payload)
    assert ends == [hashlib.sha256(payload).hexdigest()]
    assert (result.returncode, result.stdout == answer, result.stderr) == (0, True, b"")


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_when_the_far_side_has_ended_it_ends_though_its_stdin_is_open(node: NodeProcess, carrier: str) -> None:
    async def serve(connection: Connection) -> None:
        connection.logged_in(ALICE)
        stream = await connection.accept_stream()
        await stream.read(1)
        await stream.write(b"bye")
        await stream.aclose()

    async with listening(serve, SSH_ALPN) as port:
        proxy = await asyncio.create_subprocess_exec(
            *alknet(node, "proxy", "--carrier", carrier, f"127.0.0.1:{port}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        assert proxy.stdin is not None
        assert proxy.stdout is not None
        proxy.stdin.write(b"x")
        async with asyncio.timeout(SOON_S):
            assert await proxy.stdout.read() == b"bye"
            assert await proxy.wait() == 0
        proxy.stdin.close()


def test_a_proxy_whose_stdin_has_ended_shows_the_banner_and_ends(node: NodeProcess) -> None:
    for carrier in CARRIERS:
        result = run(alknet(node, "proxy", "--carrier", carrier, "."))
        assert result.returncode == 0
        assert result.stdout.startswith(b"SSH-2.0-")


def test_a_proxy_that_reaches_nobody_says_so_and_exits_with_255(node: NodeProcess) -> None:
    through = proxied(node)
    node.stop()
    for peer in (".", f"127.0.0.1:{node.port}", "no-such-host.invalid"):
        result = run(alknet(node, "proxy", peer))
        assert (result.returncode, result.stdout) == (255, b"")
        lines = result.stderr.decode().splitlines()
        assert lines[0].startswith("alknet: ")
        assert len(lines) <= 2
    assert b"alknet: no node runs on" in node.ssh("exit 5", options=through).stderr
