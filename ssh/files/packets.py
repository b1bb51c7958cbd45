"""SFTP version 3 on the wire, without I/O (draft-ietf-secsh-filexfer-02): what arrives is cut into packets and a packet
into fields, and answers are put together.

A packet is four bytes of length, one of type, and for all but the first four of a request's number.
"""

import struct
from collections.abc import Sequence
from typing import Final

from alknet.errors import InvalidInputError
from alknet.ssh.files.attributes import EXTENDED, OWNER, PERMISSIONS, SIZE, TIMES, Attributes

__all__ = [
    "MAX_HANDLES",
    "MAX_PACKET_BYTES",
    "MAX_READ_BYTES",
    "MAX_STRING_BYTES",
    "BadPacket",
    "Fields",
    "Input",
    "data_head",
    "handle_reply",
    "names_reply",
    "reply",
    "status",
    "string",
    "version_reply",
]

MAX_PACKET_BYTES: Final = 256 * 1024 + 1024
"""The largest packet that is taken, without its length: one byte more ends the session."""
MAX_READ_BYTES: Final = 255 * 1024
"""The most that one READ gets, and the most that WRITE is told to send."""
MAX_STRING_BYTES: Final = 4096
"""Of a path, a handle or the name of an extension."""
MAX_HANDLES: Final = 256
"""Open files and directories of a session."""
INPUT_BYTES: Final = 512 * 1024 + MAX_PACKET_BYTES

VERSION: Final = 3
INIT: Final = 1
VERSION_REPLY: Final = 2
OPEN: Final = 3
CLOSE: Final = 4
READ: Final = 5
WRITE: Final = 6
LSTAT: Final = 7
FSTAT: Final = 8
SETSTAT: Final = 9
FSETSTAT: Final = 10
OPENDIR: Final = 11
READDIR: Final = 12
REMOVE: Final = 13
MKDIR: Final = 14
RMDIR: Final = 15
REALPATH: Final = 16
STAT: Final = 17
RENAME: Final = 18
READLINK: Final = 19
SYMLINK: Final = 20
STATUS: Final = 101
HANDLE: Final = 102
DATA: Final = 103
NAME: Final = 104
ATTRS: Final = 105
EXTENDED_REQUEST: Final = 200
EXTENDED_REPLY: Final = 201

OK: Final = 0
EOF: Final = 1
NO_SUCH_FILE: Final = 2
PERMISSION_DENIED: Final = 3
FAILURE: Final = 4
BAD_MESSAGE: Final = 5
OP_UNSUPPORTED: Final = 8

FLAG_READ: Final = 0x01
FLAG_WRITE: Final = 0x02
FLAG_APPEND: Final = 0x04
FLAG_CREATE: Final = 0x08
FLAG_TRUNCATE: Final = 0x10
FLAG_EXCLUSIVE: Final = 0x20

MAX_U64: Final = (1 << 64) - 1

_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")
_HEAD: Final = struct.Struct(">IBI")
_DATA_HEAD: Final = struct.Struct(">IBII")
DATA_HEAD_BYTES: Final = _DATA_HEAD.size


class BadPacket(InvalidInputError):
    """What a client sent is no packet of this protocol."""


class Input:
    """What has arrived, and the packets in it. Memory: `INPUT_BYTES`, whatever is sent."""

    def __init__(self) -> None:
        self._buffer = bytearray(INPUT_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0

    def space(self) -> memoryview:
        """Where the next bytes go; what was returned by `next_packet` is no longer valid."""
        if self._start:
            waiting = self._end - self._start
            self._view[:waiting] = self._view[self._start : self._end]
            self._start, self._end = 0, waiting
        return self._view[self._end :]

    def added(self, count: int) -> None:
        """So many bytes were put into `space`."""
        self._end += count

    @property
    def waiting(self) -> int:
        """Bytes that are no whole packet yet."""
        return self._end - self._start

    def next_packet(self) -> memoryview | None:
        """The next one without its length, or None if it is not all there. Raises `BadPacket`, after which nothing
        that follows makes sense."""
        waiting = self._end - self._start
        if waiting < 4:
            return None
        (length,) = _U32.unpack_from(self._buffer, self._start)
        if not 5 <= length <= MAX_PACKET_BYTES:
            raise BadPacket(f"a packet of {length} bytes; it has 5 to {MAX_PACKET_BYTES}")
        if waiting < 4 + length:
            return None
        begin = self._start + 4
        self._start = begin + length
        return self._view[begin : self._start]


class Fields:
    """The fields of a packet, from its beginning or `at` an offset. Every method raises `BadPacket` where it ends too
    early."""

    __slots__ = ("_at", "_packet")

    def __init__(self, packet: memoryview, at: int = 5) -> None:
        self._packet = packet
        self._at = at

    @property
    def has_more(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._packet)

    def u32(self) -> int:
        return self._unpack(_U32)

    def u64(self) -> int:
        return self._unpack(_U64)

    def view(self) -> memoryview:
        """A string of any size, where it lies."""
        length = self.u32()
        value = self._packet[self._at : self._at + length]
        if len(value) != length:
            raise BadPacket("a string reaches beyond its packet")
        self._at += length
        return value

    def string(self) -> bytes:
        """One of at most `MAX_STRING_BYTES`."""
        value = self.view()
        if len(value) > MAX_STRING_BYTES:
            raise BadPacket(f"a string has more than {MAX_STRING_BYTES} bytes")
        return bytes(value)

    def attributes(self) -> Attributes:
        flags = self.u32()
        found = Attributes()
        if flags & SIZE:
            found.size = self.u64()
        if flags & OWNER:
            found.owner = self.u32(), self.u32()
        if flags & PERMISSIONS:
            found.mode = self.u32() & 0o7777
        if flags & TIMES:
            found.times = self.u32(), self.u32()
        if flags & EXTENDED:
            for _ in range(self.u32()):
                self.view()
                self.view()
        return found

    def _unpack(self, form: struct.Struct) -> int:
        try:
            (value,) = form.unpack_from(self._packet, self._at)
        except struct.error:
            raise BadPacket("the packet is too short") from None
        self._at += form.size
        return int(value)


def string(value: bytes) -> bytes:
    """With its length in front of it."""
    return _U32.pack(len(value)) + value


def reply(kind: int, request: int, body: bytes = b"") -> bytes:
    """A whole packet."""
    return _HEAD.pack(5 + len(body), kind, request) + body


def version_reply(extensions: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The answer to INIT: the version, and what more there is."""
    body = b"".join(string(name) + string(value) for name, value in extensions)
    return reply(VERSION_REPLY, VERSION, body)  # has the version where others have the request


def status(request: int, code: int, words: str = "") -> bytes:
    """How a request ended, in English."""
    return reply(STATUS, request, _U32.pack(code) + string(words.encode("utf-8", "replace")) + string(b"en"))


def handle_reply(request: int, handle: bytes) -> bytes:
    return reply(HANDLE, request, string(handle))


def data_head(request: int, length: int) -> bytes:
    """What goes before `length` bytes of a file."""
    return _DATA_HEAD.pack(9 + length, DATA, request, length)


def names_reply(request: int, entries: Sequence[bytes]) -> bytes:
    """Entries of a directory, or one path; each is name, long name and attributes."""
    return reply(NAME, request, _U32.pack(len(entries)) + b"".join(entries))
