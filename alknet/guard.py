"""What is out of reach of those who are served files, whatever it is called and whoever serves it.

Some directories are: the node's home and its user's ``~/.ssh``, for everybody but an owner. They are known by what
they are (device and inode), so that neither a link, a second name nor a mount leads to them. And what the kernel shows
of itself and its processes is no file of anybody.
"""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

__all__ = ["KERNEL_FILES", "RULE_PROTECTED", "Barred", "Guard", "file_system", "shows_kernel"]

RULE_PROTECTED: Final = "fs.protected"
KERNEL_FILES: Final = frozenset(
    {"binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "efivarfs", "fusectl", "nsfs", "proc", "pstore"}
    | {"securityfs", "selinuxfs", "smackfs", "sysfs", "tracefs"}
)
"""File systems in which the kernel shows itself and its processes: the node's own memory and environment among them."""
MAX_LINKS: Final = 40
"""Links on the way to a path; the kernel's own limit."""
SETTLED_NS: Final = 1_000_000_000
"""A directory changed more recently than this may have changed again without a new time: its content is not kept."""

Inode = tuple[int, int]
"""Device and number: what a directory is, whatever it is called."""
Look = Callable[[str], os.stat_result]
Signature = tuple[tuple[int, ...] | None, ...]
"""What would be different if a protected path had changed: see `Guard.fresh`."""


class Barred(Exception):
    """An allowed act reaches for what its caller must not; `rule` is a rule of the access decision."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule = rule
        self.reason = reason


class Guard:
    """Directories that are out of reach with all that is in them: those at `paths`, and the ones directly below them.

    A guard is made for one act, from what is on the disk at that moment; `fresh` saves making one that would be equal.
    """

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._paths = tuple(paths)
        self._watched = tuple(_watched(self._paths))
        self._signature = self._signed()
        self._directories: dict[Inode, str] = {}
        self._entries: set[tuple[Inode, str]] = set()
        self._routes: set[tuple[Inode, str]] = set()
        self._files: dict[str, tuple[int, frozenset[Inode]]] = {}
        """By directory: when it was changed, and the files in it."""
        for path in self._paths:
            self._routes.update(_route(path))
            for spelling in _spellings(path):
                with suppress(OSError):
                    self._entries.add((_inode(os.stat(os.path.dirname(spelling))), os.path.basename(spelling)))
            with suppress(OSError):
                self._directories[_inode(os.stat(path))] = path
                with os.scandir(path) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            self._directories[_inode(entry.stat(follow_symlinks=False))] = entry.path

    @property
    def is_open(self) -> bool:
        """Whether nothing is out of reach."""
        return not self._paths

    def renewed(self) -> "Guard":
        """The same with the disk looked at again."""
        return Guard(self._paths)

    def fresh(self) -> "Guard":
        """This one, if the protected paths are as they were, else one made anew."""
        return self if self._signature is not None and self._signed() == self._signature else self.renewed()

    def check_directory(self, info: os.stat_result) -> None:
        """Raises `Barred`."""
        if _inode(info) in self._directories:
            raise _protected()

    def check_entry(self, parent: os.stat_result, name: str) -> None:
        """The same for a name, whether or not there is anything under it."""
        if (_inode(parent), name) in self._entries:
            raise _protected()

    def check_route(self, parent: os.stat_result, name: str) -> None:
        """The same for a name that is to mean something else: none on the way to a protected directory may, or that
        would no longer be where it is looked for."""
        if (_inode(parent), name) in self._routes:
            raise _protected()

    def check_file(self, info: os.stat_result) -> None:
        """A file may have a second name in a directory that is out of reach, or be mounted from there by itself."""
        inode = _inode(info)
        for path in self._directories.values():
            with suppress(OSError):
                if inode in self._files_in(path):
                    raise _protected()

    def _files_in(self, path: str) -> frozenset[Inode]:
        changed = os.stat(path).st_mtime_ns
        known = self._files.get(path)
        if known is not None and known[0] == changed:
            return known[1]
        found = set()
        with os.scandir(path) as entries:
            for entry in entries:  # what the directory itself says of numbers is not always what files say
                with suppress(OSError):
                    found.add(_inode(entry.stat(follow_symlinks=False)))
        files = frozenset(found)
        if time.time_ns() - changed > SETTLED_NS:
            self._files[path] = changed, files
        return files

    def _signed(self) -> Signature | None:
        """None when something was changed so recently that its times may not tell of the next change."""
        signs: list[tuple[int, ...] | None] = []
        now = time.time_ns()
        for look, path, is_protected in self._watched:
            try:
                info = look(path)
            except OSError:
                signs.append(None)
                continue
            if not is_protected:  # of the directory above only what it is: it may be a home, in which much changes
                signs.append(_inode(info))
            elif now - max(info.st_mtime_ns, info.st_ctime_ns) > SETTLED_NS:
                signs.append((*_inode(info), info.st_mtime_ns, info.st_ctime_ns))
            else:
                return None
        return tuple(signs)


def shows_kernel(device: int) -> bool:
    """Whether the file system with that number is one of `KERNEL_FILES`."""
    return file_system(device) in KERNEL_FILES


def file_system(device: int) -> str | None:
    """The type of a file system that is mounted, such as ``ext4``."""
    number = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields = line.split()
            if fields[2] == number:
                return fields[fields.index("-") + 1]
    return None


def _spellings(path: str) -> set[str]:
    """As the operator wrote it, and with the links followed."""
    return {os.path.abspath(path), os.path.realpath(path)}


def _watched(paths: Iterable[str]) -> Iterable[tuple[Look, str, bool]]:
    """What to look at, how, and whether it is the protected path itself."""
    for path in paths:
        yield os.lstat, path, True
        yield os.stat, path, True
        for above in {os.path.dirname(spelling) for spelling in _spellings(path)}:
            yield os.stat, above, False


def _route(path: str) -> Iterable[tuple[Inode, str]]:
    """Every name that is looked up on the way to `path`, and the directory in which it is; as far as there is one."""
    place, links = "/", 0
    rest = [part for part in os.path.abspath(path).split("/") if part]
    with suppress(OSError):
        while rest and links <= MAX_LINKS:
            name = rest.pop(0)
            if name == "..":
                place = os.path.dirname(place)
                continue
            yield _inode(os.stat(place)), name
            try:
                target = os.readlink(os.path.join(place, name))
            except OSError:  # no link, or nothing: the next name tells
                place = os.path.join(place, name)
                continue
            links += 1
            place = "/" if target.startswith("/") else place
            rest[:0] = [part for part in target.split("/") if part not in ("", ".")]


def _protected() -> Barred:
    reason = "the node's home and its user's ~/.ssh are out of reach for everybody but owner with the scope *"
    return Barred(RULE_PROTECTED, reason)


def _inode(info: os.stat_result) -> Inode:
    return info.st_dev, info.st_ino
