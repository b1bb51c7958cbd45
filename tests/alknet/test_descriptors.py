"""Pipes pumped by the event loop."""

import asyncio
import os
from pathlib import Path

import pytest

from alknet.descriptors import SINK_HIGH_BYTES, Sink, Source, open_sink, open_source


class Collector:
    """What a source delivered."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = asyncio.Event()
        self.pieces = 0

    def on_data(self, data: bytes) -> None:
        self.data += data
        self.pieces += 1


def _pipe() -> tuple[int, int]:
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    return read, write


async def test_a_source_delivers_everything_and_then_its_end_once() -> None:
    read, write = _pipe()
    got = Collector()
    source = Source(read, got.on_data, got.ended.set)
    source.resume()
    os.write(write, b"hello")
    os.close(write)
    async with asyncio.timeout(5):
        await got.ended.wait()
    assert bytes(got.data) == b"hello"
    assert not source.is_open


async def test_a_paused_source_delivers_nothing_until_it_is_resumed() -> None:
    read, write = _pipe()
    got = Collector()
    source = Source(read, got.on_data, got.ended.set)
    os.write(write, b"waits")
    for _ in range(5):
        await asyncio.sleep(0)
    assert not got.data
    os.close(write)
    source.resume()
    async with asyncio.timeout(5):
        await got.ended.wait()
    assert bytes(got.data) == b"waits"


async def test_a_closed_source_does_not_call_its_end() -> None:
    read, write = _pipe()
    got = Collector()
    source = Source(read, got.on_data, got.ended.set)
    source.resume()
    source.close()
    source.close()
    source.resume()
    os.close(write)
    await asyncio.sleep(0)
    assert not got.ended.is_set()


async def test_a_source_can_end_although_a_writer_is_left() -> None:
    read, write = _pipe()
    got = Collector()
    source = Source(read, got.on_data, got.ended.set)
    os.write(write, b"x" * 1000)
    source.resume()
    source.end_when_empty()
    async with asyncio.timeout(5):
        await got.ended.wait()
    assert len(got.data) == 1000
    os.close(write)


async def test_a_source_that_would_block_ends_when_it_is_empty() -> None:
    read, write = os.pipe()
    got = Collector()
    source = open_source(read, got.on_data, got.ended.set)
    os.write(write, b"last words")
    source.resume()
    async with asyncio.timeout(5):
        while not got.data:
            await asyncio.sleep(0)
        source.end_when_empty()
        await got.ended.wait()
    assert bytes(got.data) == b"last words"
    for fd in (read, write):
        os.close(fd)


async def test_ending_when_empty_respects_a_pause() -> None:
    read, write = _pipe()
    got = Collector()
    source = Source(read, got.on_data, got.ended.set)
    os.write(write, b"last words")
    source.end_when_empty()
    await asyncio.sleep(0)
    assert not got.ended.is_set()
    source.resume()
    async with asyncio.timeout(5):
        await got.ended.wait()
    assert bytes(got.data) == b"last words"
    os.close(write)


async def test_a_sink_says_when_it_is_behind_and_when_it_has_caught_up() -> None:
    read, write = _pipe()
    drained = asyncio.Event()
    sink = Sink(write, drained.set)
    data = os.urandom(3 * SINK_HIGH_BYTES)
    assert sink.write(data) is False
    got = Collector()
    source = Source(read, got.on_data, got.ended.set)
    source.resume()
    async with asyncio.timeout(5):
        await drained.wait()
        sink.finish()
        await got.ended.wait()
    assert bytes(got.data) == data


async def test_a_sink_whose_reader_is_gone_forgets_and_lets_go() -> None:
    read, write = _pipe()
    drained = asyncio.Event()
    sink = Sink(write, drained.set)
    assert sink.write(b"x" * (2 * SINK_HIGH_BYTES)) is False
    os.close(read)
    async with asyncio.timeout(5):
        await drained.wait()
        await sink.drain()
    assert sink.write(b"more") is True
    sink.close()


async def test_finish_of_an_empty_sink_closes_at_once() -> None:
    read, write = _pipe()
    Sink(write, lambda: None).finish()
    assert os.read(read, 1) == b""
    os.close(read)


@pytest.mark.parametrize("kind", ["file", "null", "pipe"])
async def test_standard_input_may_be_anything(tmp_path: Path, kind: str) -> None:
    write = -1
    if kind == "file":
        (tmp_path / "in").write_bytes(b"z" * 500_000)
        fd = os.open(tmp_path / "in", os.O_RDONLY)
    elif kind == "null":
        fd = os.open("/dev/null", os.O_RDONLY)
    else:
        fd, write = os.pipe()
        os.write(write, b"z" * 1000)
        os.close(write)
    got = Collector()
    open_source(fd, got.on_data, got.ended.set).resume()
    async with asyncio.timeout(5):
        await got.ended.wait()
    assert len(got.data) == {"file": 500_000, "null": 0, "pipe": 1000}[kind]
    assert os.get_blocking(fd)
    os.close(fd)


@pytest.mark.parametrize("kind", ["file", "pipe"])
async def test_standard_output_may_be_anything_and_stays_blocking_for_others(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        read = fd
    else:
        read, fd = os.pipe()
    sink = open_sink(fd, lambda: None)
    sink.write(b"hello")
    async with asyncio.timeout(5):
        await sink.drain()
    assert os.get_blocking(fd)
    assert (os.pread(read, 10, 0) if kind == "file" else os.read(read, 10)) == b"hello"
    sink.close()
    os.close(fd)
    if read != fd:
        os.close(read)
