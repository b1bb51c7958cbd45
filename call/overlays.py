"""What each connected peer brings: its operations, for as long as the connection lasts over which they were found out.

State only, no I/O. A peer may be here over several connections at once: while it reconnects the old one may not have
ended yet. Each is an :class:`Attachment` with a generation; the newest one that has an operation serves it, and the end
of one touches none of the others, however late it comes.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from alknet.call.errors import CallError
from alknet.call.from_call import EMPTY, Catalog
from alknet.call.specs import OperationSpec

if TYPE_CHECKING:
    from alknet.call.operations import Operation

__all__ = ["CHANNEL_PLACES", "MAX_SHARE", "Attachment", "Overlays"]

MAX_SLOTS: Final = 10_000
"""Peers whose place in the order is remembered; the configuration has no more."""


MAX_SHARE: Final = 256
"""Places of one caller on the connection with a peer, where a call takes one and a channel `CHANNEL_PLACES`: a quarter
of what the peer takes of either by default, so that nobody keeps it from all others."""
CHANNEL_PLACES: Final = 4


@dataclass(slots=True, eq=False)
class Attachment:
    """One connection of a peer that brings operations. `catalog` is empty until they are found out."""

    peer: str
    generation: int
    session: Any = field(repr=False)
    catalog: Catalog = field(default=EMPTY, repr=False)
    running: dict[str, int] = field(default_factory=dict, repr=False)
    """Calls and channels that are on their way there, by who began them."""
    is_filled: bool = False
    """Whether its operations have been found out once."""
    forwarding: "dict[str, Operation]" = field(default_factory=dict, repr=False)
    """What forwards calls of these, as far as they were called."""

    def take(self, caller: str | None, places: int = 1) -> str:
        """Take places on the connection, which all callers share, for one of them; to be given back with `leave` and
        what this returns. `CallError` for one that has `MAX_SHARE`."""
        who = caller or ""
        taken = self.running.get(who, 0)
        if taken + places > MAX_SHARE:
            words = f"{who or 'nobody'} has as many calls and channels to peer {self.peer!r} as one caller may have"
            raise CallError("RESOURCE_EXHAUSTED", words)
        self.running[who] = taken + places
        return who

    def leave(self, who: str, places: int = 1) -> None:
        """Give them back."""
        left = self.running[who] - places
        if left:
            self.running[who] = left
        else:
            del self.running[who]


class Overlays:
    """The attachments of all peers."""

    def __init__(self) -> None:
        self._generations = itertools.count(1)
        self._attached: dict[str, list[Attachment]] = {}
        """By peer, newest first."""
        self._slots: dict[str, int] = {}
        """The order in which peers came first; one that comes again keeps its place."""
        self._offered: dict[str, Mapping[str, OperationSpec]] = {}
        """What `operations` has found, as long as it is so."""

    def attach(self, peer: str, session: Any) -> Attachment:
        """A connection of `peer` is there; it offers nothing yet."""
        attachment = Attachment(peer, next(self._generations), session)
        self._attached.setdefault(peer, []).insert(0, attachment)
        if peer not in self._slots:
            if len(self._slots) >= MAX_SLOTS:
                self._slots = {one: slot for one, slot in self._slots.items() if one in self._attached}
            self._slots[peer] = attachment.generation
        return attachment

    def fill(self, attachment: Attachment, catalog: Catalog) -> bool:
        """It offers these operations, and no others any more; False when it has ended meanwhile."""
        if not self.is_attached(attachment):
            return False
        attachment.catalog = catalog
        self._offered.pop(attachment.peer, None)
        attachment.forwarding.clear()
        attachment.is_filled = True
        return True

    def detach(self, attachment: Attachment) -> bool:
        """It has ended; False when that was known already."""
        if not self.is_attached(attachment):
            return False
        self._attached[attachment.peer].remove(attachment)
        self._offered.pop(attachment.peer, None)
        if not self._attached[attachment.peer]:
            del self._attached[attachment.peer]
        return True

    def is_attached(self, attachment: Attachment) -> bool:
        return attachment in self._attached.get(attachment.peer, ())

    def __iter__(self) -> Iterator[Attachment]:
        """Every attachment: peers in their order, each one's newest first."""
        for peer in self.peers:
            yield from tuple(self._attached.get(peer, ()))

    @property
    def peers(self) -> list[str]:
        """Who is attached, in the order in which they came first."""
        return sorted(self._attached, key=self._slots.__getitem__)

    def of(self, peer: str) -> tuple[Attachment, ...]:
        """The attachments of one peer, newest first."""
        return tuple(self._attached.get(peer, ()))

    def find(self, peer: str, name: str) -> Attachment | None:
        """The newest attachment of `peer` that has the operation."""
        for one in self._attached.get(peer, ()):
            if name in one.catalog.specs:
                return one
        return None

    def operations(self, peer: str) -> Mapping[str, OperationSpec]:
        """What `peer` offers, by name, in order. The same object as long as it is the same."""
        found = self._offered.get(peer)
        if found is None:
            joined: dict[str, OperationSpec] = {}
            for attachment in reversed(self._attached.get(peer, ())):
                joined |= attachment.catalog.specs
            found = MappingProxyType(dict(sorted(joined.items())))
            if joined:
                self._offered[peer] = found
        return found

    def offering(self, name: str) -> list[str]:
        """The peers that have the operation, in their order."""
        return [peer for peer in self.peers if self.find(peer, name) is not None]
