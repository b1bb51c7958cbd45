"""Which host keys are accepted, by which source, what a refusal says, and that nothing is sent before."""

import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.errors import ConfigError, UnavailableError
from alknet.keys import PublicKey
from alknet.known_nodes import HOST_KEY, NODE_KEY, KnownNodes
from alknet.ssh import trust as module
from alknet.ssh.certificate_format import ParsedCertificate, parse_certificate
from alknet.ssh.trust import HostKeyError, HostTrust, NewHost, TrustingClient
from testkit.certificates import NOW
from testkit.polling import eventually

PRIVATE = {kind: asyncssh.generate_private_key(kind) for kind in ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")}


def public(key: asyncssh.SSHKey) -> PublicKey:
    return PublicKey.parse(key.export_public_key().decode().strip())


A = public(PRIVATE["ssh-ed25519"])
B = public(asyncssh.generate_private_key("ssh-ed25519"))
ECDSA = public(PRIVATE["ecdsa-sha2-nistp256"])
RSA = public(PRIVATE["ssh-rsa"])
HOST, PORT = "node.example", 7022
NAMED = f"[{HOST}]:{PORT}"


@pytest.fixture
def known(tmp_path: Path) -> KnownNodes:
    return KnownNodes(tmp_path / "known_nodes")


@pytest.fixture
def known_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's known_hosts; the system's is empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(module, "SYSTEM_KNOWN_HOSTS", tmp_path / "ssh_known_hosts")
    (tmp_path / ".ssh").mkdir()
    return tmp_path / ".ssh" / "known_hosts"


def refusal(trust: HostTrust, key: PublicKey = A, host: str = HOST, port: int = PORT) -> HostKeyError:
    with pytest.raises(HostKeyError) as caught:
        trust.check(host, port, key)
    assert isinstance(caught.value, UnavailableError)
    assert caught.value.exit_code == 5
    return caught.value


def never(new: NewHost) -> bool:
    raise AssertionError(f"was asked: {new}")


# --- a pinned key ---------------------------------------------------------------------------------------------


def test_a_pinned_key_is_accepted_whatever_its_comment_is() -> None:
    HostTrust(pin=replace(A, comment="laptop")).check(HOST, PORT, A)


def test_another_key_than_the_pinned_one_is_refused_with_both(known: KnownNodes) -> None:
    known.add(HOST, PORT, HOST_KEY, A)
    said = refusal(HostTrust(pin=B, known_nodes=known, accept_new=never))
    assert str(said) == (
        f"node.example port 7022 did not prove to be itself: expected ssh-ed25519 {B.fingerprint} from the peer's"
        f" entry, got ssh-ed25519 {A.fingerprint}"
    )
    assert "nothing was sent" in said.hint


def test_a_pin_decides_over_known_nodes_and_known_hosts(known: KnownNodes, known_hosts: Path) -> None:
    known.add(HOST, PORT, HOST_KEY, B)
    known_hosts.write_text(f"{NAMED} {B}\n")
    HostTrust(pin=A, known_nodes=known, use_known_hosts=True).check(HOST, PORT, A)


# --- known_nodes ----------------------------------------------------------------------------------------------


def test_a_remembered_key_is_accepted_over_known_hosts(known: KnownNodes, known_hosts: Path) -> None:
    known.add(HOST, PORT, HOST_KEY, A)
    known_hosts.write_text(f"{NAMED} {B}\n")
    HostTrust(known_nodes=known, use_known_hosts=True).check(HOST, PORT, A)


def test_a_remembered_key_that_changed_is_refused_without_asking(known: KnownNodes, known_hosts: Path) -> None:
    known.add("other.example", PORT, HOST_KEY, A)
    known.add(HOST, PORT, HOST_KEY, B)
    known_hosts.write_text(f"{NAMED} {A}\n")
    said = refusal(HostTrust(known_nodes=known, use_known_hosts=True, accept_new=never))
    assert str(said) == (
        f"the host key of node.example port 7022 has CHANGED: {known.path}:2 has ssh-ed25519 {B.fingerprint},"
        f" got ssh-ed25519 {A.fingerprint}"
    )
    assert f"remove line 2 of {known.path}" in said.hint


def test_a_node_key_says_nothing_of_the_host_key(known: KnownNodes) -> None:
    known.add(HOST, PORT, NODE_KEY, A)
    assert "is not known" in str(refusal(HostTrust(known_nodes=known)))


def test_a_damaged_known_nodes_trusts_nobody(known: KnownNodes) -> None:
    known.path.write_text("nonsense\n")
    known.path.chmod(0o600)
    with pytest.raises(ConfigError, match="known_nodes:1"):
        HostTrust(known_nodes=known, accept_new=never).check(HOST, PORT, A)


# --- known_hosts ----------------------------------------------------------------------------------------------


def hashed(line: str, directory: Path) -> str:
    """The line as ``ssh-keygen -H`` writes it."""
    path = directory / "to-hash"
    path.write_text(line + "\n")
    subprocess.run(["ssh-keygen", "-H", "-f", str(path)], check=True, capture_output=True)
    return path.read_text().strip()


@pytest.mark.parametrize(
    "names",
    [NAMED, f"a.example,{NAMED},b.example", "[*.example]:7022", NAMED.upper(), HOST, "node.example,192.0.2.1", "*"],
)
def test_a_line_of_known_hosts_proves_the_host(known_hosts: Path, names: str) -> None:
    known_hosts.write_text(f"# mine\n{names} {A}\n")
    HostTrust(use_known_hosts=True).check(HOST, PORT, A)
    HostTrust(use_known_hosts=True).check(HOST.upper(), PORT, A)


def test_a_hashed_line_proves_the_host(known_hosts: Path, tmp_path: Path) -> None:
    known_hosts.write_text(hashed(f"{NAMED} {A}", tmp_path))
    HostTrust(use_known_hosts=True).check(HOST, PORT, A)
    assert "CHANGED" in str(refusal(HostTrust(use_known_hosts=True), B))


def test_the_systems_file_counts_and_port_22_is_not_written(known_hosts: Path, tmp_path: Path) -> None:
    (tmp_path / "ssh_known_hosts").write_text(f"{HOST} {A}\n[2001:db8::1]:7022 {B}\n")
    HostTrust(use_known_hosts=True).check(HOST, 22, A)
    HostTrust(use_known_hosts=True).check("2001:DB8:0::1", PORT, B)
    assert f"{tmp_path / 'ssh_known_hosts'}:1 has" in str(refusal(HostTrust(use_known_hosts=True), B, port=22))


@pytest.mark.parametrize(
    "names", ["other.example", "[node.example]:7023", "[*.example]:7022,![node.example]:7022", "x,,y", ","]
)
def test_a_line_about_others_says_nothing(known_hosts: Path, names: str) -> None:
    known_hosts.write_text(f"{names} {A}\n")
    assert "is not known" in str(refusal(HostTrust(use_known_hosts=True)))


def test_known_hosts_is_asked_only_when_it_is_to_be(known_hosts: Path) -> None:
    known_hosts.write_text(f"{NAMED} {A}\n")
    assert "is not known" in str(refusal(HostTrust()))


def test_a_key_that_changed_is_refused_with_its_line_and_without_asking(known_hosts: Path) -> None:
    known_hosts.write_text(f"# mine\n{NAMED} {RSA}\n{NAMED} {B}\n")
    said = refusal(HostTrust(use_known_hosts=True, accept_new=never))
    assert str(said) == (
        f"the host key of node.example port 7022 has CHANGED: {known_hosts}:3 has ssh-ed25519 {B.fingerprint},"
        f" got ssh-ed25519 {A.fingerprint}"
    )
    assert f"remove line 3 of {known_hosts}" in said.hint


def test_a_known_host_does_not_become_a_new_one_by_another_kind_of_key(known_hosts: Path) -> None:
    known_hosts.write_text(f"{NAMED} {RSA}\n")
    said = refusal(HostTrust(use_known_hosts=True, accept_new=never))
    assert f"{known_hosts}:1 has ssh-rsa {RSA.fingerprint}, got ssh-ed25519 {A.fingerprint}" in str(said)
    assert "add the new one" in said.hint


def test_the_key_of_the_machines_own_sshd_does_not_stand_against_a_node_on_it(known_hosts: Path) -> None:
    known_hosts.write_text(f"{HOST} {B}\n")
    assert "is not known" in str(refusal(HostTrust(use_known_hosts=True)))
    assert "CHANGED" in str(refusal(HostTrust(use_known_hosts=True), port=22))


@pytest.mark.parametrize("names", [NAMED, HOST, "*", "NODE.example"])
def test_a_revoked_key_is_refused_whoever_trusts_it(known: KnownNodes, known_hosts: Path, names: str) -> None:
    known.add(HOST, PORT, HOST_KEY, A)
    known_hosts.write_text(f"{NAMED} {A}\n@revoked {names} {A}\n")
    for trust in (HostTrust(), HostTrust(known_nodes=known), HostTrust(pin=A), HostTrust(accept_new=never)):
        said = refusal(replace(trust, use_known_hosts=True))
        assert f"{A.fingerprint}, is revoked ({known_hosts}:2)" in str(said)
    HostTrust(pin=B, use_known_hosts=True).check(HOST, PORT, B)


# --- host certificates ----------------------------------------------------------------------------------------


def certificate(*principals: str, ca: str = "ssh-ed25519", **options: Any) -> ParsedCertificate:
    """One of the key B."""
    times = {"valid_after": 0, "valid_before": int(NOW) + 3600} | options
    key = asyncssh.import_public_key(str(B))
    made = PRIVATE[ca].generate_host_certificate(key, "h", principals=list(principals), **times)
    return parse_certificate(made.public_data)


def no(trust: HostTrust, shown: ParsedCertificate) -> str:
    with pytest.raises(HostKeyError) as caught:
        trust.check_certificate(HOST, PORT, shown)
    return str(caught.value)


def test_the_authority_of_the_entry_proves_the_address_and_the_name_of_the_peer() -> None:
    trust = HostTrust(authority=A, names=("hub",), now=lambda: NOW)
    for name in (HOST, "*.example", "hub"):
        trust.check_certificate(HOST, PORT, certificate("x", name))
    assert "its host certificate does not count: it is for other, not for node.example" in no(
        trust, certificate("other")
    )
    assert "is not known" in no(trust, certificate(HOST, ca="ssh-rsa"))
    assert "expired" in no(replace(trust, now=lambda: NOW + 3600), certificate(HOST))


def test_an_authority_in_known_hosts_proves_the_hosts_that_its_line_is_for(known_hosts: Path) -> None:
    trust = HostTrust(use_known_hosts=True, names=("hub",), now=lambda: NOW)
    known_hosts.write_text(f"@cert-authority *.example,{NAMED} {A}\n")
    trust.check_certificate(HOST, PORT, certificate(HOST))
    assert "it is for hub" in no(trust, certificate("hub"))  # which is this home's name for it
    known_hosts.write_text(f"@cert-authority *.example.org {A}\n")
    assert "its authority" in no(trust, certificate(HOST))


def test_a_certificate_that_does_not_count_leaves_the_key_in_it_to_be_judged(
    known: KnownNodes, known_hosts: Path
) -> None:
    known.add(HOST, PORT, HOST_KEY, B)
    HostTrust(known_nodes=known, authority=A, now=lambda: NOW).check_certificate(HOST, PORT, certificate("other"))
    HostTrust(known_nodes=known).check_certificate(HOST, PORT, certificate(HOST, ca="ssh-rsa"))
    HostTrust(pin=B).check_certificate(HOST, PORT, certificate(HOST))
    known_hosts.write_text(f"@cert-authority * {A}\n")
    assert "did not prove to be itself" in no(HostTrust(pin=ECDSA, use_known_hosts=True), certificate(HOST))


def test_a_good_certificate_counts_although_another_key_was_known(known: KnownNodes) -> None:
    known.add(HOST, PORT, HOST_KEY, ECDSA)
    HostTrust(known_nodes=known, authority=A, now=lambda: NOW).check_certificate(HOST, PORT, certificate(HOST))


def test_a_revoked_authority_or_key_is_refused_whatever_else_is_known(known_hosts: Path) -> None:
    trust = HostTrust(authority=A, use_known_hosts=True, now=lambda: NOW)
    for revoked in (A, B):
        known_hosts.write_text(f"@revoked * {revoked}\n@cert-authority * {A}\n")
        assert "is revoked" in no(trust, certificate(HOST))


def test_certificates_are_asked_for_where_an_authority_is_known(known_hosts: Path) -> None:
    first = HostTrust(authority=A).algorithms(HOST, PORT)[0]
    assert first == "ssh-ed25519-cert-v01@openssh.com"
    known_hosts.write_text(f"@cert-authority {NAMED} {A}\n")
    assert HostTrust(use_known_hosts=True).algorithms(HOST, PORT)[0] == first
    assert HostTrust(use_known_hosts=True, pin=A).algorithms(HOST, PORT)[0] == "ssh-ed25519"
    assert not any("cert" in name for name in HostTrust(use_known_hosts=True).algorithms("other.example", PORT))
    assert not any(name.startswith("ssh-rsa") for name in HostTrust(authority=A).algorithms(HOST, PORT))


# --- known_hosts that are odd ---------------------------------------------------------------------------------


def test_a_known_hosts_that_cannot_be_read_or_is_huge_is_said(
    known_hosts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_hosts.write_text(f"{NAMED} {A}\n")
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 10)
    with pytest.raises(ConfigError, match="is larger than"):
        HostTrust(use_known_hosts=True).check(HOST, PORT, A)
    known_hosts.unlink()
    known_hosts.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        HostTrust(use_known_hosts=True).check(HOST, PORT, A)


MARKS = ["@revoked", "@cert-authority", "@x"]
NAMES = ["|1|AA==|AA==", "|1|x", NAMED, "*", "!", ",", "[", "1.2.3.4/5", "1.2.3.4/99"]
KEYS = ["subject=x", "ssh-ed25519", "ssh-rsa", "AAAA", str(B).split()[1], str(A)[:40], "restrict"]
fields = st.text(max_size=12) | st.sampled_from([*MARKS, *NAMES, *KEYS])


@given(junk=st.lists(fields, max_size=4).map(" ".join))
def test_a_line_that_makes_no_sense_harms_no_other(tmp_path_factory: pytest.TempPathFactory, junk: str) -> None:
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir()
    (home / ".ssh" / "known_hosts").write_bytes(f"{junk}\n{NAMED} {A}\n".encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setattr(module, "SYSTEM_KNOWN_HOSTS", home / "none")
        HostTrust(use_known_hosts=True).check(HOST, PORT, A)


# --- nobody knows it ------------------------------------------------------------------------------------------


def test_an_unknown_host_is_refused_with_the_ways_to_trust_it() -> None:
    said = refusal(HostTrust())
    assert str(said) == f"node.example port 7022 is not known: its ssh-ed25519 key {A.fingerprint} stands nowhere"
    assert all(way in said.hint for way in ("--accept-new", "host_key", "known_hosts"))


def test_a_yes_is_remembered(known: KnownNodes) -> None:
    asked: list[NewHost] = []

    def yes(new: NewHost) -> bool:
        asked.append(new)
        return True

    trust = HostTrust(known_nodes=known, accept_new=yes)
    trust.check(HOST, PORT, A)
    trust.check(HOST, PORT, A)
    assert asked == [NewHost(HOST, PORT, A)]
    assert A.fingerprint in str(asked[0])
    assert known.find(HOST, PORT, HOST_KEY) == A
    assert "CHANGED" in str(refusal(trust, B))


def test_a_no_is_a_refusal_and_leaves_nothing(known: KnownNodes) -> None:
    assert "was not accepted" in str(refusal(HostTrust(known_nodes=known, accept_new=lambda new: False)))
    assert not known.path.exists()


def test_a_yes_without_a_place_to_remember_holds_once() -> None:
    HostTrust(accept_new=lambda new: True).check(HOST, PORT, A)


# --- which kind of key the host is asked for --------------------------------------------------------------------


def test_the_kind_of_the_known_key_is_asked_for_first(known: KnownNodes, known_hosts: Path) -> None:
    assert HostTrust().algorithms(HOST, PORT)[0] == "ssh-ed25519"
    assert HostTrust(pin=RSA).algorithms(HOST, PORT)[:2] == ("rsa-sha2-512", "rsa-sha2-256")
    known_hosts.write_text(f"{HOST} {A}\n{NAMED} {RSA}\n")
    trust = HostTrust(known_nodes=known, use_known_hosts=True)
    assert trust.algorithms(HOST, PORT)[:3] == ("rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519")
    known.add(HOST, PORT, HOST_KEY, ECDSA)
    assert trust.algorithms(HOST, PORT)[0] == "ecdsa-sha2-nistp256"
    assert len(trust.algorithms(HOST, PORT)) == len(set(trust.algorithms(HOST, PORT))) == 6


# --- in a real handshake ----------------------------------------------------------------------------------------


class Server(asyncssh.SSHServer):
    """Lets everybody in who gets so far."""

    def begin_auth(self, username: str) -> bool:
        return False


@asynccontextmanager
async def listening(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> AsyncIterator[tuple[int, list[int]]]:
    """A server on loopback with host keys of these kinds: its port, and the numbers of all messages that it got."""
    messages: list[int] = []
    original = asyncssh.SSHServerConnection.process_packet

    def recording(self: Any, pkttype: int, *rest: Any) -> Any:
        messages.append(pkttype)
        return original(self, pkttype, *rest)

    monkeypatch.setattr(asyncssh.SSHServerConnection, "process_packet", recording)
    keys = [PRIVATE[kind] for kind in kinds]
    async with await asyncssh.create_server(Server, "127.0.0.1", 0, server_host_keys=keys) as server:
        yield server.get_port(), messages


async def dial(port: int, trust: HostTrust, **options: Any) -> tuple[asyncssh.SSHClientConnection | None, Any]:
    client = TrustingClient(trust)
    if "server_host_key_algs" not in options:
        options["server_host_key_algs"] = trust.algorithms("127.0.0.1", port)
    try:
        connection, _ = await asyncssh.create_connection(
            lambda: client,
            "127.0.0.1",
            port,
            username="x",
            known_hosts=([], [], []),
            client_keys=None,
            agent_path=None,
            config=None,
            **options,
        )
    except asyncssh.HostKeyNotVerifiable:
        return None, client.refusal
    return connection, client.refusal


MSG_DISCONNECT, MSG_SERVICE_REQUEST, MSG_KEXINIT = 1, 5, 20  # what lies between is handled elsewhere: 30 and above


async def test_nothing_is_sent_to_a_host_with_a_wrong_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(monkeypatch, "ssh-ed25519") as (port, messages):
        connection, said = await dial(port, HostTrust(pin=B))
        assert connection is None
        assert f"expected ssh-ed25519 {B.fingerprint}" in str(said)
        await eventually(lambda: MSG_DISCONNECT in messages, "the client hangs up")
        assert messages == [MSG_KEXINIT, MSG_DISCONNECT]


async def test_a_host_with_the_right_key_gets_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(monkeypatch, "ssh-ed25519") as (port, messages):
        connection, said = await dial(port, HostTrust(pin=A))
        assert (connection is None, said) == (False, None)
        assert MSG_SERVICE_REQUEST in messages
        assert connection is not None
        connection.close()
        await connection.wait_closed()


async def test_of_several_keys_the_known_one_is_shown(monkeypatch: pytest.MonkeyPatch, known: KnownNodes) -> None:
    for key in (A, ECDSA, RSA):
        async with listening(monkeypatch, *PRIVATE) as (port, _):
            known.add("127.0.0.1", port, HOST_KEY, key)
            connection, said = await dial(port, HostTrust(known_nodes=known))
            assert said is None, key.kind
            assert connection is not None
            connection.close()
            await connection.wait_closed()


async def test_a_new_host_is_asked_about_once_and_then_known(
    monkeypatch: pytest.MonkeyPatch, known: KnownNodes
) -> None:
    answers: list[Callable[[NewHost], bool]] = [lambda new: True, never]
    async with listening(monkeypatch, "ecdsa-sha2-nistp256") as (port, _):
        for accept_new in answers:
            connection, said = await dial(port, HostTrust(known_nodes=known, accept_new=accept_new))
            assert said is None
            assert connection is not None
            connection.close()
            await connection.wait_closed()
        assert known.find("127.0.0.1", port, HOST_KEY) == ECDSA


async def test_a_file_that_cannot_be_used_is_what_the_caller_hears(
    monkeypatch: pytest.MonkeyPatch, known: KnownNodes
) -> None:
    known.path.write_text("nonsense\n")
    known.path.chmod(0o600)
    async with listening(monkeypatch, "ssh-ed25519") as (port, _):
        connection, said = await dial(port, HostTrust(known_nodes=known), server_host_key_algs=["ssh-ed25519"])
    assert connection is None
    assert isinstance(said, ConfigError)


async def test_a_weak_key_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    weak = asyncssh.generate_private_key("ssh-rsa", key_size=1024)
    monkeypatch.setitem(PRIVATE, "weak", weak)
    async with listening(monkeypatch, "weak") as (port, _):
        assert "is an RSA key of 1024 bits" in str((await dial(port, HostTrust(accept_new=never)))[1])


async def test_a_host_shows_its_certificate_to_who_knows_its_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    ca = asyncssh.generate_private_key("ssh-ed25519")
    made = ca.generate_host_certificate(PRIVATE["ssh-ed25519"], "x", principals=["127.0.0.1"])
    monkeypatch.setitem(PRIVATE, "certified", (PRIVATE["ssh-ed25519"], made))
    for trust in (HostTrust(authority=public(ca), accept_new=never), HostTrust(pin=A), HostTrust(pin=A, authority=B)):
        async with listening(monkeypatch, "certified") as (port, _):
            connection, said = await dial(port, trust)
            assert said is None
            assert connection is not None
            connection.close()
            await connection.wait_closed()
    async with listening(monkeypatch, "certified") as (port, _):
        said = (await dial(port, HostTrust(authority=B)))[1]
        assert f"its authority {public(ca).fingerprint} is not known" in str(said)


def test_an_address_that_is_given_is_looked_up_instead(known: KnownNodes) -> None:
    known.add(HOST, PORT, HOST_KEY, A)
    client = TrustingClient(HostTrust(known_nodes=known), address=(HOST, PORT))
    assert client.validate_host_public_key("in-memory", "", 0, PRIVATE["ssh-ed25519"])
    assert client.refusal is None


def test_an_exchange_of_new_keys_asks_nobody_again_and_takes_no_other_host_key() -> None:
    asked: list[NewHost] = []

    def first_only(new: NewHost) -> bool:
        asked.append(new)
        return len(asked) == 1

    client = TrustingClient(HostTrust(accept_new=first_only))
    for _ in range(2):
        assert client.validate_host_public_key(HOST, "", PORT, PRIVATE["ssh-ed25519"])
    assert len(asked) == 1
    assert not client.validate_host_public_key(HOST, "", PORT, PRIVATE["ssh-rsa"])
    assert isinstance(client.refusal, HostKeyError)
