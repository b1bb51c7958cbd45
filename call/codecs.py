"""How a value becomes the body of a frame and back: JSON and msgpack, chosen by name in the hello.

Values are those of JSON, and under msgpack also bytes, NaN and infinities. Whoever decodes does not know who wrote the
body, so nesting and the number of values are checked **before** the values are built: an empty container takes one
byte on the wire and 64 in memory. What `encode` returns, the other side's `decode` accepts.

Both run twice per call. So each check is a filter in C that excludes trouble in a usual body, and an exact one that
is made only where the filter cannot say.
"""

import base64
from collections.abc import Mapping
from itertools import accumulate
from math import isfinite
from types import MappingProxyType, NoneType
from typing import Any, Final, Protocol

import msgpack  # type: ignore[import-untyped]
from pydantic_core import from_json, to_json, to_jsonable_python

from alknet.call.errors import FrameError

__all__ = ["CODECS", "JSON", "MAX_DEPTH", "MAX_NODES", "MSGPACK", "Codec", "EncodeError"]

MAX_DEPTH: Final = 64
"""Containers within each other, the envelope among them."""
MAX_NODES: Final = 100_000
"""Values in one body: each container, element, key and value counts. Each takes a byte at least, in both codecs, so
that a body of no more bytes has no more values."""
MAX_JSON_DIGITS: Final = 4300
"""Of an integer, which takes quadratic time to read; also what Python and pydantic-core refuse to exceed."""
MAX_FILTERED_BYTES: Final = 4096
"""Msgpack bodies above are walked at once: they are either few long values, walked sooner than their bytes are looked
through, or many containers, which the filter cannot exclude. Below `MAX_NODES`, which the filter does not count."""
MAX_KEPT_BYTES: Final = 1024 * 1024
"""A packer that made a longer body is dropped: it would keep the memory."""


class EncodeError(ValueError):
    """A value that this codec cannot express, or that the other side would refuse. The message says which and why."""


class Codec(Protocol):
    """One way to write values as bytes."""

    @property
    def name(self) -> str:
        """What the hello calls it."""

    def encode(self, value: Any) -> bytes:
        """The body that means `value`. `EncodeError` if there is none.

        Tuples and sets become lists. What has no form of its own (dates, UUIDs, decimals, enumerations, dataclasses,
        models) becomes what pydantic writes for it in JSON.
        """

    def decode(self, body: bytes | memoryview) -> Any:
        """The value that `body` means. `FrameError` if it is not exactly one value, or one above the limits.

        Of equal keys in a map the last one counts.
        """


class _Json:
    """JSON in UTF-8 (RFC 8259) without spaces; bytes are written as base64 text, with the alphabet of RFC 4648 §4.

    pydantic-core's reader and writer take 0.5 and 0.4 µs for a call of 100 bytes, the json module's 0.8 and 1.2 at
    best. The reader is also stricter: it refuses NaN, lone surrogates (which nobody could send on), and integers of
    more than `MAX_JSON_DIGITS`; a float out of range is read as an infinity. The writer is not strict at all, so it
    gets nothing but what `_is_plain`.
    """

    name: Final = "json"

    def encode(self, value: Any) -> bytes:
        if not _is_plain([value], MAX_DEPTH + 1, _JSON_SCALARS):
            value = _rebuilt(value, MAX_DEPTH, has_bytes=False)
        try:
            body = to_json(value)
        except ValueError as exc:
            raise EncodeError(f"cannot be written as JSON: {exc}") from exc
        if len(body) > MAX_NODES and (fault := _json_fault(body)):
            raise EncodeError(fault)
        return body

    def decode(self, body: bytes | memoryview) -> Any:
        if type(body) is not bytes:
            body = bytes(body)
        if len(body) > MAX_NODES or len(body.translate(None, _NOT_OPENING)) > MAX_DEPTH:
            fault = _json_fault(body)
            if fault:
                raise FrameError(fault)
        try:
            # Values can be secrets: only keys may enter the cache that outlives the call.
            return from_json(body, allow_inf_nan=False, cache_strings="keys")
        except ValueError as exc:
            raise FrameError(f"is not JSON: {exc}") from exc


class _Msgpack:
    """Msgpack with text as str and keys of text only; no extension types, so no timestamps either."""

    name: Final = "msgpack"

    def __init__(self) -> None:
        self._packer = msgpack.Packer(strict_types=True)

    def encode(self, value: Any) -> bytes:
        if not _is_plain([value], MAX_DEPTH + 1, _MSGPACK_SCALARS):
            value = _rebuilt(value, MAX_DEPTH, has_bytes=True)
        try:
            body: bytes = self._packer.pack(value)
        except (ValueError, OverflowError) as exc:
            raise EncodeError(f"cannot be written as msgpack: {exc}") from exc
        if len(body) > MAX_NODES:
            if len(body) > MAX_KEPT_BYTES:
                self._packer = msgpack.Packer(strict_types=True)
            if fault := _msgpack_fault(body):
                raise EncodeError(fault)
        return body

    def decode(self, body: bytes | memoryview) -> Any:
        if type(body) is not bytes:
            body = bytes(body)
        if len(body) <= MAX_FILTERED_BYTES:
            heads = body.translate(_HEAD_TABLE, _NOT_HEADS)
            fault = _msgpack_fault(body) if len(heads) > MAX_DEPTH or _SPECIAL in heads else ""
        else:
            fault = _msgpack_fault(body)
        if fault:
            raise FrameError(fault)
        try:
            return msgpack.unpackb(body)
        except ValueError as exc:
            raise FrameError(f"is not msgpack: {exc}") from exc


JSON: Final[Codec] = _Json()
MSGPACK: Final[Codec] = _Msgpack()
CODECS: Final[Mapping[str, Codec]] = MappingProxyType({codec.name: codec for codec in (JSON, MSGPACK)})

_TOO_DEEP: Final = f"holds containers more than {MAX_DEPTH} deep"
_TOO_MANY: Final = f"holds more than {MAX_NODES} values"
_CUT_SHORT: Final = "is cut short"


# --- values that are written ------------------------------------------------------------------------------------

_JSON_SCALARS: Final[frozenset[type]] = frozenset({str, bool, NoneType})
_MSGPACK_SCALARS: Final[frozenset[type]] = frozenset({str, bool, NoneType, float, bytes})
_MIN_INT: Final = -(1 << 63)
_MAX_INT: Final = (1 << 64) - 1
_MAX_JSON_INT: Final = 10**MAX_JSON_DIGITS - 1


def _is_plain(container: Any, depth: int, scalars: frozenset[type]) -> bool:
    """Whether the writers can be trusted with it: nothing that they would change in silence or fail on halfway."""
    if not depth:
        return False
    if type(container) is dict:
        for key in container:
            if type(key) is not str:
                return False
        container = container.values()
    depth -= 1
    for child in container:
        kind = type(child)
        if kind is str:
            continue
        if kind is dict or kind is list:
            if not _is_plain(child, depth, scalars):
                return False
        elif kind is int:
            if not _MIN_INT <= child <= _MAX_INT:
                return False
        elif kind not in scalars and (kind is not float or not isfinite(child)):
            return False
    return True


def _rebuilt(value: Any, depth: int, *, has_bytes: bool) -> Any:
    """`value` in plain types only, for a codec that has bytes or has not. `EncodeError` where that cannot be."""
    if isinstance(value, dict | list | tuple | set | frozenset):
        if not depth:
            raise EncodeError(f"{_TOO_DEEP}, or one that holds itself")
        if isinstance(value, dict):
            return {_key(key): _rebuilt(item, depth - 1, has_bytes=has_bytes) for key, item in value.items()}
        return [_rebuilt(item, depth - 1, has_bytes=has_bytes) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value) if has_bytes else base64.b64encode(value).decode("ascii")
    kind = type(value)
    if kind is int:
        least, most = (_MIN_INT, _MAX_INT) if has_bytes else (-_MAX_JSON_INT, _MAX_JSON_INT)
        if not least <= value <= most:
            raise EncodeError(f"an integer of {value.bit_length()} bits is too large")
        return value
    if kind is float:
        if not has_bytes and not isfinite(value):
            raise EncodeError(f"{value} cannot be written as JSON")
        return value
    if kind in _JSON_SCALARS:
        return value
    try:
        other = to_jsonable_python(value, bytes_mode="base64")
    except (ValueError, TypeError) as exc:
        raise EncodeError(f"a value of type {kind.__name__} cannot be written: {exc}") from exc
    if type(other) is kind:
        raise EncodeError(f"a value of type {kind.__name__} cannot be written")
    return _rebuilt(other, depth, has_bytes=has_bytes)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise EncodeError(f"a key of type {type(key).__name__} cannot be written; keys are text")
    return str.__str__(key)


# --- JSON that is read ------------------------------------------------------------------------------------------

_NOT_OPENING: Final = bytes(set(range(256)) - set(b"[{"))
_NOT_COUNTED: Final = bytes(set(range(256)) - set(b"[{,:"))
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # +1 and -1, as signed bytes
_JSON_SPACE: Final = b" \t\r\n"
_BLOCK_BYTES: Final = 64 * 1024
"""Of text that is split at once: into as many objects as it has strings, which take more memory than it does."""


def _json_fault(body: bytes) -> str:
    """Which limit `body` exceeds, or nothing. Exact for JSON; for anything else it counts at least what a reader
    builds until it finds the error."""
    text = b""
    if len(body) > MAX_NODES and len(body.translate(None, _NOT_COUNTED)) >= MAX_NODES:
        text = _without_strings(body).translate(None, _JSON_SPACE)
        empty = text.count(b"[]") + text.count(b"{}")
        if 1 + len(text.translate(None, _NOT_COUNTED)) - empty > MAX_NODES:
            return _TOO_MANY
    if len(body.translate(None, _NOT_OPENING)) > MAX_DEPTH:
        steps = (text or _without_strings(body)).translate(_STEPS, _NOT_BRACKETS)
        if max(accumulate(memoryview(steps).cast("b")), default=0) > MAX_DEPTH:
            return _TOO_DEEP
    return ""


def _without_strings(body: bytes) -> bytes:
    """`body` with a 0 in the place of each string."""
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = []
    inside = 0
    for at in range(0, len(body), _BLOCK_BYTES):
        parts = body[at : at + _BLOCK_BYTES].split(b'"')
        outside.append(b"0".join(parts[inside::2]))
        inside ^= (len(parts) - 1) & 1
        if inside:
            outside.append(b"0")
    return b"".join(outside)


# --- msgpack that is read ---------------------------------------------------------------------------------------

_CONTAINERS: Final = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
_BINARY_OR_EXTENSION: Final = bytes([*range(0xC4, 0xCA), *range(0xD4, 0xD9)])
_SPECIAL: Final = b"\xc4"
_HEAD_TABLE: Final = bytes.maketrans(_BINARY_OR_EXTENSION, _SPECIAL * len(_BINARY_OR_EXTENSION))
_NOT_HEADS: Final = bytes(set(range(256)) - set(_CONTAINERS) - set(_BINARY_OR_EXTENSION))


def _widths() -> tuple[int, ...]:
    """Bytes of the whole value by its first byte, 0 where that does not say."""
    widths = [1] * 0x80 + [0] * 0x20 + [1 + size for size in range(0x20)] + [0] * 0x20 + [1] * 0x20
    for first, width in ((0xC0, 1), (0xC2, 1), (0xC3, 1), (0xCA, 5), (0xCB, 9)):
        widths[first] = width
    for first in (0xCC, 0xD0):
        widths[first : first + 4] = (2, 3, 5, 9)
    return tuple(widths)


_WIDTHS: Final = _widths()
_KEY_WIDTHS: Final = tuple(width if 0xA0 <= first < 0xC0 else 0 for first, width in enumerate(_WIDTHS))
_LONG_TEXTS: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_LONG_SCALARS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, **_LONG_TEXTS}
_LONG_CONTAINERS: Final = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_FIRST_LONG_MAP: Final = 0xDE


def _msgpack_fault(body: bytes) -> str:
    """Which limit `body` exceeds, or what it holds that is not allowed, or nothing: a walk over its values without
    building any. What is left to the reader: whether text is UTF-8, and whether anything follows the value."""
    widths, key_widths = _WIDTHS, _KEY_WIDTHS
    nodes = left = 1
    at = 0
    in_map = False
    outer = []
    try:
        while True:
            while left:
                left -= 1
                if in_map:
                    head = body[at]
                    width = key_widths[head]
                    if width:
                        at += width
                    elif head in _LONG_TEXTS:
                        at = _after_long(body, at, _LONG_TEXTS[head])
                    else:
                        return "has a key that is not text"
                head = body[at]
                width = widths[head]
                if width:
                    at += width
                    continue
                if head in _LONG_SCALARS:
                    at = _after_long(body, at, _LONG_SCALARS[head])
                    continue
                if head not in _CONTAINERS:
                    return f"holds a value of the type {head:#x}, which is not allowed"
                outer.append((left, in_map))
                if len(outer) > MAX_DEPTH:
                    return _TOO_DEEP
                if head < 0xA0:
                    left, in_map = head & 0x0F, head < 0x90
                    at += 1
                else:
                    start, at = at + 1, at + 1 + _LONG_CONTAINERS[head]
                    left, in_map = int.from_bytes(body[start:at], "big"), head >= _FIRST_LONG_MAP
                nodes += left << in_map
                if nodes > MAX_NODES:
                    return _TOO_MANY
            if not outer:
                break
            left, in_map = outer.pop()
    except IndexError:
        return _CUT_SHORT
    return _CUT_SHORT if at > len(body) else ""


def _after_long(body: bytes, at: int, size: int) -> int:
    """Where the value ends that starts at `at` with a length of `size` bytes."""
    start = at + 1 + size
    return start + int.from_bytes(body[at + 1 : start], "big")
