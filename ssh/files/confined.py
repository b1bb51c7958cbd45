"""Files and directories below a root, as clients see them: ``/`` is the root, and other paths begin where it starts.

Every method takes a path as bytes and raises `InvalidInputError`, :class:`~alknet.guard.Barred` and `OSError`. Nothing
but regular files, directories and the null device is ever opened: to open a pipe or a device can be an act in itself.
"""

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from alknet.errors import InvalidInputError
from alknet.guard import Barred
from alknet.ssh.files.attributes import Attributes
from alknet.ssh.files.places import MAX_PATH_BYTES, Place, Tree
from alknet.ssh.files.syscalls import rename_new

__all__ = ["Confined", "write_all"]

FILE_MODE: Final = 0o666
DIRECTORY_MODE: Final = 0o777
MAX_TRIES: Final = 16
"""A name that comes and goes while it is opened."""
MAX_U32: Final = 0xFFFFFFFF

_OPEN: Final = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NULL_DEVICE: Final = os.makedev(1, 3)


class Confined:
    """The files below `root`; a relative path is meant below `start`, a path of clients,
    or below the root if that is no directory. `protected` are paths of the
    machine that are out of reach; with none, whoever is served is an owner.

    Others than owners do not give files the rights of a user or group to whoever runs them: the node's own user may be
    the one whom they all write as.
    """

    def __init__(self, root: str, start: str = "/", protected: Iterable[str] = ()) -> None:
        protected = tuple(protected)
        self._tree = Tree(root, protected)
        self._start = b"/"
        self._keeps_rights = not protected
        begin = b"/" + os.fsencode(start).strip(b"/")
        with suppress(OSError, Barred):
            if stat.S_ISDIR(self.stat(begin).st_mode):
                self._start = begin

    def close(self) -> None:
        self._tree.close()

    def absolute(self, path: bytes) -> bytes:
        """`path` from the root on, as text: without ``.`` and ``..``."""
        return b"/" + b"/".join(_parts(self._full(path)))

    def stat(self, path: bytes, *, follow: bool = True) -> os.stat_result:
        """What is there; with `follow` what a link there leads to."""
        with self._tree.reach(self._full(path), follow=follow) as place:
            return place.stat()

    def real_path(self, path: bytes) -> bytes:
        """The path without links and dots; of what is not there if its directory is."""
        with self._tree.reach(self._full(path), follow=True) as place:
            try:
                handle, _ = place.hold()
            except FileNotFoundError:
                above = self._tree.path_of(place.directory)
                return self.absolute(path) if above is None else above.rstrip(b"/") + b"/" + place.name
            try:
                return self._tree.path_of(handle) or self.absolute(path)
            finally:
                os.close(handle)

    def read_link(self, path: bytes) -> bytes:
        """What the link says, as it stands there."""
        with self._tree.reach(self._full(path), follow=False) as place:
            return os.readlink(place.named(), dir_fd=place.directory)

    def is_root(self, info: os.stat_result) -> bool:
        """Whether that is the root itself."""
        return self._tree.is_root(info)

    def file_system(self, path: bytes) -> os.statvfs_result:
        """The one that the path is on."""
        with self._tree.reach(self._full(path), follow=True) as place:
            handle, _ = place.hold()
            try:
                return os.fstatvfs(handle)
            finally:
                os.close(handle)

    def open_directory(self, path: bytes) -> int:
        """The directory, for listing."""
        with self._tree.reach(self._full(path), follow=True) as place:
            handle, info = place.hold()
            try:
                if not stat.S_ISDIR(info.st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=handle)
            finally:
                os.close(handle)

    def open_file(self, path: bytes, flags: int, mode: int | None = None) -> int:
        """The file; `flags` are those of `os.open`, of which ``O_CREAT`` and ``O_EXCL`` mean what they do there. A file
        that is made has `mode`, less what the process's mask takes away."""
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        again = flags & (os.O_ACCMODE | os.O_APPEND | os.O_TRUNC) | _OPEN
        for _ in range(MAX_TRIES):
            with self._tree.reach(self._full(path), follow=not exclusive) as place:
                if flags & (os.O_ACCMODE | os.O_TRUNC):
                    place.check_change()
                try:
                    handle, info = place.hold()
                except FileNotFoundError:
                    if not flags & os.O_CREAT:
                        raise
                    try:
                        return self._create(place, again, mode)
                    except FileExistsError:
                        if exclusive:
                            raise
                        continue
                try:
                    if exclusive:
                        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                    if stat.S_ISLNK(info.st_mode):
                        continue
                    _check_kind(info)
                    if flags & (os.O_ACCMODE | os.O_TRUNC):
                        place.check_change()
                    # The very file that was looked at, whatever its name stands for by now.
                    return os.open(b"/proc/self/fd/%d" % handle, again)
                finally:
                    os.close(handle)
        raise OSError(errno.EAGAIN, "it comes and goes")

    def _create(self, place: Place, flags: int, mode: int | None) -> int:
        if place.is_directory:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        mode = self._mode(FILE_MODE if mode is None else mode)
        flags = (flags & ~os.O_TRUNC) | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        return os.open(place.name, flags, mode, dir_fd=place.directory)

    def make_directory(self, path: bytes, mode: int | None = None) -> None:
        """A directory where nothing is."""
        with self._tree.reach(self._bare(path), follow=False) as place:
            place.check_change()
            os.mkdir(place.named(), DIRECTORY_MODE if mode is None else mode, dir_fd=place.directory)
            try:
                # It may be what was out of reach before it was there, under a name that the file system takes for it.
                place.guard = place.guard.fresh()
                place.stat()
            except Barred:
                os.rmdir(place.name, dir_fd=place.directory)
                raise

    def remove_directory(self, path: bytes) -> None:
        """An empty directory."""
        with self._tree.reach(self._bare(path), follow=False) as place:
            os.rmdir(place.check_name(), dir_fd=place.directory)

    def remove(self, path: bytes) -> None:
        """Anything but a directory."""
        with self._tree.reach(self._full(path), follow=False) as place:
            os.unlink(place.check_name(), dir_fd=place.directory)

    def rename(self, old: bytes, new: bytes, *, replace: bool) -> None:
        """In one step, wherever the file system can. Without `replace` nothing may be at `new`."""
        with (
            self._tree.reach(self._bare(old), follow=False) as source,
            self._tree.reach(self._bare(new), follow=False) as target,
        ):
            names = source.check_name(), target.check_name()
            source.stat()
            if replace:
                os.rename(*names, src_dir_fd=source.directory, dst_dir_fd=target.directory)
                return
            try:
                rename_new(source.directory, names[0], target.directory, names[1])
            except OSError as exc:
                if exc.errno not in (errno.EINVAL, errno.ENOSYS):
                    raise
                with suppress(FileNotFoundError):  # a file system that cannot do it in one step
                    target.stat()
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
                os.rename(*names, src_dir_fd=source.directory, dst_dir_fd=target.directory)

    def link(self, old: bytes, new: bytes) -> None:
        """A second name for a file."""
        with (
            self._tree.reach(self._full(old), follow=False) as source,
            self._tree.reach(self._full(new), follow=False) as target,
        ):
            source.check_change()
            name = target.check_name()
            handle, info = source.hold()
            try:
                if not stat.S_ISREG(info.st_mode):
                    raise PermissionError(errno.EPERM, "only a file gets a second name")
                # The very file that was looked at: its name may stand for one that is out of reach by now.
                os.link(b"/proc/self/fd/%d" % handle, name, dst_dir_fd=target.directory, follow_symlinks=True)
            finally:
                os.close(handle)

    def symlink(self, target: bytes, path: bytes) -> None:
        """A link that says `target`, as it is: it is taken as a path below the root when it is followed here."""
        if not target or b"\0" in target or len(target) > MAX_PATH_BYTES:
            raise InvalidInputError("that is nothing that a link can say")
        with self._tree.reach(self._full(path), follow=False) as place:
            os.symlink(target, place.check_name(), dir_fd=place.directory)

    def change(self, path: bytes, wanted: Attributes, *, follow: bool = True) -> None:
        """Set attributes; without `follow` those of a link itself, which has owner and times only."""
        with self._tree.reach(self._full(path), follow=follow) as place:
            handle, info = place.hold()
            try:
                place.check_change()
                if stat.S_ISLNK(info.st_mode):
                    self._change_link(place, wanted)
                    return
                if wanted.size is not None:
                    _check_kind(info)
                # The very file that was looked at, whatever its name stands for by now.
                self._change(b"/proc/self/fd/%d" % handle, info, wanted)
            finally:
                os.close(handle)

    def change_open(self, fd: int, wanted: Attributes) -> None:
        """The same of an open file."""
        self._change(fd, os.fstat(fd), wanted)

    def _change(self, target: int | bytes, info: os.stat_result, wanted: Attributes) -> None:
        if wanted.size is not None:
            os.truncate(target, _in_range(wanted.size))
        if wanted.mode is not None:
            os.chmod(target, wanted.mode if stat.S_ISDIR(info.st_mode) else self._mode(wanted.mode))
        if wanted.times is not None:
            os.utime(target, wanted.times)
        if wanted.owner is not None:
            os.chown(target, *map(_id, wanted.owner))

    @staticmethod
    def _change_link(place: Place, wanted: Attributes) -> None:
        if wanted.size is not None or wanted.mode is not None:
            raise OSError(errno.EOPNOTSUPP, "a link has neither size nor mode to set")
        if wanted.times is not None:
            os.utime(place.named(), wanted.times, dir_fd=place.directory, follow_symlinks=False)
        if wanted.owner is not None:
            os.chown(place.named(), *map(_id, wanted.owner), dir_fd=place.directory, follow_symlinks=False)

    def _mode(self, mode: int) -> int:
        return mode if self._keeps_rights else mode & ~(stat.S_ISUID | stat.S_ISGID)

    def _full(self, path: bytes) -> bytes:
        return path if path.startswith(b"/") else self._start + b"/" + (path or b".")

    def _bare(self, path: bytes) -> bytes:
        """Without the slashes at its end: what is renamed or removed is never what a link leads to."""
        return self._full(path).rstrip(b"/") or b"/"


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write everything, however little the system takes at a time; raises `OSError`."""
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


def _check_kind(info: os.stat_result) -> None:
    """Raises `OSError` for what is not opened."""
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(info.st_mode) and not (stat.S_ISCHR(info.st_mode) and info.st_rdev == _NULL_DEVICE):
        raise PermissionError(errno.EPERM, "it is a pipe, a socket or a device, which are not opened")


def _id(number: int) -> int:
    """As the system has it: the largest number leaves it as it is."""
    return -1 if number == MAX_U32 else number


def _in_range(size: int) -> int:
    if size >= 1 << 63:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    return size


def _parts(path: bytes) -> list[bytes]:
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return parts
