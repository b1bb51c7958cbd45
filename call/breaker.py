"""What keeps calls to a peer that fails from making things worse: a breaker, and a budget for retries.

Pure: the time is passed in, in seconds of one clock that only grows. Both belong to `alknet.call.routing`, which knows
what failed; here is only when to stop and when to try again.
"""

import math
from enum import StrEnum
from typing import Final

__all__ = ["Breaker", "BreakerState", "Outcome", "RetryBudget"]

FAILURES_TO_OPEN: Final = 5
"""So many failures in a row, and nothing else in between, open a breaker."""
FIRST_OPEN_S: Final = 5.0
"""How long a breaker that opens stays open; twice as long after each trial that fails."""
MOST_OPEN_S: Final = 60.0
TRIAL_S: Final = 30.0
"""A trial that has not ended by then does not keep out the next one: a subscription may be silent for days."""

RETRIES_PER_CALL: Final = 0.2
"""What one call pays in for retries: in the long run one call in five may be tried again."""
MOST_RETRIES: Final = 10.0
"""What a budget holds at most, and at first."""


class Outcome(StrEnum):
    """How an attempt ended, as far as it says something of the peer."""

    OK = "ok"
    """The peer answered: with an output, or with an error that is the caller's or the operation's own."""
    FAILED = "failed"
    """The peer was not there, or did not answer in time."""
    CANCELLED = "cancelled"
    """Nobody waited for the answer: it says nothing."""


class BreakerState(StrEnum):
    CLOSED = "closed"
    """Calls pass."""
    OPEN = "open"
    """No call passes."""
    HALF_OPEN = "half-open"
    """One call at a time passes, as a trial."""


class Breaker:
    """Whether one operation of one peer is to be called.

    Closed until `FAILURES_TO_OPEN` attempts in a row have failed, then open for a while, then half-open: one trial at
    a time passes. A trial that succeeds closes the breaker; one that fails opens it for twice as long as before. While
    it is not closed, attempts that began before count for nothing: they tell of the time that opened it.
    """

    __slots__ = ("_failures", "_open_s", "_trial", "_trial_until", "_trials", "opened", "until")

    def __init__(self) -> None:
        self.opened = 0
        """How often it has opened."""
        self.until = 0.0
        """When trials begin, or began; 0 while it is closed."""
        self._failures = 0
        self._open_s = FIRST_OPEN_S
        self._trials = 0
        self._trial = 0
        """The number of the trial that is under way; 0 for none."""
        self._trial_until = 0.0

    def state(self, now: float) -> BreakerState:
        if not self.until:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.until else BreakerState.HALF_OPEN

    def lets_pass(self, now: float) -> bool:
        """Whether an attempt may begin."""
        return not self.until or self.passes_at(now) <= now

    def passes_at(self, now: float) -> float:
        """When the next attempt may begin, if nothing ends before; not later than `now` if it may at once."""
        if not self.until:
            return now
        return max(self.until, self._trial_until) if self._trial else self.until

    def begun(self, now: float) -> int:
        """An attempt begins, which `lets_pass` allowed. Returns what `ended` wants: 0, or the number of a trial."""
        if not self.until:
            return 0
        self._trials += 1
        self._trial, self._trial_until = self._trials, now + TRIAL_S
        return self._trial

    def ended(self, trial: int, now: float, outcome: Outcome) -> None:
        """The attempt for which `begun` returned `trial` has ended. Once for each."""
        if not self.until:
            if outcome is Outcome.OK:
                self._failures = 0
            elif outcome is Outcome.FAILED:
                self._failures += 1
                if self._failures >= FAILURES_TO_OPEN:
                    self._open(now)
        elif trial and trial == self._trial:
            self._trial = 0
            if outcome is Outcome.OK:
                self.until, self._failures, self._open_s = 0.0, 0, FIRST_OPEN_S
            elif outcome is Outcome.FAILED:
                self._open(now)

    def _open(self, now: float) -> None:
        self.opened += 1
        # A clock may stand at 0, which means closed.
        self.until = (now + self._open_s) or math.ulp(0.0)
        self._open_s = min(2 * self._open_s, MOST_OPEN_S)


class RetryBudget:
    """How many calls may be tried again, as a share of all calls: a token bucket, as Finagle and Envoy have it.

    Where everything fails, each call that is tried again is one more for peers that have too many already. Calls pay
    `RETRIES_PER_CALL` in, a retry takes 1; `MOST_RETRIES` are there from the beginning, for who calls seldom.
    """

    __slots__ = ("_left", "denied", "retries")

    def __init__(self) -> None:
        self._left = MOST_RETRIES
        self.retries = 0
        """How many it has allowed."""
        self.denied = 0
        """How many it has not."""

    def called(self) -> None:
        """A call begins, which is no retry."""
        self._left = min(self._left + RETRIES_PER_CALL, MOST_RETRIES)

    def take(self) -> bool:
        """Whether one more retry may be; counts it."""
        if self._left < 1.0 - 1e-9:  # five times 0.2 is one retry, whatever binary fractions make of it
            self.denied += 1
            return False
        self._left -= 1.0
        self.retries += 1
        return True
