"""The gate: every decision is written down, intent before outcome, and what happens when it cannot be."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from alknet.access import Access, Authority, DaemonUser, Identity, Peer, Policy, SshRights, Token
from alknet.audit import NOTHING, MemoryAudit
from alknet.clock import ManualClock
from alknet.gate import MAX_TOLD_CHARS, RULE_AUDIT, RULE_CHANGED, RULE_CREDENTIAL, Gate
from alknet.guard import RULE_PROTECTED
from alknet.target_patterns import parse_pattern
from alknet.targets import Rule

ALICE = Peer("alice", {"node:read": "own"}, ("SHA256:a",))
WHO = Identity("alice", frozenset({"node:read"}), "key:SHA256:a")

READ = Access(required_scopes=("node:read",))
ADMIN = Access(required_scopes=("node:admin",))


def policy(*peers: Peer, revision: str = "r1") -> Policy:
    return Policy(
        peers={peer.id: peer for peer in peers},
        revision=revision,
        denial_key=b"k" * 32,
        daemon=DaemonUser("root", is_root=True),
    )


@pytest.fixture
def audit() -> MemoryAudit:
    return MemoryAudit()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def gate(audit: MemoryAudit, clock: ManualClock) -> Gate:
    return Gate(policy(ALICE), audit, clock)


def test_an_allowed_act_has_an_intent_and_an_outcome(gate: Gate, audit: MemoryAudit, clock: ManualClock) -> None:
    act = gate.ask(WHO, "node/status", "x", surface="control", remote="192.0.2.1", access=READ)
    intent = {
        "surface": "control",
        "peer": "alice",
        "action": "node/status",
        "resource": "x",
        "decision": "allow",
        "rule": "scope:node:read",
        "denial_id": None,
        "request_id": act.request_id,
        "remote": "192.0.2.1",
        "phase": "intent",
    }
    assert act.decision
    assert audit.records == [intent]
    clock.advance(0.0123)
    act.done("ok", bytes=7)
    assert audit.records[1:] == [intent | {"phase": "outcome", "outcome": "ok", "duration_ms": 12.3, "bytes": 7}]


def test_the_clock_that_is_set_back_does_not_change_a_duration(
    gate: Gate, audit: MemoryAudit, clock: ManualClock
) -> None:
    act = gate.ask(WHO, "node/status", surface="control", access=READ)
    clock.advance(1)
    clock.jump(-3600)
    act.done("ok")
    assert audit.records[-1]["duration_ms"] == 1000


def test_a_denied_act_has_one_line_which_is_its_outcome(gate: Gate, audit: MemoryAudit) -> None:
    act = gate.ask(WHO, "node/kill", "c1", surface="control", access=ADMIN)
    (record,) = audit.records
    assert not act.decision
    assert record["decision"] == "deny"
    assert (record["phase"], record["outcome"]) == ("outcome", "denied")
    assert record["denial_id"] == act.decision.denial_id is not None
    act.done("ok")
    assert len(audit.records) == 1


def test_a_strangers_act_has_no_peer(gate: Gate, audit: MemoryAudit) -> None:
    assert gate.ask(None, "ssh/login", "root", surface="ssh").decision.rule == "anonymous"
    assert audit.records[0]["peer"] is None


def test_an_outcome_is_written_once(gate: Gate, audit: MemoryAudit) -> None:
    act = gate.ask(WHO, "node/status", surface="control", access=READ)
    act.done("ok")
    act.done("error")
    assert [record.get("outcome") for record in audit.records] == [None, "ok"]


def test_every_request_has_an_id_of_its_own(gate: Gate) -> None:
    ids = {gate.ask(WHO, "node/status", surface="control", access=READ).request_id for _ in range(20)}
    assert len(ids) == 20
    assert all(request_id.startswith("req_") for request_id in ids)


def test_an_act_refused_after_all_writes_no_outcome(gate: Gate, audit: MemoryAudit) -> None:
    act = gate.ask(WHO, "node/status", surface="control", access=READ)
    denial = gate.changed(WHO, "node/status", None)
    act.refuse(denial)
    act.done("ok")
    assert act.decision is denial
    assert len(audit.records) == 1


# --- an identity that was kept for a while ---------------------------------------------------------------------


def test_scopes_that_an_identity_held_before_a_reload_never_decide(gate: Gate, audit: MemoryAudit) -> None:
    assert gate.ask(WHO, "node/status", surface="control", access=READ).decision
    gate.policy = policy(dataclasses.replace(ALICE, scopes={"node:admin": "own"}), revision="r2")
    lost = gate.ask(WHO, "node/status", surface="control", access=READ).decision
    assert (bool(lost), lost.rule) == (False, "scope:node:read")
    gained = gate.ask(WHO, "node/kill", surface="control", access=ADMIN).decision
    assert (bool(gained), gained.rule) == (True, "scope:node:admin")
    assert [record["decision"] for record in audit.records] == ["allow", "deny", "allow"]


@pytest.mark.parametrize("scope", ["node:read", "*"])
def test_scopes_that_were_never_the_peers_do_not_decide(gate: Gate, scope: str) -> None:
    inflated = dataclasses.replace(WHO, scopes=frozenset({scope, "node:admin"}))
    assert gate.ask(inflated, "node/status", surface="control", access=READ).decision
    assert gate.ask(inflated, "node/kill", surface="control", access=ADMIN).decision.rule == "scope:node:admin"


@pytest.mark.parametrize("via", ["key:SHA256:x", "key:", "", "SHA256:a", "certificate:SHA256:a"])
def test_a_credential_that_is_not_a_key_of_the_peer_is_denied(gate: Gate, audit: MemoryAudit, via: str) -> None:
    act = gate.ask(dataclasses.replace(WHO, via=via), "node/status", surface="control", access=READ)
    assert (bool(act.decision), act.decision.rule) == (False, RULE_CREDENTIAL)
    assert act.decision.reason == "the credential no longer belongs to peer 'alice'"
    (record,) = audit.records
    assert (record["peer"], record["rule"], record["outcome"]) == ("alice", RULE_CREDENTIAL, "denied")
    assert record["denial_id"] == act.decision.denial_id is not None


def test_an_act_after_the_loss_of_the_key_the_peer_or_its_enabling_is_denied(gate: Gate) -> None:
    thief = Peer("thief", {"*": "own"}, ("SHA256:a",))
    for changed, rule in (
        (policy(dataclasses.replace(ALICE, keys=("SHA256:other",))), RULE_CREDENTIAL),
        (policy(dataclasses.replace(ALICE, keys=()), thief), RULE_CREDENTIAL),
        (policy(dataclasses.replace(ALICE, enabled=False)), "peer:disabled"),
        (policy(), "peer:unknown"),
    ):
        gate.policy = changed
        assert gate.ask(WHO, "node/status", surface="control", access=READ).decision.rule == rule


# --- an audit log that cannot be written ----------------------------------------------------------------------


def test_without_audit_required_an_unwritten_act_is_allowed_and_logged(
    gate: Gate, audit: MemoryAudit, caplog: pytest.LogCaptureFixture
) -> None:
    audit.failing = True
    act = gate.ask(WHO, "node/status", surface="control", access=READ)
    assert act.decision
    assert "audit line lost" in caplog.text
    act.done("ok")


def test_with_audit_required_an_unwritten_act_is_refused_with_a_denial_id(gate: Gate, audit: MemoryAudit) -> None:
    gate.audit_required = True
    audit.failing = True
    act = gate.ask(WHO, "node/status", surface="control", access=READ)
    assert not act.decision
    assert act.decision.rule == RULE_AUDIT
    assert act.decision.denial_id is not None
    audit.failing = False
    act.done("ok")
    assert audit.records == []
    assert gate.ask(WHO, "node/status", surface="control", access=READ).decision


def test_with_audit_required_a_denial_keeps_its_own_rule(gate: Gate, audit: MemoryAudit) -> None:
    gate.audit_required = True
    audit.failing = True
    assert gate.ask(WHO, "node/kill", surface="control", access=ADMIN).decision.rule == "scope:node:admin"


def test_with_audit_required_and_a_log_that_works_nothing_changes(audit: MemoryAudit, clock: ManualClock) -> None:
    gate = Gate(policy(ALICE), audit, clock, audit_required=True)
    assert gate.ask(WHO, "node/status", surface="control", access=READ).decision


def test_a_note_says_whether_it_was_written(gate: Gate, audit: MemoryAudit) -> None:
    assert gate.note({"action": "node/start"})
    audit.failing = True
    assert not gate.note({"action": "node/stop"})
    assert audit.records == [{"action": "node/start"}]


# --- questions, and live things after a reload ----------------------------------------------------------------


def test_a_question_writes_nothing_and_has_the_denial_id_of_the_act(gate: Gate, audit: MemoryAudit) -> None:
    peeked = gate.peek(WHO, "node/kill", "c1", access=ADMIN)
    assert audit.records == []
    assert peeked == gate.ask(WHO, "node/kill", "c1", surface="control", access=ADMIN).decision


def test_decisions_follow_the_clock(gate: Gate, clock: ManualClock) -> None:
    gate.policy = policy(dataclasses.replace(ALICE, expires_at=clock.wall() + 10))
    assert gate.peek(WHO, "node/status", None, access=READ)
    clock.advance(10)
    assert gate.peek(WHO, "node/status", None, access=READ).rule == "peer:expired"


def test_a_live_thing_is_still_allowed_while_nothing_changed(gate: Gate) -> None:
    assert gate.still(WHO, "node/status", None, access=READ)


def test_a_live_thing_loses_a_scope_that_its_peer_lost(gate: Gate) -> None:
    gate.policy = policy(dataclasses.replace(ALICE, scopes={}), revision="r2")
    assert gate.still(WHO, "node/status", None, access=READ).rule == "scope:node:read"


def test_a_live_thing_gains_a_scope_that_its_peer_gained(gate: Gate) -> None:
    gate.policy = policy(dataclasses.replace(ALICE, scopes={"node:admin": "own"}), revision="r2")
    assert gate.still(WHO, "node/kill", None, access=ADMIN)


def test_a_live_thing_ends_with_its_credential(gate: Gate) -> None:
    gate.policy = policy(dataclasses.replace(ALICE, keys=("SHA256:other",)))
    denial = gate.still(WHO, "node/status", None, access=READ)
    assert (bool(denial), denial.rule) == (False, RULE_CREDENTIAL)
    assert denial.denial_id is not None


def test_a_live_thing_ends_when_its_key_moves_to_another_peer(gate: Gate) -> None:
    thief = Peer("thief", {"*": "own"}, ("SHA256:a",))
    gate.policy = policy(dataclasses.replace(ALICE, keys=()), thief)
    assert gate.still(WHO, "node/status", None, access=READ).rule == RULE_CREDENTIAL


def test_a_live_thing_ends_with_its_peer(gate: Gate) -> None:
    gate.policy = policy()
    assert gate.still(WHO, "node/status", None, access=READ).rule == "peer:unknown"
    gate.policy = policy(dataclasses.replace(ALICE, enabled=False))
    assert gate.still(WHO, "node/status", None, access=READ).rule == "peer:disabled"


def test_a_change_of_settings_is_a_denial_with_an_id(gate: Gate) -> None:
    denial = gate.changed(WHO, "ssh/shell", None)
    assert (bool(denial), denial.rule) == (False, RULE_CHANGED)
    assert denial.denial_id is not None


# --- what may be written a moment later ---------------------------------------------------------------------------


class Slow(MemoryAudit):
    """Notes which lines were allowed to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[bool] = []

    def write(self, record: Mapping[str, Any], *, more: Mapping[str, Any] = NOTHING, soon: bool = False) -> None:
        super().write(record, more=more)
        self.waiting.append(soon)


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("soon", [False, True])
def test_lines_may_wait_unless_the_act_depends_on_them(clock: ManualClock, soon: bool, required: bool) -> None:
    audit = Slow()
    gate = Gate(policy(ALICE), audit, clock, audit_required=required)
    gate.ask(WHO, "node/status", surface="control", access=READ, soon=soon).done("ok")
    gate.ask(WHO, "node/kill", surface="control", access=ADMIN, soon=soon)
    assert audit.waiting == [soon and not required] * 3


# --- what is remembered -------------------------------------------------------------------------------------------


def test_an_answer_is_remembered_until_the_policy_changes(gate: Gate) -> None:
    first = gate.still(WHO, "node/status", access=READ)
    assert gate.still(WHO, "node/status", access=READ) is first
    gate.policy = policy(dataclasses.replace(ALICE, scopes={"node:read": "role x"}))
    assert gate.still(WHO, "node/status", access=READ).reason == "peer 'alice' has the scope node:read (role x)"
    gate.policy = policy(dataclasses.replace(ALICE, enabled=False))
    assert gate.still(WHO, "node/status", access=READ).rule == "peer:disabled"


def test_what_is_remembered_is_of_one_caller_one_action_and_one_demand(gate: Gate) -> None:
    bob = Peer("bob", {}, ("SHA256:b",))
    gate.policy = policy(ALICE, bob)
    assert gate.still(WHO, "a/b", access=READ)
    assert not gate.still(Identity("bob", frozenset({"*"}), "key:SHA256:b"), "a/b", access=READ)
    assert not gate.still(WHO, "a/b", access=ADMIN)
    assert not gate.still(WHO, "a/b")
    assert not gate.still(None, "a/b", access=READ)
    assert not gate.still(Authority("a/b"), "a/b", access=READ)


def test_what_only_the_act_can_see_is_denied_with_an_id_of_its_own(gate: Gate) -> None:
    denial = gate.beyond(WHO, "fs/read", "root/home", RULE_PROTECTED, "it is out of reach")
    assert (denial.allowed, denial.rule, denial.words) == (False, RULE_PROTECTED, "it is out of reach [fs.protected]")
    assert denial == gate.beyond(WHO, "fs/read", "root/home", RULE_PROTECTED, "it is out of reach")
    for other in (("fs/write", "root/home", RULE_PROTECTED), ("fs/read", "root/x", RULE_PROTECTED)):
        assert gate.beyond(WHO, *other, "it is out of reach").denial_id != denial.denial_id


def test_what_is_remembered_of_a_resource_is_nothing(gate: Gate) -> None:
    shelf = Access(required_scopes=("node:read",), resource_type="shelf", resource_action="read")
    gate.policy = policy(dataclasses.replace(ALICE, resources={"shelf": ("read:a",)}))
    assert gate.still(WHO, "shelf/read", "a", access=shelf)
    assert not gate.still(WHO, "shelf/read", "b", access=shelf)
    assert not gate.still(WHO, "shelf/read", access=shelf)
    assert gate.still(WHO, "shelf/read", "a", access=shelf)


def test_what_time_is_part_of_is_not_remembered(gate: Gate, clock: ManualClock) -> None:
    token = Token("abcdefgh", "alice", frozenset({"node:read"}), b"digest", expires_at=clock.wall() + 10)
    bearer = Identity("alice", token.scopes, "token:abcdefgh", token.expires_at)
    gate.policy = dataclasses.replace(policy(ALICE), tokens={"abcdefgh": token})
    assert gate.still(bearer, "node/status", access=READ)
    assert gate.still(WHO, "node/status", access=READ)
    clock.advance(10)
    assert gate.still(bearer, "node/status", access=READ).rule == "token:expired"
    assert gate.still(WHO, "node/status", access=READ)


@pytest.mark.parametrize("soon", [False, True])
def test_what_is_asked_again_and_again_is_written_each_time_and_ends_in_time(
    gate: Gate, audit: MemoryAudit, clock: ManualClock, soon: bool
) -> None:
    token = Token("abcdefgh", "alice", frozenset({"node:read"}), b"digest", expires_at=clock.wall() + 10)
    bearer = Identity("alice", token.scopes, "token:abcdefgh", token.expires_at)
    gate.policy = dataclasses.replace(policy(ALICE), tokens={"abcdefgh": token})

    def ask(connection: str) -> dict[str, Any]:
        gate.ask(bearer, "node/status", surface="http", access=READ, soon=soon, connection=connection).done("ok")
        return {key: audit.records[-1].get(key) for key in ("phase", "decision", "rule", "connection")}

    for connection in ("c1", "c1", "c2"):
        clock.advance(1)
        allowed = {"phase": "outcome", "decision": "allow", "rule": "scope:node:read", "connection": connection}
        assert ask(connection) == allowed
    assert len(audit.records) == 6
    assert len({record["request_id"] for record in audit.records}) == 3
    clock.advance(7)
    assert ask("c1") == {"phase": "outcome", "decision": "deny", "rule": "token:expired", "connection": "c1"}
    assert audit.records[-1]["outcome"] == "denied"


def test_no_more_is_remembered_than_a_bound(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.gate.MAX_REMEMBERED", 3)
    for number in range(10):
        assert gate.still(WHO, f"a/{number}", access=READ)
        assert len(gate._allowed) <= 3
    for number in range(10):
        assert not gate.still(WHO, f"b/{number}", access=ADMIN)
    assert len(gate._allowed) <= 3


@pytest.mark.parametrize(
    "told", [{"resource": "w1:a/%d"}, {"forwarded_for": "somebody-%d"}], ids=lambda told: next(iter(told))
)
def test_what_the_caller_makes_up_crowds_nobody_out(
    gate: Gate, audit: MemoryAudit, monkeypatch: pytest.MonkeyPatch, told: dict[str, str]
) -> None:
    """A name at a peer, or whom it calls for: recorded as it is each time, and remembered apart."""
    monkeypatch.setattr("alknet.gate.MAX_TOLD", 3)

    def ask(resource: str | None = None, **facts: str) -> None:
        gate.ask(WHO, "peer/call", resource, surface="tls", access=READ, connection="c1", **facts).done("ok")

    ask()
    usual = dict(gate._usual)
    for number in (*range(10), 9, 9):
        said = {key: text % number for key, text in told.items()}
        ask(**said)
        for record in audit.records[-2:]:
            assert said.items() <= record.items()
        assert gate._usual == usual
        assert len(gate._told) <= 3
    assert len(audit.records) == 26
    gate.policy = policy()
    assert not gate._told


def test_a_resource_that_decides_is_asked_about_each_time(gate: Gate) -> None:
    access = Access(required_scopes=READ.required_scopes, resource_type="files", resource_action="read")
    for resource in ("a", "b"):
        assert not gate.still(WHO, "fs/read", resource, access=access)
        gate.ask(WHO, "fs/read", resource, surface="tls", access=access)
    assert not gate._allowed
    assert not gate._told


FORWARDER = dataclasses.replace(ALICE, scopes={"forward:local": "own", "sftp:read": "own"})
CALLER = dataclasses.replace(WHO, scopes=frozenset({"*"}))


def forwarding(*ports: str, **settings: Any) -> Policy:
    rules = tuple(Rule(True, "local", parse_pattern(f"127.0.0.1:{port}"), name=f"rule {port}") for port in ports)
    return dataclasses.replace(policy(FORWARDER), forward_rules={"alice": rules}, **settings)


def test_where_the_resource_decides_each_is_remembered_by_itself(gate: Gate) -> None:
    gate.policy = forwarding("80", "81")
    first = gate.still(CALLER, "forward/local", "127.0.0.1:80")
    assert gate.still(CALLER, "forward/local", "127.0.0.1:80") is first
    assert (first.rule, gate.still(CALLER, "forward/local", "127.0.0.1:81").rule) == ("rule 80", "rule 81")
    assert gate.still(CALLER, "forward/local")  # whether it may forward at all
    assert not gate.still(CALLER, "forward/local", "127.0.0.1:82")
    gate.policy = forwarding("81")
    assert not gate.still(CALLER, "forward/local", "127.0.0.1:80")
    assert gate.still(CALLER, "forward/local", "127.0.0.1:81")


def test_files_are_decided_alike_whatever_they_are_called(gate: Gate, audit: MemoryAudit) -> None:
    alice = dataclasses.replace(FORWARDER, ssh=SshRights(user="alice", sftp_root="/srv"))
    gate.policy = policy(alice)
    first = gate.still(CALLER, "sftp/read", "/a")
    assert first
    assert gate.still(CALLER, "sftp/read", "/b") is first
    assert not gate.still(CALLER, "sftp/write", "/a")
    gate.ask(CALLER, "sftp/read", "/c", surface="ssh")
    assert audit.records[-1]["resource"] == "/c"
    gate.policy = policy(dataclasses.replace(alice, ssh=SshRights(user="alice")))
    assert gate.still(CALLER, "sftp/read", "/a").rule == "ssh.sftp_root"


def test_what_is_remembered_of_resources_is_bounded(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alknet.gate.MAX_TOLD", 3)
    gate.policy = forwarding("*")
    for port in range(1, 9):
        assert gate.still(CALLER, "forward/local", f"127.0.0.1:{port}")
        assert len(gate._told_allowed) <= 3
    known = dict(gate._told_allowed)
    assert not gate.still(CALLER, "forward/local", "x" * (MAX_TOLD_CHARS + 1))
    assert gate._told_allowed == known


# --- where somebody forwards to ---------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [True, False])
@pytest.mark.parametrize("target", ["127.0.0.1:5432", "10.0.0.1:1"])
def test_a_target_is_written_down_only_where_the_policy_says_so(
    gate: Gate, audit: MemoryAudit, targets: bool, target: str
) -> None:
    rule = Rule(True, "local", parse_pattern("127.0.0.1:*"), name="peer alice forward[0]")
    alice = dataclasses.replace(ALICE, scopes={"forward:local": "own"})
    gate.policy = dataclasses.replace(policy(alice), forward_rules={"alice": (rule,)}, record_targets=targets)
    act = gate.ask(dataclasses.replace(WHO, scopes=frozenset({"*"})), "forward/local", target, surface="ssh")
    act.done("closed")
    assert {record["action"] for record in audit.records} == {"forward/local"}
    assert {record["resource"] for record in audit.records} == {target if targets else None}
    assert (target in str(audit.records)) is targets
    assert act.decision.allowed or target in act.decision.reason  # the client knows what it asked for


@pytest.mark.parametrize("targets", [True, False])
def test_what_an_act_turned_out_to_be_about_is_in_its_outcome(gate: Gate, audit: MemoryAudit, targets: bool) -> None:
    rule = Rule(True, "local", parse_pattern("127.0.0.0/8:*"), name="peer alice forward[0]")
    alice = dataclasses.replace(ALICE, scopes={"forward:local": "own"})
    gate.policy = dataclasses.replace(policy(alice), forward_rules={"alice": (rule,)}, record_targets=targets)
    who = dataclasses.replace(WHO, scopes=frozenset({"*"}))
    act = gate.ask(who, "forward/local", "127.0.0.1:1", surface="ssh")
    act.narrow("127.0.0.2:1")
    act.done("closed")
    told = ["127.0.0.1:1", "127.0.0.2:1"] if targets else [None, None]
    assert [record["resource"] for record in audit.records] == told


def test_an_operation_may_be_called_as_it_likes(gate: Gate, audit: MemoryAudit) -> None:
    gate.ask(WHO, "forward/status", "x", surface="quic", access=READ)
    assert audit.records[0]["resource"] == "x"
