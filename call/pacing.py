"""How much of a byte channel's data should be on its way at once, where channels and calls share one stream.

Credit says what the other side can hold; on a short path most of that would only queue up, in front of every call that
is made meanwhile. What a path needs is its rate times its delay (the bandwidth-delay product); grants of credit tell
both, as acknowledgements do in BBR (draft-ietf-ccwg-bbr): how long bytes took to be consumed at the other end, and how
many were consumed meanwhile. Twice that much is let out, so that a rate that has grown is noticed.

Pure arithmetic; times are seconds of any clock that does not go back.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

__all__ = ["LEAST_BYTES", "Pace", "Path"]

LEAST_BYTES: Final = 128 * 1024
"""What may be on its way in any case; twice what the other side consumes before it grants credit."""
GAIN: Final = 2.0
"""Times the rate and the least delay that were seen."""
LOOK_AGAIN_S: Final = 10.0
"""After so long little is let out for once, so that the least delay is seen without our own data in the way."""
MIN_DELAY_S: Final = 1e-6
MARK_BYTES: Final = 8 * 1024
"""Of what is sent, so much is remembered as one."""


@dataclass(slots=True)
class Path:
    """What all channels of a session know of the way to the other end."""

    least_delay_s: float = math.inf
    look_from: float = -math.inf
    """Only what was sent since then tells the least delay."""


@dataclass(slots=True)
class _Mark:
    """Something that was sent."""

    start: int
    end: int
    granted_before: int
    at: float


@dataclass(slots=True)
class Pace:
    """One channel, from the side that sends."""

    path: Path
    limit: int = LEAST_BYTES
    """Bytes that should be on their way."""
    _sent: int = 0
    _granted: int = 0
    _marks: deque[_Mark] = field(default_factory=deque)

    @property
    def room(self) -> int:
        """Bytes that should be sent now; more than that would wait somewhere on the way."""
        return max(0, self.limit - (self._sent - self._granted))

    def sent(self, size: int, now: float) -> None:
        """So many bytes were handed to the stream."""
        start, self._sent = self._sent, self._sent + size
        if self._marks and self._sent - self._marks[-1].start <= MARK_BYTES:
            self._marks[-1].end = self._sent
        else:
            self._marks.append(_Mark(start, self._sent, self._granted, now))

    def granted(self, size: int, now: float) -> None:
        """The other side has consumed so many bytes more."""
        self._granted = min(self._granted + size, self._sent)
        newest = None
        while self._marks and self._marks[0].end <= self._granted:
            newest = self._marks.popleft()
        if newest is None:
            return
        path, delay_s = self.path, max(now - newest.at, MIN_DELAY_S)
        if now - path.look_from > LOOK_AGAIN_S:
            path.look_from, path.least_delay_s = now, math.inf
        if newest.at >= path.look_from:
            path.least_delay_s = min(path.least_delay_s, delay_s)
        if path.least_delay_s == math.inf:
            self.limit = LEAST_BYTES
        else:
            rate = (self._granted - newest.granted_before) / delay_s
            needed = round(GAIN * rate * path.least_delay_s)
            # One slow moment tells little; several do.
            self.limit = max(LEAST_BYTES, needed, self.limit - self.limit // 8)
