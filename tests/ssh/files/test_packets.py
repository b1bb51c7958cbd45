"""The wire: whatever arrives, cut wherever, is a packet, a wait for more, or an error of ours."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alknet.ssh.files import packets as wire
from alknet.ssh.files.attributes import Attributes
from alknet.ssh.files.packets import MAX_PACKET_BYTES, MAX_STRING_BYTES, BadPacket, Fields, Input
from testkit.file_child import field, packet


def fed(pieces: list[bytes]) -> tuple[list[bytes], int]:
    """The packets that come of `pieces`, and what is left waiting."""
    arrived, found = Input(), []
    for piece in pieces:
        while piece:
            space = arrived.space()
            part, piece = piece[: len(space)], piece[len(space) :]
            space[: len(part)] = part
            arrived.added(len(part))
            while (whole := arrived.next_packet()) is not None:
                found.append(bytes(whole))
    return found, arrived.waiting


@given(bodies=st.lists(st.binary(min_size=4, max_size=40), max_size=6), cuts=st.lists(st.integers(0, 250), max_size=8))
def test_packets_come_out_as_they_went_in_wherever_they_are_cut(bodies: list[bytes], cuts: list[int]) -> None:
    data = b"".join(packet(5, body) for body in bodies) + b"\0\0"
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    assert fed(pieces) == ([b"\5" + body for body in bodies], 2)


def test_the_largest_packet_is_taken_and_one_byte_more_is_not() -> None:
    largest = packet(6, bytes(MAX_PACKET_BYTES - 1))
    found, waiting = fed([largest * 5])
    assert ([len(one) for one in found], waiting) == ([MAX_PACKET_BYTES] * 5, 0)
    for length in (0, 4, MAX_PACKET_BYTES + 1, 2**32 - 1):
        with pytest.raises(BadPacket):
            fed([struct.pack(">I", length)])


@given(data=st.binary(max_size=200))
def test_any_bytes_are_packets_or_wait_or_are_refused(data: bytes) -> None:
    try:
        found, waiting = fed([data])
    except BadPacket:
        return
    assert sum(4 + len(one) for one in found) + waiting == len(data)


READERS = [Fields.u32, Fields.u64, Fields.string, Fields.view, Fields.attributes]


@given(data=st.binary(max_size=60), readers=st.lists(st.sampled_from(READERS), max_size=6))
def test_fields_of_any_bytes_are_values_or_are_refused(data: bytes, readers: list) -> None:
    fields = Fields(memoryview(data), at=0)
    for read in readers:
        try:
            read(fields)
        except BadPacket:
            return
    assert isinstance(fields.has_more, bool)


def test_fields_are_read_in_order() -> None:
    data = struct.pack(">IQ", 7, 1 << 40) + field("päth") + field(bytes(300)) + struct.pack(">I", 0)
    fields = Fields(memoryview(data), at=0)
    assert (fields.u32(), fields.u64(), fields.string().decode()) == (7, 1 << 40, "päth")
    assert (len(fields.view()), fields.attributes(), fields.has_more) == (300, Attributes(), False)


def test_a_string_has_a_most() -> None:
    longest = field(bytes(MAX_STRING_BYTES))
    assert len(Fields(memoryview(longest), at=0).string()) == MAX_STRING_BYTES
    with pytest.raises(BadPacket, match="4096"):
        Fields(memoryview(field(bytes(MAX_STRING_BYTES + 1))), at=0).string()


def test_attributes_of_every_kind() -> None:
    flags = 0x1 | 0x2 | 0x4 | 0x8 | 0x80000000
    data = struct.pack(">IQIIIIII", flags, 5_000_000_000, 1, 2, 0o100644, 3, 4, 1) + field("kind") + field("value")
    fields = Fields(memoryview(data), at=0)
    assert fields.attributes() == Attributes(5_000_000_000, (1, 2), 0o644, (3, 4))
    assert not fields.has_more
    with pytest.raises(BadPacket):
        Fields(memoryview(struct.pack(">II", 0x80000000, 2**32 - 1)), at=0).attributes()


def test_answers_are_as_the_draft_has_them() -> None:
    assert wire.status(9, wire.EOF, "end") == bytes.fromhex("00000016 65 00000009 00000001 00000003") + b"end" + field(
        "en"
    )
    assert wire.handle_reply(1, b"h") == packet(102, struct.pack(">I", 1) + field("h"))
    assert wire.data_head(1, 3) + b"abc" == packet(103, struct.pack(">I", 1) + field("abc"))
    assert wire.names_reply(1, [b"x", b"y"]) == packet(104, struct.pack(">II", 1, 2) + b"xy")
    assert wire.version_reply([(b"a", b"1")]) == packet(2, struct.pack(">I", 3) + field("a") + field("1"))
