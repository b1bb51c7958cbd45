"""Asynchronous tests of calls run on both event loops: asyncio's own, and uvloop, which a node runs on."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
import uvloop

from testkit.polling import eventually

ABOVE_SESSIONS = [
    "test_attacks",
    "test_command",
    "test_composition",
    "test_discovery",
    "test_dispatch",
    "test_forwarding",
    "test_from_call",
    "test_mesh",
    "test_mesh_attacks",
    "test_prepared",
]
"""Modules about what is done with calls, or what many of them cost. Their bytes go through memory, and what sessions
and channels ask of an event loop the other modules test on both."""


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"uvloop": uvloop.new_event_loop} if item.path.stem in ABOVE_SESSIONS else loops


@pytest.fixture
async def nothing_is_left(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """No exception reaches the event loop or fails a task unseen, and no task outlives what the test has closed."""
    escaped: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: escaped.append(context))
    before = asyncio.all_tasks()
    gc.freeze()  # what is older than the test is not looked through again and again
    yield
    gc.collect()
    await eventually(lambda: not asyncio.all_tasks() - before - {asyncio.current_task()}, "every task has ended")
    gc.collect()
    gc.unfreeze()
    assert escaped == []
    assert [record.message for record in caplog.records if record.name in ("alknet.tasks", "asyncio")] == []
