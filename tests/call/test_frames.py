"""How bytes are cut into frames, whatever their split, and that a length costs nothing until its bytes come."""

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.call.errors import FrameError
from alknet.call.frames import (
    CEILING_MAX_FRAME,
    DEFAULT_MAX_FRAME,
    HELLO_MAX_FRAME,
    LENGTH_BYTES,
    FrameReader,
    LengthError,
    frame,
)

bodies_strategy = st.lists(st.binary(min_size=1, max_size=300), max_size=12)


def length(size: int) -> bytes:
    return size.to_bytes(LENGTH_BYTES, "big")


def split(data: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


def test_a_frame_is_its_length_and_its_body() -> None:
    assert frame(b"abc") == b"\x00\x00\x00\x03abc"
    assert frame(b"x" * 70000)[:LENGTH_BYTES] == b"\x00\x01\x11\x70"
    assert HELLO_MAX_FRAME < DEFAULT_MAX_FRAME < CEILING_MAX_FRAME < 1 << (8 * LENGTH_BYTES)


@given(bodies=bodies_strategy, places=st.lists(st.integers(0, 5000), max_size=20))
def test_any_split_gives_the_same_bodies_in_order(bodies: list[bytes], places: list[int]) -> None:
    reader = FrameReader(max_frame=300)
    data = b"".join(map(frame, bodies))
    got = [body for part in split(data, places) for body in reader.feed(part)]
    assert got == bodies
    assert all(type(body) is bytes for body in got)
    assert reader.pending == 0


@given(bodies=bodies_strategy)
def test_one_byte_at_a_time_gives_each_body_with_its_last_byte(bodies: list[bytes]) -> None:
    reader = FrameReader(max_frame=300)
    for body in bodies:
        *before, last = frame(body)
        for count, byte in enumerate(before, 1):
            assert reader.feed(bytes([byte])) == []
            assert reader.pending == count
        assert reader.feed(bytes([last])) == [body]


def parsed(data: bytes, max_frame: int) -> tuple[list[bytes], bool]:
    """(bodies, whether a bad length comes after them), read the plainest way."""
    bodies = []
    while len(data) >= LENGTH_BYTES:
        size = int.from_bytes(data[:LENGTH_BYTES], "big")
        if not 0 < size <= max_frame:
            return bodies, True
        if len(data) < LENGTH_BYTES + size:
            break
        bodies.append(data[LENGTH_BYTES : LENGTH_BYTES + size])
        data = data[LENGTH_BYTES + size :]
    return bodies, False


garbage = st.lists(
    st.binary(max_size=20) | st.integers(0, 20).map(length) | st.binary(min_size=1, max_size=12).map(frame)
)


@given(parts=garbage, places=st.lists(st.integers(0, 300), max_size=10))
def test_any_garbage_gives_frames_or_an_error_and_loses_none(parts: list[bytes], places: list[int]) -> None:
    data = b"".join(parts)
    reader = FrameReader(max_frame=12)
    got: list[bytes] = []
    failed = False
    for part in split(data, places):
        try:
            got += reader.feed(part)
        except LengthError as exc:
            got += exc.bodies
            failed = True
    if parsed(data, 12)[1] and not failed:
        pytest.fail("a bad length was overlooked")
    assert (got, failed) == parsed(data, 12)


@pytest.mark.parametrize("size", [0, 11, 1 << 31, (1 << 32) - 1])
@pytest.mark.parametrize("cut", [0, 1, 4, 7, 8, 9, 10])
def test_a_bad_length_is_refused_for_good_and_what_came_before_it_is_kept(size: int, cut: int) -> None:
    reader = FrameReader(max_frame=10)
    data = frame(b"one") + length(size)
    got = reader.feed(data[:cut])
    with pytest.raises(LengthError, match=f"a frame of {size} bytes; it may have 1 to 10") as caught:
        reader.feed(data[cut:] + frame(b"two"))
    assert [*got, *caught.value.bodies] == [b"one"]
    for more in (b"", frame(b"three")):
        with pytest.raises(LengthError, match=f"a frame of {size} bytes") as caught:
            reader.feed(more)
        assert caught.value.bodies == []
    assert reader.pending == 0


def test_the_cap_is_for_bodies_and_may_be_reached() -> None:
    reader = FrameReader(max_frame=3)
    assert reader.feed(frame(b"abc")) == [b"abc"]
    with pytest.raises(FrameError):
        reader.feed(length(4))


def test_the_cap_may_change_between_frames() -> None:
    reader = FrameReader(max_frame=3)
    assert reader.feed(frame(b"abc") + b"\x00") == [b"abc"]
    reader.max_frame = 10
    assert reader.feed(frame(b"0123456789")[1:]) == [b"0123456789"]
    assert reader.feed(frame(b"0123456789")[:5]) == []
    reader.max_frame = 3
    assert reader.feed(b"123456789") == [b"0123456789"], "its length was accepted when it came"
    with pytest.raises(LengthError):
        reader.feed(frame(b"0123"))


def traced(reader: FrameReader, parts: list[bytes]) -> int:
    """The most memory that `reader` took for `parts`."""
    tracemalloc.start()
    try:
        for part in parts:
            reader.feed(part)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_announced_length_takes_no_memory() -> None:
    reader = FrameReader(max_frame=CEILING_MAX_FRAME)
    assert traced(reader, [length(CEILING_MAX_FRAME) + b"x", b"x" * 100]) < 16 * 1024
    assert reader.pending == LENGTH_BYTES + 101


def test_a_frame_in_many_parts_takes_its_size_and_leaves_nothing() -> None:
    size = 4 * DEFAULT_MAX_FRAME
    reader = FrameReader(max_frame=size)
    part = b"x" * 4096
    peak = traced(reader, [length(size), *[part] * (size // len(part))])
    assert peak < 2.5 * size
    tracemalloc.start()
    try:
        reader.feed(frame(b"next")[:-1])
        assert tracemalloc.get_traced_memory()[0] < 16 * 1024
    finally:
        tracemalloc.stop()
