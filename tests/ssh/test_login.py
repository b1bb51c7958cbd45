"""Logging in with a certificate; logins with keys are in test_connection.py."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import asyncssh
import pytest

from alknet.access import Identity, Peer, Policy, SshRights, UserAuthority
from alknet.config.policy import daemon_user
from alknet.keys import fingerprint
from alknet.ssh.handler import SshSettings
from testkit.certificates import CA, CA_KEY, USER_KEY, odd_certificate, option, user_certificate
from testkit.ssh_pair import Door

DAEMON = daemon_user()
KEY = fingerprint(USER_KEY.public_data)


def peer(name: str, *principals: str, **changes: Any) -> Peer:
    rights = SshRights(user=DAEMON.name, as_daemon=True, force_command=changes.pop("force_command", None))
    return replace(Peer(name, {"ssh:*": "own"}, principals=principals, ssh=rights), **changes)


ALICE = peer("alice", "alice@example.org", "ops")
BOB = peer("bob", "bob@example.org")


def policy(*peers: Peer, signs: tuple[str, ...] = ("*",), revision: str = "r1", **changes: Any) -> Policy:
    values: dict[str, Any] = {
        "user_authorities": {CA: UserAuthority(CA, signs, changes.pop("revoked", frozenset()))},
    }
    return Policy({p.id: p for p in peers or (ALICE, BOB)}, revision, b"k" * 32, DAEMON, **(values | changes))


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    door = Door(policy=policy())
    yield door
    await door.aclose()


class Heard(asyncssh.SSHClient):
    """What the node says before the login."""

    def __init__(self) -> None:
        self.banner = ""

    def auth_banner_received(self, msg: str, lang: str) -> None:
        self.banner += msg


def shown(certificate: asyncssh.SSHCertificate | bytes, key: asyncssh.SSHKey = USER_KEY) -> asyncssh.SSHKeyPair:
    """The certificate alone, without the key in it as a second offer."""
    if isinstance(certificate, bytes):
        pair = asyncssh.load_keypairs([key])[0]
        pair.public_data, pair.algorithm = certificate, b"ssh-ed25519-cert-v01@openssh.com"
        return pair
    return asyncssh.load_keypairs([(key, certificate)])[0]


async def refused(door: Door, certificate: asyncssh.SSHCertificate | bytes, **options: Any) -> tuple[str, str]:
    """(rule of the last refused login, the banner)."""
    heard = Heard()
    options = {"username": "alice", "client_keys": [shown(certificate)], "client_factory": lambda: heard} | options
    with pytest.raises(asyncssh.PermissionDenied):
        async with door.connect(**options):
            pass
    await door.wait_empty()
    record = [r for r in door.audit.records if r["action"] == "ssh/login"][-1]
    assert record["decision"] == "deny"
    assert heard.banner == "" or record["denial_id"] in heard.banner
    return record["rule"], heard.banner


def identity_of(door: Door) -> Identity:
    (connection,) = door.router.connections
    assert connection.identity is not None
    return connection.identity


# --- who gets in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("login", ["alice", "ops", DAEMON.name])
async def test_a_certificate_proves_the_peer_whose_principal_it_names(door: Door, login: str) -> None:
    key = shown(user_certificate("nobody", "ops"))
    async with door.connect(username=login, client_keys=[key]) as client:
        assert (await client.run("exit 5")).exit_status == 5
        identity = identity_of(door)
        assert (identity.id, identity.via, identity.scopes) == ("alice", f"cert:{KEY}", {"ssh:*"})
        assert identity.certificate is not None
        assert identity.expires_at == identity.certificate.valid_before
    intent = next(r for r in door.audit.records if r["action"] == "ssh/login")
    assert (intent["via"], intent["certificate"]) == (f"cert:{KEY}", "the id")
    assert (intent["certificate_serial"], intent["certificate_authority"]) == (7, CA)


@pytest.mark.parametrize("kind", ["ecdsa-sha2-nistp256", "ssh-rsa"])
async def test_other_kinds_of_keys_and_authorities_do_too(kind: str) -> None:
    ca, key = asyncssh.generate_private_key(kind), asyncssh.generate_private_key(kind)
    known = fingerprint(ca.public_data)
    door = Door(policy=policy(user_authorities={known: UserAuthority(known, ("o?s",))}))
    sig_alg = "rsa-sha2-256" if kind == "ssh-rsa" else kind
    pair = asyncssh.load_keypairs([(key, user_certificate("ops", ca=ca, key=key, sig_alg=sig_alg))])[0]
    async with door.connect(username="alice", client_keys=[pair]):
        assert identity_of(door).id == "alice"
    await door.aclose()


async def test_a_known_key_in_a_certificate_is_judged_as_a_certificate() -> None:
    door = Door(policy=policy(replace(BOB, keys=(KEY,)), ALICE))
    async with door.connect(username="alice", client_keys=[shown(user_certificate("ops"))]):
        assert identity_of(door).id == "alice"
    rule, _ = await refused(door, user_certificate("nobody"), username="bob")
    assert rule == "certificate:principals"
    async with door.connect(username="bob", client_keys=[USER_KEY]):
        assert identity_of(door).id == "bob"
    await door.aclose()


# --- who does not ---------------------------------------------------------------------------------------------

SIGNED = {
    # case: (certificate, rule, what its holder is told)
    "of nobody": (user_certificate("nobody"), "certificate:principals", "has no principal that belongs to a peer"),
    "joined": (user_certificate("nobody,ops"), "certificate:principals", "has no principal that belongs to a peer"),
    "of two": (
        user_certificate("ops", "bob@example.org"),
        "certificate:principals",
        "the certificate's principals name 'alice' and 'bob'; they must name one peer",
    ),
    "without principals": (user_certificate(), "certificate:principals", "names no principal"),
    "expired": (user_certificate("ops", valid_after=1, valid_before=2), "certificate:expired", "expired at 1970-01-01"),
    "early": (
        user_certificate("ops", valid_after=2_000_000_000, valid_before=2_000_000_001),
        "certificate:not-yet-valid",
        "is not valid before 2033",
    ),
    "from elsewhere": (
        user_certificate("ops", source_address=["10.0.0.0/8"]),
        "certificate:source-address",
        "is not for use from 192.0.2.1",
    ),
    "demanding": (
        odd_certificate(principals=(b"ops",), critical=option("verify-required")),
        "certificate:critical-option",
        "demands 'verify-required'",
    ),
    "of a host": (odd_certificate(principals=(b"ops",), kind=2), "certificate:type", "a certificate of a host"),
}


@pytest.mark.parametrize("case", SIGNED)
async def test_the_holder_of_a_signed_certificate_is_told_why_not(door: Door, case: str) -> None:
    certificate, rule, words = SIGNED[case]
    found, banner = await refused(door, certificate)
    assert found == rule
    assert words in banner
    assert door.failed_hosts == ["192.0.2.1"]


NOT_SIGNED = {
    "by a stranger": user_certificate("ops", ca=asyncssh.generate_private_key("ssh-ed25519")),
    "with another's name": odd_certificate(
        ca=asyncssh.generate_private_key("ssh-ed25519"), principals=(b"ops",), signer=CA_KEY.public_data
    ),
    "damaged": odd_certificate(principals=(b"ops",), tail=b"x"),
    "by a certified key": odd_certificate(principals=(b"ops",), signer=user_certificate("ops").public_data),
}


@pytest.mark.parametrize("case", NOT_SIGNED)
async def test_whom_no_authority_vouches_for_is_a_stranger_and_hears_nothing(
    door: Door, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    rule, banner = await refused(door, NOT_SIGNED[case])
    assert (rule, banner) == ("anonymous", "")
    reason = "unknown-authority" if case == "by a stranger" else "bad-certificate"
    assert any(f"result=reject reason={reason} " in line for line in caplog.messages)


async def test_a_certificate_without_its_private_key_lets_nobody_in(door: Door) -> None:
    thief = asyncssh.generate_private_key("ssh-ed25519")
    rule, banner = await refused(door, b"", client_keys=[shown(user_certificate("ops").public_data, key=thief)])
    assert (rule, banner) == ("anonymous", "")


async def test_an_rsa_authority_that_signs_with_sha1_vouches_for_nobody() -> None:
    ca = asyncssh.generate_private_key("ssh-rsa")
    known = fingerprint(ca.public_data)
    door = Door(policy=policy(user_authorities={known: UserAuthority(known, ("*",))}))
    assert (await refused(door, user_certificate("ops", ca=ca, sig_alg="ssh-rsa")))[0] == "anonymous"
    await door.aclose()


POLICIES = {
    "an authority that may not": (policy(signs=("dev-*",)), "certificate:principals"),
    "a revoked serial number": (policy(revoked=frozenset({7})), "certificate:revoked"),
    "a revoked key": (policy(revoked_keys=frozenset({KEY})), "certificate:revoked"),
    "a revoked authority": (policy(revoked_keys=frozenset({CA})), "certificate:revoked"),
    "a disabled peer": (policy(replace(ALICE, enabled=False)), "peer:disabled"),
    "another forced command": (policy(peer("alice", "ops", force_command="id")), "certificate:force-command"),
}


@pytest.mark.parametrize("case", POLICIES)
async def test_what_the_policy_has_against_it(case: str) -> None:
    snapshot, rule = POLICIES[case]
    door = Door(policy=snapshot)
    found, banner = await refused(door, user_certificate("ops", force_command="date"))
    assert found == rule
    assert f"[{rule}]" in banner
    await door.aclose()


async def test_a_login_name_that_is_a_principal_must_be_one_of_the_certificate(door: Door) -> None:
    rule, banner = await refused(door, user_certificate("ops"), username="alice@example.org")
    assert rule == "login-name"
    assert "must be 'alice' or 'ops' or" in banner


async def test_a_revoked_key_lets_nobody_in_by_itself_either() -> None:
    door = Door(policy=policy(replace(ALICE, keys=(KEY,)), revoked_keys=frozenset({KEY})))
    with pytest.raises(asyncssh.PermissionDenied):
        async with door.connect(username="alice", client_keys=[USER_KEY]):
            pass
    await door.aclose()


async def test_certificates_count_as_attempts_like_keys() -> None:
    door = Door(policy=policy(), settings=SshSettings(auth_attempts=2))
    keys = [shown(user_certificate("nobody")) for _ in range(6)]
    with pytest.raises(asyncssh.DisconnectError):
        async with door.connect(username="alice", client_keys=keys):
            pass
    await door.wait_empty()
    assert len([r for r in door.audit.records if r["action"] == "ssh/login"]) <= 3
    await door.aclose()


# --- what it permits, and for how long ------------------------------------------------------------------------


async def test_its_command_is_run_whatever_is_asked_for(door: Door) -> None:
    key = shown(user_certificate("ops", force_command='echo "forced: $SSH_ORIGINAL_COMMAND"'))
    async with door.connect(username="alice", client_keys=[key]) as client:
        assert (await client.run("id")).stdout == "forced: id\n"
        assert (await client.run(None)).stdout == "forced: \n"
        process = await client.create_process(subsystem="sftp")
        assert await process.stdout.read() == "forced: sftp\n"


async def test_its_command_is_bound_by_the_peers_list_and_seen_by_no_shell() -> None:
    listed = replace(ALICE, ssh=replace(ALICE.ssh, commands=("echo *",)))
    door = Door(policy=policy(listed))
    async with door.connect(
        username="alice", client_keys=[shown(user_certificate("ops", force_command="id"))]
    ) as client:
        assert (await client.run("echo x")).exit_status == 3
    forced = "echo a; id"
    async with door.connect(
        username="alice", client_keys=[shown(user_certificate("ops", force_command=forced))]
    ) as two:
        assert (await two.run("anything")).stdout == "a; id\n"
    await door.aclose()


async def test_without_permit_pty_a_session_has_no_terminal_and_says_so(door: Door) -> None:
    key = shown(user_certificate("ops", permit_pty=False))
    async with door.connect(username="alice", client_keys=[key]) as client:
        with pytest.raises(asyncssh.ChannelOpenError):
            await client.run("tty", term_type="xterm")
        assert (await client.run("tty")).stdout == "not a tty\n"
    (record,) = [r for r in door.audit.records if r["action"] == "ssh/pty"]
    assert (record["rule"], record["decision"]) == ("certificate:permit-pty", "deny")
    async with door.connect(username="alice", client_keys=[shown(user_certificate("ops"))]) as client:
        assert (await client.run("tty", term_type="xterm")).exit_status == 0


NARROWED = {
    "the authority is gone": policy(user_authorities={}, revision="r2"),
    "it may sign for less": policy(signs=("bob*",), revision="r2"),
    "the principal is gone": policy(replace(ALICE, principals=()), BOB, revision="r2"),
    "the principal is another's": policy(
        replace(ALICE, principals=()), replace(BOB, principals=("ops",)), revision="r2"
    ),
    "a serial number is revoked": policy(revoked=frozenset({7}), revision="r2"),
    "the peer is gone": policy(BOB, revision="r2"),
    "the peer is disabled": policy(replace(ALICE, enabled=False), revision="r2"),
}


@pytest.mark.parametrize("case", NARROWED)
async def test_a_reload_that_takes_its_ground_away_ends_the_connection(door: Door, case: str) -> None:
    async with door.connect(username="alice", client_keys=[shown(user_certificate("ops"))]) as client:
        door.replace_policy(NARROWED[case])
        await client.wait_closed()
    await door.wait_empty()
    assert door.outcomes("ssh/login") == ["revoked"]


async def test_a_reload_that_leaves_it_alone_changes_nothing(door: Door) -> None:
    async with door.connect(username="alice", client_keys=[shown(user_certificate("ops"))]) as client:
        door.replace_policy(policy(replace(ALICE, scopes={"ssh:exec": "own"}), BOB, signs=("ops",), revision="r2"))
        assert (await client.run("exit 4")).exit_status == 4


async def test_its_end_ends_the_connection(door: Door) -> None:
    async with door.connect(username="alice", client_keys=[shown(user_certificate("ops"))]) as client:
        end = identity_of(door).expires_at
        assert end is not None
        assert door.gate.policy.next_expiry(end - 1, [identity_of(door)]) == end
        door.gate.clock.advance(3599)  # type: ignore[attr-defined]
        door.router.recheck()
        assert (await client.run("exit 4")).exit_status == 4
        door.gate.clock.advance(1)  # type: ignore[attr-defined]
        door.router.recheck()
        await client.wait_closed()
    assert door.outcomes("ssh/login") == ["revoked"]
