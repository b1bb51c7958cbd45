"""Identities that a certificate proved: whom it names, what it permits, and how long."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.access import (
    Authority,
    Certificate,
    Context,
    DaemonUser,
    Identity,
    Peer,
    Policy,
    SshRights,
    UserAuthority,
    authorize,
)
from alknet.actions import ACTIONS, permits

NOW = 1_700_000_000.0
CA = UserAuthority("SHA256:ca", ("a*", "ops"))
PERMITS = frozenset({"pty", "port-forwarding", "agent-forwarding"})
ALICE = Peer("alice", {"*": "own"}, principals=("a1", "ops"), ssh=SshRights(user="alice-os"))
BOB = Peer("bob", {"*": "own"}, principals=("a2", "root"))
SHOWN = Certificate("SHA256:key", CA.key, "laptop", 5, ("a1",), PERMITS, valid_before=NOW + 60)


def policy(*peers: Peer, **changes: Any) -> Policy:
    values: dict[str, Any] = {"user_authorities": {CA.key: CA}} | changes
    return Policy({p.id: p for p in peers or (ALICE, BOB)}, "r1", b"k" * 32, DaemonUser("root", True), **values)


def named(certificate: Certificate, under: Policy | None = None) -> str:
    """The id of the peer that it names, else the rule against it."""
    found = (under or policy()).lookup_principal(certificate)
    return found.id if isinstance(found, Identity) else found[0]


def test_an_identity_has_what_the_peer_and_the_certificate_say() -> None:
    assert policy().lookup_principal(SHOWN) == Identity("alice", frozenset({"*"}), "cert:SHA256:key", NOW + 60, SHOWN)


@pytest.mark.parametrize(
    ("principals", "expected"),
    [
        (("a1",), "alice"),
        (("a1", "ops"), "alice"),
        (("nobody", "ops", "x"), "alice"),
        (("a2",), "bob"),
        (("root",), "certificate:principals"),  # which the authority may not sign for
        (("root", "ops"), "alice"),
        (("a1", "a2"), "certificate:principals"),
        (("alice",), "certificate:principals"),  # an id is no principal by itself
        (("a1,ops",), "certificate:principals"),  # names are never split
        (("A1",), "certificate:principals"),
        ((), "certificate:principals"),
    ],
)
def test_which_peer_the_principals_name(principals: tuple[str, ...], expected: str) -> None:
    assert named(replace(SHOWN, principals=principals)) == expected


@given(st.lists(st.sampled_from(["a1", "a2", "ops", "root", "x"]), max_size=6))
def test_a_certificate_never_names_more_than_one_peer(principals: list[str]) -> None:
    owners = {"a1": "alice", "ops": "alice", "a2": "bob"}
    peers = {owners[name] for name in principals if name in owners}
    expected = peers.pop() if len(peers) == 1 else "certificate:principals"
    assert named(replace(SHOWN, principals=tuple(principals))) == expected


def test_a_peer_that_two_are_named_with_counts_although_it_is_disabled() -> None:
    two = replace(SHOWN, principals=("a1", "a2"))
    assert named(two, policy(ALICE, replace(BOB, enabled=False))) == "certificate:principals"


@pytest.mark.parametrize(
    ("under", "rule"),
    [
        (policy(user_authorities={}), "certificate:authority"),
        (policy(user_authorities={"SHA256:other": replace(CA, key="SHA256:other")}), "certificate:authority"),
        (policy(user_authorities={CA.key: replace(CA, revoked=frozenset({5}))}), "certificate:revoked"),
        (policy(revoked_keys=frozenset({"SHA256:key"})), "certificate:revoked"),
        (policy(revoked_keys=frozenset({CA.key})), "certificate:revoked"),
        (policy(user_authorities={CA.key: replace(CA, principals=())}), "certificate:principals"),
        (policy(user_authorities={CA.key: replace(CA, principals=("[a]1",))}), "certificate:principals"),
    ],
)
def test_what_the_policy_has_against_a_certificate(under: Policy, rule: str) -> None:
    assert named(SHOWN, under) == rule


@pytest.mark.parametrize(
    ("entry", "certificate", "expected"),
    [
        (None, None, "alice"),
        (None, "date", "alice"),
        ("date", None, "alice"),
        ("date", "date", "alice"),
        ("date", "id", "certificate:force-command"),
    ],
)
def test_forced_commands_of_the_peer_and_of_the_certificate_that_differ_refuse(
    entry: str | None, certificate: str | None, expected: str
) -> None:
    forced = replace(ALICE, ssh=SshRights(force_command=entry))
    assert named(replace(SHOWN, force_command=certificate), policy(forced)) == expected


# --- later ----------------------------------------------------------------------------------------------------


def identity(certificate: Certificate = SHOWN) -> Identity:
    found = policy().lookup_principal(certificate)
    assert isinstance(found, Identity)
    return found


def test_renewing_looks_the_certificate_up_again() -> None:
    narrowed = replace(ALICE, scopes={"ssh:exec": "own"})
    renewed = policy(narrowed, BOB).renew(identity())
    assert renewed == replace(identity(), scopes=frozenset({"ssh:exec"}))
    assert policy(replace(ALICE, principals=("ops",)), BOB).renew(identity()) is None
    moved = policy(replace(ALICE, principals=()), replace(BOB, principals=("a1",)))
    assert moved.renew(identity()) is None
    both = replace(SHOWN, principals=("a1", "b1"))
    assert (
        policy(
            ALICE, replace(BOB, principals=("b1",)), user_authorities={CA.key: replace(CA, principals=("*",))}
        ).renew(identity(both))
        is None
    )
    assert policy().renew(replace(identity(), certificate=None)) is None


def test_a_certificate_that_is_over_allows_nothing_and_is_waited_for() -> None:
    for now, rule in ((NOW + 59, "peer:enabled"), (NOW + 60, "certificate:expired")):
        assert authorize(identity(), "ssh/login", "alice", Context(policy(), now)).rule == rule
    assert policy().next_expiry(NOW) is None
    assert policy().next_expiry(NOW, [identity(), replace(identity(), expires_at=None)]) == NOW + 60
    assert policy().next_expiry(NOW + 60, [identity()]) is None


def test_a_revoked_key_is_nobodys() -> None:
    holder = replace(ALICE, keys=("SHA256:key",))
    assert policy(holder).lookup_key("SHA256:key") is not None
    assert policy(holder, revoked_keys=frozenset({"SHA256:key"})).lookup_key("SHA256:key") is None


# --- what it permits ------------------------------------------------------------------------------------------


def decide(action: str, resource: str | None, certificate: Certificate | None) -> str:
    caller = replace(identity(), certificate=certificate, via="key:x" if certificate is None else "cert:SHA256:key")
    return authorize(caller, action, resource, Context(policy(), NOW)).rule


@pytest.mark.parametrize("name", sorted(PERMITS))
def test_what_a_certificate_does_not_name_it_does_not_permit(name: str) -> None:
    rule = f"certificate:permit-{name}"
    asking = [action for action, known in ACTIONS.items() if permits(name) in known.credential]
    assert asking
    for action in asking:
        assert decide(action, None, replace(SHOWN, permits=PERMITS - {name})) == rule
        assert decide(action, None, replace(SHOWN, permits=frozenset())) == rule
        assert decide(action, None, SHOWN) != rule
        assert decide(action, None, None) != rule


@pytest.mark.parametrize(
    ("login", "certificate", "allowed"),
    [
        ("alice", SHOWN, True),
        ("alice-os", SHOWN, True),
        ("a1", SHOWN, True),
        ("ops", SHOWN, False),
        ("a1", None, False),
        ("a2", replace(SHOWN, principals=("a1", "a2")), False),
        ("", SHOWN, False),
    ],
)
def test_the_login_name_may_be_a_principal_of_both(login: str, certificate: Certificate | None, allowed: bool) -> None:
    assert (decide("ssh/login", login, certificate) == "login-name") is not allowed


def test_rules_about_credentials_need_one() -> None:
    caller = Authority("x/y", frozenset({"*"}))
    assert not authorize(caller, "ssh/agent", None, Context(policy(), NOW))


def test_a_denial_has_another_id_than_that_of_the_same_rule_for_another_peer() -> None:
    no = replace(SHOWN, permits=frozenset())
    denials = [
        authorize(replace(identity(no), id=name), "ssh/pty", None, Context(policy(), NOW)).denial_id
        for name in ("alice", "bob")
    ]
    assert None not in denials
    assert len(set(denials)) == 2
