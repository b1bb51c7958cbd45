"""The requests of SFTP version 3, answered one after the other in the order in which they came.

A question goes to the node before a file or directory is opened and before a path is changed; what an open file is used
for was answered with it. Whatever a client sends gets an answer, or ends the session with `BadPacket`.
"""

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from alknet.errors import BrokenError, DeniedError
from alknet.guard import Barred
from alknet.ssh.files import packets as wire
from alknet.ssh.files.attributes import Names, encode_attributes
from alknet.ssh.files.confined import Confined, write_all
from alknet.ssh.files.failures import FAILURES, code_of, words_of
from alknet.ssh.files.handles import Handles, OpenDirectory, OpenFile
from alknet.ssh.files.listing import Listing
from alknet.ssh.files.packets import BadPacket, Fields
from alknet.ssh.files.questions import READ, WRITE, Questions

__all__ = ["Extension", "Output", "Server"]

CUT_OFF: Final = "the session ended"
MAX_OFFSET: Final = (1 << 63) - 1
_FLAGS: Final = (
    (wire.FLAG_APPEND, os.O_APPEND),
    (wire.FLAG_CREATE, os.O_CREAT),
    (wire.FLAG_TRUNCATE, os.O_TRUNC),
    (wire.FLAG_EXCLUSIVE, os.O_EXCL),
)


class Output(Protocol):
    """Where answers go, in order. Raises `BrokenError` when nobody takes them."""

    def send(self, packet: bytes) -> None:
        """A whole packet."""

    def space(self, size: int) -> memoryview:
        """Room for `size` bytes more, which are sent when `added` says how many of them there are."""

    def added(self, count: int) -> None:
        """So many bytes were put into `space`."""


class Extension(Protocol):
    """A request that others have added to the protocol."""

    def __call__(self, server: "Server", request: int, fields: Fields) -> bytes:
        """The whole answer."""


class Server:
    """Answers the requests of one session."""

    def __init__(
        self,
        files: Confined,
        questions: Questions,
        output: Output,
        *,
        extensions: dict[bytes, tuple[bytes, Extension]],
        note: Callable[[str], None],
    ) -> None:
        """`extensions` are by name what is said of each and what answers it; `note` gets each refusal of the node in
        words, because most clients show none of those in an answer."""
        self.files = files
        self.questions = questions
        self.names = Names()
        self._output = output
        self._note = note
        self._extensions = extensions
        self.handles = Handles(self._done)
        self._has_begun = False
        self._path = b"/"
        self._action = READ
        """What the request is about, for what the node is told."""
        self._requests: Final[dict[int, Callable[[int, Fields], bytes]]] = {
            wire.OPEN: self._open,
            wire.CLOSE: self._close,
            wire.LSTAT: lambda request, fields: self._stat(request, fields, follow=False),
            wire.FSTAT: self._fstat,
            wire.SETSTAT: self._setstat,
            wire.FSETSTAT: self._fsetstat,
            wire.OPENDIR: self._opendir,
            wire.READDIR: self._readdir,
            wire.REMOVE: lambda request, fields: self._change(request, fields, self.files.remove),
            wire.MKDIR: self._mkdir,
            wire.RMDIR: lambda request, fields: self._change(request, fields, self.files.remove_directory),
            wire.REALPATH: self._realpath,
            wire.STAT: self._stat,
            wire.RENAME: self._rename,
            wire.READLINK: self._readlink,
            wire.SYMLINK: self._symlink,
            wire.EXTENDED_REQUEST: self._extended,
        }

    def answer(self, packet: memoryview) -> None:
        """Answer one packet, which has five bytes at least. Raises `BadPacket` where there is nobody to be answered,
        and `BrokenError` when the node or the client has gone."""
        kind = packet[0]
        request = int.from_bytes(packet[1:5], "big")
        if not self._has_begun or kind == wire.INIT:
            self._begin(kind, request)
            return
        self._path, self._action = b"/", READ
        try:
            if kind == wire.READ:
                self._read(request, Fields(packet))
                return
            if kind == wire.WRITE:
                answer = self._write(request, Fields(packet))
            elif kind in self._requests:
                answer = self._requests[kind](request, Fields(packet))
            else:
                answer = wire.status(request, wire.OP_UNSUPPORTED, f"there is no request of type {kind}")
        except BrokenError:
            raise
        except Barred as exc:
            error = self.questions.barred(exc, self._action, self.files.absolute(self._path))
            self._note(str(error))
            answer = wire.status(request, wire.PERMISSION_DENIED, str(error))
        except (*FAILURES, EOFError, OverflowError, ValueError) as exc:
            answer = wire.status(request, code_of(exc), words_of(exc))
        self._output.send(answer)

    def close(self) -> None:
        """Let go of everything that is open; the node hears of that, if it is there."""
        for handle in self.handles:
            try:
                self.handles.let_go(handle, CUT_OFF)
            except (OSError, BrokenError):
                continue

    # --- for requests, those in `extensions` too ----------------------------------------------------------------------

    def path(self, fields: Fields) -> bytes:
        """The next field, a path."""
        self._path = fields.string()
        return self._path

    def may(self, action: str, path: bytes) -> int:
        """Ask the node; returns the question's number, raises `DeniedError`."""
        self._action = action
        try:
            return self.questions.ask(action, self.files.absolute(path))
        except DeniedError as exc:
            self._note(str(exc))
            raise

    def changing(self, request: int, paths: Sequence[bytes], act: Callable[[], None]) -> bytes:
        """The answer to a change of `paths`, which `act` makes if the node allows it."""
        numbers = self._may_all([(WRITE, path) for path in paths])
        try:
            act()
        except (*FAILURES, Barred) as exc:
            self._done(numbers, words_of(exc))
            raise
        self._done(numbers)
        return wire.status(request, wire.OK)

    def _may_all(self, wanted: Iterable[tuple[str, bytes]]) -> tuple[int, ...]:
        numbers: tuple[int, ...] = ()
        for action, path in wanted:
            try:
                numbers += (self.may(action, path),)
            except DeniedError:
                self._done(numbers, "denied")
                raise
        return numbers

    def _done(self, numbers: Iterable[int], outcome: str = "ok", count: int = 0) -> None:
        for number in numbers:
            self.questions.done(number, outcome, count)

    # --- handles ------------------------------------------------------------------------------------------------------

    def _begin(self, kind: int, version: int) -> None:
        if kind != wire.INIT or self._has_begun:
            raise BadPacket("a session begins with INIT, once")
        if version < wire.VERSION:
            raise BadPacket(f"the client speaks version {version}; this is version {wire.VERSION}")
        self._has_begun = True
        self._output.send(wire.version_reply([(name, value) for name, (value, _) in self._extensions.items()]))

    def _open(self, request: int, fields: Fields) -> bytes:
        path, wanted, attributes = self.path(fields), fields.u32(), fields.attributes()
        can_write = bool(wanted & (wire.FLAG_WRITE | wire.FLAG_APPEND))
        can_read = bool(wanted & wire.FLAG_READ) or not can_write
        flags = (os.O_RDWR if can_read else os.O_WRONLY) if can_write else os.O_RDONLY
        for flag, meaning in _FLAGS:
            flags |= meaning if wanted & flag else 0
        self.handles.check_room()
        changes = can_write or flags & (os.O_CREAT | os.O_TRUNC)
        numbers = self._may_all([(READ, path)] * can_read + [(WRITE, path)] * bool(changes))
        try:
            fd = self.files.open_file(path, flags, attributes.mode)
        except (*FAILURES, Barred) as exc:
            self._done(numbers, words_of(exc))
            raise
        handle = self.handles.add(OpenFile(fd, numbers, can_read=can_read, can_write=can_write))
        return wire.handle_reply(request, handle)

    def _opendir(self, request: int, fields: Fields) -> bytes:
        path = self.path(fields)
        self.handles.check_room()
        numbers = self._may_all([(READ, path)])
        try:
            fd = self.files.open_directory(path)
        except (*FAILURES, Barred) as exc:
            self._done(numbers, words_of(exc))
            raise
        listing = Listing(fd, self.names, is_root=self.files.is_root(os.fstat(fd)))
        return wire.handle_reply(request, self.handles.add(OpenDirectory(listing, numbers)))

    def _close(self, request: int, fields: Fields) -> bytes:
        self.handles.let_go(fields.string())
        return wire.status(request, wire.OK)

    def _read(self, request: int, fields: Fields) -> None:
        """What is read goes from the file into the answer without a copy."""
        file, offset, length = self.handles.file(fields.string()), fields.u64(), fields.u32()
        if not file.can_read:
            raise PermissionError(errno.EACCES, "it was not opened for reading")
        length = min(length, wire.MAX_READ_BYTES)
        space = self._output.space(wire.DATA_HEAD_BYTES + length)
        count = os.preadv(file.fd, [space[wire.DATA_HEAD_BYTES :]], _in_range(offset)) if length else 0
        if count == 0:
            raise EOFError
        space[: wire.DATA_HEAD_BYTES] = wire.data_head(request, count)
        file.carried += count
        self._output.added(wire.DATA_HEAD_BYTES + count)

    def _write(self, request: int, fields: Fields) -> bytes:
        file, offset, data = self.handles.file(fields.string()), fields.u64(), fields.view()
        if not file.can_write:
            raise PermissionError(errno.EACCES, "it was not opened for writing")
        write_all(file.fd, data, _in_range(offset + len(data)) - len(data))
        file.carried += len(data)
        return wire.status(request, wire.OK)

    def _readdir(self, request: int, fields: Fields) -> bytes:
        entries = self.handles.directory(fields.string()).listing.next_entries()
        if not entries:
            raise EOFError
        return wire.names_reply(request, entries)

    def _fstat(self, request: int, fields: Fields) -> bytes:
        info = os.fstat(self.handles.either(fields.string()).fd)
        return wire.reply(wire.ATTRS, request, encode_attributes(info))

    def _fsetstat(self, request: int, fields: Fields) -> bytes:
        file, wanted = self.handles.file(fields.string()), fields.attributes()
        if not file.can_write:
            raise PermissionError(errno.EACCES, "it was not opened for writing")
        self.files.change_open(file.fd, wanted)
        return wire.status(request, wire.OK)

    # --- paths --------------------------------------------------------------------------------------------------------

    def _stat(self, request: int, fields: Fields, *, follow: bool = True) -> bytes:
        info = self.files.stat(self.path(fields), follow=follow)
        return wire.reply(wire.ATTRS, request, encode_attributes(info))

    def _setstat(self, request: int, fields: Fields) -> bytes:
        path, wanted = self.path(fields), fields.attributes()
        return self.changing(request, [path], lambda: self.files.change(path, wanted))

    def _change(self, request: int, fields: Fields, act: Callable[[bytes], None]) -> bytes:
        path = self.path(fields)
        return self.changing(request, [path], lambda: act(path))

    def _mkdir(self, request: int, fields: Fields) -> bytes:
        path, wanted = self.path(fields), fields.attributes()
        return self.changing(request, [path], lambda: self.files.make_directory(path, wanted.mode))

    def _rename(self, request: int, fields: Fields) -> bytes:
        old, new = self.path(fields), fields.string()
        return self.changing(request, [old, new], lambda: self.files.rename(old, new, replace=False))

    def _symlink(self, request: int, fields: Fields) -> bytes:
        """In the order of OpenSSH, which is not the draft's, and which clients have learned."""
        target, path = fields.string(), self.path(fields)
        return self.changing(request, [path], lambda: self.files.symlink(target, path))

    def _readlink(self, request: int, fields: Fields) -> bytes:
        return self.one_name(request, self.files.read_link(self.path(fields)))

    def _realpath(self, request: int, fields: Fields) -> bytes:
        return self.one_name(request, self.files.real_path(self.path(fields)))

    @staticmethod
    def one_name(request: int, path: bytes) -> bytes:
        """The answer that is a path."""
        return wire.names_reply(request, [wire.string(path) * 2 + bytes(4)])

    def _extended(self, request: int, fields: Fields) -> bytes:
        found = self._extensions.get(fields.string())
        if found is None:
            return wire.status(request, wire.OP_UNSUPPORTED, "there is no such extension")
        return found[1](self, request, fields)


def _in_range(offset: int) -> int:
    if offset > MAX_OFFSET:
        raise OSError(errno.EINVAL, "no file is that large")
    return offset
