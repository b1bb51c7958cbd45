"""How much a QUIC connection may have under way: a model of the path instead of a fear of loss.

The usual controllers (Reno, Cubic) halve what they send when a packet is lost. On a path that loses packets for other
reasons than being full (radio, a bad cable, reordering taken for loss) that leaves almost nothing: at 5 % loss and
50 ms about 100 kB/s, whatever the path can carry. This one keeps in flight what the path was seen to deliver, as BBR
does (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 2016), in its simplest form:

- The *rate* is the most that was delivered over a round trip, of the last `RATE_ROUNDS`. The *delay* is the shortest
  round trip of the last `DELAY_WINDOW_S`.
- In flight may be `GAIN` times rate times (delay + `SLACK_S`). The gain finds out whether more fits; the slack is for
  endpoints that are slower than the path.
- A queue that is always there would be taken for delay, so every `DELAY_WINDOW_S` only half of what the path holds is
  kept under way for a moment, which shows the path without its queue.
- It begins as slow start does, and leaves that when the rate has stopped growing.
- Loss counts when it is heavy: a round that lost more than `HEAVY_LOSS` lowers the model.

Pure: the time and what happens to packets come in, a number of bytes comes out.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

__all__ = ["HEAVY_LOSS", "MIN_PACKETS", "PathModel"]

GAIN: Final = 2.0
RATE_ROUNDS: Final = 10
DELAY_WINDOW_S: Final = 10.0
LOOK_S: Final = 0.2
"""How long the path is looked at without its queue, or a round trip if that is longer."""
LOOK_GAIN: Final = 0.5
SLACK_S: Final = 0.01
HEAVY_LOSS: Final = 0.2
HEAVY_LOSS_FACTOR: Final = 0.7
GROWTH: Final = 1.25
"""A rate that has not grown by so much in `FULL_ROUNDS` rounds is the path's."""
FULL_ROUNDS: Final = 3
MIN_PACKETS: Final = 4
INITIAL_PACKETS: Final = 10
MAX_WINDOW_BYTES: Final = 16 * 1024 * 1024
"""More is never under way: the streams' send buffers hold less."""


@dataclass(slots=True)
class _Sent:
    delivered: int
    """Bytes that had been delivered when it was sent, and when the last of them was."""
    delivered_at: float
    is_limited: bool
    """Whether the application had less to send than might have been under way."""


@dataclass(slots=True)
class PathModel:
    """One connection's path; `window` is how many bytes may be under way."""

    packet_bytes: int
    window: int = field(init=False)
    in_flight: int = 0
    _sent: dict[int, _Sent] = field(default_factory=dict)
    _delivered: int = 0
    _delivered_at: float = 0.0
    _rates: deque[tuple[int, float]] = field(default_factory=deque)
    """(round, rate), the rates falling: the first is the greatest of the last rounds."""
    _delay: float = 0.0
    _delay_at: float = 0.0
    _look_until: float = 0.0
    """While the path is looked at without its queue: until when, and the shortest round trip so far."""
    _look_delay: float = 0.0
    _round: int = 0
    _round_ends: int = 0
    """The round is over when what is sent from now on is delivered."""
    _round_acked: int = 0
    _round_lost: int = 0
    _is_starting: bool = True
    _full_rate: float = 0.0
    _full_rounds: int = 0

    def __post_init__(self) -> None:
        self.window = INITIAL_PACKETS * self.packet_bytes

    @property
    def rate(self) -> float:
        """Bytes in a second that the path was seen to deliver; 0 before anything was."""
        return self._rates[0][1] if self._rates else 0.0

    def sent(self, number: int, size: int, now: float) -> None:
        if self.in_flight == 0:
            self._delivered_at = now  # nothing was under way: the time before says nothing about the path
        is_limited = self.in_flight + size < self.window // 2
        self._sent[number] = _Sent(self._delivered, self._delivered_at, is_limited)
        self.in_flight += size

    def acked(self, number: int, size: int, now: float) -> None:
        self.in_flight -= size
        sent = self._sent.pop(number, None)
        if sent is None:
            return
        self._delivered += size
        self._delivered_at = now
        self._round_acked += size
        if sent.delivered >= self._round_ends:
            self._end_round()
        took = now - sent.delivered_at
        if took > 0:
            self._note_rate((self._delivered - sent.delivered) / took, is_limited=sent.is_limited)
        self._set_window(size)

    def lost(self, number: int, size: int) -> None:
        self.in_flight -= size
        self._round_lost += size
        self._sent.pop(number, None)

    def forgotten(self, number: int, size: int) -> None:
        """It counts no more, whatever became of it."""
        self.in_flight -= size
        self._sent.pop(number, None)

    def round_trip(self, seconds: float, now: float) -> None:
        if not self._delay or seconds <= self._delay:
            self._delay, self._delay_at = seconds, now
        if self._look_until:
            self._look_delay = min(self._look_delay, seconds)
            if now >= self._look_until:
                self._look_until, self._delay, self._delay_at = 0.0, self._look_delay, now
        elif now - self._delay_at > DELAY_WINDOW_S:
            self._look_until, self._look_delay = now + max(LOOK_S, 2 * seconds), seconds

    def collapsed(self) -> None:
        """Nothing has arrived for several timeouts: what was known of the path is worth nothing."""
        self.window = MIN_PACKETS * self.packet_bytes
        self._rates.clear()
        self._is_starting, self._full_rate, self._full_rounds = True, 0.0, 0

    def _note_rate(self, rate: float, *, is_limited: bool) -> None:
        if is_limited and rate <= self.rate:
            return  # it tells how little there was to send
        while self._rates and self._rates[-1][1] <= rate:
            self._rates.pop()
        self._rates.append((self._round, rate))
        while len(self._rates) > 1 and self._rates[0][0] < self._round - RATE_ROUNDS:
            self._rates.popleft()

    def _end_round(self) -> None:
        self._round += 1
        self._round_ends = self._delivered
        total = self._round_acked + self._round_lost
        if total >= INITIAL_PACKETS * self.packet_bytes and self._round_lost > HEAVY_LOSS * total:
            self._rates = deque([(self._round, self.rate * HEAVY_LOSS_FACTOR)])
            self._is_starting = False
        self._round_acked = self._round_lost = 0
        if self._is_starting and self._rates:
            if self.rate >= GROWTH * self._full_rate:
                self._full_rate, self._full_rounds = self.rate, 0
            else:
                self._full_rounds += 1
                self._is_starting = self._full_rounds < FULL_ROUNDS

    def _set_window(self, acked: int) -> None:
        if self._look_until:
            modelled = int(LOOK_GAIN * self.rate * self._delay)
        else:
            modelled = int(GAIN * self.rate * (self._delay + SLACK_S))
        if self._is_starting:
            modelled = max(modelled, self.window + acked)
        self.window = max(MIN_PACKETS * self.packet_bytes, min(modelled, MAX_WINDOW_BYTES))
