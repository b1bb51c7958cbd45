"""How many strangers may be inside: the limits on connections that have not logged in.

Pure bookkeeping; time is passed in. An IPv6 caller counts by its /64, because one customer owns all of it, and an
IPv4-mapped address as the IPv4 address that it is.
"""

import ipaddress
from collections import Counter
from dataclasses import dataclass
from typing import Final

__all__ = ["Admission", "AdmissionLimits", "Slot", "source_of"]

PENALTY_WINDOW_S: Final = 60.0
"""Failed logins of an address are counted over this time, and it then waits as long."""
MAX_TRACKED_ADDRESSES: Final = 10_000
"""Addresses whose failures are remembered; when full, the oldest memory goes."""


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """The named limits; see `config.model.Limits` for their meaning."""

    connections: int = 4096
    connections_per_address: int = 100
    half_open: int = 1000
    failed_logins_per_address: int = 30


def source_of(host: str) -> str:
    """What `host` is counted as: an IPv4 address itself, an IPv6 address's /64."""
    address = _parse(host)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _parse(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


class Admission:
    """Counts connections and decides which new one may stay. `limits` may be replaced at any time."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self.limits = limits
        self.open = 0
        self.refused: Counter[str] = Counter()
        self._strangers: Counter[str] = Counter()
        self._failures: dict[str, tuple[int, float]] = {}

    @property
    def half_open(self) -> int:
        """Connections that have not logged in."""
        return self._strangers.total()

    def enter(self, host: str, now: float) -> "Slot | str":
        """A place for a new connection from `host`, or the name of the limit that leaves none."""
        source, limits = source_of(host), self.limits
        refusal = None
        if self._is_penalised(source, now):
            refusal = "failed_logins_per_address"
        elif self.open >= limits.connections:
            refusal = "connections"
        elif self._strangers[source] >= limits.connections_per_address:
            refusal = "connections_per_address"
        elif self.half_open >= limits.half_open:
            refusal = "half_open"
        if refusal is not None:
            self.refused[refusal] += 1
            return refusal
        self.open += 1
        self._strangers[source] += 1
        return Slot(self, source)

    def failed_login(self, host: str, now: float) -> None:
        """A connection from `host` ended after refused login attempts. Loopback is never penalised: there it
        could be anyone on this machine, or a forward that passes through the node."""
        if _parse(host).is_loopback:
            return
        source = source_of(host)
        count, since = self._failures.pop(source, (0, now))
        if now - since >= PENALTY_WINDOW_S:
            count, since = 0, now
        count += 1
        if count == self.limits.failed_logins_per_address:
            since = now  # the wait begins with the failure that filled the measure
        self._failures[source] = (count, since)
        if len(self._failures) > MAX_TRACKED_ADDRESSES:
            del self._failures[next(iter(self._failures))]

    def _is_penalised(self, source: str, now: float) -> bool:
        count, since = self._failures.get(source, (0, 0.0))
        if count and now - since >= PENALTY_WINDOW_S:
            del self._failures[source]
            return False
        return count >= self.limits.failed_logins_per_address

    def _leave_strangers(self, source: str) -> None:
        self._strangers[source] -= 1
        if not self._strangers[source]:
            del self._strangers[source]


class Slot:
    """One admitted connection's place. Both methods are idempotent."""

    def __init__(self, admission: Admission, source: str) -> None:
        self._admission = admission
        self._source = source
        self._stranger = True
        self._open = True

    def logged_in(self) -> None:
        """The caller is no stranger any more."""
        if self._stranger:
            self._stranger = False
            self._admission._leave_strangers(self._source)

    def leave(self) -> None:
        """The connection has ended."""
        if self._open:
            self.logged_in()
            self._open = False
            self._admission.open -= 1
