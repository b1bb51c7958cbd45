"""What a client has open: files and directories, each under a handle."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from alknet.ssh.files.failures import words_of
from alknet.ssh.files.listing import Listing
from alknet.ssh.files.packets import MAX_HANDLES, BadPacket

__all__ = ["Handles", "OpenDirectory", "OpenFile"]

HANDLE_BYTES: Final = 8
"""A number that is never given twice. It begins with a NUL, which no path has in it."""


class OpenFile:
    """A file, and the questions that were answered when it was opened."""

    __slots__ = ("can_read", "can_write", "carried", "fd", "numbers")

    def __init__(self, fd: int, numbers: tuple[int, ...], *, can_read: bool, can_write: bool) -> None:
        self.fd = fd
        self.numbers = numbers
        self.can_read = can_read
        self.can_write = can_write
        self.carried = 0
        """Bytes read and written."""

    def close(self) -> None:
        os.close(self.fd)


class OpenDirectory:
    """The same for a directory."""

    __slots__ = ("carried", "listing", "numbers")

    def __init__(self, listing: Listing, numbers: tuple[int, ...]) -> None:
        self.listing = listing
        self.numbers = numbers
        self.carried = 0

    @property
    def fd(self) -> int:
        return self.listing.fd

    def close(self) -> None:
        self.listing.close()


Done = Callable[[Iterable[int], str, int], None]
"""Says of some questions how what was allowed ended, and how many bytes were carried."""


class Handles:
    """Those of a session. `done` is called once for each, when it is let go of."""

    def __init__(self, done: Done) -> None:
        self._done = done
        self._open: dict[bytes, OpenFile | OpenDirectory] = {}
        self._last = 0

    def __iter__(self) -> Iterator[bytes]:
        return iter(tuple(self._open))

    def check_room(self) -> None:
        """Raises `OSError` when no more may be opened."""
        if len(self._open) >= MAX_HANDLES:
            raise OSError(errno.EMFILE, f"a session has at most {MAX_HANDLES} files and directories open")

    def add(self, found: OpenFile | OpenDirectory) -> bytes:
        """Its handle."""
        self._last += 1
        handle = self._last.to_bytes(HANDLE_BYTES, "big")
        self._open[handle] = found
        return handle

    def either(self, handle: bytes) -> OpenFile | OpenDirectory:
        """Raises `BadPacket`, as `file` and `directory` do."""
        if handle not in self._open:
            raise BadPacket("there is no such handle")
        return self._open[handle]

    def file(self, handle: bytes) -> OpenFile:
        found = self.either(handle)
        if not isinstance(found, OpenFile):
            raise BadPacket("that is a directory")
        return found

    def directory(self, handle: bytes) -> OpenDirectory:
        found = self.either(handle)
        if not isinstance(found, OpenDirectory):
            raise BadPacket("that is a file")
        return found

    def let_go(self, handle: bytes, outcome: str = "ok") -> None:
        """Close it; raises `BadPacket`, and `OSError` if what was written may be lost."""
        found = self.either(handle)
        del self._open[handle]
        try:
            found.close()
        except OSError as exc:
            outcome = words_of(exc)
            raise
        finally:
            self._done(found.numbers, outcome, found.carried)
