"""Threads for handlers that are plain functions, shared out among the callers.

A function that is in its thread cannot be stopped. When nobody waits for it any more it goes on there, so a place
counts for its caller until the function has returned, and one caller's functions never have all the places. A call that
finds all of its caller's places lost like that, or held by subscriptions, is refused; otherwise it waits for one.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from alknet.call.errors import CallError
from alknet.logs import event

__all__ = ["Place", "Threads"]

log = logging.getLogger("alknet.call")

SYNC_THREADS: Final = 64
"""Handlers that are plain functions and run at the same time; further ones wait."""
PER_CALLER: Final = 8
"""Of these, those of one peer, or of one connection of nobody in particular."""
ANONYMOUS_THREADS: Final = 32
"""Of these, those of all connections of nobody in particular together."""


class _Share:
    """Places that are counted together. `held` are in use; `kept` are those of them that nobody knows the end of."""

    __slots__ = ("held", "kept", "most", "words")

    def __init__(self, most: int, words: str) -> None:
        self.most = most
        self.words = words
        self.held = 0
        self.kept = 0


class _Waiting:
    """Those of one caller that wait for a place, in order."""

    __slots__ = ("line", "shares")

    def __init__(self, shares: "tuple[_Share, ...]") -> None:
        self.shares = shares
        self.line: deque[asyncio.Future[None]] = deque()


class Threads:
    """The threads of one event loop. `name` is what they are called."""

    def __init__(self, name: str, *, total: int = SYNC_THREADS, per_caller: int = PER_CALLER) -> None:
        self._pool = ThreadPoolExecutor(total, thread_name_prefix=name)
        self._per_caller = per_caller
        self._all = _Share(total, "plain functions of this node")
        self._anonymous = _Share(ANONYMOUS_THREADS, "plain functions of anonymous callers")
        self._callers: dict[object, _Share] = {}
        self._waiting: dict[object, _Waiting] = {}

    async def place(self, operation: str, *, peer: str | None, connection: str | None, keeps: bool = False) -> "Place":
        """Wait for a place for a function of `peer`'s, or of nobody in particular on `connection`. `keeps` says that it
        is for longer than one function. Raises `CallError` RESOURCE_EXHAUSTED where waiting might be for ever."""
        key = (peer, None if peer is not None else connection)
        shares = self._shares(key)
        if (lost := _is_lost(shares)) is not None:
            self._forget(key)
            raise _refusal(lost)
        if key in self._waiting or not _has_room(shares):
            await self._turn(key, shares)
        else:
            _take(shares)
        place = Place(self, key, shares, operation)
        if keeps:
            place.keep()
        return place

    def close(self) -> None:
        """Begin nothing more; a function that is in its thread goes on."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _shares(self, key: tuple[str | None, str | None]) -> tuple[_Share, ...]:
        own = self._callers.get(key)
        if own is None:
            own = self._callers[key] = _Share(self._per_caller, "plain functions of this caller")
        return (own, self._all) if key[0] is not None else (own, self._anonymous, self._all)

    async def _turn(self, key: object, shares: tuple[_Share, ...]) -> None:
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = _Waiting(shares)
        turn = asyncio.get_running_loop().create_future()
        waiting.line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.free(key, shares)  # it came too late
            raise
        finally:
            if not turn.done() or turn.cancelled():
                with contextlib.suppress(ValueError):
                    waiting.line.remove(turn)
                self._forget(key)

    def free(self, key: object, shares: tuple[_Share, ...]) -> None:
        """A place is given back: the next one's turn, of each caller in order."""
        for share in shares:
            share.held -= 1
        for other, waiting in tuple(self._waiting.items()):
            if self._all.held >= self._all.most:
                break
            while waiting.line and _has_room(waiting.shares):
                turn = waiting.line.popleft()
                if not turn.done():
                    _take(waiting.shares)
                    turn.set_result(None)
                    self._waiting[other] = self._waiting.pop(other)  # behind the others
                    break
            self._forget(other)
        self._forget(key)

    def lost(self) -> None:
        """More places are kept: those who wait for none but such are refused."""
        for key, waiting in tuple(self._waiting.items()):
            if (lost := _is_lost(waiting.shares)) is not None:
                while waiting.line:
                    turn = waiting.line.popleft()
                    if not turn.done():
                        turn.set_exception(_refusal(lost))
                self._forget(key)

    def submit(self, function: Callable[[], Any]) -> "Future[Any]":
        return self._pool.submit(_called, function)

    def _forget(self, key: object) -> None:
        """Keep nothing about a caller who has no place and waits for none."""
        waiting = self._waiting.get(key)
        if waiting is not None and not waiting.line:
            del self._waiting[key]
            waiting = None
        own = self._callers.get(key)
        if waiting is None and own is not None and own.held == 0:
            del self._callers[key]


class Place:
    """A place in a thread, for one function after the other, until it is given back."""

    def __init__(
        self, threads: Threads, key: tuple[str | None, str | None], shares: tuple[_Share, ...], operation: str
    ) -> None:
        self._threads = threads
        self._key = key
        self._shares = shares
        self._operation = operation
        self._is_kept = False
        self._running: Future[Any] | None = None
        self._loop = asyncio.get_running_loop()

    def run(self, function: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Call `function` in a thread. The one before it must have returned."""
        self._running = self._threads.submit(function)
        return asyncio.wrap_future(self._running)

    @property
    def is_busy(self) -> bool:
        """Whether a function is in its thread."""
        return self._running is not None and not self._running.done()

    def keep(self) -> None:
        """Nobody knows when it will be given back."""
        if not self._is_kept:
            self._is_kept = True
            for share in self._shares:
                share.kept += 1
            self._threads.lost()

    def give_back(self, last: Callable[[], Any] | None = None) -> None:
        """Nobody waits any more. A function that is in its thread keeps the place until it has returned and `last`,
        which is called after it, has as well."""
        running = self._running
        if running is None or running.done():
            self._free()
            return
        peer, connection = self._key
        words = "a plain function that nobody waits for goes on"
        log.warning(event(words, operation=self._operation, peer=peer, connection=connection))
        self.keep()
        running.add_done_callback(partial(self._returned, last))

    def _returned(self, last: Callable[[], Any] | None, _: "Future[Any]") -> None:
        if last is not None:
            with contextlib.suppress(RuntimeError):  # the threads have been closed
                self._threads.submit(last).add_done_callback(partial(self._returned, None))
                return
        with contextlib.suppress(RuntimeError):  # so has the event loop
            self._loop.call_soon_threadsafe(self._free)

    def _free(self) -> None:
        if self._is_kept:
            for share in self._shares:
                share.kept -= 1
        self._threads.free(self._key, self._shares)


def _has_room(shares: tuple[_Share, ...]) -> bool:
    return all(share.held < share.most for share in shares)


def _take(shares: tuple[_Share, ...]) -> None:
    for share in shares:
        share.held += 1


def _is_lost(shares: tuple[_Share, ...]) -> _Share | None:
    """The share of which nobody knows whether a place will ever be free again."""
    return next((share for share in shares if share.kept >= share.most), None)


def _refusal(share: _Share) -> CallError:
    return CallError("RESOURCE_EXHAUSTED", f"{share.kept} {share.words} still run, and no more do at the same time")


def _called(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except StopIteration as exc:  # no future can hold one: whoever waits would wait for ever
        raise RuntimeError("the handler let a StopIteration out") from exc
