"""Whom ``alknet call`` and ``alknet ping`` believe, and whom a node believes: over QUIC and TLS, with real processes.

A node that is not the right one is refused in clear words, and hears nothing.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from alknet.alpn.dial import dial, first_stream
from alknet.alpn.streams import Connection, Stream
from alknet.call.frames import FrameReader
from alknet.errors import AlknetError
from alknet.keys import PublicKey
from testkit.authority import Authority
from testkit.calls import CallDoor
from testkit.carriers import listening
from testkit.node import NodeProcess, make_key, wait_until

pytestmark = pytest.mark.interop

CARRIERS = ("quic", "tls")
COMMANDS = (("call", ("services/list",)), ("ping", ()))
"""Each with what follows the peer."""
FILTER = Path(__file__).resolve().parents[2] / "docs" / "howto" / "fail2ban" / "alknet.conf"


def key_of(node: NodeProcess) -> PublicKey:
    return PublicKey.parse((node.home / "keys" / "node.pub").read_text())


def refusals(node: NodeProcess, peer: str) -> set[str]:
    """What the refused commands say, which is the same for all; nothing may have come as far as the proof."""
    said = set()
    for command, words in COMMANDS:
        for carrier in CARRIERS:
            result = node.alknet(command, "--carrier", carrier, peer, *words, check=False)
            assert (result.returncode, result.stdout) == (5, ""), result.stderr
            said.add(result.stderr)
    assert " auth " not in node.log_text()
    assert {line["action"] for line in node.audit()} <= {"node/start", "node/stop", "config/reload"}
    return said


def with_another_key(node: NodeProcess) -> None:
    """What a reinstalled machine is, or an attacker: the same address, and another node key."""
    node.stop()
    node.edit_config("127.0.0.1:0", f"127.0.0.1:{node.port}")
    path = node.home / "keys" / "node"
    path.unlink()
    path.with_name(path.name + ".pub").unlink()
    make_key(path)
    (node.home / "audit" / "audit.jsonl").unlink()
    (node.home / "state.db").unlink(missing_ok=True)
    node.log_path.unlink()
    node.start()


# --- which node it is --------------------------------------------------------------------------------------------


def test_a_pinned_node_with_a_foreign_key(node: NodeProcess) -> None:
    other = PublicKey.parse(node.key("other"))
    node.write_peer("hub", f'addresses = ["127.0.0.1:{node.port}"]\nnode_key = "{node.key("other")}"')
    (said,) = refusals(node, "hub")
    first, second = said.splitlines()
    assert first == (
        f"alknet: 127.0.0.1 port {node.port} did not prove to be itself: expected the node key {other.fingerprint} from"
        f" {node.home / 'peers.d' / 'hub.toml'}, got {key_of(node).fingerprint}"
    )
    assert second.startswith("  hint: nothing was sent; ")
    node.write_peer("hub", f'addresses = ["127.0.0.1:{node.port}"]\nnode_key = "{key_of(node)}"')
    for carrier in CARRIERS:
        answer = node.json("ping", "--carrier", carrier, "hub")
        assert (answer["transport"], answer["node_key"]) == (carrier, key_of(node).fingerprint)


def test_a_node_whose_key_in_known_nodes_has_changed(node: NodeProcess) -> None:
    where = f"127.0.0.1:{node.port}"
    accepted = node.alknet("call", "--accept-new", where, "node/status")
    said = f"alknet: 127.0.0.1 port {node.port} is not known. Its node key is {key_of(node).fingerprint}."
    assert accepted.stderr == f"{said} It is remembered.\n"
    old = key_of(node)
    line = f"{where} node-key {old.kind} {str(old).split()[1]}\n"
    assert (node.home / "known_nodes").read_text() == line
    for carrier in CARRIERS:
        assert node.alknet("call", "--accept-new", "--carrier", carrier, where, "node/status").stderr == ""
        assert node.json("ping", "--carrier", carrier, where)["node_key"] == old.fingerprint
    with_another_key(node)
    (said,) = refusals(node, where)
    assert said.splitlines()[0] == (
        f"alknet: the node key of 127.0.0.1 port {node.port} has CHANGED: {node.home / 'known_nodes'}:1 has"
        f" {old.fingerprint}, got {key_of(node).fingerprint}"
    )
    insisting = node.alknet("call", "--accept-new", where, "node/status", check=False)
    assert (insisting.returncode, insisting.stderr) == (5, said)  # it accepts the new, not the changed
    assert (node.home / "known_nodes").read_text() == line


def test_a_node_that_nobody_knows_and_nobody_to_ask(node: NodeProcess) -> None:
    (said,) = refusals(node, f"127.0.0.1:{node.port}")
    first, second = said.splitlines()
    assert first == (
        f"alknet: 127.0.0.1 port {node.port} is not known: its node key {key_of(node).fingerprint} stands nowhere, and"
        " its certificate does not vouch for it: its certificate is signed by itself: no authority vouches for it"
    )
    assert "--accept-new remembers it" in second
    assert not (node.home / "known_nodes").exists()


def test_a_node_that_an_authority_vouches_for(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Authority.make()
    (tmp_path / "root.pem").write_bytes(root.pem)
    root.issue(tmp_path, "127.0.0.1", "::1")
    node.edit_config('mode = "self-signed"\n', 'mode = "files"\n')
    node.edit_config('cert = ""\n', f'cert = "{tmp_path / "fullchain.pem"}"\n')
    node.edit_config('key = ""\n', f'key = "{tmp_path / "privkey.pem"}"\n')
    node.alknet("config", "reload")
    (said,) = refusals_of_strangers(node)
    assert "Test Root" in said
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "root.pem"))
    for carrier in CARRIERS:
        assert node.json("ping", "--carrier", carrier, f"127.0.0.1:{node.port}")["transport"] == carrier
    assert not (node.home / "known_nodes").exists()


def refusals_of_strangers(node: NodeProcess) -> set[str]:
    """What the commands say of the node by its address."""
    said = set()
    for carrier in CARRIERS:
        result = node.alknet("ping", "--carrier", carrier, f"127.0.0.1:{node.port}", check=False)
        assert (result.returncode, result.stdout) == (5, "")
        said.add(result.stderr)
    return said


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_certificate_that_has_expired(
    node: NodeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carrier: str
) -> None:
    root, door = Authority.make(), CallDoor(tmp_path)
    (tmp_path / "root.pem").write_bytes(root.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "root.pem"))
    now = datetime.now(UTC)
    expired = root.issue(tmp_path, "127.0.0.1", start=now - timedelta(days=9), end=now - timedelta(days=1))
    for certificate, code in ((expired, 5), (root.issue(tmp_path, "127.0.0.1"), 0)):
        async with listening(door.handler.handle, "alknet/call", certificate=certificate) as port:
            arguments = ("--identity", str(tmp_path / "alice"), "ping", "--carrier", carrier, f"127.0.0.1:{port}")
            result = await asyncio.to_thread(node.alknet, *arguments, check=False)
            assert result.returncode == code, result.stderr
            if code:
                assert "its certificate does not vouch for it: its certificate expired on " in result.stderr
                assert (door.audit.records, door.failed) == ([], [])
    await door.aclose()


@pytest.mark.parametrize("near", CARRIERS)
@pytest.mark.parametrize("proof", ["key", "token"])
async def test_a_machine_in_the_middle_is_refused_and_sees_no_proof(
    node: NodeProcess, tmp_path: Path, near: str, proof: str
) -> None:
    """It has a certificate of its own, and passes on what both sides say."""
    heard: list[bytes] = []
    token = tmp_path / "token"
    token.write_text(node.alknet("token", "create", "--scope", "*").stdout)
    node.alknet("config", "reload")

    async def serve(connection: Connection) -> None:
        dialed = await dial([("127.0.0.1", node.port)], alpn="alknet/call", carriers=("tls",))
        try:
            ours, theirs = await connection.accept_stream(), await first_stream(dialed.connection)
            async with asyncio.TaskGroup() as group:
                group.create_task(pump(ours, theirs, heard))
                group.create_task(pump(theirs, ours, []))
        finally:
            dialed.connection.close()

    async with listening(serve, "alknet/call") as port:
        node.write_peer("hub", f'addresses = ["127.0.0.1:{port}"]\nnode_key = "{key_of(node)}"')
        shown = ("--token-file", str(token)) if proof == "token" else ()
        seen = len(node.audit())
        arguments = ("call", "--carrier", near, *shown, "hub", "node/status")
        result = await asyncio.to_thread(node.alknet, *arguments, check=False)
    assert (result.returncode, result.stdout) == (5, "")
    assert result.stderr.startswith("alknet: the node did not prove to have its key on this connection: ")
    (start,) = FrameReader(max_frame=1 << 16).feed(b"".join(heard))
    assert json.loads(start)["type"] == "hello.start"
    assert [line for line in node.audit()[seen:] if line["action"] != "config/reload"] == []


async def pump(source: Stream, sink: Stream, kept: list[bytes]) -> None:
    """Pass on what comes until it ends."""
    with contextlib.suppress(AlknetError):
        while data := await source.read():
            kept.append(data)
            await sink.write(data)
        await sink.write_eof()


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_host_that_does_not_serve_calls(node: NodeProcess, carrier: str) -> None:
    async def serve(connection: Connection) -> None:
        raise AssertionError("it was reached")

    async with listening(serve, "alknet/other", "http/1.1") as port:
        for command, words in COMMANDS:
            arguments = (command, "--carrier", carrier, "--accept-new", f"127.0.0.1:{port}", *words)
            result = await asyncio.to_thread(node.alknet, *arguments, check=False)
            assert (result.returncode, result.stdout) == (5, "")
            assert result.stderr == (
                f"alknet: 127.0.0.1:{port} serves no operations: {carrier} to 127.0.0.1:{port}: it does not serve"
                " alknet/call\n"
            )


# --- who calls ---------------------------------------------------------------------------------------------------


@pytest.fixture
def agent() -> Iterator[dict[str, str]]:
    """The environment of somebody whose ssh-agent runs and has no key yet."""
    with tempfile.TemporaryDirectory(prefix="alknet-") as directory:
        path = Path(directory) / "agent"
        process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
        try:
            wait_until(path.exists, "the agent listens")
            yield {**os.environ, "SSH_AUTH_SOCK": str(path)}
        finally:
            process.terminate()
            process.wait(10)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_keys_of_an_ssh_agent_are_tried_until_one_is_known(
    node: NodeProcess, agent: dict[str, str], tmp_path: Path, carrier: str
) -> None:
    node.write_peer("bob", 'scopes = ["node:read"]')
    node.alknet("config", "reload")
    node.key("stranger")
    elsewhere = ["--home", str(tmp_path / "elsewhere")]  # where no key is
    command = [sys.executable, "-m", "alknet", *elsewhere, "call", "--carrier", carrier, "--accept-new"]
    command += [f"127.0.0.1:{node.port}", "node/status"]

    def call() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(command, env=agent, capture_output=True, text=True, check=False, cwd="/", timeout=60)

    empty = call()
    assert (empty.returncode, empty.stdout) == (4, "")
    assert "offers no Ed25519 key" in empty.stderr
    for name in ("stranger", "bob"):
        subprocess.run(["ssh-add", "-q", str(node.keys / name)], env=agent, check=True, capture_output=True)
        result = call()
        assert result.returncode == (3 if name == "stranger" else 0), result.stderr
    assert json.loads(result.stdout)["listeners"]
    via = f"key:{PublicKey.parse(node.key('bob')).fingerprint}"
    (asked,) = [line for line in node.audit() if line["action"] == "node/status" and "outcome" in line]
    assert (asked["peer"], asked["via"], asked["surface"]) == ("bob", via, carrier)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_token_from_a_file_or_stdin(node: NodeProcess, tmp_path: Path, carrier: str) -> None:
    text = node.alknet("token", "create", "--scope", "node:read").stdout.strip()
    node.alknet("config", "reload")
    file = tmp_path / "token"
    file.write_text(text + "\n")
    call = ("call", "--carrier", carrier, "--token-file")
    assert node.alknet(*call, str(file), ".", "node/status").stdout.startswith("{")
    assert node.alknet(*call, "-", ".", "node/status", input=text).stdout.startswith("{")
    (via,) = {line["via"] for line in node.audit() if line["action"] == "node/status"}
    assert via == f"token:{text[4:12]}"
    refused = node.alknet(*call, str(file), ".", "node/reload", check=False)
    assert refused.returncode == 3
    assert "the token of peer 'owner' lacks the scope node:admin" in refused.stderr
    node.alknet("token", "revoke", text[4:12])
    wait_until(lambda: node.alknet(*call, str(file), ".", "node/status", check=False).returncode == 3, "it is revoked")
    refused = node.alknet(*call, str(file), ".", "node/status", check=False)
    assert refused.returncode == 3
    assert refused.stderr.startswith("alknet: the local node refused: the token is not valid (den_")
    assert text not in node.log_text()


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_key_with_one_right_too_few(node: NodeProcess, carrier: str) -> None:
    node.write_peer("bob", 'scopes = ["node:read"]')
    node.alknet("config", "reload")
    bob = ("--identity", str(node.keys / "bob"), "call", "--carrier", carrier, ".")
    assert node.alknet(*bob, "node/status").returncode == 0
    refused = node.alknet(*bob, "node/reload", check=False)
    (asked,) = [line for line in node.audit() if line["action"] == "node/reload" and line["peer"] == "bob"]
    assert (asked["decision"], asked["rule"], asked["surface"]) == ("deny", "scope:node:admin", carrier)
    said = f"alknet: peer 'bob' lacks the scope node:admin [scope:node:admin] ({asked['denial_id']})\n"
    assert (refused.returncode, refused.stdout, refused.stderr) == (3, "", said)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_who_is_not_let_in_is_told_why(node: NodeProcess, carrier: str) -> None:
    node.write_peer("bob", "enabled = false")
    node.alknet("config", "reload")
    node.key("stranger")
    for command, words in COMMANDS:
        for name in ("stranger", "bob"):
            arguments = ("--identity", str(node.keys / name), command, "--carrier", carrier, ".", *words)
            result = node.alknet(*arguments, check=False)
            assert (result.returncode, result.stdout) == (3, "")
            said = (
                "no peer of this node has the key SHA256:"
                if name == "stranger"
                else "is disabled [peer:disabled] (den_"
            )
            assert said in result.stderr
    logins = [line for line in node.audit() if line["action"] == "call/connect" and line["decision"] == "deny"]
    assert [line["rule"] for line in logins] == ["anonymous", "peer:disabled"] * len(COMMANDS)
    assert f"({logins[-1]['denial_id']})\n" in result.stderr
    assert [line.get("peer") for line in logins] == [None, "bob"] * len(COMMANDS)


def test_the_fail2ban_filter_finds_who_was_not_let_in(node: NodeProcess, tmp_path: Path) -> None:
    node.write_peer("bob", "enabled = false")
    node.alknet("config", "reload")
    node.key("stranger")
    token = tmp_path / "token"
    token.write_text("x result=accept remote_addr=192.0.2.1")
    for identity, shown in (("owner", ()), ("stranger", ()), ("bob", ()), ("owner", ("--token-file", str(token)))):
        path = node.home / "keys" / "owner" if identity == "owner" else node.keys / identity
        arguments = ("--identity", str(path), "call", *shown, ".", "services/list")
        assert node.alknet(*arguments, check=False).returncode == (0 if (identity, shown) == ("owner", ()) else 3)
    log = tmp_path / "fail2ban.log"
    lines = node.log_text().splitlines()
    journal = [f"{line.split(' ')[0].replace('Z', '+0000')} host alknet[77]: {line}" for line in lines]
    for form in (lines, journal):
        log.write_text("".join(line + "\n" for line in form))
        command = ["fail2ban-regex", "--out", "ip", str(log), str(FILTER)]
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert found.stdout.split() == ["127.0.0.1"] * 3
