"""Files sent by scp's older protocol."""

import os
import stat
from collections.abc import Iterator
from typing import Final

from alknet.ssh.files.questions import READ
from alknet.ssh.files.scp_command import Pattern, ScpCommand
from alknet.ssh.files.scp_exchange import MAX_DEPTH, PIECE_BYTES, Exchange

__all__ = ["Source"]

MAX_MATCHES: Final = 10_000
"""Paths that one wildcard stands for."""


class Source:
    """Sends what a client asked for."""

    def __init__(self, exchange: Exchange, wanted: ScpCommand) -> None:
        self._exchange = exchange
        self._files = exchange.files
        self._wanted = wanted
        self._piece = memoryview(bytearray(PIECE_BYTES))

    def run(self) -> None:
        """Until everything is sent; raises `Fatal`."""
        if not self._exchange.was_acknowledged():
            return
        for pattern in self._wanted.paths:
            with self._exchange.complaining(pattern.path):
                for path in self._expanded(pattern):
                    self._send(path, depth=0)

    def _expanded(self, pattern: Pattern) -> list[bytes]:
        """The paths that are meant, sorted; the text itself if there are none, as a shell has it."""
        if not pattern.has_wildcards:
            return [pattern.path]
        found = [b"/" if pattern.path.startswith(b"/") else b""]
        for part in pattern.parts():
            if not part.has_wildcards:
                found = [path + part.path + b"/" for path in found]
                continue
            found = [path + name + b"/" for path in found for name in self._names(path) if part.matches(name)]
            if len(found) > MAX_MATCHES:
                raise OSError(0, f"more than {MAX_MATCHES} files are meant")
        there = (path.rstrip(b"/") for path in found)
        return [path for path in there if self._is_there(path)] or [pattern.path]

    def _is_there(self, path: bytes) -> bool:
        try:
            self._exchange.reach(path, lambda: self._files.stat(path, follow=False))
        except OSError:
            return False
        return True

    def _names(self, path: bytes) -> list[bytes]:
        """What is in a directory; nothing if it is none."""
        try:
            with self._exchange.allowed(READ, path):
                fd = self._files.open_directory(path)
                try:
                    return sorted(map(os.fsencode, os.listdir(fd)))
                finally:
                    os.close(fd)
        except OSError:
            return []

    def _send(self, path: bytes, *, depth: int) -> None:
        with self._exchange.complaining(path):
            info = self._exchange.reach(path, lambda: self._files.stat(path))
            if stat.S_ISDIR(info.st_mode):
                self._send_directory(path, info, depth)
            else:
                self._send_file(path)

    def _send_directory(self, path: bytes, info: os.stat_result, depth: int) -> None:
        if not self._wanted.is_recursive:
            raise OSError(0, "not a regular file")
        if depth >= MAX_DEPTH:
            raise OSError(0, f"more than {MAX_DEPTH} directories within each other")
        with self._exchange.allowed(READ, path):
            fd = self._files.open_directory(path)
            try:
                if not self._begins(b"D", path, info, 0):
                    return
                with self._exchange.complaining(path):
                    for name in _names_in(fd):
                        self._send(path.rstrip(b"/") + b"/" + name, depth=depth + 1)
            finally:
                os.close(fd)
            self._exchange.send(b"E\n")
            self._exchange.was_acknowledged()

    def _send_file(self, path: bytes) -> None:
        with self._exchange.allowed(READ, path) as carried:
            fd = self._files.open_file(path, os.O_RDONLY)
            try:
                info = os.fstat(fd)
                if self._begins(b"C", path, info, info.st_size):
                    self._send_content(fd, info.st_size, carried)
                    self._exchange.was_acknowledged()
            finally:
                os.close(fd)

    def _begins(self, kind: bytes, path: bytes, info: os.stat_result, size: int) -> bool:
        """Say what comes; whether the client takes it."""
        name = path.rstrip(b"/").rpartition(b"/")[2]
        if name in (b"", b".", b".."):
            name = self._files.real_path(path).rpartition(b"/")[2] or b"."
        if any(byte < 32 or byte == 127 for byte in name):
            raise OSError(0, "a name with such characters cannot be sent")
        if self._wanted.keeps_times:
            self._exchange.send(b"T%d 0 %d 0\n" % (max(int(info.st_mtime), 0), max(int(info.st_atime), 0)))
            if not self._exchange.was_acknowledged():
                return False
        self._exchange.send(kind + b"%04o %d %s\n" % (stat.S_IMODE(info.st_mode), size, name))
        return self._exchange.was_acknowledged()

    def _send_content(self, fd: int, size: int, carried: list[int]) -> None:
        """As many bytes as were announced, with zeros for what cannot be read; then how it went."""
        sent, words = 0, ""
        while sent < size:
            piece = self._piece[: min(size - sent, PIECE_BYTES)]
            try:
                count = 0 if words else os.preadv(fd, [piece], sent)
                words = words or ("" if count else "it became shorter while it was sent")
            except OSError as exc:
                count, words = 0, (exc.strerror or "it cannot be read").lower()
            if words:
                piece[:] = bytes(len(piece))
                count = len(piece)
            self._exchange.send(piece[:count])
            sent += count
        carried.append(sent)
        if words:
            self._exchange.complain(words)
        else:
            self._exchange.acknowledge()


def _names_in(fd: int) -> Iterator[bytes]:
    with os.scandir(fd) as entries:
        for entry in entries:
            yield os.fsencode(entry.name)
