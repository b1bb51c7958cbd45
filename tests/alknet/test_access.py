"""The access decision: its order, scopes of peers, tokens and authorities, operations, denial ids, credentials."""

from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import example, given
from hypothesis import strategies as st

from alknet.access import (
    Access,
    Authority,
    Context,
    DaemonUser,
    Decision,
    Identity,
    Peer,
    Policy,
    SshRights,
    Token,
    authorize,
    scope_grants,
    token_digest,
)
from alknet.actions import ACTIONS

NOW = 1_700_000_000.0
ROOT = DaemonUser("root", is_root=True)
ALICE = Peer("alice", {"ssh:exec": "own", "ssh:shell": "role dev"}, keys=("SHA256:a",), ssh=SshRights(user="alice-os"))
BOB = Peer("bob", {"*": "own"}, keys=("SHA256:b",), ssh=SshRights(user="bob-os"))


def policy(*peers: Peer, exec_enabled: bool = True, tokens: Sequence[Token] = ()) -> Policy:
    return Policy(
        peers={peer.id: peer for peer in peers or (ALICE, BOB)},
        revision="r1",
        denial_key=b"k" * 32,
        daemon=ROOT,
        exec_enabled=exec_enabled,
        tokens={token.prefix: token for token in tokens},
    )


def who(peer: Peer = ALICE) -> Identity:
    return Identity(peer.id, frozenset(peer.scopes), f"key:{peer.keys[0] if peer.keys else ''}")


def bearer(peer: Peer, *scopes: str, expires_at: float | None = None) -> Identity:
    return Identity(peer.id, frozenset(scopes), "token:abcdefgh", expires_at)


def decide(
    action: str, resource: str | None = None, *, peer: Peer = ALICE, under: Policy | None = None, now: float = NOW
) -> Decision:
    return authorize(who(peer), action, resource, Context(under or policy(peer), now))


def operate(
    access: Access, caller: Identity | Authority | None = None, resource: str | None = None, *, peer: Peer = ALICE
) -> Decision:
    """The decision about an operation, for `peer` with its key if no other caller is given."""
    return authorize(caller or who(peer), "fs/read", resource, Context(policy(peer), NOW), access=access)


# --- the order ------------------------------------------------------------------------------------------------


def test_a_granted_action_names_the_scope_that_granted_it_and_its_source() -> None:
    decision = decide("ssh/shell")
    assert (decision.allowed, decision.rule) == (True, "scope:ssh:shell")
    assert decision.reason == "peer 'alice' has the scope ssh:shell (role dev)"
    assert decision.denial_id is None


@pytest.mark.parametrize("action", [*ACTIONS, "no/such"])
@pytest.mark.parametrize("access", [None, Access(), Access(required_scopes_any=()), Access(resource_type="unit")])
def test_nobody_gets_the_same_answer_for_every_action_and_operation(action: str, access: Access | None) -> None:
    decision = authorize(None, action, None, Context(policy(), NOW), access=access)
    assert (decision.allowed, decision.rule, decision.reason) == (False, "anonymous", "authentication required")
    assert decision.denial_id == authorize(None, action, None, Context(policy(), NOW)).denial_id


def test_each_check_comes_before_the_next() -> None:
    """One peer against which everything speaks; the obstacles fall one by one, and the next one shows."""
    peer = Peer("ghost", enabled=False, expires_at=NOW, ssh=SshRights(commands=()))
    stranger = Context(policy(ALICE), NOW)
    assert authorize(None, "no/such", None, stranger).rule == "anonymous"
    assert authorize(who(peer), "ssh/Exec", "x", stranger).rule == "peer:unknown"
    identity, action, exec_enabled = bearer(peer, expires_at=NOW), "ssh/Exec", False
    steps: list[tuple[str, dict[str, Any], dict[str, Any], str, bool]] = [
        # the rule; what changes in the peer and in the identity; the action; whether exec is on
        ("peer:disabled", {}, {}, "ssh/Exec", False),
        ("peer:expired", {"enabled": True}, {}, "ssh/Exec", False),
        ("token:expired", {"expires_at": None}, {}, "ssh/Exec", False),
        ("action:unknown", {}, {"expires_at": None}, "ssh/Exec", False),
        ("scope:ssh:exec", {}, {}, "ssh/exec", False),
        ("token-scope:ssh:exec", {"scopes": {"ssh:exec": "own"}}, {}, "ssh/exec", False),
        ("ssh.exec", {}, {"scopes": frozenset({"*"})}, "ssh/exec", False),
        ("ssh.user", {}, {}, "ssh/exec", True),
        ("ssh.commands", {"ssh": SshRights(user="ghost", commands=())}, {}, "ssh/exec", True),
    ]
    for rule, of_peer, of_identity, action, exec_enabled in steps:
        peer, identity = replace(peer, **of_peer), replace(identity, **of_identity)
        answer = authorize(identity, action, "x", Context(policy(peer, exec_enabled=exec_enabled), NOW))
        assert (answer.allowed, answer.rule) == (False, rule)
    assert decide("ssh/exec", "x", peer=replace(peer, ssh=SshRights(user="ghost")))


def test_each_check_of_an_operation_comes_before_the_next() -> None:
    """As above, with everything that an operation can ask for."""
    access = Access(
        required_scopes=("fs:read", "fs:list"),
        required_scopes_any=("team:red", "team:blue"),
        resource_type="disk",
        resource_action="read",
    )
    peer = Peer("ghost", enabled=False, expires_at=NOW)
    identity = bearer(peer, expires_at=NOW)
    stranger = Context(policy(ALICE), NOW)
    assert authorize(None, "fs/read", "a", stranger, access=access).rule == "anonymous"
    assert authorize(identity, "fs/read", "a", stranger, access=access).rule == "peer:unknown"
    scopes: dict[str, str] = {}
    steps: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("peer:disabled", {}, {}),
        ("peer:expired", {"enabled": True}, {}),
        ("token:expired", {"expires_at": None}, {}),
        ("scope:fs:read", {}, {"expires_at": None}),
        ("token-scope:fs:read", {"scopes": {"fs:read": "own"}}, {}),
        ("scope:fs:list", {}, {"scopes": frozenset({"*"})}),
        ("scope:any", {"scopes": {"fs:*": "own"}}, {}),
        ("resource:disk", {"scopes": {"fs:*": "own", "team:blue": "own"}}, {}),
    ]
    for rule, of_peer, of_identity in steps:
        peer, identity = replace(peer, **of_peer), replace(identity, **of_identity)
        answer = operate(access, identity, "a", peer=peer)
        assert (answer.allowed, answer.rule) == (False, rule), scopes
    allowed = operate(access, identity, "a", peer=replace(peer, resources={"disk": ("read:a",)}))
    assert (allowed.allowed, allowed.rule) == (True, "scope:team:blue")


def test_access_ends_exactly_at_expires_at() -> None:
    peer = replace(ALICE, expires_at=NOW)
    assert decide("ssh/shell", peer=peer, now=NOW - 0.001)
    assert decide("ssh/shell", peer=peer, now=NOW).rule == "peer:expired"
    assert decide("ssh/shell", peer=peer, now=NOW + 1).rule == "peer:expired"
    assert decide("ssh/shell", peer=replace(ALICE, expires_at=0.0)).rule == "peer:expired"


def test_a_token_ends_exactly_at_its_expires_at_and_not_after_its_peer() -> None:
    def at(now: float, peer: Peer = ALICE, ends: float | None = NOW) -> Decision:
        identity = bearer(peer, "*", expires_at=ends)
        return authorize(identity, "ssh/shell", None, Context(policy(peer), now))

    assert at(NOW - 0.001)
    assert at(NOW).rule == at(NOW + 1).rule == at(NOW, ends=0.0).rule == "token:expired"
    assert at(NOW, ends=None)
    assert at(NOW - 5, replace(ALICE, expires_at=NOW - 5)).rule == "peer:expired"


def test_a_caller_is_told_reason_rule_and_denial_id() -> None:
    denied, allowed = operate(Access(required_scopes=("node:admin",))), decide("ssh/shell")
    assert str(denied) == f"peer 'alice' lacks the scope node:admin [scope:node:admin] ({denied.denial_id})"
    assert str(allowed) == f"{allowed.reason} [scope:ssh:shell]"


def test_the_same_question_names_the_same_scope_whatever_the_order_of_the_set() -> None:
    granting = ["ssh:exec", "*", "ssh:*", "*:exec"]
    for expected in ("ssh:exec", "*", "*:exec", "ssh:*"):
        rules = set()
        for names in (granting, granting[::-1]):
            peer = replace(ALICE, scopes=dict.fromkeys(names, "own"))
            caller = Authority("x", frozenset(names))
            rules |= {decide("ssh/exec", "id", peer=peer).rule}
            rules |= {operate(Access(required_scopes=("ssh:exec",)), caller).rule}
        assert rules == {f"scope:{expected}"}
        granting.remove(expected)


# --- who may call an operation --------------------------------------------------------------------------------


BARRED = [
    who(replace(ALICE, id="nobody")),
    who(replace(ALICE, id="off")),
    who(replace(ALICE, id="late")),
    bearer(ALICE, expires_at=NOW),
]


def _public(caller: Identity | Authority | None, *, public: bool = True) -> Decision:
    snapshot = policy(ALICE, replace(ALICE, id="off", enabled=False), replace(ALICE, id="late", expires_at=NOW))
    closed = Access(public=public, required_scopes=("no:such",), required_scopes_any=(), resource_type="disk")
    return authorize(caller, "services/list", None, Context(snapshot, NOW), access=closed)


@pytest.mark.parametrize("caller", BARRED)
def test_a_credential_that_is_shown_and_is_not_good_is_refused_even_what_is_public(caller: Identity) -> None:
    assert _public(caller).rule in ("peer:unknown", "peer:disabled", "peer:expired", "token:expired")


@pytest.mark.parametrize("caller", [None, who(), Authority("fs/copy")])
def test_what_is_public_is_for_everybody_else(caller: Identity | Authority | None) -> None:
    decision = _public(caller)
    assert (decision.allowed, decision.rule, decision.denial_id) == (True, "public", None)
    assert not _public(caller, public=False), "and only that made it so"


def test_an_operation_that_asks_for_nothing_is_for_every_peer_that_is_let_in() -> None:
    decision = operate(Access(), who())
    assert (decision.allowed, decision.rule) == (True, "peer:enabled")
    for barred in BARRED:
        assert not authorize(
            barred,
            "fs/read",
            None,
            Context(
                policy(ALICE, replace(ALICE, id="off", enabled=False), replace(ALICE, id="late", expires_at=0.0)), NOW
            ),
            access=Access(),
        )


def test_an_operations_access_is_asked_for_even_when_it_is_called_as_an_action_is() -> None:
    """The name of an operation brings no rules with it: what `access` says is all that counts."""
    context = Context(policy(replace(BOB, ssh=SshRights())), NOW)
    assert authorize(who(BOB), "ssh/exec", None, context).rule == "ssh.user"
    assert authorize(who(BOB), "ssh/exec", None, context, access=Access(required_scopes=("*",)))
    assert authorize(
        who(), "ssh/exec", "id", Context(policy(), NOW), access=Access(required_scopes=("no:such",))
    ).rule == ("scope:no:such")


def test_an_operation_may_have_the_rules_of_an_action_besides_its_own() -> None:
    access = Access(required_scopes=("a:one",), rules="ssh/exec")
    peer = replace(ALICE, scopes={"a:one": "own"}, ssh=SshRights(user="alice-os", commands=("id",)))
    assert operate(access, resource="id", peer=peer)
    assert operate(access, resource="ls", peer=peer).rule == "ssh.commands"
    assert operate(access, resource="id", peer=replace(peer, ssh=SshRights())).rule == "ssh.user"
    assert operate(access, resource="id", peer=replace(peer, scopes={"ssh:exec": "own"})).rule == "scope:a:one"


def test_what_runs_programs_is_for_peers_whatever_an_operation_was_granted() -> None:
    context = Context(policy(), NOW)
    access = Access(required_scopes=("a:one",), rules="ssh/exec")
    denied = authorize(Authority("x", frozenset({"*"})), "a/one", "id", context, access=access)
    assert (denied.allowed, denied.rule) == (False, "peer:needed")
    no_rules = Access(required_scopes=("a:one",), rules="call/connect")
    assert authorize(Authority("x", frozenset({"*"})), "a/one", None, context, access=no_rules)


def test_every_required_scope_is_required() -> None:
    peer = replace(ALICE, scopes={"a:one": "own", "b:*": "own"})
    assert operate(Access(required_scopes=("a:one", "b:two")), peer=peer).rule == "scope:b:*"
    assert operate(Access(required_scopes=("a:one", "c:no", "b:two")), peer=peer).rule == "scope:c:no"
    assert operate(Access(required_scopes=("c:no", "d:no")), peer=peer).rule == "scope:c:no"


def test_one_scope_of_the_any_list_is_enough_and_an_empty_list_is_never() -> None:
    peer = replace(ALICE, scopes={"a:one": "own", "*:two": "own"})
    assert operate(Access(required_scopes_any=("c:no", "b:two", "a:one")), peer=peer).rule == "scope:*:two"
    denied = operate(Access(required_scopes_any=("c:no", "d:no")), peer=peer)
    assert (denied.rule, denied.reason) == ("scope:any", "peer 'alice' lacks every one of the scopes c:no, d:no")
    everything = Authority("x", frozenset({"*"}))
    for caller in (who(peer), who(BOB), everything):
        empty = operate(
            Access(required_scopes=("a:one",), required_scopes_any=()), caller, peer=replace(BOB, id=caller.id)
        )
        assert (empty.allowed, empty.rule) == (False, "scope:any")
    assert operate(Access(required_scopes_any=None), peer=peer)


def test_a_peer_without_a_scope_is_told_so_before_its_token_is() -> None:
    access = Access(required_scopes=("fs:read",))
    assert operate(access, bearer(ALICE), peer=ALICE).rule == "scope:fs:read"
    assert operate(access, bearer(BOB), peer=BOB).rule == "token-scope:fs:read"
    assert operate(access, bearer(BOB), peer=BOB).reason == "the token of peer 'bob' lacks the scope fs:read"


def test_a_token_narrows_what_its_peer_may_do_and_never_widens_it() -> None:
    token = bearer(ALICE, "ssh:exec", "node:admin")
    assert operate(Access(required_scopes=("ssh:exec",)), token)
    assert operate(Access(required_scopes=("ssh:shell",)), token).rule == "token-scope:ssh:shell"
    assert operate(Access(required_scopes=("node:admin",)), token).rule == "scope:node:admin"


def test_what_grants_is_the_scope_that_the_peer_really_has() -> None:
    decision = operate(Access(required_scopes=("ssh:shell",)), bearer(ALICE, "*"))
    assert decision.rule == "scope:ssh:shell"
    assert decision.reason == "peer 'alice' has the scope ssh:shell (role dev)"


def test_peer_and_token_must_share_one_scope_of_the_any_list() -> None:
    access = Access(required_scopes_any=("ssh:exec", "node:read"))
    denied = operate(access, bearer(ALICE, "node:read"))
    assert (denied.allowed, denied.rule) == (False, "scope:any")
    assert denied.reason == "peer 'alice' and its token share none of the scopes ssh:exec, node:read"
    assert operate(access, bearer(ALICE, "ssh:exec"))


# --- what an operation composes under -------------------------------------------------------------------------


def test_an_authority_has_its_own_scopes_and_resources_and_nobody_elses() -> None:
    composing = Authority("backup/run", frozenset({"fs:*"}), {"disk": ("read",)})
    allowed = operate(Access(required_scopes=("fs:read",)), composing)
    assert (allowed.rule, allowed.reason) == ("scope:fs:*", "operation 'backup/run' composes with the scope fs:*")
    denied = operate(Access(required_scopes=("ssh:exec",)), composing)
    assert (denied.rule, denied.reason) == (
        "scope:ssh:exec",
        "operation 'backup/run' composes without the scope ssh:exec",
    )
    assert operate(Access(resource_type="disk", resource_action="read"), composing, "a")
    assert operate(Access(resource_type="disk", resource_action="write"), composing, "a").rule == "resource:disk"
    assert operate(Access(required_scopes_any=("a:b",)), composing).rule == "scope:any"
    assert operate(Access(), Authority("x")).rule == "authority"


def test_an_authority_attempts_no_action_that_is_no_operation() -> None:
    mighty = Authority("x", frozenset({"*"}), {"*": ("*",)})
    for action in [*ACTIONS, "no/such"]:
        assert authorize(mighty, action, None, Context(policy(), NOW)).rule == "action:unknown"


def test_an_authority_is_not_mistaken_for_a_peer_of_its_name() -> None:
    authority = Authority("bob", frozenset())
    access = Access(required_scopes=("fs:read",))
    assert authority.id == "operation:bob"
    assert operate(access, who(BOB), peer=BOB)
    denied = operate(access, authority, peer=BOB)
    assert not denied
    assert denied.denial_id != operate(access, bearer(replace(BOB, scopes={})), peer=replace(BOB, scopes={})).denial_id


# --- resources ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "action", "allowed", "refused"),
    [
        (("read",), "read", [None, "", "alpha", "x/y"], []),
        (("read",), "write", [], [None, "alpha"]),
        (("read:alpha",), "read", ["alpha"], [None, "", "alphax", "Alpha", "alpha\n"]),
        (("*:beta-*",), "write", ["beta-1", "beta-"], [None, "beta", "alpha"]),
        (("*",), "write", [None, "alpha"], []),
        (("*:*",), "write", ["", "alpha", "a\nb"], [None]),
        (("read:",), "read", [""], [None, "alpha"]),
        (("read:a:b",), "read", ["a:b"], ["a", "b"]),
        (("read:a?",), "read", ["ab"], ["a", "abc"]),
        (("read:[ab]",), "read", ["[ab]"], ["a", "b"]),
        (("read:[!a]",), "read", ["[!a]"], ["b"]),
        (("re*",), "read", [], [None, "alpha"]),
        (("",), "read", [], [None, "alpha"]),
        ((":alpha",), "read", [], ["alpha"]),
        ((), "read", [], [None, "alpha"]),
        (("write", "read:a", "read:b"), "read", ["a", "b"], ["c", None]),
        (("read:alpha",), None, ["alpha"], ["beta", None]),
        (("read",), None, [None, "alpha"], []),
        ((), None, [], [None]),
        (("read",), "*", [], [None, "alpha"]),
    ],
)
def test_a_resource_entry_allows_an_action_on_what_it_names(
    entries: tuple[str, ...], action: str | None, allowed: list[str | None], refused: list[str | None]
) -> None:
    access = Access(resource_type="disk", resource_action=action)
    peer = replace(ALICE, resources={"disk": entries, "tape": ("*",)})
    authority = Authority("x", frozenset(), peer.resources)
    for caller in (who(peer), bearer(peer), authority):
        tried = [r for r in [*allowed, *refused] if operate(access, caller, r, peer=peer)]
        assert tried == allowed


def test_resources_of_another_type_do_not_count_and_the_reason_names_all_parts() -> None:
    access = Access(resource_type="disk", resource_action="read")
    peer = replace(ALICE, resources={"tape": ("*",), "*": ("*",)})
    denied = operate(access, resource="alpha", peer=peer)
    assert (denied.rule, denied.reason) == ("resource:disk", "peer 'alice' may not read the disk 'alpha'")
    assert operate(replace(access, resource_action=None), peer=peer).reason == "peer 'alice' may not use the disk"
    assert operate(Access(resource_action="read"), peer=peer), "without a type there is no resource rule"


# --- any question ---------------------------------------------------------------------------------------------


NAMES = st.sampled_from(["a", "a:b", "a:*", "*", "b:c", "b", "*:b"])
SCOPES = st.frozensets(NAMES, max_size=3)
ACCESS = st.builds(
    Access,
    public=st.booleans(),
    required_scopes=st.lists(NAMES, max_size=2).map(tuple),
    required_scopes_any=st.none() | st.lists(NAMES, max_size=2).map(tuple),
    resource_type=st.none() | st.just("disk"),
    resource_action=st.none() | st.sampled_from(["read", "write"]),
)
ENTRIES = st.lists(st.sampled_from(["read", "*", "read:x", "write:*", "*:y", "read:"]), max_size=2).map(tuple)
RESOURCES = st.none() | st.sampled_from(["x", "y", ""])


def covers(have: frozenset[str], access: Access) -> bool:
    """Whether these scopes alone are what the operation asks for."""

    def held(scope: str) -> bool:
        return any(scope_grants(s, scope) for s in have)

    some = access.required_scopes_any
    return all(map(held, access.required_scopes)) and (some is None or any(map(held, some)))


@given(ACCESS, SCOPES, SCOPES, ENTRIES, RESOURCES, st.booleans())
def test_a_token_is_allowed_no_more_than_its_peer_and_than_an_authority_with_its_scopes(
    access: Access,
    own: frozenset[str],
    scopes: frozenset[str],
    entries: tuple[str, ...],
    resource: str | None,
    on: bool,
) -> None:
    peer = Peer("p", dict.fromkeys(own, "own"), resources={"disk": entries}, enabled=on)
    with_key, with_token = (operate(access, who, resource, peer=peer) for who in (who(peer), bearer(peer, *scopes)))
    authority = operate(access, Authority("x", scopes, peer.resources), resource, peer=peer)
    assert not with_token or (with_key and authority)
    assert operate(access, bearer(peer, "*"), resource, peer=peer).allowed is with_key.allowed
    if not access.public:
        assert not with_key or (on and covers(own, access))
        assert not with_token or (covers(own, access) and covers(scopes, access))
        assert not authorize(None, "fs/read", resource, Context(policy(peer), NOW), access=access)
    else:
        assert [bool(d) for d in (with_key, with_token, authority)] == [on, on, True]
    if access.required_scopes_any == () and not access.public:
        assert [bool(d) for d in (with_key, authority)] == [False] * 2


@given(ACCESS, SCOPES, SCOPES, RESOURCES)
def test_more_scopes_never_take_anything_away(
    access: Access, own: frozenset[str], more: frozenset[str], resource: str | None
) -> None:
    poor = Peer("p", dict.fromkeys(own, "own"), resources={"disk": ("*",)})
    rich = replace(poor, scopes=dict.fromkeys(own | more, "own"))
    assert operate(access, resource=resource, peer=rich) or not operate(access, resource=resource, peer=poor)


@given(ACCESS, SCOPES, st.permutations(["read", "write:x", "*:y"]), RESOURCES)
def test_the_same_question_has_the_same_answer_however_its_snapshot_was_built(
    access: Access, own: frozenset[str], entries: list[str], resource: str | None
) -> None:
    peers = [
        Peer("p", dict.fromkeys(names, "own"), resources={"disk": tuple(entries)})
        for names in (sorted(own), sorted(own)[::-1])
    ]
    first, second = (operate(access, resource=resource, peer=peer) for peer in peers)
    assert first == second
    assert (first.denial_id is None) is first.allowed


# --- scopes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("granted", "covered", "not_covered"),
    [
        ("ssh:exec", ["ssh:exec"], ["ssh:shell", "ssh:exe", "ssh", "ssh:exec:x"]),
        ("ssh:exe", [], ["ssh:exec"]),
        ("ssh", [], ["ssh:exec"]),
        ("*", ["ssh:exec", "one"], []),
        ("ssh:*", ["ssh:exec", "ssh:exec:deep:er"], ["ssh", "sshd:exec"]),
        ("*:exec", ["ssh:exec"], ["ssh:shell", "a:b:exec"]),
        ("a:*:c", ["a:b:c"], ["a:b:d", "a:b:b:c", "a:c", "a:b:c:d"]),
        ("a:*:*", ["a:b:c:d"], ["a:b"]),
        ("ss*:exec", [], ["ssh:exec"]),
        ("", [], ["ssh:exec"]),
        ("ssh:", [], ["ssh:exec"]),
    ],
)
def test_scopes_match_by_segment(granted: str, covered: list[str], not_covered: list[str]) -> None:
    assert [required for required in covered + not_covered if scope_grants(granted, required)] == covered


SEGMENTS = st.lists(st.sampled_from(["a", "b", "ab", "c"]), min_size=1, max_size=4)


@given(SEGMENTS, SEGMENTS)
def test_without_a_star_a_scope_grants_itself_only(granted: Sequence[str], required: Sequence[str]) -> None:
    assert scope_grants(":".join(granted), ":".join(required)) is (granted == required)


@given(SEGMENTS, SEGMENTS)
def test_a_last_star_grants_what_lies_below_and_nothing_else(prefix: list[str], required: list[str]) -> None:
    below = len(required) > len(prefix) and required[: len(prefix)] == prefix
    assert scope_grants(":".join([*prefix, "*"]), ":".join(required)) is below


# --- denial ids -----------------------------------------------------------------------------------------------


def denial(
    identity: Identity | None = who(),  # noqa: B008 - a frozen value
    action: str = "node/kill",
    resource: str | None = "c1",
    revision: str = "r1",
    key: bytes = b"k" * 32,
    *,
    rights: bool = False,
) -> str:
    peers = {peer.id: replace(peer, scopes={}, enabled=rights) for peer in (ALICE, BOB)}
    snapshot = Policy(peers=peers, revision=revision, denial_key=key, daemon=ROOT)
    decision = authorize(identity, action, resource, Context(snapshot, NOW))
    assert not decision
    assert decision.denial_id is not None
    return decision.denial_id


def test_the_same_denial_has_the_same_id_wherever_it_is_asked() -> None:
    other_credential = Identity("alice", frozenset({"odd"}), "certificate:x")
    assert denial() == denial() == denial(other_credential)
    assert denial().startswith("den_")
    assert len(denial()) == 20


def test_each_part_of_the_question_changes_the_denial_id() -> None:
    ids = [
        denial(),
        denial(who(BOB)),
        denial(None),
        denial(action="node/reload"),
        denial(resource="c2"),
        denial(resource=""),
        denial(resource=None),
        denial(revision="r2"),
        denial(rights=True),  # the same question, another rule says no
        denial(key=b"j" * 32),
    ]
    assert len(set(ids)) == len(ids)
    assert denial(action="ab", resource="c") != denial(action="a", resource="bc")


@given(st.text(st.characters(), max_size=20), st.text(st.characters(), max_size=20))
@example("\ud800", "\udc80")  # halves of surrogate pairs, which JSON may hold
def test_any_text_from_outside_gets_a_decision(action: str, resource: str) -> None:
    assert denial(action=action, resource=resource) == denial(action=action, resource=resource)


# --- looking up and renewing ----------------------------------------------------------------------------------

TEXT = "alk_abcdefgh_" + "s" * 27
TOKEN = Token("abcdefgh", "alice", frozenset({"ssh:exec"}), token_digest(TEXT), description="nightly")


def test_a_key_proves_the_peer_that_holds_it() -> None:
    assert policy().lookup_key("SHA256:a") == who(ALICE)
    assert policy().lookup_key("SHA256:x") is None
    assert policy(replace(ALICE, enabled=False)).lookup_key("SHA256:a") == who(ALICE)


def test_a_token_proves_the_peer_that_it_was_made_for_with_the_scopes_of_the_token() -> None:
    ends = replace(TOKEN, expires_at=NOW - 1)
    expected = Identity("alice", frozenset({"ssh:exec"}), "token:abcdefgh")
    assert policy(tokens=[TOKEN]).lookup_token(TEXT) == expected
    assert policy(tokens=[ends]).lookup_token(TEXT) == replace(expected, expires_at=NOW - 1), "the decision says no"
    assert policy(replace(ALICE, enabled=False), tokens=[TOKEN]).lookup_token(TEXT) == expected
    assert policy(BOB, tokens=[TOKEN]).lookup_token(TEXT) == expected
    assert authorize(expected, "ssh/exec", "x", Context(policy(BOB, tokens=[TOKEN]), NOW)).rule == "peer:unknown"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alk_",
        "alk_abcdefgh",
        "alk_abcdefgh_",
        TEXT[:-1],
        TEXT + "s",
        TEXT + "\n",
        " " + TEXT,
        TEXT[:-1] + "t",
        TEXT.replace("alk_", "ALK_"),
        TEXT.replace("alk_", "xyz_"),
        TEXT.replace("abcdefgh", "abcdefgi"),
        TEXT.replace("h_", "h-"),
        TEXT.removeprefix("alk_"),
        "abcdefgh",
        "\ud800",
        "alk_\udc80bcdefgh_x",
    ],
)
def test_what_is_not_the_whole_text_of_a_token_proves_nobody(text: str) -> None:
    assert policy(tokens=[TOKEN]).lookup_token(text) is None
    assert policy().lookup_token(text) is None
    assert policy(tokens=[replace(TOKEN, prefix="", digest=b"")]).lookup_token(text) is None


@given(st.text(st.characters(), max_size=60) | st.text("alk_bcdefghs", max_size=45).map("alk_abcdefgh_".__add__))
def test_any_other_text_is_no_token(text: str) -> None:
    found = policy(tokens=[TOKEN]).lookup_token(text)
    assert (found is not None) is (text == TEXT)


def test_the_secret_of_one_token_does_not_open_another() -> None:
    second = replace(TOKEN, prefix="ABCDEFGH", digest=token_digest("alk_ABCDEFGH_" + "t" * 27))
    both = policy(tokens=[TOKEN, second])
    assert both.lookup_token("alk_ABCDEFGH_" + "t" * 27) is not None
    assert both.lookup_token("alk_ABCDEFGH_" + "s" * 27) is None
    assert both.lookup_token("alk_abcdefgh_" + "t" * 27) is None


def test_a_digest_is_not_the_text_and_is_no_plain_hash_of_it() -> None:
    assert len(TOKEN.digest) == 32
    assert TOKEN.digest not in (token_digest(TEXT + "x"), blake3(TEXT.encode()).digest())


def test_renewing_a_token_brings_what_it_is_now() -> None:
    identity = policy(tokens=[TOKEN]).lookup_token(TEXT)
    assert identity is not None
    changed = replace(TOKEN, scopes=frozenset({"node:read"}), expires_at=NOW)
    assert policy(tokens=[TOKEN]).renew(identity) == identity
    assert policy(tokens=[changed]).renew(identity) == Identity(
        "alice", frozenset({"node:read"}), "token:abcdefgh", NOW
    )


def test_a_revoked_token_or_one_of_another_peer_renews_nobody() -> None:
    identity = policy(tokens=[TOKEN]).lookup_token(TEXT)
    assert identity is not None
    assert policy().renew(identity) is None
    assert policy(tokens=[replace(TOKEN, peer="bob")]).renew(identity) is None
    assert policy(tokens=[TOKEN]).renew(replace(identity, id="bob")) is None
    assert policy(tokens=[TOKEN]).renew(replace(identity, via="key:abcdefgh")) is None


def test_renewing_brings_the_scopes_of_now() -> None:
    renewed = policy(replace(ALICE, scopes={"node:read": "own"})).renew(who(ALICE))
    assert renewed is not None
    assert renewed.scopes == {"node:read"}


def test_a_key_that_moved_to_another_peer_renews_nobody() -> None:
    moved = policy(replace(ALICE, keys=()), replace(BOB, keys=("SHA256:b", "SHA256:a")))
    assert moved.renew(who(ALICE)) is None


def test_a_removed_key_or_an_unknown_kind_of_credential_renews_nobody() -> None:
    assert policy(replace(ALICE, keys=())).renew(who(ALICE)) is None
    assert policy().renew(Identity("alice", frozenset(), "odd:SHA256:a")) is None
    assert policy().renew(Identity("alice", frozenset(), "SHA256:a")) is None


def test_the_next_expiry_is_the_nearest_one_ahead_of_a_peer_or_a_token() -> None:
    peers = [Peer(f"p{at}", expires_at=NOW + at) for at in (-5.0, 0.0, 30.0, 20.0)]
    assert policy(*peers, Peer("forever")).next_expiry(NOW) == NOW + 20
    assert policy(Peer("forever"), tokens=[TOKEN]).next_expiry(NOW) is None
    tokens = [replace(TOKEN, prefix=f"{at:08}", expires_at=NOW + at) for at in (-1, 0, 25, 10)]
    assert policy(*peers, tokens=tokens).next_expiry(NOW) == NOW + 10
    assert policy(*peers, tokens=tokens[:3]).next_expiry(NOW) == NOW + 20


def test_a_policy_cannot_be_changed_and_shows_neither_its_key_nor_its_tokens() -> None:
    snapshot = policy(tokens=[TOKEN])
    for secret in ("kkkk", "abcdefgh", repr(TOKEN.digest)):
        assert secret not in repr(snapshot)
    assert repr(TOKEN.digest) not in repr(TOKEN)
    with pytest.raises(FrozenInstanceError):
        snapshot.revision = "r2"  # type: ignore[misc]
    with pytest.raises(TypeError):
        snapshot._by_key["SHA256:x"] = "bob"  # type: ignore[index]
