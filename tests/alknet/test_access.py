"""The access decision: its order, every action's rules, scopes, command lists and denial ids."""

import shlex
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alknet.access import (
    ACTIONS,
    Context,
    DaemonUser,
    Decision,
    Identity,
    Peer,
    Policy,
    SshRights,
    authorize,
    command_matches,
    scope_grants,
)

NOW = 1_700_000_000.0
ROOT = DaemonUser("root", is_root=True)
ALICE_OS = DaemonUser("alice-os", is_root=False)
ALICE = Peer("alice", {"ssh:exec": "own", "ssh:shell": "role dev"}, ("SHA256:a",), ssh=SshRights(user="alice-os"))
BOB = Peer("bob", {"*": "own"}, ("SHA256:b",), ssh=SshRights(user="bob-os"))


def policy(*peers: Peer, daemon: DaemonUser = ROOT, exec_enabled: bool = True, shell_enabled: bool = True) -> Policy:
    return Policy(
        peers={peer.id: peer for peer in peers or (ALICE, BOB)},
        revision="r1",
        denial_key=b"k" * 32,
        daemon=daemon,
        exec_enabled=exec_enabled,
        shell_enabled=shell_enabled,
    )


def who(peer: Peer = ALICE) -> Identity:
    return Identity(peer.id, frozenset(peer.scopes), f"key:{peer.keys[0] if peer.keys else ''}")


def decide(
    action: str, resource: str | None = None, *, peer: Peer = ALICE, under: Policy | None = None, now: float = NOW
) -> Decision:
    return authorize(who(peer), action, resource, Context(under or policy(peer), now))


# --- the order ------------------------------------------------------------------------------------------------


def test_a_granted_action_names_the_scope_that_granted_it_and_its_source() -> None:
    decision = decide("ssh/shell")
    assert (decision.allowed, decision.rule) == (True, "scope:ssh:shell")
    assert "role dev" in decision.reason
    assert decision.denial_id is None


def test_a_scope_that_only_the_credential_carries_is_named_as_such() -> None:
    identity = Identity("alice", frozenset({"node:read"}), "key:SHA256:a")
    decision = authorize(identity, "node/status", None, Context(policy(), NOW))
    assert (decision.allowed, "(credential)" in decision.reason) == (True, True)


def test_the_peers_scopes_do_not_add_to_those_of_the_identity() -> None:
    identity = Identity("bob", frozenset({"ssh:exec"}), "key:SHA256:b")
    assert authorize(identity, "node/reload", None, Context(policy(), NOW)).rule == "scope:node:admin"


@pytest.mark.parametrize("action", [*ACTIONS, "no/such"])
def test_nobody_gets_the_same_answer_for_every_action(action: str) -> None:
    decision = authorize(None, action, None, Context(policy(), NOW))
    assert (decision.allowed, decision.rule, decision.reason) == (False, "anonymous", "authentication required")
    assert decision.denial_id is not None


def test_each_check_comes_before_the_next() -> None:
    """One peer against which everything speaks; the obstacles fall one by one, and the next one shows."""
    peer = Peer("ghost", enabled=False, expires_at=NOW, ssh=SshRights(commands=()))
    stranger = Context(policy(ALICE), NOW)
    assert authorize(None, "no/such", None, stranger).rule == "anonymous"
    assert authorize(who(peer), "ssh/Exec", None, stranger).rule == "action:unknown"
    assert authorize(who(peer), "ssh/exec", "x", stranger).rule == "peer:unknown"
    steps: list[tuple[str, bool, dict[str, Any]]] = [
        ("peer:disabled", False, {}),
        ("peer:expired", False, {"enabled": True}),
        ("scope:ssh:exec", False, {"expires_at": None}),
        ("ssh.exec", False, {"scopes": {"ssh:exec": "own"}}),
        ("ssh.user", True, {}),
        ("ssh.commands", True, {"ssh": SshRights(user="ghost", commands=())}),
    ]
    for rule, exec_enabled, change in steps:
        peer = replace(peer, **change)
        answer = decide("ssh/exec", "x", peer=peer, under=policy(peer, exec_enabled=exec_enabled))
        assert (answer.allowed, answer.rule) == (False, rule)
    assert decide("ssh/exec", "x", peer=replace(peer, ssh=SshRights(user="ghost")))


def test_access_ends_exactly_at_expires_at() -> None:
    peer = replace(ALICE, expires_at=NOW)
    assert decide("ssh/shell", peer=peer, now=NOW - 0.001)
    assert decide("ssh/shell", peer=peer, now=NOW).rule == "peer:expired"
    assert decide("ssh/shell", peer=peer, now=NOW + 1).rule == "peer:expired"
    assert decide("ssh/shell", peer=replace(ALICE, expires_at=0.0)).rule == "peer:expired"


def test_a_caller_is_told_reason_rule_and_denial_id() -> None:
    denied, allowed = decide("node/kill"), decide("ssh/shell")
    assert str(denied) == f"peer 'alice' lacks the scope node:admin [scope:node:admin] ({denied.denial_id})"
    assert str(allowed) == f"{allowed.reason} [scope:ssh:shell]"


def test_the_same_question_names_the_same_scope_whatever_the_order_of_the_set() -> None:
    granting = {"*": "own", "ssh:*": "own", "ssh:exec": "own", "*:exec": "own"}
    peer = replace(ALICE, scopes=granting)
    rules = {
        authorize(Identity("alice", scopes, "key:x"), "ssh/exec", "id", Context(policy(peer), NOW)).rule
        for scopes in (frozenset(sorted(granting)), frozenset(sorted(granting, reverse=True)))
    }
    assert rules == {"scope:*"}


# --- the rules of every action --------------------------------------------------------------------------------


SCOPE_OF = {
    "ssh/exec": "ssh:exec",
    "ssh/shell": "ssh:shell",
    "node/status": "node:read",
    "node/sessions": "node:read",
    "node/can": "node:read",
    "node/reload": "node:admin",
    "node/kill": "node:admin",
}


@pytest.mark.parametrize(("action", "scope"), SCOPE_OF.items())
def test_an_action_needs_its_own_scope_and_no_other(action: str, scope: str) -> None:
    others = set(SCOPE_OF.values()) - {scope}
    assert decide(action, peer=replace(ALICE, scopes={scope: "own"}))
    denied = decide(action, peer=replace(ALICE, scopes=dict.fromkeys(others, "own")))
    assert (denied.allowed, denied.rule) == (False, f"scope:{scope}")
    assert scope in denied.reason


def test_the_actions_under_test_are_all_there_are() -> None:
    assert set(ACTIONS) == {"ssh/login", *SCOPE_OF}


@pytest.mark.parametrize("login", [None, "alice", "alice-os"])
def test_login_needs_no_scope_and_takes_the_peers_names(login: str | None) -> None:
    decision = decide("ssh/login", login, peer=replace(ALICE, scopes={}))
    assert (decision.allowed, decision.rule) == (True, "peer:enabled")


@pytest.mark.parametrize("login", ["", "root", "bob", "Alice", "alice "])
def test_another_login_name_is_refused_with_the_right_ones(login: str) -> None:
    decision = decide("ssh/login", login)
    assert decision.rule == "login-name"
    assert "'alice' or 'alice-os'" in decision.reason


def test_the_nodes_switches_turn_off_exec_and_shell_each_for_everybody() -> None:
    no_exec, no_shell = policy(BOB, exec_enabled=False), policy(BOB, shell_enabled=False)
    assert decide("ssh/exec", "id", peer=BOB, under=no_exec).rule == "ssh.exec"
    assert decide("ssh/exec", "id", peer=BOB, under=no_shell)
    assert decide("ssh/shell", peer=BOB, under=no_shell).rule == "ssh.shell"
    assert decide("ssh/shell", peer=BOB, under=no_exec)


@pytest.mark.parametrize("action", ["ssh/exec", "ssh/shell"])
@pytest.mark.parametrize(
    ("daemon", "rights", "rule"),
    [
        (ROOT, SshRights(user="alice-os"), None),
        (ROOT, SshRights(), "ssh.user"),
        (ROOT, SshRights(as_daemon=True), "ssh.user"),
        (ALICE_OS, SshRights(), "ssh.as_daemon"),
        (ALICE_OS, SshRights(user="alice-os"), "ssh.as_daemon"),
        (ALICE_OS, SshRights(as_daemon=True), None),
        (ALICE_OS, SshRights(user="alice-os", as_daemon=True), None),
        (ALICE_OS, SshRights(user="other", as_daemon=True), "ssh.user"),
    ],
)
def test_who_runs_things(action: str, daemon: DaemonUser, rights: SshRights, rule: str | None) -> None:
    peer = replace(ALICE, ssh=rights)
    decision = decide(action, "id" if action == "ssh/exec" else None, peer=peer, under=policy(peer, daemon=daemon))
    assert (None if decision else decision.rule) == rule


def test_a_list_of_commands_allows_those_and_rules_out_a_shell() -> None:
    peer = replace(ALICE, ssh=SshRights(user="alice-os", commands=("uptime", "git status *")))
    assert decide("ssh/exec", "uptime", peer=peer)
    assert decide("ssh/exec", "git status -s", peer=peer)
    denied = decide("ssh/exec", "git push", peer=peer)
    assert denied.rule == "ssh.commands"
    assert "uptime, git status *" in denied.reason
    assert decide("ssh/exec", None, peer=peer).rule == "ssh.commands"
    assert decide("ssh/shell", peer=peer).rule == "ssh.commands"
    nothing = decide("ssh/exec", "", peer=replace(ALICE, ssh=SshRights(user="alice-os", commands=())))
    assert (nothing.rule, "nothing" in nothing.reason) == ("ssh.commands", True)


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


# --- commands -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        ("uptime", ["uptime", "  uptime  "], ["uptime -p", "uptimes", "", "Uptime", "uptime 'unbalanced"]),
        ("", [], ["", "uptime"]),
        ("git status", ["git 'status'"], ["'git status'"]),
        ("git 'a b'", ['git "a b"'], ["git a b"]),
        ("cat *.txt", ["cat notes.txt", "cat 'a b.txt'"], ["cat a.txt b.txt"]),
        ("cat ?", ["cat a"], ["cat ab", "cat ''"]),
        ("cat a[12]", ["cat 'a[12]'"], ["cat a1"]),
        ("cat [!x]", [], ["cat y"]),
        ("git log *", ["git log", "git log -1 --all"], ["git push", "git"]),
        ("*", ["anything at all"], [""]),
        ("* --version", ["git --version"], ["git push --version"]),
        ("cat a*z", ["cat abcz"], ["cat a"]),
        ("uptime 'unbalanced", [], ["uptime unbalanced"]),
        (
            "/opt/scripts/*",
            ["/opt/scripts/backup", "/opt/scripts/a.sh"],
            [
                "/opt/scripts/../../bin/sh",
                "/opt/scripts/..",
                "/opt/scripts/.",
                "/opt/scripts/a/b",
                "/opt/scripts",
                "/opt/scripts/backup x",
            ],
        ),
        ("/opt/*/run", ["/opt/a/run", "/opt/..a/run"], ["/opt/a/b/run", "/opt/run", "/opt/../run", "/opt/./run"]),
        ("cat /srv?file", ["cat /srv-file"], ["cat /srv/file"]),
        ("cat ?", ["cat x", "cat '\n'"], ["cat /"]),
        ("cat *", ["cat /etc/passwd", "cat ../x", "cat a /b"], []),
        ("cat * x", ["cat a x", "cat ... x", "cat .a x"], ["cat /a x", "cat ../a x", "cat .. x", "cat . x"]),
        ("cat ?? x", ["cat ab x"], ["cat .. x"]),
        ("cat .* x", ["cat .a x"], ["cat .. x", "cat . x"]),
        ("cat a/../* x", ["cat a/../b x"], ["cat a/../.. x"]),
        ("*/id", ["bin/id", "/id"], ["/bin/id", "../bin/id"]),
        ("cat a*", ["cat 'a\n\nb'"], ["cat a/b"]),
        ("cat a.c", ["cat a.c"], ["cat abc"]),
        ("cat (a|b)+ ^x$", ["cat '(a|b)+' '^x$'"], ["cat a x"]),
    ],
)
def test_a_command_is_matched_word_by_word(pattern: str, allowed: list[str], refused: list[str]) -> None:
    assert [command for command in allowed + refused if command_matches(pattern, command)] == allowed


TAILS = [";", "&&", "|", "&", "$(id)", "`id`", ">", "#", "''"]


@pytest.mark.parametrize("tail", [*TAILS, ";id", "&&id", "|id", "\nid", "> /etc/passwd"])
@pytest.mark.parametrize("gap", ["", " "])
def test_what_a_shell_would_act_on_makes_a_command_another_one(tail: str, gap: str) -> None:
    if (gap, tail) != ("", "''"):  # which is the same word, written in two pieces
        assert not command_matches("git status", f"git status{gap}{tail}")


def test_metacharacters_are_letters_of_a_word_where_a_glob_admits_them() -> None:
    """They reach the program as they are: no shell sees the command."""
    assert command_matches("echo *;id", "echo 'a b;id'")
    assert command_matches("echo ?", "echo ';'")


WORD = st.text(st.sampled_from("abc;&|$()`<>#~ \n\t'\"\\-."), min_size=1, max_size=6)


def quoted(words: Sequence[str]) -> str:
    return " ".join(shlex.quote(word) for word in words)


@given(st.lists(WORD, min_size=1, max_size=4), st.lists(WORD, min_size=1, max_size=3))
def test_further_words_never_match_an_exact_pattern(words: list[str], more: list[str]) -> None:
    assert command_matches(quoted(words), quoted(words))
    assert not command_matches(quoted(words), quoted([*words, *more]))
    assert not command_matches(quoted([*words, *more]), quoted(words))


PATH = st.text(st.sampled_from("a./*?\n"), max_size=8)


@given(PATH, PATH)
def test_a_glob_admits_no_more_slashes_than_it_has(pattern: str, word: str) -> None:
    matched = command_matches(f"run {quoted([pattern])} end", f"run {quoted([word])} end")
    assert not matched or word.count("/") == pattern.count("/")
    assert not matched or [part for part in word.split("/") if part in (".", "..")] == [
        part for part in pattern.split("/") if part in (".", "..")
    ]


@given(st.lists(WORD, min_size=1, max_size=3), st.lists(WORD, max_size=3))
def test_a_last_star_admits_any_further_words(words: list[str], more: list[str]) -> None:
    assert command_matches(quoted(words) + " *", quoted([*words, *more]))


@given(st.text(max_size=30), st.text(max_size=30))
def test_matching_never_fails(pattern: str, command: str) -> None:
    assert command_matches(pattern, command) in (True, False)


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


def test_a_key_proves_the_peer_that_holds_it() -> None:
    assert policy().lookup_key("SHA256:a") == who(ALICE)
    assert policy().lookup_key("SHA256:x") is None
    assert policy(replace(ALICE, enabled=False)).lookup_key("SHA256:a") == who(ALICE)


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


def test_the_next_expiry_is_the_nearest_one_ahead() -> None:
    peers = [Peer(f"p{at}", expires_at=NOW + at) for at in (-5.0, 0.0, 30.0, 20.0)]
    assert policy(*peers, Peer("forever")).next_expiry(NOW) == NOW + 20
    assert policy(Peer("forever")).next_expiry(NOW) is None


def test_a_policy_cannot_be_changed_and_does_not_show_its_key() -> None:
    snapshot = policy()
    assert "kkkk" not in repr(snapshot)
    with pytest.raises(FrozenInstanceError):
        snapshot.revision = "r2"  # type: ignore[misc]
    with pytest.raises(TypeError):
        snapshot._by_key["SHA256:x"] = "bob"  # type: ignore[index]
