"""Who is calling and what they may do: identities, the policy snapshot, and the only decision.

Every door asks :func:`authorize` (through :mod:`alknet.gate`, which also tells the audit log). It is pure and
synchronous: the same question under the same snapshot gives the same answer and, when it is no, the same
denial id.

A :class:`Policy` is built from the configuration and swapped whole by a reload; nothing in it changes.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Final, Protocol

from blake3 import blake3

__all__ = [
    "ACTIONS",
    "Context",
    "DaemonUser",
    "Decision",
    "Identity",
    "IdentityProvider",
    "Peer",
    "Policy",
    "SshRights",
    "authorize",
    "command_matches",
    "deny",
    "scope_grants",
]

DENIAL_ID_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller as proven by a credential.

    `id` is the peer's stable name, never key material. `via` names the credential that proved it, such as
    ``key:SHA256:…``, so that the identity can be looked up again after a reload.
    """

    id: str
    scopes: frozenset[str]
    via: str


@dataclass(frozen=True, slots=True)
class SshRights:
    """What a peer's entry says about its SSH sessions; field by field as in `config.model.PeerSsh`."""

    user: str | None = None
    as_daemon: bool = False
    shell: str | None = None
    force_command: str | None = None
    commands: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """A known remote, as the decision sees it. `scopes` maps each scope to where it was granted."""

    id: str
    scopes: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    enabled: bool = True
    expires_at: float | None = None
    ssh: SshRights = SshRights()


@dataclass(frozen=True, slots=True)
class DaemonUser:
    """The operating-system user that the node runs as."""

    name: str
    is_root: bool


class IdentityProvider(Protocol):
    """Turns a credential into an identity; synchronous, from memory."""

    def lookup_key(self, fingerprint: str) -> Identity | None:
        """The peer that holds the key, whether or not it is enabled; None for a stranger's key."""

    def renew(self, identity: Identity) -> Identity | None:
        """The same credential looked up again; None when it no longer belongs to that peer."""


@dataclass(frozen=True)
class Policy:
    """One immutable snapshot of everything that a decision depends on."""

    peers: Mapping[str, Peer]
    revision: str
    denial_key: bytes = field(repr=False)
    daemon: DaemonUser
    exec_enabled: bool = True
    shell_enabled: bool = True
    _by_key: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        by_key = {key: peer.id for peer in self.peers.values() for key in peer.keys}
        object.__setattr__(self, "_by_key", MappingProxyType(by_key))

    def lookup_key(self, fingerprint: str) -> Identity | None:
        peer_id = self._by_key.get(fingerprint)
        if peer_id is None:
            return None
        return Identity(peer_id, frozenset(self.peers[peer_id].scopes), f"key:{fingerprint}")

    def renew(self, identity: Identity) -> Identity | None:
        kind, _, credential = identity.via.partition(":")
        found = self.lookup_key(credential) if kind == "key" else None
        return found if found is not None and found.id == identity.id else None

    def next_expiry(self, now: float) -> float | None:
        """The nearest `expires_at` that still lies ahead, in seconds since 1970."""
        ahead = (p.expires_at for p in self.peers.values() if p.expires_at and p.expires_at > now)
        return min(ahead, default=None)


@dataclass(frozen=True, slots=True)
class Context:
    """What a decision rests on besides the question: the snapshot and the time (seconds since 1970)."""

    policy: Policy
    now: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Allow or deny, with the rule that decided and a reason for people.

    A denial has an id that is the same for the same (identity, action, resource, rule, revision) at every
    door; nobody without the snapshot's key can compute it.
    """

    allowed: bool
    rule: str
    reason: str
    denial_id: str | None = None

    def __bool__(self) -> bool:
        return self.allowed

    def __str__(self) -> str:
        """What the caller is told."""
        suffix = "" if self.denial_id is None else f" ({self.denial_id})"
        return f"{self.reason} [{self.rule}]{suffix}"


_Verdict = tuple[str, str]
"""A rule that says no: its name and the reason."""

_Rule = Callable[[Peer, str | None, Policy], _Verdict | None]


@dataclass(frozen=True, slots=True)
class _Action:
    scope: str | None
    rules: tuple[_Rule, ...] = ()


def authorize(identity: Identity | None, action: str, resource: str | None, context: Context) -> Decision:
    """Decide whether `identity` may do `action` on `resource`. Never raises; unknown actions are denied.

    In order: the caller is proven; its peer exists, is enabled and has not expired; a scope grants the
    action; the action's own rules. The first that says no decides.
    """
    verdict, granted = _judge(identity, action, resource, context)
    if verdict is None:
        return Decision(True, granted[0], granted[1])
    return deny(identity, action, resource, context.policy, *verdict)


def deny(
    identity: Identity | None,
    action: str,
    resource: str | None,
    policy: Policy,
    rule: str,
    reason: str,
) -> Decision:
    """A denial with its id; for the few rules that lie outside a snapshot (see `gate`)."""
    caller = "" if identity is None else identity.id
    digest = blake3(key=policy.denial_key)
    for part in (caller, action, "" if resource is None else "=" + resource, rule, policy.revision):
        raw = part.encode("utf-8", "surrogatepass")  # JSON from outside may hold half a surrogate pair
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return Decision(False, rule, reason, "den_" + digest.hexdigest(length=DENIAL_ID_BYTES))


def _judge(
    identity: Identity | None, action: str, resource: str | None, context: Context
) -> tuple[_Verdict | None, _Verdict]:
    """(why not, or None; what grants it)."""
    nothing = ("", "")
    if identity is None:
        return ("anonymous", "authentication required"), nothing
    known = ACTIONS.get(action)
    if known is None:
        return ("action:unknown", f"there is no action {action!r}"), nothing
    peer = context.policy.peers.get(identity.id)
    if peer is None:
        return ("peer:unknown", f"there is no peer {identity.id!r}"), nothing
    if not peer.enabled:
        return ("peer:disabled", f"peer {peer.id!r} is disabled"), nothing
    if peer.expires_at is not None and context.now >= peer.expires_at:
        return ("peer:expired", f"the access of peer {peer.id!r} has expired"), nothing
    if known.scope is None:
        granted = ("peer:enabled", f"peer {peer.id!r} is known and enabled")
    else:
        # The first by name, not by hash: every process names the same rule for the same question.
        match = min((s for s in identity.scopes if scope_grants(s, known.scope)), default=None)
        if match is None:
            return (
                f"scope:{known.scope}",
                f"peer {peer.id!r} lacks the scope {known.scope}",
            ), nothing
        source = peer.scopes.get(match, "credential")
        granted = (f"scope:{match}", f"peer {peer.id!r} has the scope {match} ({source})")
    for rule in known.rules:
        verdict = rule(peer, resource, context.policy)
        if verdict is not None:
            return verdict, nothing
    return None, granted


def scope_grants(granted: str, required: str) -> bool:
    """Whether the scope `granted` covers `required`: segment by segment, ``*`` for one or, last, the rest."""
    if granted in ("*", required):
        return True
    have, want = granted.split(":"), required.split(":")
    for index, segment in enumerate(have):
        if index >= len(want):
            return False
        if segment == "*" and index == len(have) - 1:
            return True
        if segment not in ("*", want[index]):
            return False
    return len(have) == len(want)


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


# --- the rules of single actions --------------------------------------------------------------------------


def _login_name(peer: Peer, resource: str | None, policy: Policy) -> _Verdict | None:
    """The login name selects nothing; a wrong one is refused so that nobody believes it did."""
    names = {peer.id, peer.ssh.user} - {None}
    if resource is None or resource in names:
        return None
    allowed = " or ".join(sorted(repr(name) for name in names))
    return "login-name", f"the login name of peer {peer.id!r} must be {allowed}"


def _no_forced_command(peer: Peer, resource: str | None, policy: Policy) -> _Verdict | None:
    """What runs instead of a shell is a command, and is decided as one."""
    if peer.ssh.force_command is None:
        return None
    return "ssh.force_command", f"whatever peer {peer.id!r} asks for, its force_command runs, as ssh/exec"


def _exec_switch(peer: Peer, resource: str | None, policy: Policy) -> _Verdict | None:
    return None if policy.exec_enabled else ("ssh.exec", "[ssh] exec is off on this node")


def _shell_switch(peer: Peer, resource: str | None, policy: Policy) -> _Verdict | None:
    return None if policy.shell_enabled else ("ssh.shell", "[ssh] shell is off on this node")


def _runs_as(peer: Peer, resource: str | None, policy: Policy) -> _Verdict | None:
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


def _commands(peer: Peer, resource: str | None, policy: Policy) -> _Verdict | None:
    allowed = peer.ssh.commands
    if allowed is None:
        return None
    if resource is not None and any(command_matches(pattern, resource) for pattern in allowed):
        return None
    return "ssh.commands", f"peer {peer.id!r} may run only: {', '.join(allowed) or 'nothing'}"


def _no_commands(peer: Peer, resource: str | None, policy: Policy) -> _Verdict | None:
    """A shell would run anything, so a list of commands rules it out."""
    if peer.ssh.commands is None:
        return None
    return "ssh.commands", f"peer {peer.id!r} has a list of commands, which rules out a shell"


ACTIONS: Final[Mapping[str, _Action]] = MappingProxyType(
    {
        "ssh/login": _Action(None, (_login_name,)),
        "ssh/exec": _Action("ssh:exec", (_exec_switch, _runs_as, _commands)),
        "ssh/shell": _Action("ssh:shell", (_shell_switch, _no_forced_command, _runs_as, _no_commands)),
        "node/status": _Action("node:read"),
        "node/sessions": _Action("node:read"),
        "node/can": _Action("node:read"),
        "node/reload": _Action("node:admin"),
        "node/kill": _Action("node:admin"),
    }
)
"""Every action that a door of this version can attempt, with the scope it needs and its own rules."""
