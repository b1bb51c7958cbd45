"""A number that grows when something changes, and whoever waits for that."""

import asyncio

__all__ = ["Changes"]


class Changes:
    """What the operations of a node, and who may call them, have changed to. A change is told to all who wait, and
    several that come while nobody looks are one."""

    def __init__(self) -> None:
        self.number = 1
        self.is_over = False
        """Whether nothing changes any more: the node stops."""
        self._next: asyncio.Future[None] | None = None

    def happened(self) -> None:
        """Something is different now."""
        self.number += 1
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    def end(self) -> None:
        """Nothing changes any more: who waits goes on. Otherwise a stopping node would wait for those who wait."""
        self.is_over = True
        if self._next is not None and not self._next.done():
            self._next.set_result(None)

    async def wait_beyond(self, number: int) -> int:
        """Wait until there is a change after `number`, or the end; the number of the last one."""
        while self.number <= number and not self.is_over:
            if self._next is None:
                self._next = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._next)
        return self.number
