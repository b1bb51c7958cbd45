"""Who is kept out, and that the reason is told: to the caller, in the log and in the audit log."""

import re
import subprocess
from typing import Any

import pytest

from testkit.node import NodeProcess, wait_until
from testkit.users import TEST_USER

pytestmark = pytest.mark.interop

EXIT_DENIED = 3
RUNS = '[ssh]\nuser = "root"\nas_daemon = true'


def _peer(node: NodeProcess, name: str, text: str) -> None:
    node.write_peer(name, text)
    node.alknet("config", "reload")


def _last(node: NodeProcess, action: str) -> dict[str, Any]:
    """The last audit line of `action`; a refused stranger's is written when the connection has ended."""
    return wait_until(
        lambda: next((x for x in reversed(node.audit()) if x["action"] == action), None), f"an audit line of {action}"
    )


def _denials(node: NodeProcess, action: str) -> list[dict[str, Any]]:
    return [x for x in node.audit() if x["action"] == action and x["decision"] == "deny"]


def test_a_strangers_key(node: NodeProcess) -> None:
    node.key("stranger")
    result = node.ssh("id", key="stranger", login="owner")
    assert result.returncode == 255
    assert b"Permission denied (publickey)" in result.stderr
    (line,) = wait_until(lambda: _denials(node, "ssh/login"), "the refusal is in the audit log")
    assert (line["rule"], line["resource"], line["remote"]) == ("anonymous", "owner", "127.0.0.1")
    assert "peer" not in line
    wait_until(lambda: "result=reject reason=unknown-key" in node.log_text(), "the refusal is in the log")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("enabled = false", "peer:disabled"),
        ("expires_at = 2020-01-01T00:00:00Z", "peer:expired"),
    ],
)
def test_a_peer_whose_time_is_over_is_told_why_once_it_has_proven_itself(
    node: NodeProcess, text: str, rule: str
) -> None:
    _peer(node, "bob", f'{text}\nscopes = ["ssh:*"]\n{RUNS}')
    result = node.ssh("id", key="bob")
    assert result.returncode == 255
    line = _denials(node, "ssh/login")[-1]
    assert (line["peer"], line["rule"]) == ("bob", rule)
    assert line["denial_id"].encode() in result.stderr
    assert f"result=reject reason={rule} denial_id={line['denial_id']} peer=bob" in node.log_text()


def test_a_wrong_login_name(node: NodeProcess) -> None:
    _peer(node, "bob", f'scopes = ["ssh:*"]\n{RUNS}')
    result = node.ssh("id", key="bob", login="alice")
    assert result.returncode == 255
    assert b"the login name of peer 'bob' must be 'bob' or 'root'" in result.stderr
    assert node.ssh("true", key="bob", login="root").returncode == 0


@pytest.mark.parametrize(
    ("text", "command", "action", "rule"),
    [
        (f'scopes = ["ssh:shell"]\n{RUNS}', ["id"], "ssh/exec", "scope:ssh:exec"),
        (f'scopes = ["ssh:exec"]\n{RUNS}', [], "ssh/shell", "scope:ssh:shell"),
        (f"scopes = []\n{RUNS}", ["id"], "ssh/exec", "scope:ssh:exec"),
        ('scopes = ["ssh:*"]\n[ssh]\nas_daemon = true', ["id"], "ssh/exec", "ssh.user"),
        (f'scopes = ["ssh:*"]\n{RUNS}\ncommands = ["echo *"]', ["id"], "ssh/exec", "ssh.commands"),
        (f'scopes = ["ssh:*"]\n{RUNS}\ncommands = ["echo *"]', [], "ssh/shell", "ssh.commands"),
    ],
)
def test_a_right_that_is_missing(node: NodeProcess, text: str, command: list[str], action: str, rule: str) -> None:
    _peer(node, "bob", text)
    result = node.ssh(*command, key="bob")
    line = _last(node, action)
    assert result.returncode == EXIT_DENIED
    assert result.stdout == b""
    assert (line["peer"], line["rule"], line["outcome"]) == ("bob", rule, "denied")
    assert f"[{rule}] ({line['denial_id']})".encode() in result.stderr
    can = node.alknet("can", "bob", action, *command, check=False)
    assert (can.returncode, line["denial_id"] in can.stdout) == (EXIT_DENIED, True)


def test_the_same_refusal_has_the_same_id_each_time(node: NodeProcess) -> None:
    _peer(node, "bob", f"scopes = []\n{RUNS}")
    ids = {re.search(rb"den_\w+", node.ssh("id", key="bob").stderr)[0] for _ in range(2)}  # type: ignore[index]
    assert len(ids) == 1


def test_without_as_daemon_an_ordinary_users_node_runs_nothing(user_node: NodeProcess) -> None:
    _peer(user_node, "bob", 'scopes = ["ssh:*"]')
    result = user_node.ssh("id", key="bob")
    assert result.returncode == EXIT_DENIED
    assert b"[ssh.as_daemon]" in result.stderr
    _peer(user_node, "bob", 'scopes = ["ssh:*"]\n[ssh]\nas_daemon = true')
    assert f"({TEST_USER})".encode() in user_node.ssh("id", key="bob").stdout


def test_an_ordinary_users_node_cannot_become_somebody_else(user_node: NodeProcess) -> None:
    _peer(user_node, "bob", 'scopes = ["ssh:*"]\n[ssh]\nas_daemon = true\nuser = "root"')
    result = user_node.ssh("id", key="bob")
    assert (result.returncode, b"[ssh.user]" in result.stderr) == (EXIT_DENIED, True)


def test_exec_and_shell_can_be_switched_off_for_all(node: NodeProcess) -> None:
    node.edit_config("exec = true", "exec = false")
    node.edit_config("shell = true", "shell = false")
    node.alknet("config", "reload")
    assert b"[ssh.exec]" in node.ssh("id").stderr
    assert b"[ssh.shell]" in node.ssh().stderr


def test_a_peer_that_may_only_look_cannot_reload(node: NodeProcess) -> None:
    _peer(node, "bob", 'scopes = ["node:read"]')
    assert node.ssh("op node/status", key="bob").returncode == 0
    question = node.ssh("op node/reload", key="bob")
    assert question.returncode == EXIT_DENIED
    assert b"FORBIDDEN" in question.stderr
    assert _last(node, "node/reload")["rule"] == "scope:node:admin"


def test_with_audit_required_nothing_runs_that_cannot_be_recorded(node: NodeProcess) -> None:
    node.edit_config("required = false", "required = true")
    node.alknet("config", "reload")
    assert node.ssh("true").returncode == 0
    limit = (node.home / "audit" / "audit.jsonl").stat().st_size
    subprocess.run(["prlimit", f"--pid={node.pid}", f"--fsize={limit}:unlimited"], check=True)
    result = node.ssh("echo ran")
    assert result.stdout == b""
    assert b"audit" in result.stderr
    subprocess.run(["prlimit", f"--pid={node.pid}", "--fsize=unlimited:unlimited"], check=True)
    assert node.ssh("echo ran").stdout == b"ran\n"
    node.stop()
    assert node.alknet("audit", "verify").stdout.startswith("ok:")
