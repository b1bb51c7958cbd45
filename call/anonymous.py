"""What callers get who have not proven to be anybody: little, and never the place of somebody who would.

They may call what is public. Together they hold at most a part of the places that there are for connections before a
login, each address a part of its own, none for ever; and each address has so many calls a second, because each costs
two lines in the audit log.
"""

from collections import Counter
from typing import Final

from alknet.call.errors import CallError
from alknet.call.machine import Limits

__all__ = ["ANONYMOUS_LIMITS", "IDLE_S", "LIFETIME_S", "Anonymous"]

ANONYMOUS_LIMITS: Final = Limits(in_flight=32, in_flight_bytes=1024 * 1024, channels=0)
"""What one connection may have running."""
IDLE_S: Final = 60.0
"""After so long without a call a connection is ended."""
LIFETIME_S: Final = 600.0
"""And after so long in any case."""
CALLS_PER_S: Final = 50.0
"""Of one address, over all its connections."""
BURST: Final = 200.0
"""Calls that an address may make at once after a pause."""
MAX_KNOWN: Final = 10_000
"""Addresses whose calls are counted."""
SHARE: Final = 4
"""They take one of so many places before a login, in all and of each address."""


class Anonymous:
    """The anonymous connections of one door, by address; a carrier without addresses counts as one."""

    def __init__(self) -> None:
        self._connections: Counter[str] = Counter()
        self._left: dict[str, tuple[float, float]] = {}
        """Of each address: calls that it has left, and when that was so."""

    def enter(self, host: str, *, total: int, per_address: int) -> None:
        """Take a place; raises `CallError` when there is none. `total` and `per_address` are the places that there are
        for all connections before a login."""
        if self._connections.total() >= max(1, total // SHARE):
            raise CallError("RESOURCE_EXHAUSTED", "too many callers without a key or a token; try again, or use one")
        if self._connections[host] >= max(1, per_address // SHARE):
            words = "too many connections of this address without a key or a token; use one of these"
            raise CallError("RESOURCE_EXHAUSTED", words)
        self._connections[host] += 1

    def leave(self, host: str) -> None:
        """Give the place back."""
        self._connections[host] -= 1
        if self._connections[host] <= 0:
            del self._connections[host]  # its calls stay counted: to come again must not be worth anything

    def called(self, host: str, now: float) -> None:
        """Count a call at `now` (seconds that only grow); raises `CallError` for one too many."""
        left, since = self._left.get(host, (BURST, now))
        left = min(BURST, left + (now - since) * CALLS_PER_S)
        if left < 1.0:
            raise CallError("RESOURCE_EXHAUSTED", f"more than {CALLS_PER_S:g} calls a second without a key or a token")
        if host not in self._left and len(self._left) >= MAX_KNOWN:
            self._forget_rested(now)
        self._left[host] = left - 1.0, now

    def _forget_rested(self, now: float) -> None:
        """Make room: who has paused for long enough has all calls again, as if never seen. If all are busy, the one
        that was seen first goes."""
        rested = [host for host, (left, since) in self._left.items() if left + (now - since) * CALLS_PER_S >= BURST]
        for host in rested or list(self._left)[:1]:
            del self._left[host]
