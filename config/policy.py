"""From settings to the access policy that every door asks."""

import os
import pwd
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from alknet.access import DaemonUser, Peer, Policy, SshRights, Token, UserAuthority
from alknet.config.forwarding import forward_rules
from alknet.config.load import revision
from alknet.config.model import Settings
from alknet.config.peers import PeerEntry

__all__ = ["build_policy", "daemon_user"]


NO_TOKENS: Final[Mapping[str, Token]] = MappingProxyType({})


def daemon_user() -> DaemonUser:
    """The operating-system user of this process."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return DaemonUser(name, is_root=uid == 0)


def build_policy(
    settings: Settings, *, denial_key: bytes, daemon: DaemonUser, tokens: Mapping[str, Token] = NO_TOKENS
) -> Policy:
    """The immutable snapshot for `settings` and the `tokens` that are in force, by their public prefix."""
    return Policy(
        peers={entry.id: _peer(entry, settings) for entry in settings.peers},
        revision=revision(settings),
        denial_key=denial_key,
        daemon=daemon,
        exec_enabled=settings.ssh.exec,
        shell_enabled=settings.ssh.shell,
        run_enabled=settings.exec.enabled,
        tokens=dict(tokens),
        forward_rules=forward_rules(
            settings.forwarding.rules, {entry.id: (entry.roles, entry.forward) for entry in settings.peers}
        ),
        record_targets=settings.audit.targets,
        user_authorities={
            one.key.fingerprint: UserAuthority(one.key.fingerprint, one.principals, frozenset(one.revoked_serials))
            for one in settings.ssh.user_ca
        },
        revoked_keys=frozenset(settings.ssh.revoked_keys),
    )


def _peer(entry: PeerEntry, settings: Settings) -> Peer:
    scopes = {scope: f"role {role}" for role in entry.roles for scope in settings.roles[role].scopes} | dict.fromkeys(
        entry.scopes, "own"
    )
    return Peer(
        id=entry.id,
        scopes=scopes,
        resources=entry.resources,
        keys=tuple(key.fingerprint for key in entry.keys),
        principals=entry.principals,
        enabled=entry.enabled,
        expires_at=None if entry.expires_at is None else entry.expires_at.timestamp(),
        ssh=SshRights(**entry.ssh.model_dump() | {"sftp_root": entry.ssh.sftp_root or settings.ssh.sftp_root or None}),
    )
