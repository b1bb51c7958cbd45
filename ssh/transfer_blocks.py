"""The bytes of one file: many blocks on their way at once, in a bounded stretch; where two files begin to differ."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final

from alknet.ssh.transfer_places import Part, Reader

__all__ = ["PIECE_BYTES", "Lane", "copy_blocks", "first_difference", "flat"]

PIECE_BYTES: Final = 16 * 1024 * 1024
"""What is compared by one digest: what a difference costs at most to be copied again."""
PIECES_AT_ONCE: Final = 4
MAX_UNDER_WAY_BYTES: Final = 8 * 1024 * 1024
"""Of all files that are copied at once: what is read, and not yet said to be written."""
MAX_UNDER_WAY: Final = 128
"""Blocks, where they are small."""
_ZEROS: Final = bytes(1024 * 1024)


class Lane:
    """What all files that are copied at once share: how many blocks of which size may be on their way."""

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = max(1, min(block_bytes, len(_ZEROS)))
        self.block_count = min(MAX_UNDER_WAY_BYTES // self.block_bytes, MAX_UNDER_WAY)
        self.room = asyncio.Semaphore(self.block_count)


@asynccontextmanager
async def flat() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group of which the first failure is raised, where a plain one raises a group of failures."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as several:
        first: BaseException = several
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from first.__cause__


async def copy_blocks(reader: Reader, part: Part, start: int, lane: Lane, on_bytes: Callable[[int], None]) -> int:
    """Copy from `start` to the end of what the file was when it was opened; returns how long it is.

    Blocks are begun in their order, and none before the one is done that stands `Lane.block_count` before it: what is
    missing of a copy that is given up is in its last stretch. A file whose size nobody knows (as in /proc) is read
    block by block.
    """
    size = reader.info.size
    if size == 0:
        return await _copy_unsized(reader, part, start, lane, on_bytes)
    ends: list[int] = []

    async def copy(offset: int, end: int) -> None:
        while offset < end:
            data = await reader.read(offset, end - offset)
            if not data:
                ends.append(offset)  # it has become shorter
                return
            if offset < part.size or data != _ZEROS[: len(data)]:  # holes stay holes
                await part.write(offset, data)
            on_bytes(len(data))
            offset += len(data)

    async with flat() as group:
        under_way: deque[asyncio.Task[None]] = deque()
        for offset, end in _blocks(reader, start, lane.block_bytes):
            if len(under_way) >= lane.block_count:
                await under_way.popleft()
            await lane.room.acquire()
            task = group.create_task(copy(offset, end))
            task.add_done_callback(lambda _: lane.room.release())  # also of one that is cancelled before it begins
            under_way.append(task)
            if ends:
                break
    return min([size, *ends])


async def _copy_unsized(reader: Reader, part: Part, start: int, lane: Lane, on_bytes: Callable[[int], None]) -> int:
    while data := await reader.read(start, lane.block_bytes):
        await part.write(start, data)
        on_bytes(len(data))
        start += len(data)
    return start


def _blocks(reader: Reader, start: int, block_bytes: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of the blocks that hold data."""
    while (stretch := reader.data_after(start)) is not None:
        start, end = stretch
        while start < end:
            yield start, min(start + block_bytes, end)
            start += block_bytes
        start = end


async def first_difference(one: Reader | Part, other: Reader | Part, size: int) -> int:
    """Where two files begin to differ within their first `size` bytes, at a multiple of `PIECE_BYTES`; `size` when they
    do not."""
    offsets = range(0, size, PIECE_BYTES)
    for first in range(0, len(offsets), PIECES_AT_ONCE):
        several = offsets[first : first + PIECES_AT_ONCE]
        async with flat() as group:
            pairs = [
                [group.create_task(side.digest(o, min(PIECE_BYTES, size - o))) for side in (one, other)]
                for o in several
            ]
        for offset, (mine, theirs) in zip(several, pairs, strict=True):
            if mine.result() != theirs.result():
                return offset
    return size
