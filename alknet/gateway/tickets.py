"""One-time tickets for browsers, which cannot send a token when they open a WebSocket."""

import hashlib
import secrets
from collections import Counter
from dataclasses import dataclass
from typing import Final

from alknet.access import Identity
from alknet.call.errors import CallError

__all__ = ["TICKET_S", "Tickets"]

TICKET_S: Final = 30.0
TICKET_BYTES: Final = 16
MAX_OF_ONE_PEER: Final = 64
MAX_TICKETS: Final = 10_000


@dataclass(frozen=True, slots=True)
class _Ticket:
    identity: Identity
    origin: str | None
    expires: float


class Tickets:
    """The tickets that were made and not used yet. Times are seconds of a clock that only grows."""

    def __init__(self) -> None:
        self._tickets: dict[bytes, _Ticket] = {}
        """By digest, so that looking one up takes no longer the better it is guessed; oldest first."""
        self._count: Counter[str] = Counter()

    def make(self, identity: Identity, origin: str | None, now: float) -> str:
        """A ticket for one connection in the next `TICKET_S` seconds from pages of `origin` (None: from no browser).
        Raises `CallError` when the peer has too many."""
        self._forget_expired(now)
        if self._count[identity.id] >= MAX_OF_ONE_PEER or len(self._tickets) >= MAX_TICKETS:
            raise CallError("RESOURCE_EXHAUSTED", f"{MAX_OF_ONE_PEER} tickets wait to be used; use them, or wait")
        text = secrets.token_hex(TICKET_BYTES)
        self._tickets[_digest(text)] = _Ticket(identity, origin, now + TICKET_S)
        self._count[identity.id] += 1
        return text

    def use(self, text: str, origin: str | None, now: float) -> Identity | None:
        """Whose ticket it is; None for one that is unknown, used, expired or another origin's. It is gone then."""
        self._forget_expired(now)
        key = _digest(text)
        ticket = self._tickets.get(key)
        if ticket is None:
            return None
        self._remove(key)
        return ticket.identity if ticket.origin == origin else None

    def _forget_expired(self, now: float) -> None:
        for key in [key for key, ticket in self._tickets.items() if ticket.expires <= now]:
            self._remove(key)

    def _remove(self, key: bytes) -> None:
        ticket = self._tickets.pop(key)
        self._count[ticket.identity.id] -= 1
        if not self._count[ticket.identity.id]:
            del self._count[ticket.identity.id]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
