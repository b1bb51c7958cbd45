"""The caller's end of a subscription: items in order, paced by credit, and how it ended."""

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from alknet.call.envelopes import Ended
from alknet.call.errors import CallError

if TYPE_CHECKING:
    from alknet.call.session import Session

__all__ = ["End", "Subscription"]

MAX_UNREAD_BYTES: Final = 1024 * 1024
"""While so much of one subscription is unread, the other side gets no further credit."""
MAX_UNPACED_BYTES: Final = 32 * 1024 * 1024
"""What may be unread of a subscription to another side that knows no credit and cannot be held back; then it ends."""


class End(StrEnum):
    """Why a subscription is over."""

    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"
    """The other side gave it up."""
    LOST = "lost"
    """The connection went away."""
    CLOSED = "closed"
    """This side did not want any more."""


class Subscription:
    """``async with peer.subscribe("logs/follow") as lines: async for line in lines: …``

    The block's end aborts what has not ended; so does dropping the last reference. Iteration ends when the other side
    completed it, and raises `CallError` when it failed, was aborted or was lost; `end` tells these apart.
    """

    def __init__(
        self,
        session: "Session",
        name: str,
        value: Any,
        *,
        credit: int,
        timeout_s: float | None,
        extra: Mapping[str, Any] = MappingProxyType({}),
        is_paced: bool = True,
    ) -> None:
        self.end: End | None = None
        self._session = session
        self._request: tuple[str, Any, float | None, Mapping[str, Any]] | None = (name, value, timeout_s, extra)
        self._credit = credit
        self._is_paced = is_paced
        self._id = ""
        self._items: deque[tuple[Any, int]] = deque()
        self._unread_bytes = 0
        self._consumed = 0
        self._error: CallError | None = None
        self._arrived = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> "Subscription":
        await self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Any:
        await self._begin()
        while not self._items:
            if self._error is not None:
                raise self._error
            if self.end is not None:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        item, size = self._items.popleft()
        self._unread_bytes -= size
        self._consumed += 1
        if self._consumed * 2 >= self._credit and self._unread_bytes <= MAX_UNREAD_BYTES:
            self._session.grant(self._id, self._consumed)
            self._consumed = 0
        return item

    async def aclose(self) -> None:
        """Abort it if it has not ended; idempotent."""
        self._request = None
        self._stop_timer()
        if self.end is None:
            self.end = End.CLOSED
            self._items.clear()
            self._session.drop(self._id)
            self._arrived.set()

    def __del__(self) -> None:
        if self.end is None and self._id:
            with contextlib.suppress(RuntimeError):  # the event loop is gone, and the connection with it
                self._session.drop_soon(self._id)

    async def _begin(self) -> None:
        if self._request is not None:
            request, self._request = self._request, None
            name, value, timeout_s, extra = request
            loop = asyncio.get_running_loop()
            ends = None if timeout_s is None else loop.time() + timeout_s
            try:
                async with asyncio.timeout_at(ends):
                    self._id = await self._session.begin_subscription(
                        self, name, value, self._credit, timeout_s, **extra
                    )
            except TimeoutError:
                self._expire(name)
                assert self._error is not None
                raise self._error from None
            except CallError as exc:
                self.ended(Ended("", exc))
                raise
            except asyncio.CancelledError:
                self._request = request
                raise
            if self.end is not None:  # closed meanwhile
                self._session.drop(self._id)
            elif ends is not None:
                # Weakly, so that one that nobody holds any more is collected.
                self._timer = loop.call_at(ends, _expire, weakref.ref(self), name)

    def _expire(self, name: str) -> None:
        """The time is over, and the other side, which knows that too, has not said so."""
        if self.end is None:
            self._session.drop(self._id, "deadline")
            self.ended(Ended(self._id, CallError("TIMEOUT", f"{name} did not finish in time")))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- called by the session --------------------------------------------------------------------------------------

    def received(self, item: Any, size: int) -> None:
        self._items.append((item, size))
        self._unread_bytes += size
        self._arrived.set()
        if not self._is_paced and self._unread_bytes > MAX_UNPACED_BYTES:
            words = f"more than {MAX_UNPACED_BYTES} bytes of items are unread, and the other side takes no credit"
            self._session.drop(self._id, "too much is unread")
            self.ended(Ended(self._id, CallError("RESOURCE_EXHAUSTED", words)))

    def ended(self, event: Ended) -> None:
        self._stop_timer()
        self._error = event.error
        if event.is_lost:
            self.end = End.LOST
        elif event.is_aborted:
            self.end = End.ABORTED
        else:
            self.end = End.COMPLETED if event.error is None else End.FAILED
        self._arrived.set()


def _expire(held: "weakref.ref[Subscription]", name: str) -> None:
    subscription = held()
    if subscription is not None:
        subscription._expire(name)
