"""Who is calling and what they may do: identities, the policy snapshot, and the only decision.

Every door asks :func:`authorize` (through :mod:`alknet.gate`, which also tells the audit log). It is pure and
synchronous: the same question under the same snapshot gives the same answer and, when it is no, the same
denial id.

A :class:`Policy` is built from the configuration and swapped whole by a reload; nothing in it changes.
"""

import hmac
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final, Protocol

from blake3 import blake3

from alknet.actions import ACTIONS, Grant, Verdict
from alknet.identity import (
    Access,
    Authority,
    Certificate,
    DaemonUser,
    Identity,
    Peer,
    SshRights,
    Token,
    UserAuthority,
)
from alknet.targets import Rule

__all__ = [
    "Access",
    "Authority",
    "Certificate",
    "Context",
    "DaemonUser",
    "Decision",
    "Identity",
    "IdentityProvider",
    "Peer",
    "Policy",
    "SshRights",
    "Token",
    "UserAuthority",
    "authorize",
    "deny",
    "scope_grants",
    "token_digest",
]

DENIAL_ID_BYTES: Final = 8
TOKEN_PREFIX_CHARS: Final = 8


class IdentityProvider(Protocol):
    """Turns a credential into an identity; synchronous, from memory."""

    def lookup_key(self, fingerprint: str) -> Identity | None:
        """The peer that holds the key, whether or not it is enabled; None for a stranger's key."""

    def lookup_token(self, text: str) -> Identity | None:
        """The peer that the token was made for, whether or not either has expired; None for what is no token."""

    def lookup_principal(self, certificate: Certificate) -> Identity | Verdict:
        """The peer that the certificate's principals name, whether or not either has expired; else why not."""

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
    run_enabled: bool = False
    tokens: Mapping[str, Token] = field(default_factory=dict, repr=False)
    """By their public prefix."""
    user_authorities: Mapping[str, UserAuthority] = field(default_factory=dict)
    """Who signs user certificates, by fingerprint."""
    revoked_keys: frozenset[str] = frozenset()
    """Fingerprints of keys that prove nothing, and certify nothing, whoever has them."""
    forward_rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict, repr=False)
    """By peer: its own and then the node's that are about it, in the order in which they are read."""
    record_targets: bool = False
    """Whether the audit log may say what was forwarded to."""
    _by_key: Mapping[str, Identity] = field(init=False, repr=False)
    _by_principal: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        by_key = {
            key: Identity(peer.id, frozenset(peer.scopes), f"key:{key}")
            for peer in self.peers.values()
            for key in peer.keys
            if key not in self.revoked_keys
        }
        by_principal = {name: peer.id for peer in self.peers.values() for name in peer.principals}
        object.__setattr__(self, "_by_key", MappingProxyType(by_key))
        object.__setattr__(self, "_by_principal", MappingProxyType(by_principal))

    def lookup_key(self, fingerprint: str) -> Identity | None:
        return self._by_key.get(fingerprint)

    def lookup_token(self, text: str) -> Identity | None:
        token, digest = self.tokens.get(text[4 : 4 + TOKEN_PREFIX_CHARS]), token_digest(text)
        # The digest is of the whole text, its head included; for an unknown prefix the work is the same.
        same = hmac.compare_digest(bytes(len(digest)) if token is None else token.digest, digest)
        return _bearer(token) if token is not None and same else None

    def lookup_principal(self, certificate: Certificate) -> Identity | Verdict:
        """As far as the policy goes: signatures, dates and addresses are checked by :mod:`alknet.ssh.certificates`."""
        authority = self.user_authorities.get(certificate.authority)
        if authority is None:
            return "certificate:authority", f"{certificate.authority} is no authority for user certificates here"
        if not self.revoked_keys.isdisjoint({certificate.key, certificate.authority}) or (
            certificate.serial in authority.revoked
        ):
            return "certificate:revoked", f"the certificate {certificate.key_id!r} is revoked"
        signed_for = [name for name in certificate.principals if _may_sign(authority, name)]
        named = sorted({self._by_principal[name] for name in signed_for if name in self._by_principal})
        if not named:
            why = "belongs to a peer" if signed_for else "its authority may sign for"
            return "certificate:principals", f"the certificate {certificate.key_id!r} has no principal that {why}"
        if len(named) > 1:
            peers = " and ".join(map(repr, named))
            return "certificate:principals", f"the certificate's principals name {peers}; they must name one peer"
        peer = self.peers[named[0]]
        forced = (peer.ssh.force_command, certificate.force_command)
        if None not in forced and forced[0] != forced[1]:
            return (
                "certificate:force-command",
                f"the certificate forces another command than the entry of peer {peer.id!r} does",
            )
        via, scopes = f"cert:{certificate.key}", frozenset(peer.scopes)
        return Identity(peer.id, scopes, via, certificate.valid_before, certificate)

    def renew(self, identity: Identity) -> Identity | None:
        kind, _, credential = identity.via.partition(":")
        found = self.lookup_key(credential) if kind == "key" else None
        if kind == "cert" and identity.certificate is not None:
            renewed = self.lookup_principal(identity.certificate)
            found = renewed if isinstance(renewed, Identity) else None
        elif kind == "token" and (token := self.tokens.get(credential)) is not None:
            found = _bearer(token)
        elif kind == "dial" and (peer := self.peers.get(credential)) is not None:  # dialled, and proven to be it
            found = Identity(peer.id, frozenset(peer.scopes), identity.via)
        return found if found is not None and found.id == identity.id else None

    def next_expiry(self, now: float, present: Iterable[Identity] = ()) -> float | None:
        """The nearest `expires_at` of a peer or a token, or of those who are `present` (only they know when their
        certificates end), that still lies ahead, in seconds since 1970."""
        ends = [p.expires_at for p in self.peers.values()] + [t.expires_at for t in self.tokens.values()]
        ends += [identity.expires_at for identity in present]
        return min((end for end in ends if end and end > now), default=None)


def _may_sign(authority: UserAuthority, principal: str) -> bool:
    return any(fnmatchcase(principal, glob.replace("[", "[[]")) for glob in authority.principals)


def token_digest(text: str) -> bytes:
    """What is kept of a token's text; it has so many random bits that a fast hash is enough."""
    return blake3(text.encode("utf-8", "surrogatepass"), derive_key_context="alknet token v1").digest()


def _bearer(token: Token) -> Identity:
    return Identity(token.peer, token.scopes, f"token:{token.prefix}", token.expires_at)


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

    @property
    def words(self) -> str:
        """What the caller is told where the denial id has a place of its own."""
        return f"{self.reason} [{self.rule}]"

    def __str__(self) -> str:
        """What the caller is told."""
        return self.words if self.denial_id is None else f"{self.words} ({self.denial_id})"


def authorize(
    caller: Identity | Authority | None,
    action: str,
    resource: str | None,
    context: Context,
    *,
    access: Access | None = None,
) -> Decision:
    """Decide whether `caller` may do `action` on `resource`. Never raises; unknown actions are denied.

    `access` says what an operation asks for; without one, `action` is looked up among those that are no operations.
    In order: the caller is proven, or what it asks for is public; its peer exists and is enabled, and neither it nor
    the credential has expired; the scopes, which both the credential and the peer must have; the resource rule; the
    action's own rules. The first that says no decides.
    """
    verdict, granted = _judge(caller, action, resource, context, access)
    if verdict is None:
        return Decision(True, granted[0], granted[1])
    return deny(caller, action, resource, context.policy, *verdict)


def deny(
    caller: Identity | Authority | None,
    action: str,
    resource: str | None,
    policy: Policy,
    rule: str,
    reason: str,
) -> Decision:
    """A denial with its id; for the few rules that lie outside a snapshot (see `gate`)."""
    name = "" if caller is None else caller.id
    digest = blake3(key=policy.denial_key)
    for part in (name, action, "" if resource is None else "=" + resource, rule, policy.revision):
        raw = part.encode("utf-8", "surrogatepass")  # JSON from outside may hold half a surrogate pair
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return Decision(False, rule, reason, "den_" + digest.hexdigest(length=DENIAL_ID_BYTES))


_NOTHING: Final = ("", "")
_PUBLIC: Final = ("public", "the operation is public")


def _judge(
    caller: Identity | Authority | None, action: str, resource: str | None, context: Context, access: Access | None
) -> tuple[Verdict | None, Verdict]:
    """(why not, or None; what grants it)."""
    is_public = access is not None and access.public
    if caller is None and is_public:
        return None, _PUBLIC
    if caller is None:
        return ("anonymous", "authentication required"), _NOTHING
    peer: Peer | None = None
    if isinstance(caller, Authority):
        scopes, own, resources, who = caller.scopes, None, caller.resources, f"operation {caller.label!r}"
        granted = ("authority", f"{who} composes with it")
    else:
        peer = context.policy.peers.get(caller.id)
        verdict = _barred(caller, peer, context.now)
        if verdict is not None or peer is None:
            return verdict, _NOTHING  # what is public is so for those who show no credential, or a good one
        scopes, own, resources, who = caller.scopes, peer.scopes, peer.resources, f"peer {peer.id!r}"
        granted = ("peer:enabled", f"{who} is known and enabled")
    if is_public:
        return None, _PUBLIC
    known = ACTIONS.get(action if access is None else access.rules or "")
    if access is None:
        if known is None or isinstance(caller, Authority):
            return ("action:unknown", f"there is no action {action!r}"), _NOTHING
        access = Access(required_scopes=() if known.scope is None else (known.scope,))
    wanted, any_of = access.required_scopes, access.required_scopes_any
    for scope in wanted:
        verdict, grant = _scope(scope, scopes, own, who)
        if verdict is not None:
            return verdict, _NOTHING
        granted = grant
    if any_of is not None:
        tried = [_scope(scope, scopes, own, who) for scope in any_of]
        grant = next((grant for verdict, grant in tried if verdict is None), _NOTHING)
        if grant is _NOTHING:
            narrowed = any(verdict is not None and verdict[0].startswith("token-") for verdict, _ in tried)
            lacks = "and its token share none" if narrowed else "lacks every one"
            return ("scope:any", f"{who} {lacks} of the scopes {', '.join(any_of) or '(none)'}"), _NOTHING
        granted = grant
    if access.resource_type is not None:
        verdict = _resource(access.resource_type, access.resource_action, resource, resources, who)
        if verdict is not None:
            return verdict, _NOTHING
    if known is not None and (known.rules or known.credential):
        if peer is None or isinstance(caller, Authority):
            return ("peer:needed", f"{who} composes, and only a peer can do this"), _NOTHING
        for proven in known.credential:
            verdict = proven(caller, peer, resource)
            if verdict is not None:
                return verdict, _NOTHING
        for rule in known.rules:
            verdict = rule(peer, resource, context.policy)
            if isinstance(verdict, Grant):
                granted = verdict
            elif verdict is not None:
                return verdict, _NOTHING
    return None, granted


def _barred(identity: Identity, peer: Peer | None, now: float) -> Verdict | None:
    """Why this caller may do nothing at all."""
    if peer is None:
        return "peer:unknown", f"there is no peer {identity.id!r}"
    if not peer.enabled:
        return "peer:disabled", f"peer {peer.id!r} is disabled"
    if peer.expires_at is not None and now >= peer.expires_at:
        return "peer:expired", f"the access of peer {peer.id!r} has expired"
    if identity.expires_at is not None and now >= identity.expires_at:
        if identity.certificate is not None:
            return "certificate:expired", f"the certificate of peer {peer.id!r} has expired"
        return "token:expired", f"the token of peer {peer.id!r} has expired"
    return None


def _scope(
    required: str, scopes: frozenset[str], own: Mapping[str, str] | None, who: str
) -> tuple[Verdict | None, Verdict]:
    """Both must have it: the credential, whose scopes are `scopes`, and the peer, whose scopes are `own`."""
    match = _granting(scopes, required)
    if own is None:  # an authority
        if match is None:
            return (f"scope:{required}", f"{who} composes without the scope {required}"), _NOTHING
        return None, (f"scope:{match}", f"{who} composes with the scope {match}")
    source = _granting(own, required)
    if source is None:
        return (f"scope:{required}", f"{who} lacks the scope {required}"), _NOTHING
    if match is None:
        return (f"token-scope:{required}", f"the token of {who} lacks the scope {required}"), _NOTHING
    return None, (f"scope:{source}", f"{who} has the scope {source} ({own[source]})")


def _granting(scopes: Collection[str], required: str) -> str | None:
    """The one of `scopes` that covers `required`: itself, else the first by name, so that every process names it."""
    return required if required in scopes else min((s for s in scopes if scope_grants(s, required)), default=None)


def _resource(
    kind: str, action: str | None, resource: str | None, resources: Mapping[str, tuple[str, ...]], who: str
) -> Verdict | None:
    for entry in resources.get(kind, ()):
        can, narrowed, which = entry.partition(":")
        if (can == "*" or action is None or can == action) and (
            not narrowed or (resource is not None and fnmatchcase(resource, which.replace("[", "[[]")))
        ):
            return None
    what = "" if resource is None else f" {resource!r}"
    return f"resource:{kind}", f"{who} may not {action or 'use'} the {kind}{what}"


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
