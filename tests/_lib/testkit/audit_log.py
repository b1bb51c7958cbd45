"""An audit log to write, damage and open again, and the ways in which a log is damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from alknet.audit import GENESIS, AuditFile, line_hash
from alknet.audit_reader import Report, read_lines, verify
from alknet.clock import ManualClock
from alknet.state import MemoryState

__all__ = ["DAMAGES", "LINES", "Log", "double", "fill_disk", "insert", "remove", "rewrite", "swap"]

LINES = 6


class Log:
    """An audit log in a directory, with the state beside it, that can be closed and opened again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = MemoryState()
        self.clock = ManualClock()
        self.open()

    def open(self) -> "Log":
        self.file = AuditFile(self.directory, self.state, self.clock)
        return self

    def write(self, count: int = LINES) -> "Log":
        for number in range(count):
            self.file.write({"action": "test", "number": number})
        return self

    def reopen(self) -> "Log":
        self.file.close()
        return self.open()

    @property
    def path(self) -> Path:
        return self.directory / "audit.jsonl"

    @property
    def lines(self) -> list[bytes]:
        return self.path.read_bytes().splitlines(keepends=True)

    @lines.setter
    def lines(self, lines: list[bytes]) -> None:
        self.path.write_bytes(b"".join(lines))

    @property
    def numbers(self) -> list[int]:
        """`seq` of every line of every file."""
        return [json.loads(line)["seq"] for _, _, line in read_lines(self.directory)]

    @property
    def held_open(self) -> set[str]:
        """The log's files that this process holds open."""
        links = Path("/proc/self/fd")
        names = {os.readlink(links / fd) for fd in os.listdir(links) if (links / fd).is_symlink()}
        return {name for name in names if name.startswith(str(self.directory))}

    def verify(self) -> Report:
        return verify(self.directory, self.state.audit_head())

    def problems_with(self, content: bytes) -> tuple[str, ...]:
        """What `verify` says of other content; afterwards the log is as it was."""
        original = self.path.read_bytes()
        self.path.write_bytes(content)
        try:
            return self.verify().problems
        finally:
            self.path.write_bytes(original)


def remove(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], *lines[at + 1 :]]


def swap(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]


def double(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], lines[at], *lines[at:]]


def rewrite(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], lines[at].replace(b'"test"', b'"TEST"'), *lines[at + 1 :]]


def insert(lines: list[bytes], at: int) -> list[bytes]:
    """A forged line with the right number and the right hash in front of line `at`."""
    prev = line_hash(lines[at - 1].rstrip(b"\n")) if at else GENESIS
    return [*lines[:at], json.dumps({"seq": at + 1, "prev": prev}).encode() + b"\n", *lines[at:]]


def shortened(log: Log) -> None:
    log.lines = log.lines[:-2]


def cut_in_a_line(log: Log) -> None:
    log.path.write_bytes(log.path.read_bytes()[:-10])


def deleted(log: Log) -> None:
    log.path.unlink()


def emptied(log: Log) -> None:
    log.path.write_bytes(b"")


def last_line_rewritten(log: Log) -> None:
    log.lines = rewrite(log.lines, LINES - 1)


def last_line_damaged(log: Log) -> None:
    log.lines = [*log.lines[:-1], b"x" + log.lines[-1]]


DAMAGES = (shortened, cut_in_a_line, deleted, emptied, last_line_rewritten, last_line_damaged)

FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
from alknet.audit import AuditFile
from alknet.audit_reader import verify
from alknet.clock import ManualClock
from alknet.errors import AuditError
from alknet.state import MemoryState

directory, limit = Path(sys.argv[1]), int(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = MemoryState()
directory.mkdir()
(directory / "audit.jsonl").write_bytes(b'{"seq":1,"half a line')
log = AuditFile(directory, state, ManualClock())
log.write({"action": "before"})
size = (directory / "audit.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + limit, resource.RLIM_INFINITY))
refused = 0
for _ in range(3):
    try:
        log.write({"action": "while full"})
    except AuditError as exc:
        assert "cannot be written" in str(exc), exc
        refused += 1
sizes = size, (directory / "audit.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.write({"action": "after"})
log.close()
report = verify(directory, state.audit_head())
print(json.dumps({"refused": refused, "sizes": sizes, "lines": report.lines, "problems": report.problems}))
"""


def fill_disk(directory: Path, room: int) -> Any:
    """What a process saw that wrote while the disk took `room` more bytes only, and then again all."""
    command = [sys.executable, "-c", FULL_DISK, str(directory), str(room)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
