"""A number that grows: nobody misses a change, and nobody is told twice of one."""

import asyncio

from alknet.call.changes import Changes
from testkit.polling import eventually


async def test_a_change_that_has_been_is_told_at_once() -> None:
    changes = Changes()
    before = changes.number
    changes.happened()
    assert await changes.wait_beyond(before) == before + 1


async def test_all_who_wait_are_told_and_several_changes_are_one() -> None:
    changes = Changes()
    before = changes.number
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(changes.wait_beyond(before)) for _ in range(3)]
        await asyncio.sleep(0)
        for _ in range(5):
            changes.happened()
    assert [task.result() for task in tasks] == [before + 5] * 3


async def test_one_who_gives_up_takes_it_from_nobody() -> None:
    changes = Changes()
    before = changes.number
    async with asyncio.TaskGroup() as group:
        patient = group.create_task(changes.wait_beyond(before))
        hasty = group.create_task(changes.wait_beyond(before))
        await asyncio.sleep(0)
        hasty.cancel()
        await eventually(hasty.done, "it has given up")
        changes.happened()
    assert patient.result() == before + 1


async def test_who_waits_for_a_later_change_goes_on_waiting() -> None:
    changes = Changes()
    beyond = changes.number + 1
    async with asyncio.TaskGroup() as group:
        task = group.create_task(changes.wait_beyond(beyond))
        await asyncio.sleep(0)
        changes.happened()
        await asyncio.sleep(0)
        assert not task.done()
        changes.happened()
    assert task.result() == beyond + 1


async def test_at_the_end_nobody_waits_any_more() -> None:
    changes = Changes()
    number = changes.number
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(changes.wait_beyond(number)) for _ in range(2)]
        await asyncio.sleep(0)
        changes.end()
    assert [task.result() for task in tasks] == [number] * 2
    assert await changes.wait_beyond(number + 5) == number
    assert changes.is_over
