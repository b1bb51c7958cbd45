"""Deadlines of many calls with few timers.

Nearly every call has a deadline, and nearly none reaches it: a timer of the event loop for each would be made to be
thrown away, which costs as much as deciding about the call. So deadlines that are some time off share one timer for
each `SLOT_S` of time, and are up to that much late; none is early.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

__all__ = ["Deadline", "Deadlines"]

SLOT_S: Final = 0.025
EXACT_S: Final = 2.0
"""Deadlines sooner than this have a timer of their own: there the difference could be seen."""
FAR_S: Final = 60.0
"""So have those that are further off: a timer stays until its time, also when nothing waits for it any more."""


class Deadline:
    """One that is still to come; `cancel` is cheap."""

    __slots__ = ("_arguments", "_callback", "_slot")

    def __init__(
        self, slot: "dict[Deadline, None]", callback: Callable[..., object], arguments: tuple[Any, ...]
    ) -> None:
        self._slot = slot
        self._callback = callback
        self._arguments = arguments
        slot[self] = None

    def cancel(self) -> None:
        """It does not matter any more; idempotent."""
        self._slot.pop(self, None)

    def reached(self) -> None:
        """Call back, unless it was cancelled."""
        if self in self._slot:
            self.cancel()
            self._callback(*self._arguments)


class Deadlines:
    """Those of whoever keeps it, all on one event loop."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[Deadline, None]] = {}
        """By the number of the slot; those of one in the order in which they came."""

    def at(self, when: float, callback: Callable[..., object], *arguments: Any) -> Deadline | asyncio.TimerHandle:
        """Call back at `when` of the running loop's time or a little later, if that is not cancelled before."""
        loop = asyncio.get_running_loop()
        if not EXACT_S <= when - loop.time() <= FAR_S:
            return loop.call_at(when, callback, *arguments)
        number = int(when / SLOT_S) + 1
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = {}
            loop.call_at(number * SLOT_S, self._due, number)
        return Deadline(slot, callback, arguments)

    def _due(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        for deadline in self._slots.pop(number):
            loop.call_soon(deadline.reached)
