"""Which operations each caller may call: asked for by every list and document, and known until something changes.

With many peers that bring operations there are thousands of them, and they change whenever one of these peers comes or
goes. So what was decided about an operation that is still the same is not decided again, and what is decided anew is
decided a little at a time. A list decides nothing: every call is judged when it comes.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from alknet.access import Authority, Identity, Policy
from alknet.call.operations import Operation
from alknet.call.registry import Registry
from alknet.call.slices import Slices

if TYPE_CHECKING:
    from alknet.call.dispatch import Dispatcher

__all__ = ["MAX_KEPT", "Permitted"]

MAX_KEPT: Final = 256
"""Callers whose answers are kept. An answer holds references only: all share the operations."""
MAX_TRIES: Final = 3
"""Where operations or policy change while an answer is worked out, it is worked out again; then it is what it is."""


@dataclass(frozen=True, slots=True)
class _Answer:
    operations: tuple[Operation, ...]
    until: float
    """Seconds since 1970: then a credential or a peer ends."""


@dataclass(slots=True)
class _Era:
    """What was found while operations and policy were these."""

    registry: Registry
    policy: Policy
    answers: dict[Identity | None, _Answer]


class Permitted:
    """What callers may call of what `dispatcher` serves."""

    def __init__(self, dispatcher: "Dispatcher") -> None:
        self._dispatcher = dispatcher
        self._now = _Era(dispatcher.registry, dispatcher.gate.policy, {})
        self._before: _Era | None = None
        """With another registry under the same policy."""
        self._turn = asyncio.Lock()
        """One at a time: all of them together take no more than one."""

    async def of(self, identity: Identity | Authority | None) -> Sequence[Operation]:
        """The operations that this caller sees in lists, by name. As long as these stay what they are it is the same
        object."""
        if isinstance(identity, Authority):  # few ask, and each for itself
            return await self._judged(identity, self._dispatcher.registry, None, None)
        found = self._known(identity)
        if found is None:
            async with self._turn:
                found = self._known(identity) or await self._worked_out(identity)
        return found.operations

    def _known(self, identity: Identity | None) -> _Answer | None:
        era = self._renewed()
        found = era.answers.get(identity)
        return found if found is not None and self._dispatcher.gate.clock.wall() < found.until else None

    def _renewed(self) -> _Era:
        registry, policy = self._dispatcher.registry, self._dispatcher.gate.policy
        if self._now.policy is not policy:
            self._before = None
        elif self._now.registry is not registry:
            self._before = self._now
        else:
            return self._now
        self._now = _Era(registry, policy, {})
        return self._now

    async def _worked_out(self, identity: Identity | None) -> _Answer:
        for _ in range(MAX_TRIES):
            era, before = self._renewed(), self._before
            now = self._dispatcher.gate.clock.wall()
            known = None if before is None else before.answers.get(identity)
            if known is not None and now >= known.until:
                known = None
            operations = await self._judged(identity, era.registry, before, known)
            if known is not None and _are_same(operations, known.operations):
                operations = known.operations
            answer = _Answer(operations, self._until(identity, now))
            if self._renewed() is era:
                break
        if len(self._now.answers) >= MAX_KEPT:
            del self._now.answers[next(iter(self._now.answers))]
        if self._now is era:
            self._now.answers[identity] = answer
        return answer

    async def _judged(
        self, identity: Identity | Authority | None, registry: Registry, before: _Era | None, known: _Answer | None
    ) -> tuple[Operation, ...]:
        may, slices = self._dispatcher.may, Slices()
        judged = {} if before is None or known is None else before.registry.operations
        good = set() if known is None else set(map(id, known.operations))
        found = []
        for name, operation in registry.operations.items():
            if judged.get(name) is operation:
                if id(operation) in good:
                    found.append(operation)
                continue
            if may(identity, operation):
                found.append(operation)
            await slices.breathe()
        return tuple(found)

    def _until(self, identity: Identity | None, now: float) -> float:
        if identity is None:
            return float("inf")
        peer = self._dispatcher.gate.policy.peers.get(identity.id)
        ends = (identity.expires_at, None if peer is None else peer.expires_at)
        return min((end for end in ends if end is not None and end > now), default=float("inf"))


def _are_same(some: Sequence[Operation], others: Sequence[Operation]) -> bool:
    """Whether they are the same operations, not only equal ones."""
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))
