"""Long work on the event loop, a little at a time, so that calls are served meanwhile."""

import asyncio
import time
from typing import Final

__all__ = ["SLICE_S", "Slices"]

SLICE_S: Final = 0.002
"""So long others wait at most, if `breathe` is called often enough."""


class Slices:
    """Of one piece of work: call `breathe` at each small step of it."""

    __slots__ = ("_began",)

    def __init__(self) -> None:
        self._began = time.perf_counter()

    async def breathe(self) -> None:
        """Let others run when this has run long enough; else it costs next to nothing."""
        if time.perf_counter() - self._began >= SLICE_S:
            await asyncio.sleep(0)
            self._began = time.perf_counter()
