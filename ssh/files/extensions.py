"""Requests that OpenSSH has added to SFTP version 3 (its file ``PROTOCOL``), and one of alknet.

``blake3@alknet`` asks what a file has in it: ``string handle-or-path, uint64 offset, uint64 length``, where no length
means to the end; the reply is the digest of those bytes, a string of 32. It is worked out while other requests wait, at
more than a gigabyte a second: who wants others in between asks for a range at a time.
"""

import errno
import os
import struct
from collections.abc import Callable
from typing import Final

from blake3 import blake3

from alknet.errors import InvalidInputError
from alknet.guard import Barred
from alknet.ssh.files import packets as wire
from alknet.ssh.files.attributes import Names
from alknet.ssh.files.confined import write_all
from alknet.ssh.files.failures import FAILURES, words_of
from alknet.ssh.files.packets import BadPacket, Fields
from alknet.ssh.files.questions import READ
from alknet.ssh.files.server import Extension, Server

__all__ = ["EXTENSIONS"]

PIECE_BYTES: Final = 1024 * 1024
"""Hashed or copied at a time."""
MAX_NAMED: Final = 1024
"""Users or groups whose names one request asks for."""
HERE: Final = b"~"

_FILE_SYSTEM: Final = struct.Struct(">11Q")
_LIMITS: Final = struct.Struct(">4Q")
_SEEN_FLAGS: Final = os.ST_RDONLY | os.ST_NOSUID


def _posix_rename(server: Server, request: int, fields: Fields) -> bytes:
    old, new = server.path(fields), fields.string()
    return server.changing(request, [old, new], lambda: server.files.rename(old, new, replace=True))


def _hardlink(server: Server, request: int, fields: Fields) -> bytes:
    old, new = server.path(fields), fields.string()
    return server.changing(request, [old, new], lambda: server.files.link(old, new))


def _lsetstat(server: Server, request: int, fields: Fields) -> bytes:
    path, wanted = server.path(fields), fields.attributes()
    return server.changing(request, [path], lambda: server.files.change(path, wanted, follow=False))


def _statvfs(server: Server, request: int, fields: Fields) -> bytes:
    return _file_system(request, server.files.file_system(server.path(fields)))


def _fstatvfs(server: Server, request: int, fields: Fields) -> bytes:
    return _file_system(request, os.fstatvfs(server.handles.either(fields.string()).fd))


def _file_system(request: int, found: os.statvfs_result) -> bytes:
    sizes = (found.f_bsize, found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail)
    files = (found.f_files, found.f_ffree, found.f_favail, found.f_fsid & wire.MAX_U64, found.f_flag & _SEEN_FLAGS)
    return wire.reply(wire.EXTENDED_REPLY, request, _FILE_SYSTEM.pack(*sizes, *files, found.f_namemax))


def _fsync(server: Server, request: int, fields: Fields) -> bytes:
    os.fsync(server.handles.file(fields.string()).fd)
    return wire.status(request, wire.OK)


def _limits(server: Server, request: int, fields: Fields) -> bytes:
    sizes = (wire.MAX_PACKET_BYTES, wire.MAX_READ_BYTES, wire.MAX_READ_BYTES, wire.MAX_HANDLES)
    return wire.reply(wire.EXTENDED_REPLY, request, _LIMITS.pack(*sizes))


def _expand_path(server: Server, request: int, fields: Fields) -> bytes:
    """``~`` is where the session begins, here and in `_home_directory`."""
    path = server.path(fields)
    if path == HERE or path.startswith(HERE + b"/"):
        path = path[2:] or b"."
    elif path.startswith(HERE):
        raise InvalidInputError("only one's own directory is known")
    return server.one_name(request, server.files.real_path(path))


def _home_directory(server: Server, request: int, fields: Fields) -> bytes:
    fields.string()  # of whom: there is one
    return server.one_name(request, server.files.real_path(b"."))


def _users_groups_by_id(server: Server, request: int, fields: Fields) -> bytes:
    users = _names(fields, server.names, Names.user)
    groups = _names(fields, server.names, Names.group)
    return wire.reply(wire.EXTENDED_REPLY, request, wire.string(users) + wire.string(groups))


def _names(fields: Fields, names: Names, look_up: Callable[[Names, int], str]) -> bytes:
    numbers = Fields(fields.view(), at=0)
    found: list[bytes] = []
    while numbers.has_more:
        if len(found) == MAX_NAMED:
            raise BadPacket(f"more than {MAX_NAMED} numbers")
        found.append(wire.string(look_up(names, numbers.u32()).encode("utf-8", "surrogateescape")))
    return b"".join(found)


def _copy_data(server: Server, request: int, fields: Fields) -> bytes:
    """From one open file to another, without the bytes going to the client and back."""
    source, begin, length = server.handles.file(fields.string()), fields.u64(), fields.u64()
    target, at = server.handles.file(fields.string()), fields.u64()
    if not (source.can_read and target.can_write):
        raise PermissionError(errno.EACCES, "the one is not open for reading, or the other not for writing")
    # The size at the beginning counts: a file that is copied to its own end would never end.
    there = max(os.fstat(source.fd).st_size - begin, 0)
    left = min(length, there) if length else there
    if os.path.samestat(os.fstat(source.fd), os.fstat(target.fd)) and begin < at + left and at < begin + left:
        raise InvalidInputError("a file is not copied over itself")
    if left and max(begin, at) + left >= 1 << 63:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    while left:
        data = os.pread(source.fd, min(left, PIECE_BYTES), begin)
        if not data:
            break
        write_all(target.fd, memoryview(data), at)
        source.carried += len(data)
        target.carried += len(data)
        begin, at, left = begin + len(data), at + len(data), left - len(data)
    return wire.status(request, wire.OK)


def _blake3(server: Server, request: int, fields: Fields) -> bytes:
    which, offset, length = server.path(fields), fields.u64(), fields.u64()
    if which.startswith(b"\0"):
        file = server.handles.file(which)
        if not file.can_read:
            raise PermissionError(errno.EACCES, "it was not opened for reading")
        digest, count = _digest(file.fd, offset, length)
        file.carried += count
    else:
        number = server.may(READ, which)
        try:
            fd = server.files.open_file(which, os.O_RDONLY)
            try:
                digest, count = _digest(fd, offset, length)
            finally:
                os.close(fd)
        except (*FAILURES, Barred) as exc:
            server.questions.done(number, words_of(exc))
            raise
        server.questions.done(number, count=count)
    return wire.reply(wire.EXTENDED_REPLY, request, wire.string(digest))


def _digest(fd: int, offset: int, length: int) -> tuple[bytes, int]:
    """The digest, and of how many bytes; of as many as there are when it begins, if the file grows meanwhile."""
    hasher = blake3()
    there = max(os.fstat(fd).st_size - offset, 0)
    left = min(length, there) if length else there
    count = 0
    while left and (data := os.pread(fd, min(left, PIECE_BYTES), offset)):
        hasher.update(data)
        offset, left, count = offset + len(data), left - len(data), count + len(data)
    return hasher.digest(), count


EXTENSIONS: Final[dict[bytes, tuple[bytes, Extension]]] = {
    # name: (what is said of it: the version, what answers it)
    b"posix-rename@openssh.com": (b"1", _posix_rename),
    b"statvfs@openssh.com": (b"2", _statvfs),
    b"fstatvfs@openssh.com": (b"2", _fstatvfs),
    b"hardlink@openssh.com": (b"1", _hardlink),
    b"fsync@openssh.com": (b"1", _fsync),
    b"lsetstat@openssh.com": (b"1", _lsetstat),
    b"limits@openssh.com": (b"1", _limits),
    b"expand-path@openssh.com": (b"1", _expand_path),
    b"copy-data": (b"1", _copy_data),
    b"home-directory": (b"1", _home_directory),
    b"users-groups-by-id@openssh.com": (b"1", _users_groups_by_id),
    b"blake3@alknet": (b"1", _blake3),
}
