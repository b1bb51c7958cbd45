"""How long a connection waits for its client: one timer that is seldom set."""

import asyncio
import math
from collections.abc import Callable

__all__ = ["Patience"]


class Patience:
    """Calls `at_end` when the client was waited for as long as it was to be, once for each time that it is.

    The timer looks, when it is due, how long there is still to wait: to start one and to cancel it for each request
    costs more than to read that request. For the same reason `soon` only notes what there is to wait: nearly all
    requests arrive whole, and then there is nothing to wait for when `settle` is asked.
    """

    __slots__ = ("_at_end", "_due", "_loop", "_timer", "_timer_at", "_until")

    def __init__(self, loop: asyncio.AbstractEventLoop, at_end: Callable[[], None]) -> None:
        self._loop = loop
        self._at_end = at_end
        self._due: float | None = None
        """Seconds to wait from the next `settle` on."""
        self._until = math.inf
        """The event loop's time at which the wait ends."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def begin(self, seconds: float) -> None:
        """Wait so long from now on, and no longer for what was waited for before."""
        self._due = None
        self._until = until = self._loop.time() + seconds
        if until < self._timer_at:
            self._set(until)

    def soon(self, seconds: float) -> None:
        """As `begin`, but only if nothing ends the wait before `settle`."""
        self._due = seconds

    def settle(self) -> None:
        if self._due is not None:
            self.begin(self._due)

    def end(self) -> None:
        """Wait for nothing; the timer may stay, for the next wait."""
        self._due, self._until = None, math.inf

    def close(self) -> None:
        """Wait for nothing any more."""
        self.end()
        self._set(math.inf)

    def _set(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = None if at == math.inf else self._loop.call_at(at, self._look)

    def _look(self) -> None:
        self._timer, self._timer_at = None, math.inf
        if self._until > self._loop.time():
            self._set(self._until)
        else:
            self._until = math.inf
            self._at_end()
