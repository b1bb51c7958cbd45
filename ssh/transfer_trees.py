"""Copying a directory and what is in it: one directory is listed at a time, several files are copied at once.

What is known at any moment is one directory per level and the files under way, however large the tree is.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from alknet.errors import AlknetError, BrokenError, NotFoundError, RemoteError, UnavailableError
from alknet.ssh.transfer import Copier
from alknet.ssh.transfer_blocks import flat
from alknet.ssh.transfer_places import Directory, Info, Kind, NoSpaceError, TransferError, shown

__all__ = ["FATAL", "Trees"]

MAX_DEPTH: Final = 64
"""Directories within directories: links that make a loop would have no end."""
FATAL: Final = (BrokenError, UnavailableError, RemoteError, NoSpaceError)
"""After these, the next file would fare no better."""


@dataclass(eq=False, slots=True)
class _Pair:
    """A directory and its copy, open until all that is below them is copied."""

    source: Directory
    target: Directory
    attributes: Info | None
    """What the copy gets at the end: a directory that may not be written must be full by then."""
    is_new: bool
    parent: "_Pair | None" = None
    open: int = 1
    """What goes on in it: the listing, the files under way, the directories below."""

    async def aclose(self) -> None:
        await self.source.aclose()
        await self.target.aclose()


class Trees:
    """Copies directories with `copier`. `on_failure` hears of what could not be copied, and the rest is; what is in
    `FATAL` ends it all."""

    def __init__(self, copier: Copier, on_failure: Callable[[AlknetError], None]) -> None:
        self._copier = copier
        self._on_failure = on_failure
        self._slots = asyncio.Semaphore(max(1, copier.options.parallel))
        self._pairs: set[_Pair] = set()

    async def copy(self, source: Directory, name: str, target: Directory, as_name: str) -> None:
        """Copy the directory `name` of `source` to `as_name` in `target`, into what is there. Links are followed in the
        source, and in the target where they were named."""
        info = await source.info(name)
        if info is None:
            raise NotFoundError(f"{shown(source.label(name))}: no such file or directory")
        await self._copy(await self._enter(source, name, info, target, as_name, follow=True))

    async def copy_contents(self, source: Directory, target: Directory) -> None:
        """Copy what is in `source` into `target`; both are closed."""
        await self._copy(_Pair(source, target, None, is_new=False))

    async def _copy(self, pair: _Pair) -> None:
        self._pairs.add(pair)
        try:
            async with flat() as group:
                await self._walk(pair, group, 0)
        finally:
            for left in self._pairs:
                await left.aclose()
            self._pairs.clear()

    async def _walk(self, pair: _Pair, group: asyncio.TaskGroup, depth: int) -> None:
        with self._reported():
            if depth >= MAX_DEPTH:
                raise TransferError(f"{shown(pair.source.label())}: more than {MAX_DEPTH} directories deep: a loop?")
            async with contextlib.aclosing(pair.source.entries()) as entries:
                async for name, info in entries:
                    with self._reported():
                        await self._entry(pair, name, info, group, depth)
        await self._release(pair)

    async def _entry(self, pair: _Pair, name: str, info: Info, group: asyncio.TaskGroup, depth: int) -> None:
        label = shown(pair.source.label(name))
        was_link = info.kind is Kind.LINK
        if was_link:
            followed = await pair.source.info(name)
            if followed is None:
                raise NotFoundError(f"{label}: is a link to nothing")
            info = followed
        if info.kind is Kind.FILE:
            await self._slots.acquire()
            pair.open += 1
            group.create_task(self._file(pair, name)).add_done_callback(lambda _: self._slots.release())
        elif info.kind is Kind.DIRECTORY:
            if was_link and await _is_loop(pair, name):
                raise TransferError(f"{label}: is a link to a directory that it is in")
            below = await self._enter(pair.source, name, info, pair.target, name, follow=False)
            below.parent = pair
            pair.open += 1
            self._pairs.add(below)
            await self._walk(below, group, depth + 1)
        else:
            raise TransferError(f"{label}: neither a file nor a directory")

    async def _file(self, pair: _Pair, name: str) -> None:
        with self._reported():
            await self._copier.copy_file(pair.source, name, pair.target, name, is_new=pair.is_new)
        await self._release(pair)

    async def _enter(
        self, source: Directory, name: str, info: Info, target: Directory, as_name: str, *, follow: bool
    ) -> _Pair:
        """The directory `name` of `source` and its copy, which is made when it is not there."""
        mode = (0o755 if info.mode is None else info.mode) & 0o777
        is_new = await target.make(as_name, mode | 0o700)
        from_here = await source.enter(name, follow=True)
        try:
            to_there = await target.enter(as_name, follow=follow)
        except BaseException:
            await from_here.aclose()
            raise
        attributes = None
        if self._copier.options.preserve:
            attributes = Info(Kind.DIRECTORY, 0, mode=mode, times=info.times)
        elif is_new and mode & 0o700 != 0o700:
            attributes = Info(Kind.DIRECTORY, 0, mode=mode & 0o755)
        return _Pair(from_here, to_there, attributes, is_new)

    async def _release(self, pair: _Pair) -> None:
        """One thing less goes on in `pair`; after the last one it is complete."""
        above: _Pair | None = pair
        while above is not None:
            above.open -= 1
            if above.open:
                return
            with self._reported():
                if above.attributes is not None:
                    await above.target.set(above.attributes)
            self._pairs.discard(above)
            await above.aclose()
            above = above.parent

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except FATAL:
            raise
        except AlknetError as exc:
            self._copier.progress.failed += 1
            self._on_failure(exc)


async def _is_loop(pair: _Pair, name: str) -> bool:
    """Whether `name` is one of the directories that it was come to through."""
    directory = await pair.source.enter(name, follow=True)
    try:
        mine = await directory.identity()
    finally:
        await directory.aclose()
    above: _Pair | None = pair
    while above is not None:
        if await above.source.identity() == mine:
            return True
        above = above.parent
    return False
