"""Sessions with peers whose nodes are benches in this process: what a mesh needs of a session, without frames."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from alknet.call.context import Caller
from alknet.call.errors import CallError
from alknet.call.hello import SERVE
from alknet.call.prepared import Prepared
from testkit.bench import Bench

__all__ = ["HUB", "Asked", "Line", "worker"]

HUB = "hub"
"""The peer as which workers know whoever calls them."""
_numbers = itertools.count(1)


def worker(*operations: Any, scopes: tuple[str, ...] = ("*",), **how: Any) -> Bench:
    """A node whose operations the hub may call."""
    return Bench(*operations, peers={HUB: scopes}, **how)


@dataclass(frozen=True)
class Asked:
    """A request that went over a line."""

    name: str
    value: Any
    timeout_s: float | None
    extra: dict[str, str]


class Line:
    """A session with `node`. It is open until `lose`."""

    def __init__(self, node: Bench, *, features: tuple[str, ...] = (SERVE,)) -> None:
        self.node = node
        self.features = frozenset(features)
        self.connection = SimpleNamespace(id=f"c{next(_numbers)}")
        self.is_open = True
        self.end_reason: str | None = None
        self.patience_s: float | None = None
        self.asked: list[Asked] = []
        self._waiting: set[asyncio.Timeout] = set()

    def of(self, name: str) -> list[Asked]:
        """The requests for one operation."""
        return [one for one in self.asked if one.name == name]

    def watch(self, patience_s: float) -> None:
        self.patience_s = patience_s

    def lose(self) -> None:
        """It ends; whoever waits for an answer learns that."""
        self.is_open = False
        self.end_reason = "it was lost"
        for waiting in self._waiting:
            waiting.reschedule(0.0)

    async def call(self, name: str, value: Any = None, *, timeout_s: float | None = None, **extra: str) -> Any:
        prepared = self._prepare(name, value, timeout_s, extra)
        async with self._until_lost():
            return await prepared.call()

    @asynccontextmanager
    async def subscribe(
        self, name: str, value: Any = None, *, timeout_s: float | None = None, **extra: str
    ) -> AsyncIterator[AsyncGenerator[Any, None]]:
        async with aclosing(self._items(name, value, timeout_s, extra)) as items:
            yield items

    async def _items(
        self, name: str, value: Any, timeout_s: float | None, extra: dict[str, str]
    ) -> AsyncGenerator[Any, None]:
        prepared = self._prepare(name, value, timeout_s, extra, streaming=True)
        async with aclosing(prepared.stream()) as stream:
            while True:
                async with self._until_lost():
                    item = await anext(stream, prepared)
                if item is prepared:
                    return
                yield item

    def _prepare(
        self, name: str, value: Any, timeout_s: float | None, extra: dict[str, str], *, streaming: bool = False
    ) -> Prepared:
        self.asked.append(Asked(name, value, timeout_s, extra))
        if not self.is_open:
            raise CallError("UNAVAILABLE", "the connection has ended")
        caller: Caller = self.node.caller(HUB, forwarded_for=extra.get("forwarded_for"))
        traceparent = extra.get("traceparent")
        return self.node.dispatcher.prepare(
            name, value, caller, streaming=streaming, timeout_s=timeout_s, traceparent=traceparent
        )

    @asynccontextmanager
    async def _until_lost(self) -> AsyncIterator[None]:
        if not self.is_open:
            raise CallError("UNAVAILABLE", "the connection was lost")
        try:
            async with asyncio.timeout(None) as waiting:
                self._waiting.add(waiting)
                try:
                    yield
                finally:
                    self._waiting.discard(waiting)
        except TimeoutError:
            raise CallError("UNAVAILABLE", "the connection was lost") from None
