"""SSH to a worker that nobody can reach but through the connection that it has made to the hub."""

import hashlib
import json
import os
import shlex
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import pexpect
import pytest

from testkit.as_user import Launcher
from testkit.carriers import alknet
from testkit.mesh import RUNS_AS_DAEMON, MeshNodes, host_public_key, node_public_key
from testkit.nat import HUB_ADDRESS, nat_network
from testkit.netns import Namespace
from testkit.node import NodeProcess, wait_until

pytestmark = pytest.mark.interop

TIMEOUT_S = 60
MIB = 1024 * 1024
NORMAL_BYTES = 4 * MIB
CARRIERS = ["tls", "quic"]
AT_WORKERS = f'scopes = ["ssh:*", "test:*"]\n{RUNS_AS_DAEMON}'


@pytest.fixture(scope="module")
def places() -> Iterator[Mapping[str, Namespace]]:
    with nat_network() as places:
        yield places


@pytest.fixture(scope="module")
def launchers(places: Mapping[str, Namespace]) -> Iterator[Mapping[str, Launcher]]:
    """One in each of them."""
    with ExitStack() as stack:
        found = {}
        for name, place in places.items():
            with place.entered():
                found[name] = stack.enter_context(Launcher())
        yield found


@pytest.fixture(scope="module", params=CARRIERS)
def mesh(
    request: pytest.FixtureRequest, launchers: Mapping[str, Launcher], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MeshNodes]:
    """A hub, two workers behind the same NAT, and carol's machine; all reach the hub over the same carrier."""

    def make(directory: Path) -> NodeProcess:
        place = {"hub": "hub", "carol": "third"}.get(directory.name, "worker")
        return NodeProcess(directory, launcher=launchers[place])

    directory = tmp_path_factory.mktemp("nat")
    mesh = MeshNodes(directory, carrier=request.param, host=HUB_ADDRESS, make=make)
    mesh.machine("carol", 'scopes = ["peer:*", "w:*", "test:*"]', at_workers=AT_WORKERS)
    with mesh:
        yield mesh


@pytest.fixture
def carol(mesh: MeshNodes) -> NodeProcess:
    return mesh.machine("carol", 'scopes = ["peer:*", "w:*", "test:*"]', at_workers=AT_WORKERS)


def ssh_words(mesh: MeshNodes, *command: str) -> list[str]:
    return ["ssh", "--carrier", mesh.carrier, "-J", "hub", "carol@w1", *command]


def run(
    places: Mapping[str, Namespace], command: list[str], input: bytes | None = None
) -> "subprocess.CompletedProcess[bytes]":
    """Run it on the third machine."""
    return places["third"].run(command, capture_output=True, input=input or b"", timeout=TIMEOUT_S, cwd="/")


def stock_ssh(mesh: MeshNodes, carol: NodeProcess, directory: Path, *command: str) -> list[str]:
    """The stock client, that knows w1's host key under that name, on its way through ``alknet proxy``."""
    known = directory / "known_hosts"
    known.write_text(f"w1 {host_public_key(mesh.workers['w1'])}\n")
    proxy = [*alknet(carol, "proxy", "--carrier", mesh.carrier, "-J", "hub"), "%h"]
    options = [
        f"ProxyCommand={shlex.join(proxy)}",
        f"UserKnownHostsFile={known}",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "BatchMode=yes",
        "LogLevel=ERROR",
    ]
    identity = ["-i", str(carol.home / "keys" / "owner")]
    return ["ssh", "-F", "none", *identity, *(word for one in options for word in ("-o", one)), "carol@w1", *command]


def test_nobody_reaches_the_worker_by_himself(mesh: MeshNodes, places: Mapping[str, Namespace]) -> None:
    port = mesh.workers["w1"].port
    for name in ("third", "hub"):
        with places[name].entered(), pytest.raises(OSError):
            socket.create_connection((places["worker"].address, port), timeout=2)
    with places["third"].entered():
        socket.create_connection((HUB_ADDRESS, mesh.hub.port), timeout=5).close()


@pytest.mark.parametrize("client", ["alknet", "stock"])
def test_a_command_with_its_streams_and_its_exit_code(
    mesh: MeshNodes, carol: NodeProcess, places: Mapping[str, Namespace], tmp_path: Path, client: str
) -> None:
    command = "cat; echo err >&2; exit 7"
    words = (
        alknet(carol, *ssh_words(mesh, command)) if client == "alknet" else stock_ssh(mesh, carol, tmp_path, command)
    )
    result = run(places, words, b"typed\n")
    assert (result.returncode, result.stdout, result.stderr) == (7, b"typed\n", b"err\n")


@pytest.mark.parametrize("client", ["alknet", "stock"])
def test_a_shell_on_a_terminal(
    mesh: MeshNodes, carol: NodeProcess, places: Mapping[str, Namespace], tmp_path: Path, client: str
) -> None:
    words = alknet(carol, *ssh_words(mesh)) if client == "alknet" else stock_ssh(mesh, carol, tmp_path)
    with places["third"].entered():
        shell = pexpect.spawn(words[0], words[1:], timeout=20, encoding="utf-8", dimensions=(31, 97), cwd="/")
    shell.sendline("stty size; ls -d /sys/class/net/wan; exit 5")
    shell.expect("31 97\r\n")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 5


@pytest.mark.parametrize("client", ["alknet", "stock"])
def test_bytes_both_ways(
    mesh: MeshNodes, carol: NodeProcess, places: Mapping[str, Namespace], tmp_path: Path, client: str
) -> None:
    data = os.urandom(NORMAL_BYTES)
    words = alknet(carol, *ssh_words(mesh, "cat")) if client == "alknet" else stock_ssh(mesh, carol, tmp_path, "cat")
    result = run(places, words, data)
    assert result.returncode == 0, result.stderr
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()


# --- who is at the other end ------------------------------------------------------------------------------------------


def test_a_worker_with_another_host_key_is_refused(
    mesh: MeshNodes, carol: NodeProcess, places: Mapping[str, Namespace]
) -> None:
    MeshNodes.introduce(
        carol, "w1", node_public_key(mesh.workers["w1"]), f'host_key = "{host_public_key(mesh.workers["w2"])}"'
    )
    try:
        result = run(places, alknet(carol, *ssh_words(mesh, "echo reached")))
    finally:
        mesh.trust(carol)
    assert (result.returncode, result.stdout) == (255, b"")
    assert b"w1 port 7022 did not prove to be itself" in result.stderr


def test_a_hub_that_leads_elsewhere_is_found_out(
    mesh: MeshNodes, carol: NodeProcess, places: Mapping[str, Namespace], tmp_path: Path
) -> None:
    """The hub takes w2 for w1, and nobody who trusts w1's host key does."""
    keys = {name: node_public_key(mesh.workers[name]) for name in ("w1", "w2")}
    command = "echo reached"
    (before,) = mesh.attached()["w1"]
    (mesh.hub.home / "peers.d" / "w2.toml").unlink()
    mesh.introduce(mesh.hub, "w1", keys["w2"], 'offers = ["test/*"]')
    mesh.hub.alknet("config", "reload")
    try:
        wait_until(
            lambda: any(one["generation"] > before["generation"] for one in mesh.attached().get("w1", ())),
            "the other one is here",
        )
        mesh.wait_settled("w1")
        ours = run(places, alknet(carol, *ssh_words(mesh, command)))
        theirs = run(places, stock_ssh(mesh, carol, tmp_path, command))
    finally:
        for name in keys:
            mesh.write_entry(name)
        mesh.hub.alknet("config", "reload")
        mesh.wait_settled()
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout) == (255, b"")
    assert b"did not prove to be itself" in ours.stderr
    assert b"Host key verification failed" in theirs.stderr


def test_the_hub_cannot_read_what_it_carries(
    mesh: MeshNodes, carol: NodeProcess, places: Mapping[str, Namespace]
) -> None:
    """Nothing of what is typed and printed is in its memory, log or audit log; what is called through it is."""
    typed, printed = (os.urandom(12).hex() for _ in range(2))
    reversed_command = f"read line; echo $line; echo {printed[::-1]} | rev"
    result = run(places, alknet(carol, *ssh_words(mesh, reversed_command)), f"{typed}\n".encode())
    assert result.stdout.split() == [typed.encode(), printed.encode()]
    called = os.urandom(12).hex()
    answer = carol.alknet("call", "--carrier", mesh.carrier, "hub", "w/test/echo", f"value={called}")
    assert called in answer.stdout
    assert not holds(mesh.hub, typed, printed, printed[::-1])
    assert called in holds(mesh.hub, called)
    audit = json.dumps(mesh.hub.audit())
    assert not any(word in audit + mesh.hub.log_text() for word in (typed, printed, printed[::-1]))
    assert '"peer/channel"' in audit


def holds(node: NodeProcess, *words: str) -> set[str]:
    """Which of the words are in the memory of the node's process."""
    found = set()
    with open(f"/proc/{node.pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{node.pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            if not rights.startswith("rw"):
                continue
            begin, end = (int(number, 16) for number in span.split("-"))
            with suppress(OSError, ValueError, OverflowError):
                memory.seek(begin)
                data = memory.read(end - begin)
                found |= {word for word in words if word.encode() in data}
    return found
