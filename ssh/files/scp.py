"""scp's older protocol, as the far side of ``scp -O``: files are taken in here, and sent by
:mod:`alknet.ssh.files.scp_source`.

What the client names is a name and never a path: it can fill the directory that it was let into, and nothing else.
"""

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from alknet.errors import BrokenError, DeniedError, InvalidInputError
from alknet.ssh.files.attributes import Attributes
from alknet.ssh.files.confined import Confined, write_all
from alknet.ssh.files.questions import WRITE, Questions
from alknet.ssh.files.scp_command import parse_scp_command
from alknet.ssh.files.scp_exchange import MAX_DEPTH, PIECE_BYTES, Exchange, Fatal
from alknet.ssh.files.scp_source import Source

__all__ = ["serve_scp"]

MAX_NAME_BYTES: Final = 255
MAX_SIZE: Final = (1 << 63) - 1
MAX_TIME_S: Final = (1 << 32) - 1
Times = tuple[int, int]


def serve_scp(
    command: str, files: Confined, questions: Questions, note: Callable[[str], None], *, stdin: int, stdout: int
) -> int:
    """Do what `command` says; returns how much of it failed. `note` gets refusals of the node."""
    exchange = Exchange(files, questions, note, stdin=stdin, stdout=stdout)
    try:
        wanted = parse_scp_command(command)
        if wanted.sends:
            Source(exchange, wanted).run()
        else:
            _Sink(exchange, is_recursive=wanted.is_recursive, keeps=wanted.keeps_times).run(
                wanted.paths[0].path, needs_directory=wanted.needs_directory
            )
    except (InvalidInputError, DeniedError) as exc:
        with suppress(BrokenError):
            exchange.complain(str(exc), fatal=True)
    return exchange.failures


class _Sink:
    """Takes in files."""

    def __init__(self, exchange: Exchange, *, is_recursive: bool, keeps: bool) -> None:
        self._exchange = exchange
        self._files = exchange.files
        self._is_recursive = is_recursive
        self._keeps = keeps
        """Whether modes are set whatever is there and whatever the process's mask says."""

    def run(self, target: bytes, *, needs_directory: bool) -> None:
        """Until the client ends; raises `Fatal`."""
        is_directory = self._is_directory(target)
        if needs_directory and not is_directory:
            raise Fatal(f"{target.decode('utf-8', 'replace')}: it is no directory")
        self._take(target, is_directory=is_directory, depth=0)

    def _is_directory(self, path: bytes) -> bool:
        try:
            return stat.S_ISDIR(self._exchange.reach(path, lambda: self._files.stat(path)).st_mode)
        except OSError:
            return False

    def _take(self, target: bytes, *, is_directory: bool, depth: int) -> None:
        """What is sent for one directory, or for one name."""
        exchange = self._exchange
        exchange.acknowledge()
        times: Times | None = None
        while first := bytes(exchange.receive(1)):
            if first in (b"\1", b"\2"):
                exchange.failures += 1
                exchange.receive_line()
                if first == b"\2":
                    raise Fatal("the client has given up")
                continue
            line = exchange.receive_line(first) if first != b"\n" else b""
            if line[:1] == b"E":
                if not depth:
                    raise Fatal("no directory has begun that could end")
                exchange.acknowledge()
                return
            if line[:1] == b"T":
                times = _times(line)
                exchange.acknowledge()
                continue
            kind, mode, size, name = _record(line)
            path = target.rstrip(b"/") + b"/" + name if is_directory else target
            with exchange.complaining(path):
                if kind == b"D":
                    self._take_directory(path, mode, times, depth)
                else:
                    self._take_file(path, mode, size, times)
            times = None
        if depth:
            raise Fatal("a directory has not ended")

    def _take_directory(self, path: bytes, mode: int, times: Times | None, depth: int) -> None:
        if not self._is_recursive:
            raise Fatal("a directory is sent, and scp was started without -r")
        if depth >= MAX_DEPTH:
            raise Fatal(f"more than {MAX_DEPTH} directories within each other")
        made = not self._is_directory(path)
        if made:
            with self._exchange.allowed(WRITE, path):
                self._files.make_directory(path, mode | stat.S_IRWXU)
        self._take(path, is_directory=True, depth=depth + 1)
        wanted = Attributes(mode=mode if self._keeps else None, times=times)
        if wanted.mode is not None or wanted.times is not None:
            with self._exchange.regretting(path), self._exchange.allowed(WRITE, path):
                self._files.change(path, wanted)

    def _take_file(self, path: bytes, mode: int, size: int, times: Times | None) -> None:
        exchange = self._exchange
        with exchange.allowed(WRITE, path) as carried:
            fd = self._files.open_file(path, os.O_WRONLY | os.O_CREAT, mode)
            try:
                exchange.acknowledge()
                failure = self._fill(fd, size, carried)
                is_sent_whole = exchange.was_acknowledged()
                if failure is not None:
                    raise failure
                if is_sent_whole:
                    wanted = Attributes(mode=mode if self._keeps else None, times=times)
                    self._files.change_open(fd, wanted)
            finally:
                os.close(fd)
        exchange.acknowledge()

    def _fill(self, fd: int, size: int, carried: list[int]) -> OSError | None:
        """Write what is sent. All of it is read, even if it cannot be written; then why not is returned."""
        failure: OSError | None = None
        offset = 0
        while offset < size:
            data = self._exchange.receive(min(size - offset, PIECE_BYTES))
            if not data:
                raise BrokenError("the client has gone")
            if failure is None:
                try:
                    write_all(fd, data, offset)
                    carried.append(len(data))
                except OSError as exc:
                    failure = exc
            offset += len(data)
        if failure is None and stat.S_ISREG(os.fstat(fd).st_mode):
            try:
                os.ftruncate(fd, size)
            except OSError as exc:
                failure = exc
        return failure


def _times(line: bytes) -> Times:
    """``Tmodified 0 accessed 0``; the result begins with the access."""
    numbers = [int(part) for part in line[1:].split(b" ") if part.isdigit() and len(part) <= 20]
    if len(numbers) != 4 or line.count(b" ") != 3 or max(numbers[0], numbers[2]) > MAX_TIME_S:
        raise Fatal("the times are not understood")
    return numbers[2], numbers[0]


def _record(line: bytes) -> tuple[bytes, int, int, bytes]:
    """``Cmode size name`` or ``Dmode 0 name``: kind, mode, size and name."""
    kind, fields = line[:1], line[1:].split(b" ", 2)
    if kind not in (b"C", b"D") or len(fields) != 3:
        raise Fatal("a record is expected")
    mode, size, name = fields
    if not (3 <= len(mode) <= 5 and all(byte in b"01234567" for byte in mode)):
        raise Fatal("the mode is not understood")
    if not (size.isdigit() and len(size) <= 20 and int(size) <= MAX_SIZE):
        raise Fatal("the size is not understood")
    is_name = b"/" not in name and name not in (b"", b".", b"..") and len(name) <= MAX_NAME_BYTES
    if not is_name or any(byte < 32 or byte == 127 for byte in name):
        raise Fatal("that is no name of a file")
    return kind, int(mode, 8) & 0o7777, int(size), name
