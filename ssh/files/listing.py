"""What is in a directory, a piece at a time: memory does not depend on how much that is."""

import os
import time
from collections.abc import Iterator
from typing import Final

from alknet.ssh.files.attributes import Names, encode_attributes, long_name
from alknet.ssh.files.packets import string

__all__ = ["MAX_ENTRIES", "MAX_LISTED_BYTES", "Listing"]

MAX_ENTRIES: Final = 512
"""Of one answer."""
MAX_LISTED_BYTES: Final = 128 * 1024
"""Of one answer; one entry more may begin below it. Twice a name of 255 bytes is far from what a packet may have."""


class Listing:
    """An open directory that is being listed, in the order of the file system; `fd` is this object's to close."""

    def __init__(self, fd: int, names: Names, *, is_root: bool) -> None:
        """`is_root`: nothing above it is to be seen."""
        self.fd = fd
        self._names = names
        self._is_root = is_root
        self._scan = os.scandir(fd)
        self._entries = self._found()

    def next_entries(self) -> list[bytes]:
        """The next entries as the protocol has them, none at the end; raises `OSError`."""
        entries: list[bytes] = []
        size, now = 0, time.time()
        for name, info in self._entries:
            entry = string(name) + string(long_name(name, info, self._names, now)) + encode_attributes(info)
            entries.append(entry)
            size += len(entry)
            if len(entries) == MAX_ENTRIES or size >= MAX_LISTED_BYTES:
                break
        return entries

    def close(self) -> None:
        self._scan.close()
        os.close(self.fd)

    def _found(self) -> Iterator[tuple[bytes, os.stat_result]]:
        here = os.fstat(self.fd)
        yield b".", here
        yield b"..", here if self._is_root else os.stat("..", dir_fd=self.fd)
        for entry in self._scan:
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # it has gone since it was listed
                continue
            yield os.fsencode(entry.name), info
