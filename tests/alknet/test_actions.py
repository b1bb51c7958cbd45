"""Every action's scope and rules, and the lists of commands."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.access import Certificate, Context, DaemonUser, Decision, Identity, Peer, Policy, SshRights, authorize
from alknet.actions import ACTIONS, Action, command_matches
from alknet.target_patterns import parse_pattern
from alknet.targets import Rule

ROOT = DaemonUser("root", is_root=True)
ALICE_OS = DaemonUser("alice-os", is_root=False)
ALICE = Peer("alice", {"ssh:exec": "own", "ssh:shell": "role dev"}, keys=("SHA256:a",), ssh=SshRights(user="alice-os"))
BOB = Peer("bob", {"*": "own"}, keys=("SHA256:b",), ssh=SshRights(user="bob-os"))


def policy(
    peer: Peer,
    *,
    daemon: DaemonUser = ROOT,
    exec_enabled: bool = True,
    shell_enabled: bool = True,
    run_enabled: bool = True,
) -> Policy:
    return Policy(
        peers={peer.id: peer},
        revision="r1",
        denial_key=b"k" * 32,
        daemon=daemon,
        exec_enabled=exec_enabled,
        shell_enabled=shell_enabled,
        run_enabled=run_enabled,
    )


def decide(action: str, resource: str | None = None, *, peer: Peer = ALICE, under: Policy | None = None) -> Decision:
    identity = Identity(peer.id, frozenset(peer.scopes), f"key:{peer.keys[0]}")
    return authorize(identity, action, resource, Context(under or policy(peer), 1_700_000_000.0))


# --- the rules of every action --------------------------------------------------------------------------------


FORWARDS = {"forward/local": "forward:local", "forward/remote": "forward:remote", "forward/udp": "forward:udp"}
SCOPE_OF = {
    "ssh/exec": "ssh:exec",
    "ssh/shell": "ssh:shell",
    "exec/run": "exec:run",
}


@pytest.mark.parametrize(("action", "scope"), SCOPE_OF.items())
def test_an_action_needs_its_own_scope_and_no_other(action: str, scope: str) -> None:
    others = set(SCOPE_OF.values()) - {scope}
    assert decide(action, peer=replace(ALICE, scopes={scope: "own"}))
    denied = decide(action, peer=replace(ALICE, scopes=dict.fromkeys(others, "own")))
    assert (denied.allowed, denied.rule) == (False, f"scope:{scope}")
    assert scope in denied.reason


def test_the_actions_under_test_are_all_there_are_and_nobody_adds_one() -> None:
    assert {name: action.scope for name, action in ACTIONS.items()} == {
        "call/connect": None,
        "channel/open": None,
        "ssh/login": None,
        "ssh/pty": None,
        **SCOPE_OF,
        **FORWARDS,
        "ssh/agent": "ssh:agent",
        "sftp/read": "sftp:read",
        "sftp/write": "sftp:write",
    }
    assert isinstance(ACTIONS, MappingProxyType)
    with pytest.raises(TypeError):
        ACTIONS["no/such"] = Action(None)  # type: ignore[index]


@pytest.mark.parametrize("action", ["call/connect", "channel/open", "ssh/login", *SCOPE_OF])
def test_a_token_narrows_every_action_that_has_a_scope(action: str) -> None:
    identity = Identity("bob", frozenset({"fs:read"}), "token:abcdefgh")
    decision = authorize(identity, action, None, Context(policy(BOB), 1_700_000_000.0))
    scope = ACTIONS[action].scope
    assert decision.rule == ("peer:enabled" if scope is None else f"token-scope:{scope}")


# --- forwards ---------------------------------------------------------------------------------------------------


def may_forward(
    action: str, resource: str | None, *lines: tuple[bool, str, str], scopes: Sequence[str] = ("forward:*",)
) -> Decision:
    rules = tuple(
        Rule(allow, direction, parse_pattern(target), name=f"forwarding.rules[{number}]")  # type: ignore[arg-type]
        for number, (allow, direction, target) in enumerate(lines)
    )
    peer = replace(ALICE, scopes=dict.fromkeys(scopes, "own"))
    return decide(action, resource, peer=peer, under=replace(policy(peer), forward_rules={"alice": rules}))


@pytest.mark.parametrize(("action", "scope"), FORWARDS.items())
def test_a_forward_needs_the_scope_and_then_a_rule(action: str, scope: str) -> None:
    direction = action.partition("/")[2]
    line = (True, direction, "10.0.0.7:80")
    allowed = may_forward(action, "10.0.0.7:80", line, scopes=[scope])
    assert (allowed.allowed, allowed.rule, allowed.reason[:12]) == (True, "forwarding.rules[0]", "a rule allow")
    elsewhere = may_forward(action, "10.0.0.7:80", line, scopes=sorted(set(FORWARDS.values()) - {scope}))
    assert elsewhere.rule == f"scope:{scope}"
    others = {"local", "remote", "udp"} - {direction}
    denied = may_forward(action, "10.0.0.7:80", *((True, other, "10.0.0.7:80") for other in sorted(others)))
    assert (denied.allowed, denied.rule) == (False, "forwarding.default")
    assert "10.0.0.7:80" in denied.reason


@pytest.mark.parametrize(
    "resource", ["", "db", "0x7f.1:80", "\ud800:80", "x\0:80", "x" * 100_000, "/run/../x", "db:99999"]
)
def test_a_target_that_is_none_is_refused(resource: str) -> None:
    everything = [(True, "local", "*:*"), (True, "local", "0.0.0.0/0:*"), (True, "unix", "/run/*")]
    denied = may_forward("forward/local", resource, *everything)
    assert (denied.allowed, denied.rule) == (False, "forwarding.target")
    assert len(denied.reason) < 200


@pytest.mark.parametrize(
    ("action", "line", "rule"),
    [
        ("forward/local", (True, "local", "db:80"), "scope:forward:*"),
        ("forward/local", (True, "unix", "/run/x"), "scope:forward:*"),
        ("forward/local", (False, "local", "db:80"), "forwarding.default"),
        ("forward/local", (True, "remote", "db:80"), "forwarding.default"),
        ("forward/udp", (True, "unix", "/run/x"), "forwarding.default"),
        ("forward/udp", (True, "udp", "db:53"), "scope:forward:*"),
    ],
)
def test_without_a_target_it_is_asked_whether_there_could_be_one(
    action: str, line: tuple[bool, str, str], rule: str
) -> None:
    assert may_forward(action, None, line).rule == rule


def test_a_peer_has_its_own_rules_alone() -> None:
    rule = Rule(True, "local", parse_pattern("10.0.0.7:80"))
    for_bob = replace(policy(BOB), forward_rules={"alice": (rule,)})
    assert decide("forward/local", "10.0.0.7:80", peer=BOB, under=for_bob).rule == "forwarding.default"


def test_a_certificate_without_port_forwarding_forwards_nothing() -> None:
    line = Rule(True, "local", parse_pattern("10.0.0.7:80"))
    under = replace(policy(BOB), forward_rules={"bob": (line,)})
    for permits, allowed in ((frozenset({"port-forwarding"}), True), (frozenset({"pty", "agent-forwarding"}), False)):
        identity = Identity("bob", frozenset({"*"}), "cert:x", certificate=Certificate("k", "ca", "id", 1, (), permits))
        decision = authorize(identity, "forward/local", "10.0.0.7:80", Context(under, 1_700_000_000.0))
        assert decision.allowed is allowed
        assert allowed or decision.rule == "certificate:permit-port-forwarding"


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
    assert decide("exec/run", "id", peer=BOB, under=no_exec)
    assert decide("exec/run", "id", peer=BOB, under=policy(BOB, run_enabled=False)).rule == "exec.enabled"
    assert Policy({}, "r1", b"k", ROOT).run_enabled is False


@pytest.mark.parametrize("action", ["ssh/exec", "ssh/shell", "exec/run"])
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
    peer = replace(ALICE, scopes={"*": "own"}, ssh=rights)
    decision = decide(action, None if action == "ssh/shell" else "id", peer=peer, under=policy(peer, daemon=daemon))
    assert (None if decision else decision.rule) == rule


def test_a_list_of_commands_allows_those_and_rules_out_a_shell() -> None:
    peer = replace(ALICE, scopes={"*": "own"}, ssh=SshRights(user="alice-os", commands=("uptime", "git status *")))
    assert decide("ssh/exec", "uptime", peer=peer)
    assert decide("exec/run", "uptime", peer=peer)
    assert decide("exec/run", "git push", peer=peer).rule == "ssh.commands"
    assert decide("ssh/exec", "git status -s", peer=peer)
    denied = decide("ssh/exec", "git push", peer=peer)
    assert denied.rule == "ssh.commands"
    assert "uptime, git status *" in denied.reason
    assert decide("ssh/exec", None, peer=peer).rule == "ssh.commands"
    assert decide("ssh/shell", peer=peer).rule == "ssh.commands"
    nothing = decide("ssh/exec", "", peer=replace(ALICE, ssh=SshRights(user="alice-os", commands=())))
    assert (nothing.rule, "nothing" in nothing.reason) == ("ssh.commands", True)


def test_a_forced_command_rules_out_a_shell_and_is_itself_decided_as_a_command() -> None:
    peer = replace(ALICE, ssh=SshRights(user="alice-os", force_command="date"))
    assert decide("ssh/shell", peer=peer).rule == "ssh.force_command"
    assert decide("ssh/exec", "date", peer=peer)


# --- files and the agent ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["sftp/read", "sftp/write"])
@pytest.mark.parametrize(
    ("daemon", "rights", "rule"),
    [
        (ROOT, SshRights(user="alice-os", sftp_root="/srv"), None),
        (ROOT, SshRights(user="alice-os", sftp_root="/srv", commands=()), None),
        (ROOT, SshRights(user="alice-os"), "ssh.sftp_root"),
        (ROOT, SshRights(sftp_root="/srv"), "ssh.user"),
        (ROOT, SshRights(sftp_root="/srv", as_daemon=True), "ssh.user"),
        (ALICE_OS, SshRights(sftp_root="/srv"), None),
        (ALICE_OS, SshRights(), "ssh.sftp_root"),
        (ALICE_OS, SshRights(user="alice-os", sftp_root="/srv"), None),
        (ALICE_OS, SshRights(user="other", sftp_root="/srv"), "ssh.user"),
        (ROOT, SshRights(user="alice-os", sftp_root="/srv", force_command="date"), "ssh.force_command"),
    ],
)
def test_whose_files_are_served(action: str, daemon: DaemonUser, rights: SshRights, rule: str | None) -> None:
    peer = replace(ALICE, scopes={"sftp:*": "own"}, ssh=rights)
    for path in (None, "/a", "/\udcff"):
        decision = decide(action, path, peer=peer, under=policy(peer, daemon=daemon))
        assert (None if decision else decision.rule) == rule


@pytest.mark.parametrize("action", ["sftp/read", "sftp/write"])
def test_reading_and_writing_are_apart(action: str) -> None:
    peer = replace(ALICE, scopes={action.replace("/", ":"): "own"}, ssh=SshRights(user="alice-os", sftp_root="/srv"))
    other = {"sftp/read": "sftp/write", "sftp/write": "sftp/read"}[action]
    assert decide(action, "/a", peer=peer)
    assert decide(other, "/a", peer=peer).rule == f"scope:{other.replace('/', ':')}"


def test_an_agent_is_for_whoever_may_run_something_as_somebody() -> None:
    peer = replace(ALICE, scopes={"ssh:agent": "own"})
    assert decide("ssh/agent", peer=peer)
    assert decide("ssh/agent", peer=ALICE).rule == "scope:ssh:agent"
    assert decide("ssh/agent", peer=replace(peer, ssh=SshRights())).rule == "ssh.user"


@pytest.mark.parametrize(("action", "extension"), [("ssh/agent", "agent-forwarding"), ("ssh/pty", "pty")])
def test_a_certificate_withholds_what_it_does_not_permit(action: str, extension: str) -> None:
    for permits, allowed in ((frozenset({extension}), True), (frozenset({"port-forwarding", "X11-forwarding"}), False)):
        identity = Identity("bob", frozenset({"*"}), "cert:x", certificate=Certificate("k", "ca", "id", 1, (), permits))
        decision = authorize(identity, action, None, Context(policy(BOB), 1_700_000_000.0))
        assert decision.allowed is allowed
        assert allowed or decision.rule == f"certificate:permit-{extension}"


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
