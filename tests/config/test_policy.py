"""From settings to the snapshot that decisions rest on."""

import os
import pwd
from dataclasses import replace
from typing import Any

import pytest

from alknet.access import (
    Access,
    Certificate,
    Context,
    DaemonUser,
    Identity,
    Policy,
    SshRights,
    Token,
    authorize,
    token_digest,
)
from alknet.config import policy as policy_module
from alknet.config.load import revision
from alknet.config.model import Settings
from alknet.config.peers import PeerSsh
from alknet.config.policy import build_policy, daemon_user
from alknet.keys import generate_private_key

DAEMON = DaemonUser("alice", is_root=False)
KEY = generate_private_key("c")[1]


def policy(**values: Any) -> Policy:
    return build_policy(Settings.model_validate(values), denial_key=b"k" * 32, daemon=DAEMON)


def test_the_snapshot_carries_revision_key_daemon_and_switches() -> None:
    values = {"ssh": {"exec": False, "shell": True}}
    snapshot = policy(**values)
    assert snapshot.revision == revision(Settings.model_validate(values))
    assert (snapshot.denial_key, snapshot.daemon) == (b"k" * 32, DAEMON)
    assert (snapshot.exec_enabled, snapshot.shell_enabled) == (False, True)
    assert policy(ssh={"shell": False}).shell_enabled is False
    assert (policy().run_enabled, policy(exec={"enabled": True}).run_enabled) == (False, True)


def test_scopes_know_whether_they_are_the_peers_own_or_come_from_a_role() -> None:
    snapshot = policy(
        roles={"dev": {"scopes": ["ssh:exec", "ssh:shell"]}, "ops": {"scopes": ["node:*"]}},
        peers=[{"id": "a", "scopes": ["ssh:exec"], "roles": ["dev", "ops"]}, {"id": "b"}],
    )
    assert snapshot.peers["a"].scopes == {"ssh:exec": "own", "ssh:shell": "role dev", "node:*": "role ops"}
    assert snapshot.peers["b"].scopes == {}


def test_a_key_of_the_settings_finds_its_peer() -> None:
    found = policy(peers=[{"id": "a", "keys": [str(KEY)], "scopes": ["*"]}]).lookup_key(KEY.fingerprint)
    assert found is not None
    assert (found.id, found.scopes, found.via) == ("a", {"*"}, f"key:{KEY.fingerprint}")


def test_a_node_key_lets_nobody_in() -> None:
    """It is what the peer proves when it is called; what it may do when it calls stands in `keys`."""
    assert policy(peers=[{"id": "a", "node_key": str(KEY), "scopes": ["*"]}]).lookup_key(KEY.fingerprint) is None


def test_the_authorities_and_principals_of_the_settings_find_their_peer() -> None:
    snapshot = policy(
        ssh={
            "user_ca": [{"key": str(KEY), "principals": ["a*"], "revoked_serials": [3]}],
            "revoked_keys": ["SHA256:" + "x" * 43],
        },
        peers=[{"id": "a", "principals": ["a1"], "scopes": ["*"]}],
    )
    shown = Certificate("SHA256:k", KEY.fingerprint, "id", 4, ("a1",))
    found = snapshot.lookup_principal(shown)
    assert isinstance(found, Identity)
    assert (found.id, found.scopes, found.via) == ("a", {"*"}, "cert:SHA256:k")
    assert snapshot.renew(found) == found
    for refused in (replace(shown, serial=3), replace(shown, key="SHA256:" + "x" * 43)):
        assert snapshot.lookup_principal(refused)[0] == "certificate:revoked"  # type: ignore[index]


def test_the_resources_of_an_entry_decide() -> None:
    snapshot = policy(peers=[{"id": "a", "keys": [str(KEY)], "scopes": ["*"], "resources": {"project": ["read:al*"]}}])
    caller = snapshot.lookup_key(KEY.fingerprint)
    access = Access(required_scopes=("p:read",), resource_type="project", resource_action="read")
    allowed = {
        name: bool(authorize(caller, "p/read", name, Context(snapshot, now=0.0), access=access))
        for name in ("alpha", "beta")
    }
    assert allowed == {"alpha": True, "beta": False}


def test_tokens_are_looked_up_in_the_snapshot_and_later_ones_are_not() -> None:
    text = "alk_abcdefgh_secret"
    token = Token("abcdefgh", "a", frozenset({"fs:read"}), token_digest(text))
    tokens: dict[str, Token] = {}
    settings = Settings.model_validate({"peers": [{"id": "a"}]})
    before = build_policy(settings, denial_key=b"k" * 32, daemon=DAEMON, tokens=tokens)
    tokens[token.prefix] = token
    after = build_policy(settings, denial_key=b"k" * 32, daemon=DAEMON, tokens=tokens)
    found = after.lookup_token(text)
    assert found is not None
    assert (found.id, found.scopes) == ("a", {"fs:read"})
    assert before.lookup_token(text) is None
    assert build_policy(settings, denial_key=b"k" * 32, daemon=DAEMON).lookup_token(text) is None


def test_the_end_of_access_is_in_seconds_since_1970() -> None:
    snapshot = policy(peers=[{"id": "a", "expires_at": "1970-01-02T02:00:00+02:00", "enabled": False}, {"id": "b"}])
    assert (snapshot.peers["a"].expires_at, snapshot.peers["a"].enabled) == (86_400.0, False)
    assert (snapshot.peers["b"].expires_at, snapshot.peers["b"].enabled) == (None, True)


@pytest.mark.parametrize(
    "ssh",
    [
        {},
        {"user": "u", "as_daemon": True, "shell": "/bin/sh", "commands": ["a", "b *"]},
        {"force_command": "x"},
        {"commands": []},
    ],
)
def test_every_right_of_the_ssh_table_arrives(ssh: dict[str, Any]) -> None:
    rights = policy(peers=[{"id": "a", "ssh": ssh}]).peers["a"].ssh
    given = ssh | ({"commands": tuple(ssh["commands"])} if "commands" in ssh else {})
    assert rights == SshRights(**given)


def test_the_ssh_table_and_the_rights_have_the_same_fields() -> None:
    assert list(SshRights.__dataclass_fields__) == list(PeerSsh.model_fields)


def test_the_daemon_user_is_this_process() -> None:
    found = daemon_user()
    assert found == DaemonUser(pwd.getpwuid(os.geteuid()).pw_name, is_root=os.geteuid() == 0)


@pytest.mark.parametrize(("uid", "expected"), [(0, True), (4_711_000, False)])
def test_a_user_without_a_name_is_called_by_number(monkeypatch: pytest.MonkeyPatch, uid: int, expected: bool) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(policy_module.os, "geteuid", lambda: uid)
    monkeypatch.setattr(policy_module.pwd, "getpwuid", nobody)
    assert daemon_user() == DaemonUser(str(uid), is_root=expected)
