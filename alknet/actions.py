"""Every action that a door can attempt besides operations, and running a command as one: the scope it needs, and its
own rules.

A rule is a function of the peer, the resource and the policy that says why not, or None;
:func:`alknet.access.authorize` is the only caller.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from alknet.access import Peer, Policy

__all__ = ["ACTIONS", "Action", "command_matches"]

Verdict = tuple[str, str]
"""A rule that says no: its name and the reason."""

Rule = Callable[["Peer", str | None, "Policy"], Verdict | None]


@dataclass(frozen=True, slots=True)
class Action:
    """What an action needs: a scope (None: being a known and enabled peer is enough), and what its rules say."""

    scope: str | None
    rules: tuple[Rule, ...] = ()


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
        _glob(glob).fullmatch(word) for word, glob in zip(words, allowed, strict=True)
    )


@cache
def _glob(pattern: str) -> re.Pattern[str]:
    """`pattern` as a regular expression. A glob stays in its path segment, and never stands for ``..``."""
    segments = []
    for segment in pattern.split("/"):
        text = "".join({"*": "[^/]*", "?": "[^/]"}.get(char) or re.escape(char) for char in segment)
        segments.append(text if text == re.escape(segment) else rf"(?!\.\.?(?:/|\Z)){text}")
    return re.compile("/".join(segments), re.DOTALL)


def _login_name(peer: "Peer", resource: str | None, policy: "Policy") -> Verdict | None:
    """The login name selects nothing; a wrong one is refused so that nobody believes it did."""
    names = {peer.id, peer.ssh.user} - {None}
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
    daemon, user = policy.daemon, peer.ssh.user
    if daemon.is_root:
        if user is None:
            return "ssh.user", f"peer {peer.id!r} has no ssh.user, and the node runs as root"
        return None
    if not peer.ssh.as_daemon:
        return (
            "ssh.as_daemon",
            f"peer {peer.id!r} may not run things as {daemon.name!r}, the user that the node runs as"
            " (as_daemon is false)",
        )
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


ACTIONS: Final[Mapping[str, Action]] = MappingProxyType(
    {
        "call/connect": Action(None),
        "channel/open": Action(None),
        "ssh/login": Action(None, (_login_name,)),
        "ssh/exec": Action("ssh:exec", (_exec_switch, _runs_as, _commands)),
        "ssh/shell": Action("ssh:shell", (_shell_switch, _no_forced_command, _runs_as, _no_commands)),
        "exec/run": Action("exec:run", (_run_switch, _runs_as, _commands)),
    }
)
"""Every action that a door of this version can attempt, with the scope it needs and its own rules. An operation can
have the rules of one besides what it declares, see `access.Access`."""
