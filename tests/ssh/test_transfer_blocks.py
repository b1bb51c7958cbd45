"""The bytes of one file: in order, bounded, holes and ends included; and where two files begin to differ."""

import asyncio
import os
from dataclasses import dataclass, field

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from alknet.ssh import transfer_blocks
from alknet.ssh.transfer_blocks import MAX_UNDER_WAY, MAX_UNDER_WAY_BYTES, Lane, copy_blocks, first_difference, flat
from alknet.ssh.transfer_places import Info, Kind, TransferError

BLOCK = 4


@dataclass
class Memory:
    """A file in memory: a reader and a part. Reads return at most `most` bytes."""

    data: bytearray
    size: int = 0
    most: int = 1 << 30
    claims: int | None = None
    label: str = "memory"
    is_whole: bool = False
    written: list[int] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0

    @property
    def info(self) -> Info:
        return Info(Kind.FILE, len(self.data) if self.claims is None else self.claims)

    async def read(self, offset: int, length: int) -> bytes:
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)
        await asyncio.sleep(0)
        return bytes(self.data[offset : offset + min(length, self.most)])

    def data_after(self, offset: int) -> tuple[int, int] | None:
        return (offset, self.info.size) if offset < self.info.size else None

    async def write(self, offset: int, data: bytes) -> None:
        await asyncio.sleep(0)
        if len(self.data) < offset + len(data):
            self.data.extend(bytes(offset + len(data) - len(self.data)))
        self.data[offset : offset + len(data)] = data
        self.written.append(offset)

    async def digest(self, offset: int, length: int) -> bytes:
        return blake3(bytes(self.data[offset : offset + length])).digest()

    async def cut(self, size: int) -> None: ...
    async def finish(self, size: int, attributes: Info | None) -> None: ...
    async def commit(self) -> None: ...
    async def discard(self) -> None: ...
    async def aclose(self) -> None: ...


@given(st.binary(max_size=100), st.integers(1, 7), st.integers(0, 50))
def test_every_byte_arrives_whatever_a_read_returns(data: bytes, most: int, start: int) -> None:
    start = min(start, len(data))
    source, target, moved = Memory(bytearray(data), most=most), Memory(bytearray(data[:start]), size=start), []
    end = asyncio.run(copy_blocks(source, target, start, Lane(BLOCK), moved.append))
    assert end == len(data)
    assert bytes(target.data.ljust(len(data), b"\0")) == data
    assert sum(moved) == len(data) - start


async def test_a_file_that_has_become_shorter_ends_where_it_does() -> None:
    source, target = Memory(bytearray(b"123456"), claims=1000), Memory(bytearray())
    assert await copy_blocks(source, target, 0, Lane(BLOCK), lambda _: None) == 6
    assert target.data == b"123456"


async def test_a_file_of_unknown_size_is_read_to_its_end() -> None:
    source, target = Memory(bytearray(os.urandom(50)), claims=0, most=7), Memory(bytearray())
    assert await copy_blocks(source, target, 0, Lane(BLOCK), lambda _: None) == 50
    assert target.data == source.data


async def test_zeros_are_left_out_of_what_is_new_and_written_over_what_is_there() -> None:
    source = Memory(bytearray(b"1234" + bytes(8) + b"5678"))
    target = Memory(bytearray())
    await copy_blocks(source, target, 0, Lane(BLOCK), lambda _: None)
    assert sorted(target.written) == [0, 12]
    old = Memory(bytearray(b"x" * 8), size=8)
    await copy_blocks(source, old, 0, Lane(BLOCK), lambda _: None)
    assert sorted(old.written) == [0, 4, 12]


def test_what_is_under_way_is_bounded_in_bytes_and_in_blocks() -> None:
    for block in (1, 4096, 255 * 1024, 1 << 20, 1 << 30):
        lane = Lane(block)
        assert 1 <= lane.block_count <= MAX_UNDER_WAY
        assert lane.block_count * lane.block_bytes <= MAX_UNDER_WAY_BYTES


async def test_files_that_are_copied_at_once_share_what_may_be_under_way() -> None:
    lane = Lane(1)
    source = Memory(bytearray(b"x" * 500))

    async def write(offset: int, data: bytes) -> None:
        await asyncio.sleep(0)
        source.under_way -= 1

    targets = [Memory(bytearray()) for _ in range(4)]
    for target in targets:
        target.write = write  # type: ignore[method-assign]
    await asyncio.gather(*(copy_blocks(source, target, 0, lane, lambda _: None) for target in targets))
    assert source.most_under_way <= lane.block_count


async def test_a_failed_block_ends_the_copy_with_its_own_error_and_gives_its_room_back() -> None:
    lane = Lane(BLOCK)
    source, target = Memory(bytearray(b"x" * 4000)), Memory(bytearray())

    async def write(offset: int, data: bytes) -> None:
        raise TransferError(f"full at {offset}")

    target.write = write  # type: ignore[method-assign]
    with pytest.raises(TransferError, match="full at 0"):
        await copy_blocks(source, target, 0, lane, lambda _: None)
    await asyncio.sleep(0)
    assert lane.room._value == lane.block_count


async def test_a_flat_group_raises_one_error_and_passes_cancellation_on() -> None:
    with pytest.raises(KeyError):
        async with flat():
            raise KeyError
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), flat() as group:
            group.create_task(asyncio.Event().wait())


@given(st.integers(0, 60), st.integers(0, 70))
def test_the_first_difference_is_found_at_the_piece_that_it_is_in(size: int, where: int) -> None:
    one = Memory(bytearray(size))
    other = Memory(bytearray(size))
    if where < size:
        other.data[where] = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer_blocks, "PIECE_BYTES", 5)
        found = asyncio.run(first_difference(one, other, size))
    assert found == (where // 5 * 5 if where < size else size)
