"""Operations that tests call: quick ones, failing ones, and ones that go on until they are stopped."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from alknet.call.errors import CallError
from alknet.call.operations import operation
from alknet.call.specs import ErrorSpec

__all__ = ["Served"]


class Served:
    """What it serves needs no scopes but ``t/secret``. It tells what began, and how each that waits has ended."""

    def __init__(self) -> None:
        self.begun = 0
        self.stopped = 0
        """Handlers that were cancelled or closed before they had finished."""
        self.produced = 0
        self.go_on = asyncio.Event()
        """What ``t/wait`` waits for."""
        self.let_go = asyncio.Event()
        """What ``t/stubborn`` waits for once it is cancelled."""

    @operation("t/add", public=True)
    async def add(self, a: int, b: int) -> int:
        return a + b

    @operation("t/sum", public=True)
    async def sum(self, values: list[int]) -> int:
        return sum(values)

    @operation("t/nan", public=True)
    async def nan(self) -> Any:
        return float("nan")

    @operation("t/echo", public=True)
    async def echo(self, value: Any = None) -> Any:
        return value

    @operation("t/secret")
    async def secret(self) -> str:
        return "secret"

    @operation("t/wait", public=True)
    async def wait(self, value: Any = None, size: int = 0) -> Any:
        self.begun += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        return "x" * size if size else value

    @operation("t/stubborn", public=True)
    async def stubborn(self) -> str:
        self.begun += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            await self.let_go.wait()
        return "too late"

    @operation("t/fail", public=True, errors=[ErrorSpec("OUT_OF_STOCK", "none left", None, 409)])
    async def fail(self, details: Any = None, size: int = 0) -> None:
        raise CallError("OUT_OF_STOCK", "none left", details="x" * size if size else details)

    @operation("t/break", public=True)
    async def fail_unforeseen(self) -> None:
        raise RuntimeError("never told to anybody")

    @operation("t/size", public=True)
    async def of_size(self, size: int) -> str:
        return "x" * size

    @operation("t/count", public=True)
    async def count(self, to: int, size: int = 0) -> AsyncIterator[Any]:
        for n in range(to):
            self.produced += 1
            yield [n, "x" * size] if size else n

    @operation("t/together", public=True)
    async def together(self, to: int = 1, size: int = 0) -> AsyncIterator[Any]:
        self.begun += 1
        for n in range(to):
            await self.go_on.wait()
            yield [n, "x" * size]

    @operation("t/follow", public=True)
    async def follow(self, first: int = 1) -> AsyncIterator[int]:
        self.begun += 1
        try:
            for n in range(first):
                yield n
            await self.go_on.wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.stopped += 1
            raise

    @operation("t/fail-later", public=True, errors=[ErrorSpec("OUT_OF_STOCK", "none left", None, 409)])
    async def fail_later(self, after: int = 2, size: int = 0) -> AsyncIterator[int]:
        for n in range(after):
            yield n
        raise CallError("OUT_OF_STOCK", "none left", details="x" * size)
