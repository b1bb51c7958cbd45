"""Getting to a file below one root, and to nothing else.

All names but the last are looked up by the kernel in one step that cannot leave the root (``openat2`` with
``RESOLVE_IN_ROOT``): ``..`` stops at the root, absolute paths and links begin there. The last name is used in the
directory that is held open, and never followed there; where it is to be followed, the text of the link is looked up
like any path. So it makes no difference who renames or replaces what meanwhile. Paths are bytes, as on the disk.

A place is refused when it is in a directory that is out of reach: the way is gone up again from where it led, so that
it makes no difference how it came there. What the kernel shows of itself is refused to those for whom anything is out
of reach; the others may read it.
"""

import errno
import os
import stat
from collections.abc import Iterable
from typing import Final

from alknet.errors import InvalidInputError
from alknet.guard import Barred, Guard, shows_kernel
from alknet.ssh.files.syscalls import open_in_root

__all__ = ["MAX_PATH_BYTES", "Place", "Tree"]

MAX_PATH_BYTES: Final = 4096
MAX_LINKS: Final = 40
"""Links that are followed one after the other; the kernel's own limit."""
MAX_DEPTH: Final = 2048
"""Directories within each other; a path has no more names."""

_UP: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_HOLD: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
RULE_KERNEL: Final = "fs.kernel"


class Place:
    """A name in a directory that is held open: what a path came to. A context manager, which lets go of it."""

    __slots__ = ("directory", "guard", "is_directory", "is_kernel", "name", "path", "tree")

    def __init__(self, tree: "Tree", path: bytes, directory: int, name: bytes, guard: Guard) -> None:
        self.tree = tree
        self.path = path
        self.directory = directory
        """The descriptor of the directory, for names only (``O_PATH``)."""
        self.name = name
        """Empty for that directory itself."""
        self.guard = guard
        self.is_directory = False
        """Whether the path ended with a slash: then it names a directory or nothing."""
        self.is_kernel = False
        """Whether the kernel shows itself here: nothing may be changed."""

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.directory)

    def named(self) -> bytes:
        """The name, for an act that needs one; raises `OSError` for the root, and for ``..``."""
        if not self.name:
            raise OSError(errno.EBUSY, "that is the directory itself, by no name")
        return self.name

    def stat(self) -> os.stat_result:
        """What is there, itself and not what it links to; raises `OSError` and `Barred`."""
        if not self.name:
            return os.fstat(self.directory)
        info = os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        self._check(info)
        return info

    def hold(self) -> tuple[int, os.stat_result]:
        """The same with a descriptor of it (``O_PATH``), which opens nothing."""
        handle = os.open(self.name or b".", _HOLD, dir_fd=self.directory)
        try:
            info = os.fstat(handle)
            if self.name:
                self._check(info)
                if stat.S_ISREG(info.st_mode):
                    self.guard.check_file(info)
        except BaseException:
            os.close(handle)
            raise
        return handle, info

    def _check(self, info: os.stat_result) -> None:
        if stat.S_ISDIR(info.st_mode):
            self.guard.check_directory(info)
        elif self.is_directory:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        self.is_kernel = self.tree.check_device(info.st_dev)

    def check_change(self) -> None:
        """Raises `OSError` where nothing may be changed, whoever asks."""
        if self.is_kernel:
            raise PermissionError(errno.EACCES, "what the kernel shows of itself and its processes is not written")

    def check_name(self) -> bytes:
        """The same for the name, when it is to mean something else or nothing; returns it."""
        self.check_change()
        name = self.named()
        self.guard.check_route(os.fstat(self.directory), os.fsdecode(name))
        return name


class Tree:
    """What is below a root. `protected` are paths of the machine that are out of reach."""

    def __init__(self, root: str, protected: Iterable[str] = ()) -> None:
        """Raises `OSError` if there is no such directory, or the kernel is too old; `Barred`."""
        self._guard = Guard(protected)
        self._is_owner = self._guard.is_open
        self._kernel: dict[int, bool] = {}
        self.root = os.open(root, _UP)
        try:
            info = os.fstat(self.root)
            self._root = (info.st_dev, info.st_ino)
            if shows_kernel(info.st_dev):
                raise Barred(RULE_KERNEL, "what the kernel shows of itself and its processes is not served")
            os.close(open_in_root(self.root, b"."))
            self._check_way(self.root, self._guard, to_top=True)
        except BaseException:
            os.close(self.root)
            raise

    def close(self) -> None:
        os.close(self.root)

    def reach(self, path: bytes, *, follow: bool) -> Place:
        """The place that `path` means; `follow` says whether a link there is followed.

        Raises `InvalidInputError` for what is no path, `Barred` and `OSError`.
        """
        if len(path) > MAX_PATH_BYTES:
            raise InvalidInputError(f"the path has more than {MAX_PATH_BYTES} bytes")
        if b"\0" in path:
            raise InvalidInputError("the path has a NUL in it")
        guard = self._guard = self._guard.fresh()
        for _ in range(MAX_LINKS + 1):
            above, name = _split(path)
            place = Place(self, path, open_in_root(self.root, above), name, guard)
            try:
                info = os.fstat(place.directory)
                place.is_kernel = self.check_device(info.st_dev)
                place.is_directory = path.endswith(b"/")
                self._check_way(place.directory, guard)
                if not name:
                    return place
                guard.check_entry(info, os.fsdecode(name))
                if not (follow or place.is_directory):
                    return place
                try:
                    target = os.readlink(name, dir_fd=place.directory)
                except OSError:  # no link, or nothing: whoever uses it finds out
                    return place
            except BaseException:
                os.close(place.directory)
                raise
            os.close(place.directory)
            path = (target if target.startswith(b"/") else above + b"/" + target) + b"/" * place.is_directory
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def is_root(self, info: os.stat_result) -> bool:
        """Whether that is the root itself."""
        return (info.st_dev, info.st_ino) == self._root

    def path_of(self, handle: int) -> bytes | None:
        """Where what is held by a descriptor is now, as a path below the root; None if it is not known."""
        root = os.readlink(b"/proc/self/fd/%d" % self.root).rstrip(b"/")
        path = os.readlink(b"/proc/self/fd/%d" % handle)
        return path[len(root) :] or b"/" if path == root or path.startswith(root + b"/") else None

    def check_device(self, device: int) -> bool:
        """Whether the kernel shows itself there; raises `Barred` if it does, and the caller may not see that."""
        if device == self._root[0]:
            return False
        if device not in self._kernel:
            self._kernel[device] = shows_kernel(device)
        if self._kernel[device] and not self._is_owner:
            raise Barred(RULE_KERNEL, "what the kernel shows of itself and its processes is not served")
        return self._kernel[device]

    def _check_way(self, directory: int, guard: Guard, *, to_top: bool = False) -> None:
        """Go up from `directory` to the root, or to the top of the machine, past nothing that is out of reach."""
        if guard.is_open:
            return
        here, last = os.dup(directory), None
        try:
            for _ in range(MAX_DEPTH):
                info = os.fstat(here)
                guard.check_directory(info)
                inode = (info.st_dev, info.st_ino)
                if self.is_root(info) and not to_top:
                    return
                if inode == last:
                    break
                above = os.open("..", _UP, dir_fd=here)
                os.close(here)
                here, last = above, inode
        finally:
            os.close(here)
        if not to_top:  # it has been moved out of the root since it was reached
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _split(path: bytes) -> tuple[bytes, bytes]:
    """The way to the directory, and the name in it; without a name where the path ends with the directory itself."""
    stripped = path.rstrip(b"/")
    above, _, name = stripped.rpartition(b"/")
    if name in (b"", b".", b".."):
        return stripped or b".", b""
    return above or b".", name
