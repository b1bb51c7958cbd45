"""Removing a directory with all that is in it: looked through first, so that a refusal leaves it whole."""

import os
import stat
from contextlib import suppress
from itertools import islice
from typing import Final

from alknet.guard import Guard
from alknet.services.files_errors import TooLarge, WrongKind

__all__ = ["remove_tree"]

MAX_ENTRIES: Final = 10_000
MAX_DEPTH: Final = 64
"""Directories within each other; each one costs a descriptor."""

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def remove_tree(parent: int, name: str, guard: Guard, path: str) -> int:
    """Remove the directory `name` in `parent` (a descriptor) and return how many entries went.

    Nothing is removed of what has more than `MAX_ENTRIES`, is deeper than `MAX_DEPTH`, crosses into another file system
    or holds what is out of reach; raises `TooLarge`, `WrongKind`, `Barred` and `OSError`.
    """
    device = os.stat(name, dir_fd=parent, follow_symlinks=False).st_dev
    _Walk(guard, path, device, removes=False).go(parent, name, 1)
    walk = _Walk(guard, path, device, removes=True)
    walk.go(parent, name, 1)
    return walk.count


class _Walk:
    """One way through a tree, from the leaves up."""

    def __init__(self, guard: Guard, path: str, device: int, *, removes: bool) -> None:
        self.count = 0
        self._guard = guard
        self._path = path
        self._device = device
        self._removes = removes

    def go(self, parent: int, name: str, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise TooLarge(f"{self._path!r} has more than {MAX_DEPTH} directories within each other")
        self._guard.check_entry(os.fstat(parent), name)
        directory = os.open(name, _FLAGS, dir_fd=parent)
        try:
            info = os.fstat(directory)
            self._guard.check_directory(info)
            if info.st_dev != self._device:
                raise WrongKind(f"{self._path!r} has another file system in it")
            with os.scandir(directory) as entries:
                names = [entry.name for entry in islice(entries, MAX_ENTRIES + 1)]
            for inner in names:
                self._entry(directory, inner, depth)
        finally:
            os.close(directory)
        self._counted()
        if self._removes:
            with suppress(FileNotFoundError):
                os.rmdir(name, dir_fd=parent)

    def _entry(self, directory: int, name: str, depth: int) -> None:
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            self.go(directory, name, depth + 1)
            return
        self._guard.check_entry(os.fstat(directory), name)
        self._counted()
        if self._removes:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)

    def _counted(self) -> None:
        self.count += 1
        if self.count > MAX_ENTRIES:
            raise TooLarge(f"{self._path!r} has more than {MAX_ENTRIES} entries; remove parts of it first")
