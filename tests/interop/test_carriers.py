"""One port, three carriers: over plain TCP, TLS and QUIC a session is the same, and so is what the node notes of it."""

import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from alknet.certificates import make_certificate, write_certificate
from alknet.keys import PublicKey
from alknet.ssh.client import Target, connect, round_trip
from alknet.ssh.trust import HostTrust
from testkit.carriers import processes, proxied, running, session, wait_for
from testkit.node import NodeProcess, own_seconds, wait_until

pytestmark = pytest.mark.interop

MIB = 1024 * 1024
TRANSPORTS = {"tcp": "tcp", "tls": "tls", "quic": "quic", "auto": "quic", "proxy": "quic"}
"""What the node says of each way in."""
NOTED = ("surface", "phase", "peer", "action", "resource", "decision", "rule", "via", "outcome")
SOON_S = 5.0


def noted(node: NodeProcess, connection: str) -> list[dict[str, Any]]:
    """What the audit log has of a connection that has ended, without what is different each time."""

    def has_ended() -> list[dict[str, Any]] | None:
        lines = [line for line in node.audit() if line.get("connection") == connection]
        return lines if lines and lines[-1]["action"] == "ssh/login" and "outcome" in lines[-1] else None

    lines = wait_until(has_ended, f"{connection} has ended")
    assert all(line["remote"] == "127.0.0.1" for line in lines)
    return [{name: line.get(name) for name in NOTED} for line in lines]


# --- the same everywhere -----------------------------------------------------------------------------------------


def test_output_exit_code_and_audit_are_the_same_over_every_carrier(node: NodeProcess) -> None:
    audits = {}
    for carrier, transport in TRANSPORTS.items():
        with running(session(node, carrier, "echo out; read line; echo $line >&2; exit 5")) as inside:
            wait_for(inside, b"out\n")
            (connection,) = node.json("status")["connections"]
            assert (connection["transport"], connection["alpn"]) == (transport, "alknet/ssh")
            assert inside.communicate(b"err\nmore\n", timeout=SOON_S) == (b"", b"err\n")
        assert inside.returncode == 5
        audits[carrier] = noted(node, connection["id"])
    assert [(line["action"], line["resource"], line["decision"], line["outcome"]) for line in audits["tcp"]] == [
        ("ssh/login", "owner", "allow", None),
        ("ssh/exec", "echo out; read line; echo $line >&2; exit 5", "allow", None),
        ("ssh/exec", "echo out; read line; echo $line >&2; exit 5", "allow", "exit 5"),
        ("ssh/login", "owner", "allow", "closed"),
    ]
    assert {carrier for carrier, audit in audits.items() if audit != audits["tcp"]} == set()


def test_on_tcp_the_kernel_watches_both_ends(node: NodeProcess) -> None:
    """Else a machine that loses its power would keep its sessions until somebody writes to them."""
    with running(session(node, "tls", "echo in; cat")) as inside:
        wait_for(inside, b"in\n")
        filter = f"( sport = :{node.port} or dport = :{node.port} )"
        sockets = subprocess.check_output(["ss", "-tnoH", "state", "established", filter], text=True).splitlines()
        assert len(sockets) == 2
        assert all("timer:(keepalive" in line for line in sockets), sockets
        inside.kill()


def test_a_refusal_is_the_same_over_every_carrier(node: NodeProcess) -> None:
    node.write_peer("bob", 'scopes = ["ssh:shell"]\n[ssh]\nuser = "root"\nas_daemon = true')
    node.alknet("config", "reload")
    audits = {}
    for carrier in TRANSPORTS:
        seen = len(node.audit())
        if carrier in ("tcp", "proxy"):
            result = node.ssh("id", key="bob", options=proxied(node) if carrier == "proxy" else ())
            said = result.stderr.decode()
        else:
            identity = str(node.keys / "bob")
            said = node.alknet("ssh", "--identity", identity, "--carrier", carrier, "bob@.", "id", check=False).stderr
        assert "[scope:ssh:exec] (den_" in said
        (asked,) = [line for line in node.audit()[seen:] if line["action"] == "ssh/exec"]
        audits[carrier] = {name: asked.get(name) for name in NOTED}
    assert (audits["tcp"]["decision"], audits["tcp"]["rule"]) == ("deny", "scope:ssh:exec")
    assert {carrier for carrier, audit in audits.items() if audit != audits["tcp"]} == set()


def test_a_session_over_quic_is_like_one_of_ssh(node: NodeProcess) -> None:
    def run(*words: str, given: bytes = b"") -> tuple[int, bytes, bytes]:
        result = subprocess.run(session(node, "quic", *words), input=given, capture_output=True, cwd="/", check=False)
        return result.returncode, result.stdout, result.stderr

    for code in (0, 1, 255):
        result = node.alknet("ssh", "--carrier", "quic", ".", f"exit {code}", check=False)
        assert (result.returncode, result.stdout, result.stderr) == (code, "", "")
    assert run("wc -c", given=b"12345") == (0, b"5\n", b"")  # stdin to its end
    assert run("exit 6", given=bytes(4 * MIB)) == (6, b"", b"")  # and a command that does not read it
    assert run("seq 100000 >&2; echo out; exit 7") == (7, b"out\n", b"".join(b"%d\n" % n for n in range(1, 100_001)))
    assert run("kill -KILL $$") == (255, b"", b"alknet: the remote command was ended by SIGKILL\n")
    assert run("cat", given=b"\n~.\n~~\n~?\n") == (0, b"\n~.\n~~\n~?\n", b"")  # no terminal, no escape character


def test_options_may_stand_between_the_peer_and_the_command(node: NodeProcess) -> None:
    for words, said in (
        (["-v", "--carrier", "tls", "-e", "none", "echo", "-v", "-e", "none"], "-v -e none\n"),
        (["--carrier", "tls", "-v", "--", "echo", "~."], "~.\n"),
    ):
        result = node.alknet("ssh", ".", *words)
        assert result.stdout == said
        assert f"alknet: tls to 127.0.0.1:{node.port}: connected in " in result.stderr
    assert node.alknet("ssh", ".", "--carrier", "quic", "-t", "tty").stdout.startswith("/dev/pts/")


@pytest.mark.parametrize("size_mib", [16, pytest.param(64, marks=pytest.mark.soak)])
def test_much_goes_up_and_down_over_quic(node: NodeProcess, tmp_path: Path, size_mib: int) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(os.urandom(size_mib * MIB))
    digest = hashlib.sha256(blob.read_bytes()).hexdigest()
    with blob.open("rb") as stdin:
        up = subprocess.run(session(node, "quic", "sha256sum"), stdin=stdin, capture_output=True, cwd="/", check=True)
    assert up.stdout.split()[0].decode() == digest
    command = session(node, "quic", f"cat {blob}")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/") as down:
        assert down.stdout is not None
        assert hashlib.file_digest(down.stdout, "sha256").hexdigest() == digest
    assert down.returncode == 0


# --- the end -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["quic", "tls"])
def test_a_signal_to_the_client_ends_the_remote_command_at_once(node: NodeProcess, carrier: str) -> None:
    command = session(node, carrier, f"echo in; exec sleep {own_seconds(1081)}")
    for number, code in ((signal.SIGTERM, 255), (signal.SIGHUP, 255), (signal.SIGINT, 130)):
        with running(command) as inside:
            wait_for(inside, b"in\n")
            inside.send_signal(number)
            wait_until(lambda: not processes("sleep", own_seconds(1081)), "the command is gone", timeout_s=SOON_S)
            output, said = inside.communicate(timeout=SOON_S)
        assert (inside.returncode, output, said.strip()) == (code, b"", b"")
    outcomes = [line.get("outcome") for line in node.audit() if line["action"] == "ssh/exec"]
    assert outcomes == [None, "hung up"] * 3


@pytest.mark.parametrize("carrier", ["quic", "tls"])
def test_who_is_ended_by_the_operator_is_told(node: NodeProcess, carrier: str) -> None:
    with running(session(node, carrier, f"echo in; exec sleep {own_seconds(1082)}")) as inside:
        wait_for(inside, b"in\n")
        node.alknet("sessions", "kill", node.json("sessions")[0]["id"])
        _, said = inside.communicate(timeout=SOON_S)
    assert (inside.returncode, b"ended by the operator" in said) == (255, True)
    assert not processes("sleep", own_seconds(1082))


def test_a_lost_connection_is_exit_code_255(node: NodeProcess) -> None:
    with running(session(node, "tls", f"echo in; exec sleep {own_seconds(1083)}")) as inside:
        wait_for(inside, b"in\n")
        node.stop(signal.SIGKILL)
        assert inside.communicate(timeout=SOON_S) == (b"", b"alknet: the connection was lost\n")
    assert inside.returncode == 255
    for left in processes("sleep", own_seconds(1083)):
        left.kill()


def test_a_stopping_node_tells_every_session_and_its_port_is_free_at_once(node: NodeProcess) -> None:
    port, script = node.port, f"echo in; exec sleep {own_seconds(1084)}"
    with contextlib.ExitStack() as stack:
        inside = [stack.enter_context(running(session(node, carrier, script))) for carrier in TRANSPORTS]
        for one in inside:
            wait_for(one, b"in\n")
        node.stop()
        for one in inside:
            _, said = one.communicate(timeout=SOON_S)
            assert (one.returncode, b"the node is shutting down" in said) == (255, True), said
    assert not processes("sleep", own_seconds(1084))
    (stopped,) = [line for line in node.audit() if line["action"] == "node/stop"]
    assert stopped["cut"] == len(inside)
    listen_on(node, port)
    node.start()
    assert node.port == port
    for carrier in ("quic", "tls"):
        assert node.alknet("ssh", "--carrier", carrier, ".", "exit 5", check=False).returncode == 5


def test_a_session_may_finish_while_the_node_stops(node: NodeProcess) -> None:
    script = "echo in; read go; exit 5"
    with contextlib.ExitStack() as stack:
        inside = [stack.enter_context(running(session(node, carrier, script))) for carrier in ("quic", "tls")]
        for one in inside:
            wait_for(one, b"in\n")
        os.kill(node.pid, signal.SIGTERM)
        wait_until(lambda: not listens(node.port), "the node has begun to stop")
        for one in inside:
            one.communicate(b"go\n", timeout=SOON_S)
            assert one.returncode == 5
    assert node.stop() == 0


@pytest.mark.parametrize(("kind", "name"), [(socket.SOCK_STREAM, "TCP"), (socket.SOCK_DGRAM, "UDP")])
def test_a_port_that_is_taken_is_a_start_up_error(node: NodeProcess, kind: int, name: str) -> None:
    node.stop()
    listen_on(node, node.port)
    with socket.socket(socket.AF_INET, kind) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
        other.bind(("127.0.0.1", node.port))
        if kind == socket.SOCK_STREAM:
            other.listen()
        result = node.alknet("serve", check=False)
    assert result.returncode == 7
    said = f"alknet: cannot listen on 127.0.0.1:{node.port} ({name}): Address already in use"
    assert said in result.stderr.splitlines()
    assert not listens(node.port)


def listen_on(node: NodeProcess, port: int) -> None:
    path = node.home / "alknet.toml"
    path.write_text(re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{port}", path.read_text()))


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


# --- what the commands say ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["quic", "tls", "ssh"])
def test_ping_says_over_what_and_how_fast(node: NodeProcess, carrier: str) -> None:
    key = PublicKey.parse((node.home / "keys" / "node.pub").read_text()).fingerprint
    node_key = None if carrier == "ssh" else key
    shown = node.alknet("ping", "--carrier", carrier, "-c", "3", ".").stdout.splitlines()
    assert shown[0] == f"{os.uname().nodename} at 127.0.0.1:{node.port} over {carrier}"
    assert shown[1] == f"node key    {node_key or '(not proven over SSH, which has proven the host key)'}"
    assert re.fullmatch(r"login       [\d.]+ ms", shown[2])
    assert re.fullmatch(r"round trip  [\d.]+ ms \(median of 3; [\d.]+ to [\d.]+\)", shown[3])
    answer = node.json("ping", "--carrier", carrier, ".")
    assert len(answer["round_trip_ms"]) == 4
    assert 0 < min(answer["round_trip_ms"]) <= max(answer["round_trip_ms"]) < 1000 * SOON_S
    assert answer.pop("login_ms") > max(answer.pop("round_trip_ms")) / 1000
    assert answer == {
        "peer": ".",
        "transport": carrier,
        "address": f"127.0.0.1:{node.port}",
        "through": False,
        "node": os.uname().nodename,
        "node_key": node_key,
    }


def test_ping_races_the_carriers_but_not_to_the_local_node(node: NodeProcess) -> None:
    node_key = (node.home / "keys" / "node.pub").read_text().strip()
    node.write_peer("hub", f'addresses = ["127.0.0.1:{node.port}"]\nnode_key = "{node_key}"')
    assert node.json("ping", "hub")["transport"] == "quic"
    assert node.json("ping", ".")["transport"] == "tls"


def test_ping_over_nothing_exits_with_5(node: NodeProcess) -> None:
    node.stop()
    node.write_peer("hub", f'addresses = ["127.0.0.1:{node.port}"]')
    for carrier in ("auto", "quic", "tls", "ssh"):
        result = node.alknet("ping", "--carrier", carrier, "hub", check=False)
        assert (result.returncode, result.stdout) == (5, "")
        assert result.stderr.startswith("alknet: peer 'hub' cannot be reached: ")


def test_status_shows_tcp_and_quic_on_each_address(node: NodeProcess) -> None:
    addresses = (f"127.0.0.1:{node.port}", f"[::1]:{node.port}")
    assert node.json("status")["listeners"] == [
        *({"address": address, "transport": "tcp", "serves": ["ssh", "tls", "http"]} for address in addresses),
        *({"address": address, "transport": "quic", "serves": ["alknet/ssh", "alknet/call"]} for address in addresses),
    ]
    lines = node.alknet("status").stdout.splitlines()
    for address in addresses:
        assert f"listening  {address} tcp (ssh, tls, http)" in lines
        assert f"listening  {address} quic (alknet/ssh, alknet/call)" in lines


# --- certificates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", ["quic", "tls"])
async def test_new_connections_see_a_new_certificate_and_old_ones_go_on(
    node: NodeProcess, carrier: str, tmp_path: Path
) -> None:
    host_key = PublicKey.parse((node.home / "keys" / "ssh_host_ed25519_key.pub").read_text())
    identity = node.home / "keys" / "owner"
    target = Target((("127.0.0.1", node.port),), "owner", identity, HostTrust(pin=host_key), "the node")
    files = tmp_path / "cert.pem", tmp_path / "key.pem"

    def replace() -> None:
        write_certificate(make_certificate(("localhost",)), *files)
        node.alknet("config", "reload")

    write_certificate(make_certificate(("localhost",)), *files)
    node.edit_config('mode = "self-signed"\n', 'mode = "files"\n')
    node.edit_config('cert = ""\n', f'cert = "{files[0]}"\n')
    node.edit_config('key = ""\n', f'key = "{files[1]}"\n')
    node.alknet("config", "reload")
    async with connect(target, carriers=(carrier,)) as old:
        replace()
        async with connect(target, carriers=(carrier,)) as new:
            assert await round_trip(old.ssh) > 0
            assert await round_trip(new.ssh) > 0
            assert old.carrier.channel_binding is not None
            assert old.carrier.channel_binding.kind == "tls-spki"
            assert old.carrier.channel_binding != new.carrier.channel_binding
            assert len(node.json("sessions")) == 2
