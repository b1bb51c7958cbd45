"""Whom ``alknet ssh`` believes: a host that is not the right one, or does not serve SSH, is refused in clear words, and
hears nothing. For ``alknet call`` and ``alknet ping`` see ``test_call_hello.py``."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from alknet.alpn.dial import dial
from alknet.alpn.errors import AlpnRefused, StreamBroken
from alknet.alpn.streams import Connection
from alknet.keys import PublicKey
from testkit.carriers import listening
from testkit.node import NodeProcess, make_key

pytestmark = pytest.mark.interop

CARRIERS = ("quic", "tls")
NOT_REACHED = 255
"""What ``alknet ssh`` exits with."""


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with no known_hosts but the test's."""
    home = tmp_path / "user"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    return home


def key_of(node: NodeProcess) -> PublicKey:
    return PublicKey.parse((node.home / "keys" / "ssh_host_ed25519_key.pub").read_text())


def refusals(node: NodeProcess, peer: str, *, carriers: tuple[str, ...] = CARRIERS) -> set[str]:
    """What the refused command says over each carrier; nothing may have come as far as the login."""
    said = set()
    for carrier in carriers:
        result = node.alknet("ssh", "--carrier", carrier, peer, "exit 5", check=False)
        assert (result.returncode, result.stdout) == (NOT_REACHED, "")
        said.add(result.stderr)
    assert " auth " not in node.log_text()
    assert {line["action"] for line in node.audit()} <= {"node/start", "node/stop", "config/reload"}
    return said


def with_another_key(node: NodeProcess) -> None:
    """What a reinstalled machine is, or an attacker: the same address, and another host key."""
    node.stop()
    node.edit_config("127.0.0.1:0", f"127.0.0.1:{node.port}")
    path = node.home / "keys" / "ssh_host_ed25519_key"
    path.unlink()
    path.with_name(path.name + ".pub").unlink()
    make_key(path)
    (node.home / "audit" / "audit.jsonl").unlink()
    (node.home / "state.db").unlink(missing_ok=True)
    node.log_path.unlink()
    node.start()


def test_a_pinned_host_with_a_foreign_key(node: NodeProcess) -> None:
    other = PublicKey.parse(node.key("other"))
    node.write_peer("hub", f'addresses = ["127.0.0.1:{node.port}"]\nhost_key = "{node.key("other")}"')
    (said,) = refusals(node, "owner@hub")
    first, second = said.splitlines()
    assert first == (
        f"alknet: 127.0.0.1 port {node.port} did not prove to be itself: expected ssh-ed25519 {other.fingerprint} from"
        f" {node.home / 'peers.d' / 'hub.toml'}, got ssh-ed25519 {key_of(node).fingerprint}"
    )
    assert second.startswith("  hint: nothing was sent; ")


def test_a_host_whose_key_in_known_nodes_has_changed(node: NodeProcess) -> None:
    where = f"owner@127.0.0.1:{node.port}"
    accepted = node.alknet("ssh", "--accept-new", where, "exit 5", check=False)
    assert accepted.returncode == 5
    assert f"Its ssh-ed25519 key is {key_of(node).fingerprint}. It is remembered." in accepted.stderr
    assert node.alknet("ssh", where, "exit 5", check=False).returncode == 5
    old = key_of(node)
    with_another_key(node)
    (said,) = refusals(node, where)
    assert said.splitlines()[0] == (
        f"alknet: the host key of 127.0.0.1 port {node.port} has CHANGED: {node.home / 'known_nodes'}:1 has"
        f" ssh-ed25519 {old.fingerprint}, got ssh-ed25519 {key_of(node).fingerprint}"
    )
    insisting = node.alknet("ssh", "--accept-new", where, "exit 5", check=False)
    assert (insisting.returncode, insisting.stderr) == (255, said)  # it accepts the new, not the changed


def test_a_host_whose_key_in_known_hosts_has_changed(node: NodeProcess, own_home: Path) -> None:
    known_hosts, where = own_home / ".ssh" / "known_hosts", f"owner@127.0.0.1:{node.port}"
    right = " ".join(str(key_of(node)).split()[:2])
    other = " ".join(node.key("other").split()[:2])
    known_hosts.write_text(f"# mine\n[127.0.0.1]:{node.port} {other}\n")
    (said,) = refusals(node, where)
    assert said.startswith(f"alknet: the host key of 127.0.0.1 port {node.port} has CHANGED: {known_hosts}:2 has ")
    known_hosts.write_text(f"@revoked * {right}\n[127.0.0.1]:{node.port} {right}\n")
    (said,) = refusals(node, where)
    assert "is revoked" in said
    assert f"({known_hosts}:1)" in said
    known_hosts.write_text(f"[127.0.0.1]:{node.port} {right}\n")
    assert node.alknet("ssh", where, "exit 5", check=False).returncode == 5


def test_a_host_that_nobody_knows_and_nobody_to_ask(node: NodeProcess) -> None:
    (said,) = refusals(node, f"owner@127.0.0.1:{node.port}")
    first, second = said.splitlines()
    assert first.startswith(f"alknet: 127.0.0.1 port {node.port} is not known: its ssh-ed25519 key SHA256:")
    assert "--accept-new remembers it" in second
    assert not (node.home / "known_nodes").exists()


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_host_that_does_not_serve_ssh_is_refused_and_hears_nothing(carrier: str, node: NodeProcess) -> None:
    heard = []

    async def serve(connection: Connection) -> None:
        connection_heard = bytearray()
        heard.append(connection_heard)
        try:
            stream = await connection.accept_stream()
            while data := await stream.read():
                connection_heard += data
        except (StreamBroken, AssertionError):
            pass

    async with listening(serve, "alknet/other", "http/1.1") as port:
        with pytest.raises(AlpnRefused, match="does not serve alknet/ssh"):
            await dial([("127.0.0.1", port)], alpn="alknet/ssh", carriers=(carrier,))
        arguments = ("ssh", "--carrier", carrier, "--accept-new", f"owner@127.0.0.1:{port}", "exit 5")
        result = await asyncio.to_thread(node.alknet, *arguments, check=False)
        assert (result.returncode, result.stdout) == (NOT_REACHED, "")
        assert result.stderr == (
            f"alknet: 127.0.0.1:{port} does not let anybody in by ssh: {carrier} to 127.0.0.1:{port}: it does not"
            " serve alknet/ssh\n"
        )
    assert b"".join(heard) == b""


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_an_alpn_that_a_node_does_not_know_is_refused(node: NodeProcess, carrier: str) -> None:
    with pytest.raises(AlpnRefused, match=f"^{carrier} to 127.0.0.1:{node.port}: it does not serve alknet/nothing$"):
        await dial([("127.0.0.1", node.port)], alpn="alknet/nothing", carriers=(carrier,))
    assert {line["action"] for line in node.audit()} == {"node/start"}


def test_a_login_that_is_refused_is_no_question_of_trust(node: NodeProcess) -> None:
    node.key("stranger")
    for command, carrier, code, words in (
        *(("ssh", carrier, NOT_REACHED, ("exit 5",)) for carrier in CARRIERS),
        ("ping", "ssh", 3, ()),
    ):
        arguments = (command, "--identity", str(node.keys / "stranger"), "--carrier", carrier, ".", *words)
        result = node.alknet(*arguments, check=False)
        assert (result.returncode, result.stdout) == (code, "")
        assert "the local node refused the login of 'owner'" in result.stderr
    logins = [line for line in node.audit() if line["action"] == "ssh/login"]
    assert logins
    assert {line["decision"] for line in logins} == {"deny"}


def test_a_name_that_is_no_host(node: NodeProcess) -> None:
    command = [sys.executable, "-m", "alknet", "--home", str(node.home)]
    for words, code in ((("ssh", "no-such-host.invalid", "id"), NOT_REACHED), (("ping", "no-such-host.invalid"), 5)):
        result = subprocess.run([*command, *words], capture_output=True, text=True, check=False, cwd="/")
        assert result.returncode == code
        assert result.stderr.startswith("alknet: no-such-host.invalid cannot be reached: no-such-host.invalid: ")
