"""What each codec writes and reads, what it refuses, and that its checks are exact and come before values are built."""

import base64
import dataclasses
import datetime
import enum
import json
import math
import tracemalloc
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, NamedTuple

import msgpack
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import BaseModel, field_serializer

from alknet.call import codecs as module
from alknet.call.codecs import CODECS, JSON, MAX_DEPTH, MAX_NODES, MSGPACK, Codec, EncodeError
from alknet.call.errors import FrameError

BOTH = pytest.mark.parametrize("codec", [JSON, MSGPACK], ids=lambda codec: codec.name)
MIB = 1024 * 1024


def nodes(value: Any) -> int:
    """Values in `value`, itself and keys among them."""
    if isinstance(value, dict):
        return 1 + sum(1 + nodes(item) for item in value.values())
    return 1 + sum(map(nodes, value)) if isinstance(value, list) else 1


def depth(value: Any) -> int:
    if isinstance(value, dict | list):
        return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)
    return 0


def nested(levels: int, innermost: Any = 1) -> Any:
    value = innermost
    for number in range(levels):
        value = [value] if number % 2 else {"a": value}
    return value


@contextmanager
def limits(max_depth: int, max_nodes: int, max_filtered: int = 4096) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_DEPTH", max_depth)
        patch.setattr(module, "MAX_NODES", max_nodes)
        patch.setattr(module, "MAX_FILTERED_BYTES", min(max_filtered, max_nodes))
        yield


texts = st.text(st.characters(exclude_categories=["Cs"])) | st.text('"\\[]{},: ', max_size=6)
json_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)


def trees(scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=30)


json_values = trees(json_scalars)
msgpack_values = trees(json_scalars | st.binary() | st.floats(allow_nan=False))


# --- what is written and read again -------------------------------------------------------------------------------


def test_the_codecs_are_found_by_their_names() -> None:
    assert dict(CODECS) == {"json": JSON, "msgpack": MSGPACK}
    assert [codec.name for codec in CODECS.values()] == list(CODECS)


def test_bodies_are_compact_and_text_stays_text() -> None:
    value = {"a": [1, -2.5, None, True], "ß": "\u20ac/\x7f"}
    assert JSON.encode(value) == '{"a":[1,-2.5,null,true],"ß":"€/\x7f"}'.encode()
    assert MSGPACK.encode(value) == msgpack.packb(value)


@given(value=json_values)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    body = JSON.encode(value)
    assert JSON.decode(body) == value
    assert JSON.decode(memoryview(body)) == value
    assert json.loads(body) == value


@given(value=msgpack_values)
def test_msgpack_is_read_as_it_was_written(value: Any) -> None:
    body = MSGPACK.encode(value)
    assert MSGPACK.decode(body) == value
    assert MSGPACK.decode(memoryview(body)) == value
    assert body == msgpack.packb(value)


def test_bytes_are_bytes_in_msgpack_and_base64_in_json() -> None:
    raw = b"\xfb\xff\x00"
    for value in (raw, bytearray(raw), memoryview(raw)):
        assert MSGPACK.decode(MSGPACK.encode({"data": [value]})) == {"data": [raw]}
        assert JSON.decode(JSON.encode({"data": [value]})) == {"data": ["+/8A"]}
    assert JSON.decode(JSON.encode(b"a")) == base64.b64encode(b"a").decode() == "YQ=="


def test_floats_that_are_no_numbers_pass_in_msgpack_only() -> None:
    assert math.isnan(MSGPACK.decode(MSGPACK.encode([math.nan]))[0])
    assert MSGPACK.decode(MSGPACK.encode([math.inf, -math.inf])) == [math.inf, -math.inf]
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(EncodeError, match="cannot be written as JSON"):
            JSON.encode({"a": [value]})


class Colour(enum.Enum):
    RED = "red"


class Size(enum.StrEnum):
    BIG = "big"


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int
    y: int


class Text(str):
    __slots__ = ()


@dataclasses.dataclass
class Note:
    text: str
    when: datetime.date


class Model(BaseModel):
    note: Note
    level: Level = Level.LOW


class Broken(BaseModel):
    a: int = 1

    @field_serializer("a")
    def _fail(self, value: int) -> int:
        raise KeyError(value)


NOTE = {"text": "t", "when": "2020-01-02"}


@BOTH
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Colour.RED, "red"),
        (Size.BIG, "big"),
        (Level.LOW, 1),
        (Text("t"), "t"),
        (Point(1, 2), [1, 2]),
        ((1, (2,)), [1, [2]]),
        ({3}, [3]),
        (frozenset({"a"}), ["a"]),
        (OrderedDict(a=(1,)), {"a": [1]}),
        ({Size.BIG: 1, Text("t"): 2}, {"big": 1, "t": 2}),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.50"), "1.50"),
        (datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC), "2020-01-02T00:00:00Z"),
        (datetime.timedelta(seconds=3), "PT3S"),
        (Note("t", datetime.date(2020, 1, 2)), NOTE),
        (Model(note=Note("t", datetime.date(2020, 1, 2))), {"note": NOTE, "level": 1}),
    ],
)
def test_what_has_no_form_of_its_own_is_written_as_pydantic_does(codec: Codec, value: Any, expected: Any) -> None:
    for wrapped, read in ((value, expected), ([{"a": value}], [{"a": expected}])):
        decoded = codec.decode(codec.encode(wrapped))
        assert decoded == read
        assert json.dumps(decoded) == json.dumps(read), "True is not 1"


# --- what cannot be written -----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({1: 2}, "a key of type int"),
        ({None: 2}, "a key of type NoneType"),
        ({b"a": 2}, "a key of type bytes"),
        (OrderedDict({1: 2}), "a key of type int"),
        (({1: 2},), "a key of type int"),
        ("\ud800", "surrogate"),
        ({"\udc00": 1}, "surrogate"),
        (Text("\ud800"), "surrogate"),
        (object(), "of type object cannot be written"),
        (range(3), "of type range cannot be written"),
        (ValueError("x"), "of type ValueError cannot be written"),
        (Broken(), "of type Broken cannot be written"),
        (1 << 20000, "an integer of 20001 bits is too large"),
        (-(1 << 20000), "an integer of 20001 bits is too large"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_written_is_refused_with_its_reason(codec: Codec, value: Any, why: str) -> None:
    for wrapped in (value, {"a": [value]}):
        with pytest.raises(EncodeError, match=why):
            codec.encode(wrapped)
    assert codec.decode(codec.encode([1])) == [1], "and the next one is written cleanly"


@BOTH
def test_a_value_that_holds_itself_is_refused(codec: Codec) -> None:
    items: list[Any] = [1]
    items.append({"a": items})
    branching: list[Any] = []
    branching += [branching] * 10
    for value in (items, tuple(items), branching):
        with pytest.raises(EncodeError, match="holds itself"):
            codec.encode(value)


def test_integers_reach_as_far_as_the_reader_goes() -> None:
    for value in ((1 << 64) - 1, -(1 << 63)):
        assert MSGPACK.decode(MSGPACK.encode(value)) == value
    for value in (1 << 64, -(1 << 63) - 1):
        with pytest.raises(EncodeError, match="too large"):
            MSGPACK.encode([value])
        assert JSON.decode(JSON.encode([value])) == [value]
    longest = 10**module.MAX_JSON_DIGITS - 1
    for value in (longest, -longest):
        assert JSON.decode(JSON.encode([value])) == [value]
        with pytest.raises(EncodeError, match="too large"):
            JSON.encode([value * 10])


@BOTH
def test_no_more_is_written_than_is_read(codec: Codec) -> None:
    assert codec.decode(codec.encode(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    for value in (nested(MAX_DEPTH + 1), nested(MAX_DEPTH, []), nested(MAX_DEPTH, ())):
        with pytest.raises(EncodeError, match="deep"):
            codec.encode(value)
    most = [0] * (MAX_NODES - 1)
    assert codec.decode(codec.encode(most)) == most
    with pytest.raises(EncodeError, match="holds more than 100000 values"):
        codec.encode([*most, 0])


anything = trees(
    json_scalars
    | st.text()
    | st.integers()
    | st.floats()
    | st.binary()
    | st.dates()
    | st.sampled_from([Size.BIG, 1 << 70, object])
    | st.dictionaries(st.integers() | texts, st.integers())
    | st.tuples(texts)
)


@BOTH
@given(value=anything)
def test_whatever_is_written_can_be_read(codec: Codec, value: Any) -> None:
    with limits(3, 20):
        try:
            body = codec.encode(value)
        except EncodeError:
            return
        codec.decode(body)


@BOTH
def test_a_body_that_is_nearly_as_large_as_frames_get_is_no_burden_after_it(codec: Codec) -> None:
    codec.encode("x" * 100)
    tracemalloc.start()
    try:
        body = codec.encode("x" * (8 * MIB))
        assert codec.decode(body) == "x" * (8 * MIB)
        del body
        assert tracemalloc.get_traced_memory()[0] < MIB
    finally:
        tracemalloc.stop()


# --- the limits of what is read ---------------------------------------------------------------------------------


@st.composite
def msgpack_bodies(draw: st.DrawFn, value: Any) -> bytes:
    """`value` as other writers may write it: lengths in more bytes than they need."""

    def head(short: tuple[int, int] | None, long: list[tuple[int, int]], size: int) -> bytes:
        forms = [bytes([first]) + size.to_bytes(width, "big") for first, width in long if size < 256**width]
        if short is not None and size < short[1]:
            forms.append(bytes([short[0] | size]))
        return draw(st.sampled_from(forms))

    def write(value: Any) -> bytes:
        if isinstance(value, dict):
            pairs = b"".join(write(key) + write(item) for key, item in value.items())
            return head((0x80, 16), [(0xDE, 2), (0xDF, 4)], len(value)) + pairs
        if isinstance(value, list):
            return head((0x90, 16), [(0xDC, 2), (0xDD, 4)], len(value)) + b"".join(map(write, value))
        if isinstance(value, str):
            raw = value.encode()
            return head((0xA0, 32), [(0xD9, 1), (0xDA, 2), (0xDB, 4)], len(raw)) + raw
        if isinstance(value, bytes):
            return head(None, [(0xC4, 1), (0xC5, 2), (0xC6, 4)], len(value)) + value
        return bytes(msgpack.packb(value))

    return write(value)


near = st.integers(-1, 1)


def check_limits(
    codec: Codec, body: bytes, value: Any, max_depth: int, max_nodes: int, max_filtered: int = 4096
) -> None:
    assert codec.decode(body) == value
    with limits(max_depth, max_nodes, max_filtered):
        if depth(value) > max_depth or nodes(value) > max_nodes:
            with pytest.raises(FrameError, match=r"deep|more than"):
                codec.decode(body)
        else:
            assert codec.decode(body) == value


@given(data=st.data(), value=msgpack_values, deeper=near, more=near, max_filtered=st.sampled_from([0, 4096]))
def test_msgpack_is_refused_exactly_when_it_is_above_a_limit(
    data: st.DataObject, value: Any, deeper: int, more: int, max_filtered: int
) -> None:
    body = data.draw(msgpack_bodies(value))
    check_limits(MSGPACK, body, value, max(depth(value) + deeper, 0), max(nodes(value) + more, 1), max_filtered)


@given(
    value=json_values,
    deeper=near,
    more=near,
    indent=st.sampled_from([None, 0, 1, "\t\r\n"]),
    ascii_only=st.booleans(),
    block=st.integers(1, 9),
)
@example(value=[[], {}, [[]], ["]"], "\\", ['\\"['], {"[": {}}], deeper=0, more=-1, indent=1, ascii_only=False, block=1)
@example(value=[["a string in two blocks"]], deeper=0, more=-1, indent=None, ascii_only=False, block=5)
def test_json_is_refused_exactly_when_it_is_above_a_limit(
    value: Any, deeper: int, more: int, indent: int | str | None, ascii_only: bool, block: int
) -> None:
    body = json.dumps(value, indent=indent, ensure_ascii=ascii_only).replace("[]", "[ ]").encode()
    assume(json.loads(body) == value)  # the replaced text stood in no string
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_BYTES", block)
        check_limits(JSON, body, value, max(depth(value) + deeper, 0), max(nodes(value) + more, 1))


@BOTH
def test_the_limits_are_reached_and_not_passed(codec: Codec) -> None:
    def body(value: Any) -> bytes:
        return json.dumps(value).encode() if codec is JSON else bytes(msgpack.packb(value))

    assert codec.decode(body(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    for value in (nested(MAX_DEPTH + 1), nested(MAX_DEPTH, []), nested(MAX_DEPTH, {}), nested(180)):
        with pytest.raises(FrameError, match="more than 64 deep"):
            codec.decode(body(value))
    most = {str(number): "[{,:" for number in range(MAX_NODES // 2 - 1)}
    assert codec.decode(body([most])) == [most]
    with pytest.raises(FrameError, match="more than 100000 values"):
        codec.decode(body([most, 1]))
    wide = [[[]], *[{}] * 1000]
    assert codec.decode(body(wide)) == wide, "many containers are not deep ones"


BOMBS = [
    (MSGPACK, b"\xdd" + MIB.to_bytes(4, "big") + b"\x80" * MIB),
    (MSGPACK, b"\xdc\xff\xff" + (b"\x9f" + b"\x90" * 15) * 65535),
    (MSGPACK, b"\x91" * MIB),
    (MSGPACK, b"\x81\xa1a" * (MIB // 3)),
    (MSGPACK, b"\xdd\x00\x01\x86\x00" * 20000),
    (MSGPACK, b"\xdf\xff\xff\xff\xff" * 200),
    (MSGPACK, b"\x93" + b"\xdd\x00\x00\x80\x00" * 3),
    (MSGPACK, (b"\xdd\x00\x01\x00\x00" * 60).ljust(90_000, b"\x00")),
    (JSON, b"[" + b"{}," * (MIB // 3) + b"{}]"),
    (JSON, b"[" * (MIB // 2) + b"]" * (MIB // 2)),
    (JSON, b"[" * MIB),
    (JSON, b"[" + b'"",' * (MIB // 3) + b"1]"),
    (JSON, b'{"":' * (MIB // 4)),
    (JSON, b"[" + b'"\\"\\\\",[],' * (MIB // 11) + b"1"),
]


@pytest.mark.parametrize(("codec", "body"), BOMBS, ids=range(len(BOMBS)))
def test_a_small_body_does_not_take_much_memory(codec: Codec, body: bytes) -> None:
    """Built, the first would take 64 MiB and the fifth 16 GiB."""
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            codec.decode(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(body) + 64 * 1024


# --- what is no value -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[1",
        b"[1,]",
        b'{"a":1,}',
        b"{1:2}",
        b"{'a':1}",
        b'"a',
        b'"a\n"',
        b"1 2",
        b"{}{}",
        b"]",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"nan",
        b"01",
        b"1.",
        b"+1",
        b"tru",
        b"// x\n1",
        b"\xef\xbb\xbf1",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\\ud800"',
        b'{"\\ud800":1}',
        b'"\\udc00\\ud800"',
        b'"\\u12"',
        b'"\\x"',
        b"9" * 4301,
        b"-" + b"9" * 4301,
        b"9" * 1_000_000,
        "1".encode("utf-16"),
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(FrameError, match="is not JSON"):
        JSON.decode(body)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "cut short|not msgpack"),
        (b"\x92\x01", "cut short|not msgpack"),
        (b"\xa3ab", "cut short|not msgpack"),
        (b"\xdd\x00", "cut short|not msgpack"),
        (b"\xc6\x00\x00\x00\x02a", "cut short"),
        (b"\x01\x02", "is not msgpack"),
        (b"\xc1", "is not msgpack"),
        (b"\xa1\xff", "is not msgpack"),
        (b"\xa3\xed\xa0\x80", "is not msgpack"),
        (b"\x81\x01\x02", "is not msgpack"),
        (b"\x81\xc0\x02", "is not msgpack"),
        (b"\x81\x90\x02", "is not msgpack"),
        (b"\x81\xc4\x01a\x02", "has a key that is not text"),
        (b"\x81\xc4\x00\x02", "has a key that is not text"),
        (b"\x81\xa1a\x81\xc4\x01a\x02", "has a key that is not text"),
        (b"\xd4\x01a", "type 0xd4, which is not allowed"),
        (b"\x91\xc7\x00\x01", "type 0xc7, which is not allowed"),
        (b"\xd6\xff\x00\x00\x00\x00", "type 0xd6, which is not allowed"),
        (msgpack.packb(msgpack.Timestamp(1, 1)), "type 0xd7, which is not allowed"),
        (msgpack.packb({"a": msgpack.Timestamp(1 << 40, 1)}), "type 0xc7, which is not allowed"),
    ],
)
def test_what_is_not_one_allowed_msgpack_value_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(FrameError, match=why):
        MSGPACK.decode(body)
    with limits(MAX_DEPTH, MAX_NODES, 0), pytest.raises(FrameError):
        MSGPACK.decode(body)


def test_bytes_that_only_look_like_forbidden_ones_are_read() -> None:
    value = {"ćÇ": "\u0200\u0500\u0540" * 30, "data": bytes(range(256)), "n": [0xC7, 0xD4C4]}
    assert MSGPACK.decode(MSGPACK.encode(value)) == value


@BOTH
@given(data=st.data(), value=json_values)
def test_any_bytes_are_a_value_or_refused(codec: Codec, data: st.DataObject, value: Any) -> None:
    body = bytearray(codec.encode(value))
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=3)):
        body[at] = data.draw(st.integers(0, 255) | st.sampled_from(b'[]{}",:\\\x81\x91\xc4\xdd'))
    cut = bytes(body[: data.draw(st.integers(0, len(body)))])
    for damaged in (bytes(body), cut, data.draw(st.binary())):
        with limits(3, 20, data.draw(st.sampled_from([0, 4096]))):
            try:
                read = codec.decode(damaged)
            except FrameError:
                continue
            assert nodes(read) <= 20
            assert depth(read) <= 3
