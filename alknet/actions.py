"""Every action that a door can attempt besides operations, and running a command as one: the scope it needs, and its
own rules.

A rule is a function of the peer, the resource and the policy that says why not, or None, or what grants it;
:func:`alknet.access.authorize` is the only caller.
"""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from alknet.globs import path_glob
from alknet.targets import DEFAULT, Direction, judge, parse_target

if TYPE_CHECKING:
    from alknet.access import DaemonUser, Identity, Peer, Policy

__all__ = ["ACTIONS", "Action", "Grant", "command_matches", "permits"]

Verdict = tuple[str, str]
"""A rule that says no: its name and the reason."""


class Grant(NamedTuple):
    """A rule that says yes, for a decision that it and not the scope is the reason of: its name and the reason."""

    rule: str
    reason: str


Rule = Callable[["Peer", str | None, "Policy"], Verdict | Grant | None]

CredentialRule = Callable[["Identity", "Peer", str | None], Verdict | None]


@dataclass(frozen=True, slots=True)
class Action:
    """What an action needs: a scope (None: being a known and enabled peer is enough), and what its rules say; those of
    `credential` look at what proved the caller. Whether one of them `minds_resource` tells which decisions are alike.
    """

    scope: str | None
    rules: tuple[Rule, ...] = ()
    credential: tuple[CredentialRule, ...] = ()
    minds_resource: bool = True


@cache
def permits(name: str) -> CredentialRule:
    """The rule that a certificate, where the caller has logged in with one, must hold the extension ``permit-NAME``."""

    def permitted(identity: "Identity", peer: "Peer", resource: str | None) -> Verdict | None:
        certificate = identity.certificate
        if certificate is None or name in certificate.permits:
            return None
        return f"certificate:permit-{name}", f"the certificate of peer {peer.id!r} does not hold permit-{name}"

    return permitted


def command_matches(pattern: str, command: str) -> bool:
    """Whether `command`, split into words as a shell would, is what `pattern` allows.

    Word by word; within a word ``*`` and ``?``, and nothing else, are globs, and neither stands for a ``/``; a lone
    ``*`` as the last word stands for any number of further words, whatever they are. No shell ever sees the command,
    so nothing else in it is special.
    """
    try:
        words, allowed = shlex.split(command), shlex.split(pattern)
    except ValueError:
        return False
    if not words or not allowed:
        return False
    if allowed[-1] == "*":
        allowed.pop()
        if len(words) < len(allowed):
            return False
        words = words[: len(allowed)]
    return len(words) == len(allowed) and all(
        path_glob(glob).fullmatch(word) for word, glob in zip(words, allowed, strict=True)
    )


def _login_name(identity: "Identity", peer: "Peer", resource: str | None) -> Verdict | None:
    """The login name selects nothing; a wrong one is refused so that nobody believes it did."""
    names = {peer.id, peer.ssh.user} - {None}
    if identity.certificate is not None:
        names |= set(identity.certificate.principals) & set(peer.principals)
    if resource is None or resource in names:
        return None
    allowed = " or ".join(sorted(repr(name) for name in names))
    return "login-name", f"the login name of peer {peer.id!r} must be {allowed}"


def _no_forced_command(peer: "Peer", resource: str | None, policy: "Policy") -> Verdict | None:
    """What runs instead of a shell is a command, and is decided as one."""
    if peer.ssh.force_command is None:
        return None
    return "ssh.force_command", f"whatever peer {peer.id!r} asks for, its force_command runs, as ssh/exec"


def _exec_switch(peer: "Peer", resource: str | None, policy: "Policy") -> Verdict | None:
    return None if policy.exec_enabled else ("ssh.exec", "[ssh] exec is off on this node")


def _shell_switch(peer: "Peer", resource: str | None, policy: "Policy") -> Verdict | None:
    return None if policy.shell_enabled else ("ssh.shell", "[ssh] shell is off on this node")


def _run_switch(peer: "Peer", resource: str | None, policy: "Policy") -> Verdict | None:
    return None if policy.run_enabled else ("exec.enabled", "[exec] enabled is false on this node")


def _runs_as(peer: "Peer", resource: str | None, policy: "Policy") -> Verdict | None:
    """Who runs things: a mapped user under root, else the daemon's own user where that was granted."""
    daemon = policy.daemon
    if not daemon.is_root and not peer.ssh.as_daemon:
        return (
            "ssh.as_daemon",
            f"peer {peer.id!r} may not run things as {daemon.name!r}, the user that the node runs as"
            " (as_daemon is false)",
        )
    return _has_user(peer, daemon)


def _files_as(peer: "Peer", resource: str | None, policy: "Policy") -> Verdict | None:
    """Whose files: as `_runs_as`, but an ordinary node serves its own to whoever has been given a root."""
    if peer.ssh.sftp_root is None:
        return "ssh.sftp_root", f"peer {peer.id!r} has no sftp_root, and nor has [ssh] on this node"
    return _has_user(peer, policy.daemon)


def _has_user(peer: "Peer", daemon: "DaemonUser") -> Verdict | None:
    """Whether the node can become the peer's user, or is it."""
    user = peer.ssh.user
    if daemon.is_root:
        return None if user else ("ssh.user", f"peer {peer.id!r} has no ssh.user, and the node runs as root")
    if user is not None and user != daemon.name:
        return (
            "ssh.user",
            f"peer {peer.id!r} runs things as {user!r}, but the node runs as {daemon.name!r} and cannot"
            " change to another user",
        )
    return None


def _commands(peer: "Peer", resource: str | None, policy: "Policy") -> Verdict | None:
    allowed = peer.ssh.commands
    if allowed is None:
        return None
    if resource is not None and any(command_matches(pattern, resource) for pattern in allowed):
        return None
    return "ssh.commands", f"peer {peer.id!r} may run only: {', '.join(allowed) or 'nothing'}"


def _no_commands(peer: "Peer", resource: str | None, policy: "Policy") -> Verdict | None:
    """A shell would run anything, so a list of commands rules it out."""
    if peer.ssh.commands is None:
        return None
    return "ssh.commands", f"peer {peer.id!r} has a list of commands, which rules out a shell"


def _sockets_as(peer: "Peer", resource: str | None, policy: "Policy") -> Verdict | Grant | None:
    """Whose a socket with a path is, and under root any listener: a connection to an address is the node's."""
    if resource is not None and resource.startswith("/"):
        return _runs_as(peer, resource, policy)
    return None


def _listens_as(peer: "Peer", resource: str | None, policy: "Policy") -> Verdict | Grant | None:
    return _runs_as(peer, resource, policy) if policy.daemon.is_root else _sockets_as(peer, resource, policy)


def _forward(direction: Direction) -> Rule:
    """The rule for forwards in one direction: what the peer's rules and those of the node say of the target."""

    def may_forward(peer: "Peer", resource: str | None, policy: "Policy") -> Verdict | Grant | None:
        rules = policy.forward_rules.get(peer.id, ())
        if resource is None:  # may it forward anything at all?
            directions = {direction} if direction == "udp" else {direction, "unix"}
            is_open = any(rule.allow and rule.direction in directions for rule in rules)
            return None if is_open else (DEFAULT, f"peer {peer.id!r} has no rule that allows a {direction} forward")
        try:
            target = parse_target(resource)
        except ValueError as exc:
            return "forwarding.target", f"the target cannot be used: {exc}"
        allowed, rule, reason = judge(rules, direction, target)
        return Grant(rule, reason) if allowed else (rule, reason)

    return may_forward


ACTIONS: Final[Mapping[str, Action]] = MappingProxyType(
    {
        "call/connect": Action(None),
        "channel/open": Action(None),
        "ssh/login": Action(None, credential=(_login_name,)),
        "ssh/pty": Action(None, credential=(permits("pty"),)),
        "ssh/exec": Action("ssh:exec", (_exec_switch, _runs_as, _commands)),
        "ssh/shell": Action("ssh:shell", (_shell_switch, _no_forced_command, _runs_as, _no_commands)),
        "forward/local": Action("forward:local", (_sockets_as, _forward("local")), (permits("port-forwarding"),)),
        "forward/remote": Action("forward:remote", (_listens_as, _forward("remote")), (permits("port-forwarding"),)),
        "forward/udp": Action("forward:udp", (_forward("udp"),), (permits("port-forwarding"),)),
        "ssh/agent": Action("ssh:agent", (_runs_as,), credential=(permits("agent-forwarding"),)),
        "sftp/read": Action("sftp:read", (_no_forced_command, _files_as), minds_resource=False),
        "sftp/write": Action("sftp:write", (_no_forced_command, _files_as), minds_resource=False),
        "exec/run": Action("exec:run", (_run_switch, _runs_as, _commands)),
    }
)
"""Every action that a door of this version can attempt, with the scope it needs and its own rules. An operation can
have the rules of one besides what it declares, see `access.Access`."""
