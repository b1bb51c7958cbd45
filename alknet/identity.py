"""Values that the access decision speaks of: who is calling, what a peer may do, what an operation asks for.

:mod:`alknet.access` decides on them; nothing here does anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "Access",
    "Authority",
    "Certificate",
    "DaemonUser",
    "Identity",
    "Peer",
    "SshRights",
    "Token",
    "UserAuthority",
]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a user certificate says (OpenSSH's PROTOCOL.certkeys), as it was checked when its holder logged in.

    `key` and `authority` are fingerprints: of the certified key and of the one that signed the certificate. `permits`
    are its extensions without ``permit-``: ``pty``, ``port-forwarding``, ``agent-forwarding`` … What it does not name
    it does not permit. `valid_before` is in seconds since 1970, None for no end.
    """

    key: str
    authority: str
    key_id: str
    serial: int
    principals: tuple[str, ...]
    permits: frozenset[str] = frozenset()
    force_command: str | None = None
    valid_before: float | None = None


@dataclass(frozen=True, slots=True)
class UserAuthority:
    """A key that signs user certificates, and the principals (globs of ``*`` and ``?``) that it may sign for."""

    key: str
    principals: tuple[str, ...]
    revoked: frozenset[int] = frozenset()
    """Serial numbers of certificates that count no more."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller as proven by a credential.

    `id` is the peer's stable name, never key material. `via` names the credential that proved it (``key:SHA256:…``,
    ``cert:SHA256:…`` with the certified key's fingerprint, ``token:PREFIX``, ``dial:PEER``), so that the identity can
    be looked up again after a reload. `scopes` are the credential's; the peer's own count as well, see `authorize`.
    `expires_at` is its own end, in seconds since 1970. `certificate` narrows what the peer may do.
    """

    id: str
    scopes: frozenset[str]
    via: str
    expires_at: float | None = None
    certificate: Certificate | None = None


@dataclass(frozen=True, slots=True)
class Authority:
    """The rights that an operation's handler composes under, instead of those of whoever called it.

    `label` is the operation's name; in decisions and in the audit log it stands as ``operation:LABEL``.
    """

    label: str
    scopes: frozenset[str] = frozenset()
    resources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"operation:{self.label}"


@dataclass(frozen=True, slots=True)
class Access:
    """What an operation asks of its caller.

    In order: `public` lets everybody in; every one of `required_scopes`; one of `required_scopes_any` (an empty tuple
    lets nobody in, None asks for nothing); with a `resource_type` the caller's `resources`, an entry of that type for
    `resource_action`, see `Peer.resources`; then the rules of the action that `rules` names.
    """

    public: bool = False
    required_scopes: tuple[str, ...] = ()
    required_scopes_any: tuple[str, ...] | None = None
    resource_type: str | None = None
    resource_action: str | None = None
    rules: str | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token as it is kept: what it may do and the digest of its text, never the text."""

    prefix: str
    peer: str
    scopes: frozenset[str]
    digest: bytes = field(repr=False)
    expires_at: float | None = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class SshRights:
    """What a peer's entry says about its SSH sessions; field by field as in `config.model.PeerSsh`."""

    user: str | None = None
    as_daemon: bool = False
    shell: str | None = None
    force_command: str | None = None
    commands: tuple[str, ...] | None = None
    sftp_root: str | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """A known remote, as the decision sees it. `scopes` maps each scope to where it was granted.

    `resources` maps a type of resource to what may be done with it: ``read`` (with all of them), ``read:alpha`` (with
    that one), ``*:beta-*`` (everything, with those that match; ``*`` and ``?`` are globs, and nothing else is).
    """

    id: str
    scopes: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    principals: tuple[str, ...] = ()
    enabled: bool = True
    expires_at: float | None = None
    ssh: SshRights = SshRights()
    resources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DaemonUser:
    """The operating-system user that the node runs as."""

    name: str
    is_root: bool
