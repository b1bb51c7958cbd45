"""Who comes in by a door where credentials are shown: each is let in or turned away, logged, audited and counted.

The hello and the HTTP gateway share one, so that a token is worth the same at both, and callers without a credential
take their places out of the same few.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from alknet.access import Access, Identity
from alknet.alpn.admission import source_of
from alknet.alpn.streams import Connection
from alknet.call.anonymous import Anonymous
from alknet.call.errors import CallError
from alknet.gate import Gate
from alknet.logs import event

__all__ = ["DoorLimits", "Doorkeeper", "host_of"]

log = logging.getLogger("alknet.call")

PUBLIC = Access(public=True)


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """What the configuration says; see `config.model` for the meaning."""

    connections_per_peer: int = 256
    half_open: int = 1000
    connections_per_address: int = 100


class Doorkeeper:
    """Lets callers in. `limits` may be replaced while it works; `on_login_failed` hears of hosts that failed to prove
    who they are; `connections_of` counts the live connections of a peer at all doors."""

    def __init__(
        self,
        gate: Gate,
        *,
        on_login_failed: Callable[[str], None] = lambda host: None,
        connections_of: Callable[[str], int] = lambda peer: 0,
    ) -> None:
        self.gate = gate
        self.limits = DoorLimits()
        self._anonymous = Anonymous()
        self._on_login_failed = on_login_failed
        self._connections_of = connections_of

    def enter(self, connection: Connection, identity: Identity | None, *, surface: str) -> None:
        """Decide whether somebody may be connected, once per connection; raises `CallError`. Who is nobody takes a
        place, to be given back with `leave`."""
        via = "anonymous" if identity is None else identity.via
        act = self.gate.ask(
            identity,
            "call/connect",
            surface=surface,
            access=PUBLIC if identity is None else None,
            via=via,
            connection=connection.id,
            remote=host_of(connection),
        )
        limits = self.limits
        if identity is None:
            try:
                self.sit(connection)
            except CallError:
                act.done("limits")
                raise
        if not act.decision:
            assert identity is not None
            denial_id = act.decision.denial_id
            self.login_failed(connection, reason=act.decision.rule, denial_id=denial_id, peer=identity.id)
            raise CallError("FORBIDDEN", act.decision.words, denial_id=denial_id)
        if (
            identity is not None
            and connection.identity is None
            and self._connections_of(identity.id) >= limits.connections_per_peer
        ):
            act.done("limits.connections_per_peer")
            self._log_reject(connection, reason="limits.connections_per_peer", peer=identity.id)
            words = "limits.connections_per_peer allows no more connections of this peer"
            raise CallError("RESOURCE_EXHAUSTED", words)
        act.done("ok")
        if identity is not None and connection.identity is None:
            connection.logged_in(identity)
        log.info(
            event(
                "auth",
                remote_addr=host_of(connection),
                result="accept",
                peer="-" if identity is None else identity.id,
                via=via,
                connection=connection.id,
            )
        )

    def sit(self, connection: Connection) -> None:
        """Take a place for somebody who is nobody, to be given back with `leave`; raises `CallError` when there is
        none. HTTP decides on each request, so that its connections need no more than this."""
        limits = self.limits
        self._anonymous.enter(
            _source(host_of(connection)), total=limits.half_open, per_address=limits.connections_per_address
        )

    def leave(self, connection: Connection) -> None:
        """Give back the place of somebody who is nobody."""
        self._anonymous.leave(_source(host_of(connection)))

    def anonymous_called(self, host: str | None) -> None:
        """Count a call of nobody in particular; raises `CallError` for one too many."""
        self._anonymous.called(_source(host), asyncio.get_running_loop().time())

    def bearer(self, connection: Connection, token: str, identity: Identity | None, *, surface: str) -> Identity:
        """Whose token it is, shown by nobody or by `identity`; raises `CallError` for one that lets nobody in."""
        bearer = self.gate.policy.lookup_token(token)
        via, peer = ("token", None) if identity is None else (identity.via, identity.id)
        if bearer is None:
            denial_id = self.stranger(connection, via, surface=surface, reason="unknown-token", peer=peer)
            raise CallError("FORBIDDEN", "the token is not valid", denial_id=denial_id)
        if identity is not None and identity.id != bearer.id:
            denial_id = self.stranger(connection, via, surface=surface, reason="foreign-token", peer=peer)
            raise CallError("FORBIDDEN", "the token belongs to another peer than the key", denial_id=denial_id)
        return bearer

    def stranger(self, connection: Connection, via: str, *, surface: str, **pairs: object) -> str | None:
        """Somebody showed a credential, `via`, that makes nobody of them: a refusal, and never a fall back."""
        act = self.gate.ask(
            None,
            "call/connect",
            surface=surface,
            via=via,
            connection=connection.id,
            remote=host_of(connection),
        )
        self.login_failed(connection, **pairs)
        return act.decision.denial_id

    def login_failed(self, connection: Connection, **pairs: object) -> None:
        """Log it, for people and for fail2ban, and have the address wait when it fails too often."""
        self._log_reject(connection, **pairs)
        if (host := host_of(connection)) is not None:
            self._on_login_failed(host)

    def _log_reject(self, connection: Connection, **pairs: object) -> None:
        log.warning(event("auth", remote_addr=host_of(connection), result="reject", **pairs))


def host_of(connection: Connection) -> str | None:
    """The address of whoever is at the other end, where the carrier has one."""
    return None if connection.remote is None else connection.remote.host


def _source(host: str | None) -> str:
    """What callers without a credential are counted by; a carrier without addresses counts as one."""
    return "-" if host is None else source_of(host)
