"""Getting to a file below a root, and to nothing else.

A path is walked name by name from directory to directory, each opened in the one before it and never through a symbolic
link; the name that is used last is used in a directory that is held open. So no ``..``, absolute path or link leaves a
root, and it makes no difference who renames or replaces what meanwhile. Names are taken as they are: no form of Unicode
is made equal to another.

Some directories are out of reach by what they are (device and inode), wherever they turn up: see :mod:`alknet.guard`.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Literal

from alknet.errors import InvalidInputError, NotFoundError
from alknet.gate import RULE_READ_ONLY
from alknet.guard import Barred, Guard, shows_kernel
from alknet.services.files_errors import WrongKind

__all__ = ["Root", "Roots", "Spot", "kind_of"]

MAX_PATH_CHARS: Final = 4096
DIRECTORY_MODE: Final = 0o755
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Root:
    """A directory that is served under a name. `path` is absolute and has no links in it, see `Root.of`."""

    name: str
    path: str
    writable: bool = True

    @classmethod
    def of(cls, name: str, path: str, *, writable: bool = True) -> "Root":
        """Links in the operator's own `path` are followed now and never again."""
        return cls(name, os.path.realpath(path), writable)


class Spot:
    """A name in a directory that is held open: what a path came to. Closed by `Roots.reach`."""

    def __init__(self, path: str, root: Root, directory: int, name: str | None, guard: Guard) -> None:
        self.path = path
        self.root = root
        self.directory = directory
        """The descriptor of the directory, for names only (``O_PATH``)."""
        self.name = name
        """None for a root itself, which is then the directory."""
        self.guard = guard

    def info(self) -> os.stat_result:
        """What is there, itself and not what it links to; raises `OSError`."""
        if self.name is None:
            return os.fstat(self.directory)
        return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)

    def open_file(self) -> tuple[int, os.stat_result]:
        """The file, for reading. Nothing else is ever opened: to open a device or a pipe can be an act in itself."""
        if self.name is None:
            raise WrongKind(f"{self.path!r} is a directory")
        handle = os.open(self.name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.directory)
        try:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode):
                raise WrongKind(f"{self.path!r} is a {_words(info)}")
            _check_device(info, os.fstat(self.directory), self.path)
            self.guard.check_file(info)
            # The very file that was looked at, whatever its name stands for by now.
            return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), info
        finally:
            os.close(handle)

    def check_directory(self) -> None:
        """Raises as `open_directory` does, and opens nothing."""
        if self.name is not None:
            os.close(_enter(self.directory, self.name, self.guard, self.path))

    def open_directory(self) -> int:
        """The directory, for listing."""
        inner = (
            os.dup(self.directory) if self.name is None else _enter(self.directory, self.name, self.guard, self.path)
        )
        try:
            return os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=inner)
        finally:
            os.close(inner)


class Roots:
    """The roots of a node; `protected` are the paths that only some callers may reach."""

    def __init__(self, roots: Iterable[Root], *, protected: Iterable[str] = ()) -> None:
        self._roots = {root.name: root for root in roots}
        self._protected = tuple(protected)

    def __iter__(self) -> Iterator[Root]:
        return iter(self._roots.values())

    @contextmanager
    def reach(
        self, path: str, *, everything: bool = False, write: bool = False, parents: bool = False
    ) -> Iterator[Spot]:
        """The spot that ``ROOT/NAME/NAME…`` means. `everything`: nothing is out of reach; `parents`: directories on the
        way are made.

        Raises `InvalidInputError` for what is no such path, `NotFoundError`, `WrongKind`, `Barred` and `OSError`.
        """
        name, names = self._split(path)
        root = self._roots.get(name)
        if root is None:
            there = ", ".join(sorted(self._roots)) or "none"
            raise NotFoundError(f"there is no root {name!r}", hint=f"a path begins with a root; there are: {there}")
        if write and not root.writable:
            raise Barred(RULE_READ_ONLY, f"the root {name!r} is read-only on this node")
        guard = Guard(() if everything else self._protected)
        directory = self._open_root(root, guard)
        try:
            for part in names[:-1]:
                inner = _enter(directory, part, guard, path, make=parents)
                os.close(directory)
                directory = inner
            if names:
                guard.check_entry(os.fstat(directory), names[-1])
            yield Spot(path, root, directory, names[-1] if names else None, guard)
        finally:
            os.close(directory)

    @staticmethod
    def _split(path: str) -> tuple[str, list[str]]:
        hint = "as in ROOT/directory/file, without '.' and '..'; fs/list without a path shows the roots"
        if len(path) > MAX_PATH_CHARS:
            raise InvalidInputError(f"path: it has more than {MAX_PATH_CHARS} characters")
        try:
            path.encode()
        except UnicodeEncodeError:
            raise InvalidInputError("path: it has half a surrogate pair in it") from None
        root, *names = path.removesuffix("/").split("/")
        if "\0" in path or not root or any(name in ("", ".", "..") for name in (root, *names)):
            raise InvalidInputError(f"path: {path!r} is not a path below a root", hint=hint)
        return root, names

    @staticmethod
    def _open_root(root: Root, guard: Guard) -> int:
        """From the top, so that a root is only what it was when it was configured, and in nothing that is barred."""
        directory = os.open("/", _DIRECTORY)
        try:
            for part in filter(None, root.path.split("/")):
                inner = _enter(directory, part, guard, root.name)
                os.close(directory)
                directory = inner
        except (OSError, WrongKind) as exc:
            os.close(directory)
            raise NotFoundError(f"the directory of the root {root.name!r} is not there") from exc
        except BaseException:
            os.close(directory)
            raise
        return directory


def kind_of(info: os.stat_result) -> Literal["file", "directory", "symlink", "special"]:
    """What it is; ``special`` is a pipe, a socket or a device."""
    match stat.S_IFMT(info.st_mode):
        case stat.S_IFREG:
            return "file"
        case stat.S_IFDIR:
            return "directory"
        case stat.S_IFLNK:
            return "symlink"
    return "special"


def _words(info: os.stat_result) -> str:
    """The same for people."""
    what = kind_of(info)
    return {"symlink": "symlink, and links are not followed", "special": "special file"}.get(what, what)


def _enter(parent: int, name: str, guard: Guard, path: str, *, make: bool = False) -> int:
    """The directory `name` in `parent`, for names only."""
    try:
        directory = os.open(name, _DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        if not make:
            raise NotFoundError(f"there is no {path!r}: the directory {name!r} is missing") from None
        return _make(parent, name, guard, path)
    except OSError as exc:
        if exc.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        raise WrongKind(f"{path!r}: {name!r} is no directory, it is a {_words(info)}") from None
    try:
        info = os.fstat(directory)
        _check_device(info, os.fstat(parent), path)
        guard.check_directory(info)
    except BaseException:
        os.close(directory)
        raise
    return directory


def _make(parent: int, name: str, guard: Guard, path: str) -> int:
    guard.check_entry(os.fstat(parent), name)
    with suppress(FileExistsError):
        os.mkdir(name, DIRECTORY_MODE, dir_fd=parent)
    try:
        # It may be what was out of reach before it was there, under a name that the file system takes for the same.
        return _enter(parent, name, guard.renewed(), path)
    except Barred:
        with suppress(OSError):
            os.rmdir(name, dir_fd=parent)
        raise


def _check_device(info: os.stat_result, parent: os.stat_result, path: str) -> None:
    if info.st_dev != parent.st_dev and shows_kernel(info.st_dev):
        raise WrongKind(f"{path!r}: what the kernel shows of itself and its processes is not served")
