"""The wait for a client: it ends when it should, whatever was waited for before, and costs one timer."""

import asyncio

import pytest

from alknet.gateway.patience import Patience

EPS_S = 1e-6


class Loop:
    """An event loop's clock and timers."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, asyncio.TimerHandle]] = []
        self.made = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: object) -> asyncio.TimerHandle:
        self.made += 1
        handle = asyncio.TimerHandle(when, callback, (), self)  # type: ignore[arg-type]
        self.timers.append((when, handle))
        return handle

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self.timers = [(when, one) for when, one in self.timers if one is not handle]

    def advance(self, seconds: float) -> None:
        until = self.now + seconds
        while due := sorted(((when, one) for when, one in self.timers if when <= until), key=lambda timer: timer[0]):
            self.now, handle = due[0]
            self.timers.remove(due[0])
            handle._run()
        self.now = until


class Waiting:
    def __init__(self) -> None:
        self.loop = Loop()
        self.ends: list[float] = []
        self.patience = Patience(self.loop, lambda: self.ends.append(self.loop.now))  # type: ignore[arg-type]


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


def test_a_wait_ends_once(waiting: Waiting) -> None:
    waiting.patience.begin(10)
    waiting.loop.advance(10 - EPS_S)
    assert waiting.ends == []
    waiting.loop.advance(100)
    assert waiting.ends == [110.0]
    assert waiting.loop.timers == []


def test_a_wait_that_is_over_ends_nothing(waiting: Waiting) -> None:
    waiting.patience.begin(10)
    waiting.patience.end()
    waiting.loop.advance(100)
    assert waiting.ends == []
    waiting.patience.begin(10)
    waiting.loop.advance(100)
    assert waiting.ends == [210.0]


@pytest.mark.parametrize(("first", "then", "end"), [(10.0, 75.0, 180.0), (75.0, 10.0, 115.0)])
def test_the_last_wait_counts(waiting: Waiting, first: float, then: float, end: float) -> None:
    waiting.patience.begin(first)
    waiting.loop.advance(5)
    waiting.patience.begin(then)
    waiting.loop.advance(1000)
    assert waiting.ends == [end]


def test_what_is_over_before_it_settles_sets_no_timer(waiting: Waiting) -> None:
    for _ in range(1000):
        waiting.patience.soon(10)
        waiting.patience.end()
        waiting.patience.settle()
        waiting.patience.begin(75)
        waiting.loop.advance(0.1)
    assert waiting.loop.made <= 3
    waiting.loop.advance(75)
    assert waiting.ends == [pytest.approx(100 + 999 * 0.1 + 75)]


def test_what_is_not_over_when_it_settles_is_waited_for_from_then_on(waiting: Waiting) -> None:
    waiting.patience.soon(10)
    waiting.loop.advance(5)
    waiting.patience.settle()
    waiting.patience.settle()
    waiting.loop.advance(100)
    assert waiting.ends == [115.0]


def test_nothing_is_left_when_it_is_closed(waiting: Waiting) -> None:
    waiting.patience.begin(10)
    waiting.patience.close()
    assert waiting.loop.timers == []
    waiting.loop.advance(100)
    assert waiting.ends == []
