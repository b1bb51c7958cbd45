"""Waiting in asynchronous tests: bounded, and never longer than it takes."""

import asyncio
from collections.abc import Callable
from typing import Any

__all__ = ["eventually", "settled"]

DEADLINE_S = 10.0
STILL_S = 0.1
STILL_LOOKS = 20
"""And so many looks at it: one turn of a busy event loop may take longer than the time."""


async def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Poll `condition` until it gives something true, and return that."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (result := condition()):
                await asyncio.sleep(0.002)
            return result
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S} s: {what}") from None


async def settled(value: Callable[[], int]) -> int:
    """What `value` gives once it has stood still for a moment."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DEADLINE_S):
        last, since, looks = value(), loop.time(), 0
        while loop.time() - since < STILL_S or looks < STILL_LOOKS:
            await asyncio.sleep(0.005)
            looks += 1
            if (current := value()) != last:
                last, since, looks = current, loop.time(), 0
    return last
