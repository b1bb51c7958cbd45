"""The one way to start a task that is not awaited on the spot.

An orphan task loses its exception and may be collected while it runs, so bare `asyncio.create_task` is
banned by ruff. A part that needs tasks in the background owns a :class:`Tasks` and closes it.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from alknet.logs import event

__all__ = ["Tasks"]

log = logging.getLogger("alknet.tasks")

CLOSE_TIMEOUT_S: Final = 5.0
"""What tasks may take to end when their owner closes; whoever does not hear that it is cancelled is left behind."""


class Tasks:
    """The named background tasks of one owner.

    A task that fails is logged with its name and never takes its siblings along; whoever needs a failure
    to travel uses `asyncio.TaskGroup` instead.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, coro: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run `coro` as a task named ``owner:name``."""
        task = asyncio.create_task(coro, name=f"{self._owner}:{name}")  # noqa: TID251 - the helper
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def wait(self, *, timeout_s: float) -> int:
        """Wait until every task has ended, at most `timeout_s` seconds; returns how many still run."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)
        return len(self._tasks)

    def cancel(self) -> None:
        """Ask what still runs to end."""
        for task in set(self._tasks):
            task.cancel()

    async def aclose(self) -> None:
        """Cancel what still runs and wait for it, at most `CLOSE_TIMEOUT_S`; what is left then is logged."""
        self.cancel()
        if left := await self.wait(timeout_s=CLOSE_TIMEOUT_S):
            names = ",".join(sorted(task.get_name() for task in self._tasks))
            log.error(event("tasks did not end in time", count=left, tasks=names))

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task %s failed: %s", task.get_name(), error, exc_info=error)
