"""Background tasks have names, an owner, and an end."""

import asyncio
import contextlib
import logging

import pytest

from alknet.tasks import Tasks


async def forever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise ValueError("what went wrong")


async def test_a_task_bears_its_owners_name_and_its_own() -> None:
    tasks = Tasks("node")
    task = tasks.start(forever(), name="watch")
    assert task.get_name() == "node:watch"
    assert len(tasks) == 1
    await tasks.aclose()


async def test_an_ended_task_is_forgotten() -> None:
    tasks = Tasks("node")
    task = tasks.start(asyncio.sleep(0, "result"), name="short")
    assert await task == "result"
    assert await tasks.wait(timeout_s=5) == 0
    assert len(tasks) == 0


async def test_a_failing_task_is_logged_by_name_and_leaves_its_siblings_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks = Tasks("node")
    sibling = tasks.start(forever(), name="sibling")
    failing = tasks.start(fail(), name="failing")
    await asyncio.wait({failing})
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "node:failing" in record.getMessage()
    assert "what went wrong" in record.getMessage()
    assert record.exc_info is not None
    assert not sibling.done()
    assert len(tasks) == 1
    await tasks.aclose()


async def test_a_cancelled_task_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks("node")
    task = tasks.start(forever(), name="watch")
    tasks.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert caplog.records == []


async def test_waiting_ends_with_the_last_task_or_at_its_time() -> None:
    tasks = Tasks("node")
    go = asyncio.Event()
    tasks.start(go.wait(), name="one")
    tasks.start(forever(), name="two")
    assert await tasks.wait(timeout_s=0) == 2
    go.set()
    tasks.cancel()
    assert await tasks.wait(timeout_s=5) == 0
    assert await tasks.wait(timeout_s=5) == 0


async def test_closing_waits_until_every_task_has_cleaned_up() -> None:
    cleaned = []

    async def careful(name: str) -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            cleaned.append(name)

    tasks = Tasks("node")
    for name in ("a", "b"):
        tasks.start(careful(name), name=name)
    await asyncio.sleep(0)
    await tasks.aclose()
    assert sorted(cleaned) == ["a", "b"]
    assert len(tasks) == 0
    await tasks.aclose()


async def test_closing_survives_a_task_that_fails_while_it_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    async def clumsy() -> None:
        try:
            await forever()
        finally:
            raise ValueError("while cleaning up")

    tasks = Tasks("node")
    tasks.start(clumsy(), name="clumsy")
    await asyncio.sleep(0)
    await tasks.aclose()
    assert "while cleaning up" in caplog.text


async def test_closing_leaves_behind_what_never_ends_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = asyncio.Event()

    async def deaf() -> None:
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go_on.wait()

    monkeypatch.setattr("alknet.tasks.CLOSE_TIMEOUT_S", 0.02)
    tasks = Tasks("node")
    task = tasks.start(deaf(), name="deaf")
    tasks.start(forever(), name="watch")
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await tasks.aclose()
    assert (task.done(), len(tasks)) == (False, 1)
    assert caplog.messages == ["tasks did not end in time count=1 tasks=node:deaf"]
    go_on.set()
    await task
