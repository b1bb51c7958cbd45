"""A change of the configuration while people are inside."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from alknet.certificates import make_certificate, write_certificate
from alknet.config.home import write_atomically
from testkit.node import NodeProcess, wait_until

pytestmark = pytest.mark.interop

REVOKED_WITHIN_S = 2.0
RUNS = '[ssh]\nuser = "root"\nas_daemon = true'


class Inside:
    """A session that runs until it is ended from outside."""

    def __init__(self, node: NodeProcess, peer: str) -> None:
        self.peer = peer
        self.process = subprocess.Popen(
            node.ssh_command("echo in; exec sleep 1000", key=peer),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"in\n"

    @property
    def is_in(self) -> bool:
        return self.process.poll() is None

    def wait_out(self) -> tuple[int, str]:
        """(exit code, stderr) of a session that was ended within the promised time."""
        _, stderr = self.process.communicate(timeout=REVOKED_WITHIN_S)
        return self.process.returncode, stderr.decode()

    def leave(self) -> None:
        self.process.kill()
        self.process.communicate()


def _write(node: NodeProcess, peer: str, scopes: str = '"ssh:exec"', more: str = "") -> None:
    node.write_peer(peer, f"{more}\nscopes = [{scopes}]\n{RUNS}")


Trigger = Callable[[NodeProcess], None]
TRIGGERS: dict[str, Trigger] = {
    "command": lambda node: (node.alknet("config", "reload"), None)[1],
    "SIGHUP": lambda node: os.kill(node.pid, signal.SIGHUP),
    "file": lambda node: None,
}


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_only_the_peer_that_lost_its_right_is_ended(node: NodeProcess, trigger: str) -> None:
    peers = [f"p{number}" for number in range(10)]
    for peer in peers:
        _write(node, peer)
    node.alknet("config", "reload")
    sessions = [Inside(node, peer) for peer in peers]
    try:
        victim = sessions.pop(4)
        _write(node, victim.peer, scopes="")
        TRIGGERS[trigger](node)
        code, stderr = victim.wait_out()
        assert code == 3
        assert "[scope:ssh:exec] (den_" in stderr
        assert all(session.is_in for session in sessions)
        assert len(node.json("sessions")) == 9
    finally:
        for session in sessions:
            session.leave()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("enabled = false", "peer:disabled"),
        ("expires_at = 2020-01-01T00:00:00Z", "peer:expired"),
    ],
)
def test_a_peer_that_may_not_log_in_any_more_is_disconnected_with_the_reason(
    node: NodeProcess, change: str, rule: str
) -> None:
    _write(node, "bob")
    node.alknet("config", "reload")
    session, owner = Inside(node, "bob"), Inside(node, "owner")
    _write(node, "bob", more=change)
    node.alknet("config", "reload")
    _, stderr = session.wait_out()
    assert f"[{rule}] (den_" in stderr
    assert owner.is_in
    owner.leave()

    def revoked() -> set[str]:
        return {x["action"] for x in node.audit() if x.get("peer") == "bob" and x.get("outcome") == "revoked"}

    wait_until(lambda: revoked() == {"ssh/login", "ssh/exec"}, "both ends are in the audit log")


def test_removing_the_key_or_the_peer_ends_its_connections(node: NodeProcess) -> None:
    for way in ("key", "peer"):
        _write(node, "bob")
        node.alknet("config", "reload")
        session = Inside(node, "bob")
        if way == "key":
            node.write_peer("bob", f'scopes = ["ssh:exec"]\n{RUNS}', key="another")
            node.alknet("config", "reload")
        else:
            node.alknet("peer", "remove", "bob")
        assert {"key": "[credential:removed]", "peer": "[peer:unknown]"}[way] in session.wait_out()[1]


def test_the_end_of_expires_at_ends_live_connections(node: NodeProcess) -> None:
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3))
    _write(node, "bob", more=f"expires_at = {soon}")
    node.alknet("config", "reload")
    session = Inside(node, "bob")
    _, stderr = session.process.communicate(timeout=3 + REVOKED_WITHIN_S)
    assert b"has expired" in stderr


def test_a_session_that_would_now_run_otherwise_is_ended(node: NodeProcess) -> None:
    _write(node, "bob")
    node.alknet("config", "reload")
    session = Inside(node, "bob")
    node.write_peer("bob", f'scopes = ["ssh:exec"]\n{RUNS}\nforce_command = "true"')
    node.alknet("config", "reload")
    assert "[session:changed]" in session.wait_out()[1]


def test_a_client_that_does_not_read_is_ended_all_the_same(node: NodeProcess) -> None:
    _write(node, "bob")
    node.alknet("config", "reload")
    process = subprocess.Popen(node.ssh_command("exec cat /dev/zero", key="bob"), stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    cats = wait_until(lambda: _children(node), "cat runs")
    _write(node, "bob", scopes="")
    node.alknet("config", "reload")
    wait_until(lambda: not any(map(_runs, cats)), "cat is gone", timeout_s=REVOKED_WITHIN_S)
    process.kill()
    process.communicate()


def _runs(process: psutil.Process) -> bool:
    """What has ended and is not reaped before the hang-up grace of 2 s is over runs no more."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _children(node: NodeProcess) -> list[psutil.Process]:
    return psutil.Process(node.pid).children()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("[ssh\n", "is not valid TOML"),
        ("[ssh]\nshel = true\n", "did you mean 'shell'?"),
        ("[limits]\nhalf_open = 0\n", "limits.half_open: found 0"),
    ],
)
def test_a_broken_file_changes_nothing_and_says_why(node: NodeProcess, broken: str, message: str) -> None:
    before = node.json("status")["node"]["revision"]
    session = Inside(node, "owner")
    config = node.home / "alknet.toml"
    good = config.read_text()
    config.write_text(broken)
    result = node.alknet("config", "reload", check=False)
    assert (result.returncode, message in result.stderr) == (7, True)
    assert str(config) in result.stderr
    wait_until(lambda: message in node.log_text(), "the log says it too")
    assert node.json("status")["node"]["revision"] == before
    assert session.is_in
    session.leave()
    config.write_text(good)
    assert node.alknet("config", "reload").stdout.startswith("nothing to change: revision ")


def test_what_needs_a_restart_is_said_and_the_rest_applied(node: NodeProcess) -> None:
    node.edit_config('name = ""', 'name = "renamed"')
    node.edit_config("auth_attempts = 10", "auth_attempts = 3")
    text = node.alknet("config", "reload").stdout
    assert "needs a restart: node.name" in text
    assert "changed=limits.auth_attempts" in node.log_text()  # by the command, or by the file watch before it
    assert node.json("status")["node"]["name"] != "renamed"
    assert node.json("config", "reload")["needs_restart"] == ["node.name"]


def test_a_file_that_others_can_write_is_refused(node: NodeProcess) -> None:
    path = Path(node.home / "peers.d" / "owner.toml")
    path.chmod(0o666)
    result = node.alknet("config", "reload", check=False)
    assert (result.returncode, "others can write" in result.stderr) == (7, True)


# --- the certificate ------------------------------------------------------------------------------------------------


def _put_certificate(node: NodeProcess) -> None:
    """Replace the pair in the directory of the test's own certificate, the key first."""
    write_certificate(make_certificate(("localhost",)), node.directory / "crt.pem", node.directory / "key.pem")


def _use_files(node: NodeProcess) -> None:
    _put_certificate(node)
    text = (node.home / "alknet.toml").read_text()
    for key, value in (("mode", "files"), ("cert", node.directory / "crt.pem"), ("key", node.directory / "key.pem")):
        text = re.sub(rf'(?m)^{key} = "[^"]*"$', f'{key} = "{value}"', text)
    used = 'cause="file changed" changed=tls.mode,tls.cert,tls.key,tls.certificate'
    # Written until it is noticed: a node watches its files from a moment after its start.
    wait_until(lambda: (write_atomically(node.home / "alknet.toml", text), used in node.log_text())[1], used)


def _reported(node: NodeProcess) -> int:
    return node.log_text().count("changed=tls.certificate")


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_a_replaced_certificate_is_taken_and_reported(node: NodeProcess, trigger: str) -> None:
    _use_files(node)
    session = Inside(node, "owner")
    revision = node.json("status")["node"]["revision"]
    _put_certificate(node)
    TRIGGERS[trigger](node)
    wait_until(lambda: _reported(node) == 1, "it is reported")  # by the trigger, or by the file watch before it
    assert node.json("status")["node"]["revision"] == revision
    lines = [line for line in node.audit() if line.get("changed") == ["tls.certificate"]]
    assert len(lines) == 1
    assert session.is_in
    session.leave()


def test_a_broken_certificate_changes_nothing_and_says_which_file(node: NodeProcess) -> None:
    _use_files(node)
    before = node.json("status")["node"]["revision"]
    (node.directory / "crt.pem").write_text("broken")
    node.edit_config("auth_attempts = 10", "auth_attempts = 3")
    result = node.alknet("config", "reload", check=False)
    message = f"{node.directory / 'crt.pem'}: is not a PEM file"
    assert (result.returncode, message in result.stderr) == (7, True)
    wait_until(lambda: message in node.log_text(), "the log says it too")
    assert node.json("status")["node"]["revision"] == before
    _put_certificate(node)
    wait_until(lambda: "changed=limits.auth_attempts,tls.certificate" in node.log_text(), "the rest is applied now")


def test_a_certificate_that_the_node_made_is_made_anew_when_it_is_removed(node: NodeProcess) -> None:
    certificate = node.home / "keys" / "tls.crt"
    before = certificate.read_bytes()
    certificate.unlink()
    node.alknet("config", "reload")
    wait_until(lambda: _reported(node) == 1, "another one is in use")
    assert certificate.read_bytes() != before


def test_a_home_of_an_earlier_version_gets_a_certificate_when_its_node_starts(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path)
    for name in ("tls.crt", "tls.key"):
        (node.home / "keys" / name).unlink()
    with node:
        assert (node.home / "keys" / "tls.key").stat().st_mode & 0o777 == 0o600
        assert "certificate made" in node.log_text()
