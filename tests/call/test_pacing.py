"""How much of a channel is on its way: as much as a path holds that is simulated, and never a number that makes no
sense."""

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.channel_states import GRANT_BYTES, WINDOW_BYTES
from alknet.call.pacing import LEAST_BYTES, LOOK_AGAIN_S, Pace, Path

PIECE = 16 * 1024


class Way:
    """A path that takes `rate` bytes a second one after the other, and `delay_s` there and back."""

    def __init__(self, rate: float, delay_s: float, *, jitter: float = 0.0) -> None:
        self.rate, self.delay_s, self.jitter = rate, delay_s, jitter
        self._rng = random.Random(7022)
        self._last = 0.0
        self.pace = Pace(Path())
        self.now = self.free_at = 0.0
        self.passed = 0
        self.most_waiting_s = 0.0
        self._unread = 0
        self._acks: deque[tuple[float, int]] = deque()

    def run(self, duration_s: float) -> float:
        """A sender that always has more; the bytes a second that it gets rid of."""
        until, before = self.now + duration_s, self.passed
        while self.now < until:
            while self._acks and self._acks[0][0] <= self.now:
                _, size = self._acks.popleft()
                self.passed += size
                self._unread += size
                if self._unread >= GRANT_BYTES:
                    self.pace.granted(self._unread, self.now)
                    self._unread = 0
            if self.pace.room >= PIECE and self.pace._sent - self.pace._granted + PIECE <= WINDOW_BYTES:
                self.free_at = max(self.free_at, self.now) + PIECE / self.rate
                delay_s = self.delay_s * self._rng.uniform(1.0, 1.0 + self.jitter)
                self._last = max(self._last, self.free_at + delay_s)  # in order, as on one stream
                self._acks.append((self._last, PIECE))
                self.pace.sent(PIECE, self.now)
            else:
                self.now = self._acks[0][0]
            if self.now > until - duration_s / 2:
                self.most_waiting_s = max(self.most_waiting_s, self.free_at - self.now)
        return (self.passed - before) / duration_s


def test_on_a_short_path_little_waits_on_the_way() -> None:
    way = Way(rate=400e6, delay_s=0.0001)
    assert way.run(2.0) > 0.9 * 400e6
    assert way.most_waiting_s < 0.002  # the whole window would wait 2.6 ms, and that of each channel


@pytest.mark.parametrize(("rate", "delay_s"), [(10e6, 0.05), (50e6, 0.01), (5e6, 0.1)])
def test_a_long_path_is_filled(rate: float, delay_s: float) -> None:
    way = Way(rate, delay_s)
    way.run(2.0)
    assert way.run(5.0) > 0.85 * rate


@pytest.mark.parametrize("jitter", [0.2, 0.5])
def test_a_path_whose_delay_varies_is_filled_too(jitter: float) -> None:
    way = Way(rate=10e6, delay_s=0.05, jitter=jitter)
    way.run(2.0)
    assert way.run(5.0) > 0.8 * 10e6


def test_a_path_that_holds_more_than_the_window_gets_the_window() -> None:
    way = Way(rate=1e9, delay_s=0.1)
    way.run(2.0)
    assert way.run(5.0) > 0.8 * WINDOW_BYTES / 0.1


def test_a_path_that_gets_longer_is_looked_at_again() -> None:
    way = Way(rate=10e6, delay_s=0.005)
    way.run(2.0)
    way.delay_s = 0.08
    way.run(2 * LOOK_AGAIN_S)
    assert way.run(5.0) > 0.8 * 10e6


def test_who_does_not_read_gets_little() -> None:
    pace = Pace(Path())
    while pace.room:
        pace.sent(min(PIECE, pace.room), 0.0)
    assert pace.limit == LEAST_BYTES
    pace.granted(GRANT_BYTES, 60.0)
    assert pace.limit == LEAST_BYTES


@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 3 * LEAST_BYTES), st.floats(0, 20)), max_size=60),
    seed=st.integers(0, 9),
)
def test_whatever_happens_there_is_a_limit_that_makes_sense(steps: list[tuple[bool, int, float]], seed: int) -> None:
    """Credit for what was never sent included, which an other side may give."""
    rng, path, now = random.Random(seed), Path(), 0.0
    paces = [Pace(path), Pace(path)]
    for is_sent, size, wait_s in steps:
        now += wait_s * rng.choice((0, 0.001, 1))
        pace = rng.choice(paces)
        if is_sent:
            pace.sent(size, now)
        else:
            pace.granted(size, now)
        assert pace.limit >= LEAST_BYTES
        assert 0 <= pace.room <= pace.limit
        assert pace._sent >= pace._granted
        assert path.least_delay_s > 0
