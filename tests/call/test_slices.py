"""Long work leaves time for others."""

import asyncio
import time

import pytest

from alknet.call import slices
from alknet.call.slices import SLICE_S, Slices


async def test_others_run_while_it_goes_on() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())  # noqa: TID251
    work = Slices()
    ends = time.perf_counter() + 10 * SLICE_S
    while time.perf_counter() < ends:
        await work.breathe()
    running.cancel()
    assert 2 <= turns <= 11


async def test_what_is_short_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_S", 60.0)
    others: list[int] = []
    asyncio.get_running_loop().call_soon(others.append, 1)
    work = Slices()
    for _ in range(1000):
        await work.breathe()
    assert others == []
    await asyncio.sleep(0)
    assert others == [1]
