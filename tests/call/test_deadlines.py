"""Deadlines that share timers: none is early, none is lost, and what is cancelled stays silent."""

import asyncio
import logging

import pytest

from alknet.call import deadlines
from alknet.call.deadlines import Deadline, Deadlines

SOON_S = 0.03


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Deadlines:
    """Of which also those that a test can wait for share timers."""
    monkeypatch.setattr(deadlines, "EXACT_S", 0.0)
    return Deadlines()


async def reached(*futures: "asyncio.Future[float]") -> list[float]:
    async with asyncio.timeout(10):
        return await asyncio.gather(*futures)


async def test_one_is_reached_in_time_and_not_early(shared: Deadlines) -> None:
    loop = asyncio.get_running_loop()
    for seconds in (0.001, SOON_S, 2 * SOON_S):
        future, when = loop.create_future(), loop.time() + seconds
        deadline = shared.at(when, lambda future: future.set_result(loop.time()), future)
        assert isinstance(deadline, Deadline) or seconds < SOON_S
        (at,) = await reached(future)
        assert at >= when


async def test_those_of_one_slot_come_in_their_order(shared: Deadlines) -> None:
    loop = asyncio.get_running_loop()
    seen: list[int] = []
    last = loop.create_future()
    when = loop.time() + SOON_S
    for number in range(100):
        shared.at(when, seen.append, number)
    shared.at(when, last.set_result, 0.0)
    await reached(last)
    assert seen == list(range(100))


async def test_what_is_cancelled_stays_silent_and_the_others_do_not(shared: Deadlines) -> None:
    loop = asyncio.get_running_loop()
    seen: list[int] = []
    last = loop.create_future()
    when = loop.time() + SOON_S
    made = [shared.at(when, seen.append, number) for number in range(10)]
    shared.at(when, last.set_result, 0.0)
    for deadline in made[::2]:
        deadline.cancel()
        deadline.cancel()
    await reached(last)
    assert seen == [1, 3, 5, 7, 9]


async def test_one_can_cancel_the_next_one_of_its_slot(shared: Deadlines) -> None:
    loop = asyncio.get_running_loop()
    seen: list[int] = []
    last = loop.create_future()
    when = loop.time() + SOON_S
    shared.at(when, lambda: second.cancel())
    second = shared.at(when, seen.append, 2)
    shared.at(when, last.set_result, 0.0)
    await reached(last)
    assert seen == []


async def test_a_callback_that_fails_takes_no_other_along(shared: Deadlines, caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    last = loop.create_future()
    when = loop.time() + SOON_S
    shared.at(when, lambda: 1 / 0)
    shared.at(when, last.set_result, 0.0)
    with caplog.at_level(logging.CRITICAL, "asyncio"):
        await reached(last)


async def test_nothing_is_kept_of_what_is_over(shared: Deadlines) -> None:
    loop = asyncio.get_running_loop()
    last = loop.create_future()
    when = loop.time() + SOON_S
    for _ in range(1000):
        shared.at(when, print).cancel()
    assert sum(map(len, shared._slots.values())) == 0
    shared.at(when, last.set_result, 0.0)
    await reached(last)
    assert not any(number * deadlines.SLOT_S <= loop.time() for number in shared._slots)


async def test_near_and_far_ones_have_timers_of_their_own() -> None:
    kept, now = Deadlines(), asyncio.get_running_loop().time()
    for seconds, is_shared in ((-1.0, False), (0.5, False), (30.0, True), (59.0, True), (3600.0, False)):
        deadline = kept.at(now + seconds, print)
        assert isinstance(deadline, Deadline) is is_shared
        deadline.cancel()


async def test_many_share_few_timers() -> None:
    kept, now = Deadlines(), asyncio.get_running_loop().time()
    made = [kept.at(now + 30 + number / 1e6, print) for number in range(10_000)]
    assert len(kept._slots) <= 2
    for deadline in made:
        deadline.cancel()
