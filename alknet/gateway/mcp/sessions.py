"""The sessions of the old revision: each belongs to one credential, and there are so many at most.

The SDK keeps the sessions themselves. This says who may use which, and which are to end.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from alknet.access import Authority, Identity
from alknet.call.errors import CallError
from alknet.gateway.mcp.server import Session

__all__ = [
    "ANONYMOUS_IDLE_S",
    "IDLE_S",
    "MAX_ANONYMOUS",
    "MAX_PER_IDENTITY",
    "MAX_SESSIONS",
    "OwnedSession",
    "Sessions",
    "owner_of",
]

MAX_SESSIONS: Final = 1000
MAX_PER_IDENTITY: Final = 64
MAX_ANONYMOUS: Final = 32
"""Of all strangers together."""
IDLE_S: Final = 30 * 60.0
"""A session without a request for so long is ended."""
ANONYMOUS_IDLE_S: Final = 60.0


def owner_of(identity: Identity | Authority | None) -> str:
    """What a session is bound to: the peer and the credential that it was begun with."""
    return "" if identity is None else f"{identity.id} {getattr(identity, 'via', '-')}"


class OwnedSession(Session):
    """A session and whose it is."""

    def __init__(self, identity: Identity | Authority | None, now: float) -> None:
        super().__init__()
        self.id: str | None = None
        """None until the SDK has begun it."""
        self.identity = identity
        self.owner = owner_of(identity)
        self.used = now
        """When its last request ended, in seconds that only grow."""
        self.in_flight = 0
        self.brief: dict[str, Callable[[], None]] = {}
        """How to cancel what runs beside the SDK, by the ids of the requests."""

    def cancel(self, params: Any) -> None:
        """Cancel the request that a client's message names, if it runs beside the SDK."""
        id = params.get("requestId") if isinstance(params, dict) else None
        cancel = self.brief.get(str(id)) if isinstance(id, str | int) else None
        if cancel is not None:
            cancel()

    def is_idle(self, now: float) -> bool:
        patience = ANONYMOUS_IDLE_S if self.identity is None else IDLE_S
        return not self.in_flight and now - self.used >= patience


class Sessions:
    """The open sessions. `end` is asked to end one, and answers at once."""

    def __init__(self, end: Callable[[OwnedSession], None]) -> None:
        self._end = end
        self._by_id: dict[str, OwnedSession] = {}
        self._opening: set[OwnedSession] = set()

    def __len__(self) -> int:
        return len(self._by_id) + len(self._opening)

    def find(self, id: str, identity: Identity | Authority | None) -> OwnedSession | None:
        """The session with this id if it is this caller's; somebody else's is as if it were not there."""
        found = self._by_id.get(id)
        return found if found is not None and found.owner == owner_of(identity) else None

    def open(self, identity: Identity | Authority | None, now: float) -> OwnedSession:
        """A place for a new session; raises `CallError` when there is none.

        Of an identity that has as many as it may, the one that was idle for longest makes room: clients forget theirs.
        A stranger's never does, for strangers are not one caller. Where all together are too many, the peer that has
        the most makes room for others in the same way.
        """
        session = OwnedSession(identity, now)
        same = [one for one in (*self._by_id.values(), *self._opening) if one.owner == session.owner]
        limit = MAX_ANONYMOUS if identity is None else MAX_PER_IDENTITY
        if len(same) >= limit:
            idle = [one for one in same if one.id is not None and not one.in_flight]
            if identity is None or not idle:
                raise CallError("RESOURCE_EXHAUSTED", f"there are {limit} MCP sessions of this caller already")
            self.close(min(idle, key=lambda one: one.used))
        if len(self) >= MAX_SESSIONS and not self._make_room_for(session):
            raise CallError("RESOURCE_EXHAUSTED", "there are too many MCP sessions; try again")
        self._opening.add(session)
        return session

    def _make_room_for(self, session: OwnedSession) -> bool:
        """Whether one was ended that is idle, of the peer with the most, for a peer that will have fewer."""
        has = Counter(_peer_of(one) for one in (*self._by_id.values(), *self._opening))
        most, count = has.most_common(1)[0]
        idle = [one for one in self._by_id.values() if _peer_of(one) == most and not one.in_flight]
        if not idle or has[_peer_of(session)] + 1 >= count:
            return False
        self.close(min(idle, key=lambda one: one.used))
        return True

    def opened(self, session: OwnedSession, id: str | None) -> None:
        """The SDK has begun it, under this id; or it has not (None)."""
        self._opening.discard(session)
        session.id = id
        if id is not None:
            self._by_id[id] = session

    def close(self, session: OwnedSession, *, is_refused: bool = False) -> None:
        """End a session, and what runs in it; from now on it is not there. Where it `is_refused`, its calls are ended
        already, and their answers say why."""
        if session.id is not None and self._by_id.pop(session.id, None) is not None:
            for cancel in () if is_refused else tuple(session.brief.values()):
                cancel()
            self._end(session)

    def close_idle(self, now: float) -> None:
        for session in tuple(self._by_id.values()):
            if session.is_idle(now):
                self.close(session)

    def all(self) -> tuple[OwnedSession, ...]:
        return tuple(self._by_id.values())


def _peer_of(session: OwnedSession) -> str:
    """Whose it is, whichever the credential; strangers are together one."""
    return "" if session.identity is None else session.identity.id
