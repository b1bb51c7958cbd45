"""The clocks: the machine's, and the one that moves only when told to."""

import time

from alknet.clock import ManualClock, SystemClock


def test_the_system_clock_is_the_machines() -> None:
    before = (time.time(), time.monotonic())
    clock = SystemClock()
    now = (clock.wall(), clock.monotonic())
    after = (time.time(), time.monotonic())
    assert before[0] <= now[0] <= after[0]
    assert before[1] <= now[1] <= after[1]


def test_a_manual_clock_stands_still_until_told_to_move() -> None:
    clock = ManualClock(100.0)
    assert (clock.wall(), clock.monotonic()) == (100.0, 0.0)
    assert (clock.wall(), clock.monotonic()) == (100.0, 0.0)


def test_advancing_moves_both_clocks() -> None:
    clock = ManualClock(100.0)
    clock.advance(2.5)
    assert (clock.wall(), clock.monotonic()) == (102.5, 2.5)


def test_a_jump_moves_the_wall_clock_only() -> None:
    clock = ManualClock(100.0)
    clock.jump(-50.0)
    assert (clock.wall(), clock.monotonic()) == (50.0, 0.0)
